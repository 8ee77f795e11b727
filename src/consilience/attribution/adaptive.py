"""Integrated Gradients to a stated error: each example gets as many nodes as its own map needs.

The parts of the line are halved, 4, 8, 16, 32, ..., so that the nodes of the trapezoid rule stay nodes, until the
*map* agrees with the one before. That its sum is complete says little: errors of single pixels cancel in it.
Nodes lie evenly in the root of the line, close to each other near the baseline, where slopes change fastest.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.affine import Prefix
from consilience.attribution.gradient import gradient
from consilience.attribution.line import WORTH, find_prefix, shared_by
from consilience.attribution.path import Nodes, mean_on_line, midpoints
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.tensors import Baseline, Score, check_batch, rows_per_chunk, slices, start_of

FIRST, USUAL = 4, 16  # nodes of the first estimate, and those that most examples of small networks need
BLOCK = 16  # examples at least, so that what a block asks for once weighs little

# The slope of a network of piecewise linear parts jumps on the line. The trapezoid rule moves each jump to the middle
# of its part. Parts of half the length h move it by h/4 of there, and leave it within h/4 of its place: a squared error
# of h^2/48 in the mean, where the squared step is h^2/16. So the error is 1/sqrt(3), 0.58 of the step in the mean over
# many jumps; on trained networks it is at most 0.75 of it for nine examples in ten. Of a smooth slope it is a third.
STEP_TO_ERROR = 0.75

Sums = Callable[[Int[Tensor, " k"], Nodes], Float[Tensor, "k c h w"]]
"""Weighted sums over the nodes of the slopes of some examples."""


class Estimate(NamedTuple):
    """Maps, and how far they are from the integral."""

    maps: Float[Tensor, "n c h w"]
    error: Float[Tensor, " n"]
    """In nine cases of ten, the most that the length of the map's error is, as a share of the map's own."""
    nodes: Int[Tensor, " n"]
    """Slopes that were taken of each example."""


@attribution(version=1, paper="sundararajan2017axiomatic", complete=())
def adaptive_integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    baseline: Baseline = 0.0,
    tolerance: Annotated[float, Meta(gt=0)] = 0.02,
    most: Annotated[int, Meta(ge=8)] = 512,
) -> Float[Tensor, "n c h w"]:
    """Integrated Gradients with nodes added until the map changes no more. NaN where the score is not finite.

    Each example's nodes are doubled, from 4 to 8, 16, 32 and so on, until the length of the map's estimated error is
    at most ``tolerance`` of the map's own. The estimate is made for slopes that jump, as those of ReLU networks do,
    and is an upper bound for nine examples in ten there; for smooth slopes it is too large. An example that would need
    more than ``most`` nodes keeps its last map; ``integrated_gradients_with_error`` returns the estimates too.

    Args:
        score: What is differentiated.
        baseline: Where the line starts, as in ``integrated_gradients``.
        tolerance: Largest length of a map's estimated error, as a share of the map's.
        most: Nodes of one example that are never exceeded.
    """
    return integrated_gradients_with_error(
        model, x, target, score=score, baseline=baseline, tolerance=tolerance, most=most
    ).maps


def integrated_gradients_with_error(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    baseline: Baseline = 0.0,
    tolerance: float = 0.02,
    most: int = 512,
) -> Estimate:
    """The maps of ``adaptive_integrated_gradients``, the estimated error of each and the nodes that it took.

    Raises:
        SpecError: ``most`` leaves no room for two estimates.
    """
    check_batch(model, x, target)
    if most < 2 * FIRST:
        raise SpecError(f"most: expected at least {2 * FIRST} nodes, found {most}; two estimates are compared")
    x = x.detach()
    result = Estimate(torch.empty_like(x), x.new_empty(len(x)), torch.empty(len(x), dtype=torch.int64, device=x.device))
    if len(x) == 0:
        return result
    start = start_of(x, baseline, model)
    prefix = find_prefix(model, x, start, target, score) if USUAL * len(x) >= WORTH else None
    at_once = rows_per_chunk(model, x)
    for block in slices(len(x), max(BLOCK, at_once)):
        sums = _sums(prefix, model, x[block], start[block], target[block], score, at_once)
        for whole, part in zip(result, _refined(sums, x[block] - start[block], tolerance, most), strict=True):
            whole[block] = part
    return result


def _sums(
    prefix: Prefix | None, model: nn.Module, x: Tensor, start: Tensor, target: Tensor, score: Score, at_once: int
) -> Sums:
    """Sums of slopes on the lines of a block, with the shared layers as long as the model keeps to them."""
    plain = functools.partial(gradient, score=score)

    def sums(rows: Tensor, nodes: Nodes) -> Tensor:
        begin = start[:1].expand(len(rows), *x.shape[1:]) if start.stride(0) == 0 else start[rows]
        part, classes, at, weights = x[rows], target[rows], nodes.at.to(x), nodes.weights.to(x)
        shared = prefix and shared_by(prefix, model, part, begin, classes, at, weights, score, at_once)
        return mean_on_line(plain, model, part, begin, classes, at, None, weights) if shared is None else shared

    return sums


def _refined(sums: Sums, way: Float[Tensor, "n c h w"], tolerance: float, most: int) -> Estimate:
    """The maps of one block, each refined until it agrees with the one before."""
    maps, error = torch.empty_like(way), way.new_empty(len(way))
    spent = torch.empty(len(way), dtype=torch.int64, device=way.device)
    rows, count = torch.arange(len(way), device=way.device), FIRST
    total = sums(rows, _ends(FIRST))
    coarse, before = way * total / FIRST, None
    while len(rows) and 2 * count <= most:
        total += sums(rows, _graded(midpoints(count)))
        count *= 2
        fine = way[rows] * total / count
        step = _share(fine - coarse, fine)
        steps = step if before is None else ((step**2 + (before / 2) ** 2) / 2).sqrt()  # two of them scatter less
        maps[rows], error[rows], spent[rows] = fine, STEP_TO_ERROR * steps, torch.full_like(rows, count)
        unfinished = error[rows] > tolerance  # not so where it is NaN: nothing would mend it
        rows, total, coarse, before = rows[unfinished], total[unfinished], fine[unfinished], step[unfinished]
    return Estimate(maps, error, spent)


def _share(step: Float[Tensor, "n c h w"], maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """The step's length as a share of the map's; no step is no share, also of a map of zeros."""
    length = step.flatten(1).norm(dim=1)
    return torch.where(length == 0, length, length / maps.flatten(1).norm(dim=1))


def _ends(parts: int) -> Nodes:
    """The nodes of the trapezoid rule; the baseline itself counts nothing, and the image half."""
    nodes = _graded(torch.arange(1, parts + 1, dtype=torch.float64) / parts)
    nodes.weights[-1] /= 2
    return nodes


def _graded(u: Float[Tensor, " k"]) -> Nodes:
    """Nodes that lie evenly in the root of the line, with the square's slope as weights; these sum to their number."""
    return Nodes(u**2, 2 * u)
