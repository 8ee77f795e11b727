"""Masks that cannot be but smooth: the smooth maximum of bumps on a grid, and images blurred where a mask is small."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import fold, unfold

from consilience.tensors import CHUNK_BYTES, slices

COLDNESS = 20.0  # how sharply the largest bump wins
LEVELS = 8  # of blur, from the most to none


class Bumps(NamedTuple):
    """How high a bump on each point of a grid is seen from each pixel around.

    A point stands in the middle of each cell of ``step`` x ``step`` pixels; cells cover the image. What a point gives
    to a pixel depends on the pixel's place in its cell and on how many cells away the point is, not on which cell it
    is. The points are mirrored at the border: no pixel is reached by fewer of them and no point reaches fewer pixels,
    or the mask would be drawn to the border.
    """

    kernel: Float[Tensor, "o s s"]
    """By the number of the neighbouring point, and the pixel's place in its cell."""
    down: Float[Tensor, "around i"]
    """Which point stands where, with the mirrored ones."""
    across: Float[Tensor, "beside j"]

    @property
    def step(self) -> int:
        """Side of a cell, in pixels."""
        return self.kernel.shape[1]

    @property
    def cells(self) -> tuple[int, int]:
        """How many there are, down and across, each with its point."""
        return self.down.shape[1], self.across.shape[1]

    @property
    def window(self) -> int:
        """How many points along a side reach a cell."""
        return self.down.shape[0] - self.down.shape[1] + 1


class Smooth(NamedTuple):
    """A smooth maximum, and what its derivative needs."""

    mask: Float[Tensor, "k h w"]
    cells: Float[Tensor, "k s s i j"]
    """The mask by the place in the cell, and by the cell."""
    scale: Float[Tensor, "k s s i j"]
    """The sum of exponentials that the maximum was divided by."""


def bumps(height: int, width: int, step: int, sigma: float, like: Tensor) -> Bumps:
    """Bumps ``exp(-2 max(0, d / sigma - 1/2)^2)`` of the distance ``d``, cut off beyond ``sigma`` and a cell."""
    radius = 1 + math.ceil(sigma / step)
    place = torch.arange(step) - (step - 1) / 2
    away = place.double() - step * torch.arange(-radius, radius + 1)[:, None]
    distance = torch.hypot(away[:, None, :, None], away[None, :, None, :])
    kernel = torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0) ** 2)
    sides = (_mirrored(-(-size // step), radius).to(like) for size in (height, width))
    return Bumps(kernel.flatten(0, 1).to(like), *sides)


def _mirrored(count: int, radius: int) -> Float[Tensor, "around i"]:
    """The matrix that lengthens a row by ``radius`` at both ends, as a mirror at its end shows it."""
    place = torch.arange(-radius, count + radius) % (2 * count)
    return torch.eye(count)[torch.minimum(place, 2 * count - 1 - place)]


def smooth_mask(points: Float[Tensor, "k i j"], of: Bumps) -> Smooth:
    """Smooth maximum at each pixel of the bumps that reach it, each as high as its point."""
    total = scale = points.new_zeros(())
    for bump, _ in _heights(points, of):
        each = bump.mul(COLDNESS).exp_()
        scale, total = scale + each.sum(1), total + each.mul_(bump).sum(1)
    cells = total / scale
    return Smooth(cells.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2), cells, scale)


def smooth_mask_gradient(
    points: Float[Tensor, "k i j"], of: Bumps, smooth: Smooth, slope: Float[Tensor, "k h w"]
) -> Float[Tensor, "k i j"]:
    """What a slope in the mask is in its points. The bumps, 81 times the mask, are made again rather than kept."""
    (down, across), step = of.cells, of.step
    share = slope.view(-1, down, step, across, step).permute(0, 2, 4, 1, 3) / smooth.scale
    found = []
    for bump, kernel in _heights(points, of):
        each = bump.mul(COLDNESS).exp_().mul_(share[:, None])
        each *= bump.sub_(smooth.cells[:, None]).mul_(COLDNESS).add_(1)
        found.append(torch.einsum("kostij,ost->koij", each, kernel))
    around = fold(torch.cat(found, 1).flatten(2), (len(of.down), len(of.across)), of.window)[:, 0]
    return of.down.mT @ around @ of.across


def _heights(points: Tensor, of: Bumps) -> Iterator[tuple[Tensor, Tensor]]:
    """The heights of some of the bumps at each pixel ``[k, o, s, s, i, j]``, and their kernels, within the budget."""
    mirrored = of.down @ points @ of.across.mT
    around = unfold(mirrored[:, None], of.window).view(len(points), -1, 1, 1, *of.cells)
    size = CHUNK_BYTES // (points.numel() * of.step**2 * points.element_size() or 1)
    for some in slices(len(of.kernel), max(1, size)):
        kernel = of.kernel[some]
        yield around[:, some] * kernel[:, :, :, None, None], kernel


def pyramid(x: Float[Tensor, "c h w"], blur: float) -> Float[Tensor, "l c h w"]:
    """The image blurred by ``blur`` pixels, less from level to level, and last as it is."""
    sigmas = [blur * (1 - level / (LEVELS - 1)) for level in range(LEVELS)]
    return torch.stack([smoothed(x, sigma, border="replicate") for sigma in sigmas])


def blended(
    levels: Float[Tensor, "k l c h w"], mask: Float[Tensor, "k h w"]
) -> tuple[Float[Tensor, "k c h w"], Float[Tensor, "k c h w"]]:
    """Each pixel from the level that the mask says, between two of them linearly, and its slope in the mask.

    A mask of 1 shows the image, of 0 the most blurred.
    """
    last = levels.shape[1] - 1
    at = mask * last
    low = at.floor().clamp(0, last - 1)  # so that a mask of 1 still has a slope
    index = low.nan_to_num(0).long()[:, None, None].expand(-1, 1, *levels.shape[2:])
    below, above = (levels.gather(1, index + one)[:, 0] for one in (0, 1))
    way = above - below
    return torch.addcmul(below, (at - low)[:, None], way), way * last


def smoothed(x: Float[Tensor, "... h w"], sigma: float, *, border: str) -> Float[Tensor, "... h w"]:
    """Convolution with a Gaussian of that deviation in pixels, cut off at four; beyond the border ``border``."""
    down, across = (_blur(size, sigma, border).to(x) for size in x.shape[-2:])
    return down @ x @ across.mT


def _blur(size: int, sigma: float, border: str) -> Float[Tensor, "size size"]:
    """What each pixel of a row gets of each: a matrix, so that a kernel may be wider than the image."""
    reach = math.ceil(4 * sigma)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset.double() / sigma) ** 2) if sigma > 0 else torch.ones(1, dtype=torch.float64)
    source = torch.arange(size)[:, None] + offset
    weight = (weight / weight.sum()).expand_as(source)
    if border == "zero":
        weight = weight * ((source >= 0) & (source < size))
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source.clamp(0, size - 1), weight)
