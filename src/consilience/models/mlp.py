"""Networks without a plane: every pixel has weights of its own."""

import itertools
import math
from collections import OrderedDict
from typing import Annotated

from msgspec import Meta
from torch import nn

from consilience.component import architecture


@architecture(version=1, paper="watson2022agree")
def mlp(
    shape: tuple[int, int, int],
    classes: int,
    *,
    hidden: tuple[Annotated[int, Meta(ge=1)], ...] = (412, 512),
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.25,
) -> nn.Module:
    """Fully connected layers with ReLU and dropout between them; 540,006 parameters on MNIST.

    Args:
        hidden: Units of each hidden layer.
        dropout: Share of units that a training step leaves out, after every hidden layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    widths = (math.prod(shape), *hidden)
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"fc{number}"] = nn.Linear(before, after)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"dropout{number}"] = nn.Dropout(dropout)
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(layers)


@architecture(version=1, paper="watson2022agree")
def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One linear layer, whose explanation is known: its weights."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc1=nn.Linear(math.prod(shape), classes)))
