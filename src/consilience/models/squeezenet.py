"""SqueezeNet: a small network for photos whose blocks squeeze their channels before they expand them."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.component import architecture
from consilience.errors import SpecError

LEAST = {"ceil": 17, "floor": 31}  # pixels a side of which four halvings leave one


class Conv(nn.Conv2d):
    """A convolution that starts as SqueezeNet's do: He's uniform weights, or narrow normal ones, and no bias."""

    def __init__(self, before: int, after: int, size: int, *, sd: float | None = None, stride: int = 1) -> None:
        self.sd = sd
        super().__init__(before, after, size, stride=stride, padding=size // 2 if stride == 1 else 0)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        if self.sd is None:
            nn.init.kaiming_uniform_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.sd)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Fire(nn.Module):
    """Few 1 x 1 filters, then 1 x 1 and 3 x 3 filters side by side, each with a ReLU."""

    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = Conv(before, squeezed, 1), nn.ReLU()
        self.expand1x1, self.expand1x1_activation = Conv(squeezed, expanded, 1), nn.ReLU()
        self.expand3x3, self.expand3x3_activation = Conv(squeezed, expanded, 3), nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Maps of twice as many channels as are expanded to."""
        x = self.squeeze_activation(self.squeeze(x))
        wide = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([self.expand1x1_activation(self.expand1x1(x)), wide], 1)


class SqueezeNet(nn.Module):
    """The layers in a row; a split model whose head is a 1 x 1 convolution and a mean over the plane."""

    split = True

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features, self.classifier = features, classifier

    def head(self, features: Float[Tensor, "n d i j"]) -> Float[Tensor, "n k"]:
        """Logits of the last maps that have 512 channels."""
        logits: Tensor = self.classifier(features)
        return logits.flatten(1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, none of them negative."""
        return self.head(self.features(x))


@architecture(version=1, paper="iandola2016squeezenet")
def squeezenet1_1(
    shape: tuple[int, int, int], classes: int, *, pooling: Literal["ceil", "floor"] = "ceil"
) -> nn.Module:
    """A convolution, eight Fire blocks and a convolution for the classes; 1,235,496 parameters on ImageNet.

    Names of weights are torchvision's, and any size of image that is large enough goes in. Its last operation before
    the mean over the plane is a ReLU: no logit is negative, and one that is 0 everywhere has no slope.

    Args:
        pooling: Whether the windows of max-pools may reach over the edge (``ceil``, as in torchvision and Caffe) or
            end before it (``floor``, as in the weights that came from Keras).

    Raises:
        SpecError: Nothing would be left of the image.
    """
    if min(shape[1:]) < LEAST[pooling]:
        raise SpecError(
            f"squeezenet1_1: expected images of at least {LEAST[pooling]} x {LEAST[pooling]} pixels, found "
            f"{shape[1]} x {shape[2]}; enlarge them, or choose 'cnn'"
        )

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=pooling == "ceil")

    return SqueezeNet(
        nn.Sequential(
            Conv(shape[0], 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64),
            pool(), Fire(128, 32, 128), Fire(256, 32, 128),
            pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        ),
        nn.Sequential(nn.Dropout(0.5), Conv(512, classes, 1, sd=0.01), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
    )  # fmt: skip
