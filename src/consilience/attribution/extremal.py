"""Attribution by the smooth mask of a given area that keeps the score highest."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.gradient import scored, slope_of
from consilience.attribution.masked import passes
from consilience.attribution.scores import logit
from consilience.attribution.smooth_masks import (
    Bumps,
    blended,
    bumps,
    pyramid,
    smooth_mask,
    smooth_mask_gradient,
    smoothed,
)
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.tensors import Score, check_batch

RATE, MOMENTUM = 0.01, 0.9
EQUAL = 1e-3  # smaller differences between pixels do not order them: the search would blow up rounding
PENALTY, GROWTH = 300.0, 1.0035  # of missing the area, at first, and from one iteration to the next


@attribution(version=1, paper="fong2019understanding")
def extremal_perturbation(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    areas: tuple[Annotated[float, Meta(gt=0, lt=1)], ...] = (0.025, 0.05, 0.1, 0.2),
    iterations: Annotated[int, Meta(ge=1)] = 800,
    step: Annotated[float, Meta(gt=0, le=1)] = 1 / 32,
    sigma: Annotated[float, Meta(gt=0, le=1)] = 3 / 32,
    blur: Annotated[float, Meta(gt=0, le=1)] = 0.09,
    smooth: Annotated[float, Meta(ge=0, le=1)] = 0.09,
    mirror: bool = True,
) -> Float[Tensor, "n 1 h w"]:
    """Sum over areas of the smooth mask of that area that keeps the score highest, smoothed; NaN where a score is.

    Where the mask is 1 the image stays, where it is 0 it is blurred most. The mask is the smooth maximum of bumps on
    a grid, so it cannot be but smooth; a penalty on the sorted mask, which grows, brings it to its area. Each image
    and area is searched by itself, from a mask of ones, by gradient ascent with momentum, and without chance.
    Lengths are shares of the image's shorter side: at 224 pixels the defaults are the published 7 (``step``), 21
    (``sigma``) and 20 (``blur``), at 28 pixels 1, 2.6 and 2.5; up to 47 pixels each pixel has a point. A single bump
    covers about ``4 sigma^2``, 0.035 of a square image: a smaller area comes out larger, and faint. A map shows
    where, not how much: without any evidence a mask still has its area. It is the paper's preservation game; the
    cost is ``iterations`` gradients for each area.

    Constants are those of TorchRay, the authors' code. TorchRay lets the mask reach beyond the border and counts that
    margin as area; here the points are mirrored at the border, and the area is a share of the image.

    Args:
        score: What the mask keeps high.
        areas: Share of the image that each mask leaves; in the paper also smaller ones for COCO, from 0.018.
        iterations: Steps of gradient ascent for each area.
        step: Distance between the points of the grid, at least one pixel.
        sigma: Reach of a point's bump.
        blur: Deviation of the Gaussian where the mask is 0; it falls to none, where it is 1, on eight levels.
        smooth: Deviation of the Gaussian that smooths the sum of the masks; beyond the border they are 0.
        mirror: Show every other iteration the masked image mirrored, left to right; wrong where left and right
            differ in meaning, as in digits.
    """
    check_batch(model, x, target)
    if (
        not areas
        or not all(0 < area < 1 for area in areas)
        or iterations < 1
        or min(step, sigma, blur) <= 0
        or smooth < 0
    ):
        raise SpecError(
            "extremal_perturbation: expected areas between 0 and 1, at least one iteration and positive lengths, found "
            f"areas {areas}, iterations {iterations}, step {step}, sigma {sigma}, blur {blur}, smooth {smooth}; "
            "give shares of the image"
        )
    x, (height, width) = x.detach(), x.shape[2:]
    side = min(height, width)
    of = bumps(height, width, max(1, round(step * side)), sigma * side, x)
    maps = x.new_zeros(len(x), len(areas), height, width)
    for some, part in passes(model, x, len(areas)):
        levels = torch.stack([pyramid(image, blur * side) for image in x[some]])
        maps[some, part] = _search(model, score, levels, target[some], areas[part], of, iterations, mirror)
    return smoothed(maps.sum(1, keepdim=True), smooth * side, border="zero")


def _search(
    model: nn.Module,
    score: Score,
    levels: Float[Tensor, "n l c h w"],
    target: Int[Tensor, " n"],
    areas: tuple[float, ...],
    of: Bumps,
    iterations: int,
    mirror: bool,
) -> Float[Tensor, "n a h w"]:
    """For each image and area the mask that keeps the score highest, by gradient ascent from a mask of ones."""
    one, several = len(areas), len(areas) * len(levels)
    levels, target = levels.repeat_interleave(one, 0), target.repeat_interleave(one)
    kept = torch.tensor(areas * (several // one), dtype=torch.float64, device=levels.device)
    height, width = levels.shape[3:]
    points = levels.new_ones(several, *of.cells)
    speed, penalty = torch.zeros_like(points), PENALTY
    for iteration in range(iterations):
        smooth = smooth_mask(points, of)
        slope = 2 * penalty / smooth.mask[0].numel() * (nearest(smooth.mask, kept) - smooth.mask)
        slope[:, :height, :width] += _slope(
            model, score, levels, target, smooth.mask[:, :height, :width], mirror and iteration % 2 == 0
        )
        change = smooth_mask_gradient(points, of, smooth, slope)
        speed = change if iteration == 0 else MOMENTUM * speed + (1 - MOMENTUM) * change
        points = (points + RATE * speed).clamp(0, 1)
        penalty *= GROWTH
    return smooth_mask(points, of).mask[:, :height, :width].reshape(-1, one, height, width)


def _slope(
    model: nn.Module, score: Score, levels: Tensor, target: Tensor, mask: Tensor, mirrored: bool
) -> Float[Tensor, "k h w"]:
    """Derivative of each masked image's score in its mask."""
    images, change = blended(levels, mask)
    with torch.enable_grad():
        images.requires_grad_()
        answer = scored(model(images.flip(3) if mirrored else images), target, score)
        return (slope_of(answer, images) * change).sum(1)


def nearest(mask: Float[Tensor, "k h w"], areas: Float[Tensor, " k"]) -> Float[Tensor, "k h w"]:
    """The mask of zeros and ones, of that area, to which sorting brings each mask.

    The paper compares the sorted mask with zeros followed by ones. Equal pixels have no order: they share what
    stands at their places, or the order of memory would decide which part of a flat image is kept.
    """
    flat = mask.flatten(1)
    zeros = (flat.shape[1] * (1 - areas)).long().clamp(max=flat.shape[1] - 1)
    ordered = flat.sort(1).values
    first, last = torch.searchsorted(ordered, flat - EQUAL), torch.searchsorted(ordered, flat + EQUAL, right=True)
    ones = (last - torch.maximum(first, zeros[:, None])).clamp(min=0)
    return (ones / (last - first)).to(mask).view_as(mask)
