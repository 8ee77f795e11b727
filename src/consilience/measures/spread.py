"""Where the twins of a family disagree: their mean map, and pixel by pixel how far they scatter around it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from consilience.errors import SpecError


class Spread(NamedTuple):
    """Of each pixel, over twins. NaN where the map of a twin is not finite there."""

    mean: Float[Tensor, "n c h w"]
    deviation: Float[Tensor, "n c h w"]
    """The sample's (divided by the number of twins less one), in the maps' own unit."""
    agreement_of_sign: Float[Tensor, "n c h w"]
    """By which share of the twins one sign outnumbers the other: 1 where all have one sign, 0 where as many speak
    for the class as against it. A zero speaks for neither."""


def spread(family: Sequence[Float[Tensor, "n c h w"]]) -> Spread:
    """Mean, deviation and agreement of signs of a family's maps at each pixel; NaN where a twin's is undefined.

    Each twin's maps are fetched once and not kept. The sums are Welford's, in double precision, and come back in
    the type of the maps.

    Raises:
        SpecError: There are fewer than two twins, or their maps have different shapes.
    """
    if len(family) < 2:
        raise SpecError(f"spread: expected the maps of two or more twins, found {len(family)}; train further twins")
    for count in range(len(family)):
        maps = family[count]
        if count == 0:
            kind, mean = maps.dtype, torch.zeros_like(maps, dtype=torch.float64)
            squares, signs = torch.zeros_like(mean), torch.zeros_like(mean)
        if maps.shape != mean.shape:
            raise SpecError(
                f"spread: expected twins' maps of the same examples, found {list(mean.shape)} and "
                f"{list(maps.shape)}; explain the same images by the same method"
            )
        values = maps.double().where(maps.isfinite(), torch.nan)
        off = values - mean
        mean += off / (count + 1)
        squares += off * (values - mean)
        signs += values.sign().where(values.isfinite(), torch.nan)  # the sign of NaN is 0
    deviation = (squares / (len(family) - 1)).sqrt()
    return Spread(mean.to(kind), deviation.to(kind), (signs.abs() / len(family)).to(kind))
