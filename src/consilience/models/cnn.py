"""Small convolutional networks: 3 x 3 filters without padding, one pooling, one or two linear layers."""

from typing import Annotated

from msgspec import Meta
from torch import nn

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.split import SplitModel


@architecture(version=1, paper="watson2022agree")
def small_cnn(
    shape: tuple[int, int, int], classes: int, *, dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.25
) -> nn.Module:
    """One convolution of 32 filters and one linear layer; 54,410 parameters on MNIST.

    Args:
        dropout: Share of whole maps that a training step leaves out, after the pooling.
    """
    height, width = _pooled("small_cnn", shape, convolutions=1)
    return SplitModel(
        features={
            "conv1": nn.Conv2d(shape[0], 32, 3),
            "relu1": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "dropout1": nn.Dropout2d(dropout),
        },
        head={"flatten": nn.Flatten(), "fc1": nn.Linear(32 * height * width, classes)},
    )


@architecture(version=1, paper="watson2022agree")
def cnn(shape: tuple[int, int, int], classes: int, *, dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.25) -> nn.Module:
    """Two convolutions of 32 and 64 filters and two linear layers; 1,199,882 parameters on MNIST.

    Args:
        dropout: Share of whole maps left out after the pooling, and of units before the last layer.
    """
    height, width = _pooled("cnn", shape, convolutions=2)
    return SplitModel(
        features={
            "conv1": nn.Conv2d(shape[0], 32, 3),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(32, 64, 3),
            "relu2": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "dropout1": nn.Dropout2d(dropout),
        },
        head={
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(64 * height * width, 128),
            "relu3": nn.ReLU(),
            "dropout2": nn.Dropout(dropout),
            "fc2": nn.Linear(128, classes),
        },
    )


def _pooled(name: str, shape: tuple[int, int, int], *, convolutions: int) -> tuple[int, int]:
    """Height and width after the pooling.

    Raises:
        SpecError: Nothing would be left of the image.
    """
    _, height, width = shape
    lost = 2 * convolutions
    if min(height, width) < lost + 2:
        raise SpecError(
            f"{name}: expected images of at least {lost + 2} x {lost + 2} pixels, found {height} x {width}; "
            "enlarge them, or choose 'mlp'"
        )
    return (height - lost) // 2, (width - lost) // 2
