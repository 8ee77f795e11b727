"""Augmentations: images as they could have been as well, drawn anew for every example."""

from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import pad

from consilience.component import augmentation
from consilience.rng import Rng


@augmentation(version=1)
def shift(x: Float[Tensor, "n c h w"], rng: Rng, *, pixels: Annotated[int, Meta(ge=1)] = 2) -> Float[Tensor, "n c h w"]:
    """Every image moved by whole pixels of its own, down or up and right or left; what comes in is zero.

    Args:
        pixels: The farthest an image moves in each direction; all distances up to it are equally likely.
    """
    n, channels, height, width = x.shape
    down, right = (rng.at("shift").integers(2 * pixels + 1, 2, device=x.device) - pixels).unbind(1)
    image, channel, row, column = (torch.arange(size, device=x.device) for size in (n, channels, height, width))
    return pad(x, (pixels,) * 4)[
        image[:, None, None, None],
        channel[:, None, None],
        (row + pixels - down[:, None])[:, None, :, None],
        (column + pixels - right[:, None])[:, None, None, :],
    ]
