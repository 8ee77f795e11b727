"""Residual networks: blocks around which what came in is carried, and added to what they made of it."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from consilience.component import architecture
from consilience.models.split import SplitModel

Stem = Literal["imagenet", "small"]
"""How an image is taken in: at a quarter of its size, or at its own."""

Pool = Literal["mean", "max"]
"""How the last maps become a number each."""


class Conv(nn.Conv2d):
    """A convolution without bias that starts as ResNet's do: He's normal weights, scaled by its outputs."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride=stride, padding=size // 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Basic(nn.Module):
    """Two 3 x 3 convolutions. Each ReLU is a module of its own and none is in place, for tools that need that."""

    widening = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = Conv(before, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = Conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        self.downsample = _carried(before, width, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Maps of ``width`` channels, the stride smaller."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """A 3 x 3 convolution, which has the stride, between one that narrows and one that widens."""

    widening = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = width * self.widening
        self.conv1, self.bn1, self.relu1 = Conv(before, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = Conv(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = Conv(width, after, 1), nn.BatchNorm2d(after), nn.ReLU()
        self.downsample = _carried(before, after, stride)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Maps of four times ``width`` channels, the stride smaller."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu3(y + self.downsample(x))
        return out


class GlobalMaxPool2d(nn.Module):
    """The largest value of each map; torch's adaptive pooling has no deterministic gradient on a GPU."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        """Maps of one pixel."""
        return F.max_pool2d(x, x.shape[2:])


@architecture(version=1, paper="he2016deep")
def resnet18(shape: tuple[int, int, int], classes: int, *, stem: Stem = "imagenet", pool: Pool = "mean") -> nn.Module:
    """Eight blocks of two convolutions and one linear layer; 11,175,370 parameters on MNIST.

    Names of weights and how they start are torchvision's. An image of any size goes in. Of a digit with 28 x 28 pixels
    the last maps are 1 x 1: a training step then needs two examples, since batch norm does, and a class-activation map
    a layer further below, or the small stem.

    Args:
        stem: ``imagenet`` halves the image in a 7 x 7 convolution and again in a max-pool; ``small`` has one of 3 x 3
            that keeps its size, and no pool.
        pool: Whether the linear layer is given the mean of each last map or its maximum.
    """
    return _resnet(Basic, (2, 2, 2, 2), shape, classes, stem, pool)


@architecture(version=1, paper="he2016deep")
def resnet50(shape: tuple[int, int, int], classes: int, *, stem: Stem = "imagenet", pool: Pool = "mean") -> nn.Module:
    """Sixteen blocks of three convolutions and one linear layer; 25,557,032 parameters on ImageNet.

    Names of weights and how they start are torchvision's, and so is the place of the stride, in a block's 3 x 3
    convolution; it is in the first in the paper. An image of any size goes in.

    Args:
        stem: ``imagenet`` halves the image in a 7 x 7 convolution and again in a max-pool; ``small`` has one of 3 x 3
            that keeps its size, and no pool.
        pool: Whether the linear layer is given the mean of each last map or its maximum.
    """
    return _resnet(Bottleneck, (3, 4, 6, 3), shape, classes, stem, pool)


def _resnet(
    block: type[Basic | Bottleneck],
    counts: Sequence[int],
    shape: tuple[int, int, int],
    classes: int,
    stem: Stem,
    pool: Pool,
) -> SplitModel:
    large, before = stem == "imagenet", 64
    features: dict[str, nn.Module] = {
        "conv1": Conv(shape[0], before, 7, stride=2) if large else Conv(shape[0], before, 3),
        "bn1": nn.BatchNorm2d(before),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity(),
    }
    for place, count in enumerate(counts):
        width, strides = 64 * 2**place, [1 if place == 0 else 2] + [1] * (count - 1)
        befores = [before] + [width * block.widening] * (count - 1)
        blocks = [block(each, width, stride) for each, stride in zip(befores, strides, strict=True)]
        features[f"layer{place + 1}"] = nn.Sequential(*blocks)
        before = width * block.widening
    last = nn.AdaptiveAvgPool2d(1) if pool == "mean" else GlobalMaxPool2d()
    return SplitModel(features, {"avgpool": last, "flatten": nn.Flatten(), "fc": nn.Linear(before, classes)})


def _carried(before: int, after: int, stride: int) -> nn.Module:
    """What came into a block, in the shape of what comes out."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(Conv(before, after, 1, stride), nn.BatchNorm2d(after))
