"""DenseNet: every layer of a block sees what all layers before it made."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.component import architecture
from consilience.errors import SpecError

LEAST = 29  # pixels a side of which five halvings, three of them without padding, leave one


class Conv(nn.Conv2d):
    """A convolution without bias that starts as DenseNet's do: He's normal weights, scaled by its inputs."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride=stride, padding=size // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.kaiming_normal_(self.weight)


class Classifier(nn.Linear):
    """A linear layer that starts without bias."""

    def reset_parameters(self) -> None:
        """Draw the weights."""
        super().reset_parameters()
        nn.init.zeros_(self.bias)


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a convolution, twice: 1 x 1 to four times as many maps as the 3 x 3 makes."""

    def __init__(self, before: int, grown: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(before), nn.ReLU(), Conv(before, 4 * grown, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(4 * grown), nn.ReLU(), Conv(4 * grown, grown, 3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """The new maps alone."""
        narrow = self.conv1(self.relu1(self.norm1(x)))
        new: Tensor = self.conv2(self.relu2(self.norm2(narrow)))
        return new


class DenseBlock(nn.Module):
    """Layers in a row, each of which adds its maps to those it was given."""

    def __init__(self, before: int, grown: int, count: int) -> None:
        super().__init__()
        for place in range(count):
            self.add_module(f"denselayer{place + 1}", DenseLayer(before + place * grown, grown))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """What came in and all new maps."""
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class DenseNet(nn.Module):
    """The blocks in a row; a split model whose head is a ReLU, a mean over the plane and a linear layer."""

    split = True

    def __init__(self, features: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.features, self.relu, self.avgpool = features, nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.classifier = nn.Flatten(), classifier

    def head(self, features: Float[Tensor, "n d i j"]) -> Float[Tensor, "n k"]:
        """Logits of the last maps, which are batch norm's: the ReLU is the head's."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.relu(features))))
        return logits

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


@architecture(version=1, paper="huang2017densely")
def densenet121(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """58 dense layers in four blocks and one linear layer; 6,955,906 parameters for photos of two classes.

    Names of weights and how they start are torchvision's, and any size of image that is large enough goes in.

    Raises:
        SpecError: Nothing would be left of the image.
    """
    if min(shape[1:]) < LEAST:
        raise SpecError(
            f"densenet121: expected images of at least {LEAST} x {LEAST} pixels, found {shape[1]} x {shape[2]}; "
            "enlarge them, or choose 'resnet18'"
        )
    width, grown = 64, 32
    layers: dict[str, nn.Module] = {
        "conv0": Conv(shape[0], width, 7, stride=2),
        "norm0": nn.BatchNorm2d(width),
        "relu0": nn.ReLU(),
        "pool0": nn.MaxPool2d(3, 2, padding=1),
    }
    for place, count in enumerate((6, 12, 24, 16), 1):
        layers[f"denseblock{place}"] = DenseBlock(width, grown, count)
        width += count * grown
        if place < 4:
            layers[f"transition{place}"] = _transition(width)
            width //= 2
    layers["norm5"] = nn.BatchNorm2d(width)
    return DenseNet(nn.Sequential(OrderedDict(layers)), Classifier(width, classes))


def _transition(before: int) -> nn.Sequential:
    """Half as many maps, half as large."""
    layers: dict[str, nn.Module] = {
        "norm": nn.BatchNorm2d(before),
        "relu": nn.ReLU(),
        "conv": Conv(before, before // 2, 1),
        "pool": nn.AvgPool2d(2),
    }
    return nn.Sequential(OrderedDict(layers))
