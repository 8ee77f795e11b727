"""Maps in the place of images: what a network can tell of an image's class from its explanation alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from consilience.data.examples import Arrays, Examples


def maps_as_images(maps: Float[Tensor, "n c h w"], label: Int[Tensor, " n"], classes: tuple[str, ...]) -> Examples:
    """Each map as an image in [0, 1]: 0 becomes 0.5, the largest absolute value 0 or 1. A map that is NaN is grey.

    So nothing of a map is left but its pattern: how large its values are says nothing of the class any more.
    """
    largest = maps.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    pixels = 0.5 + maps / (2 * torch.where(largest > 0, largest, 1))
    pixels = torch.where(pixels.isfinite(), pixels, 0.5).float().clamp(0, 1)
    flat = pixels.transpose(0, 1).flatten(1)
    mean, sd = flat.mean(1), flat.std(1, correction=0)
    sd = torch.where(sd > 0, sd, 1)
    return Arrays(pixels, label, classes, tuple(mean.tolist()), tuple(sd.tolist()))
