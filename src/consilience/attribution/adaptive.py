"""Integrated Gradients to a stated error: each example gets as many nodes as its own map needs, where it needs them.

The line is cut into four sections, and each section into 1, 2, 4, 8, ... parts: every part is cut in half, so that the
nodes of the trapezoid rule stay nodes, until the *map* agrees with the one before; first in the sections that change it
most for their nodes. That a map's sum is complete says little: errors of single pixels cancel in it. A place ``u`` on
the line is its point ``u ** 1.5``: nodes are closer to each other near the baseline, where slopes change fastest.
"""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.affine import Prefix
from consilience.attribution.gradient import gradient
from consilience.attribution.line import WORTH, find_prefix, lines_of, sum_on_lines
from consilience.attribution.path import mean_on_line, midpoints
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.tensors import Baseline, Score, check_batch, rows_per_chunk, slices, start_of

GRADE = 1.5  # of the line's points by place; evenly in the root (2) is worse for digits, evenly (1) for photos
SECTIONS, USUAL = 4, 16  # parts of the line that are refined apart; nodes that most examples of small networks need
LEAST = 2 * SECTIONS  # nodes of the first estimate: the sections' ends and middles
LITTLE = 1 / 16  # of the best section's gain a node, and less: not worth its nodes yet
SMALL = 1e-12  # length of a map, also to one over it, that single precision squares without loss
BLOCK, BLOCK_BYTES = 16, 4 * 2**20  # examples that are refined together, as far as their pixels take no more

# The slope of a network of piecewise linear parts jumps on the line. The trapezoid rule moves each jump to the middle
# of its part. Parts of half the length h move it by h/4 of there, and leave it within h/4 of its place: a squared error
# of h^2/48 in the mean, where the squared step is h^2/16. So the error is 1/sqrt(3), 0.58 of the step in the mean over
# many jumps; on trained networks it is at most 0.75 of it for nine examples in ten. Of a smooth slope it is a third.
STEP_TO_ERROR = 0.75

Means = Callable[[Int[Tensor, " r"], Float[Tensor, "r k"]], Float[Tensor, "r c h w"]]
"""Mean slopes of some of the examples by their place, each at places of its own; an example may stand several times."""


class Estimate(NamedTuple):
    """Maps, and how far they are from the integral."""

    maps: Float[Tensor, "n c h w"]
    error: Float[Tensor, " n"]
    """In nine cases of ten, the most that the length of the map's error is, as a share of the map's own.

    It is the quadrature's; what a model rounds, most of it in half precision, is not counted. NaN where the map is, and
    where double precision has no squares as small as the map's, below lengths of 1e-162.
    """
    nodes: Int[Tensor, " n"]
    """Slopes that were taken of each example."""


@attribution(version=3, paper="sundararajan2017axiomatic", complete=())
def adaptive_integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    baseline: Baseline = 0.0,
    tolerance: Annotated[float, Meta(gt=0)] = 0.02,
    most: Annotated[int, Meta(ge=LEAST)] = 512,
) -> Float[Tensor, "n c h w"]:
    """Integrated Gradients with nodes added until the map changes no more. NaN where the score is not finite.

    An example begins with the ends and middles of four sections of the line. Then sections get twice as many parts,
    first those that change the map most, until the length of the map's estimated error is at most ``tolerance`` of the
    map's own. The estimate is made for slopes that jump, as those of ReLU networks do, and is an upper bound for nine
    examples in ten there; for smooth slopes it is too large. An example that would need more than ``most`` nodes keeps
    its last map; ``integrated_gradients_with_error`` returns the estimates too.

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
    if most < LEAST:
        raise SpecError(f"most: expected at least {LEAST} nodes, found {most}; two estimates are compared")
    x = x.detach()
    result = Estimate(torch.empty_like(x), x.new_empty(len(x)), torch.empty(len(x), dtype=torch.int64, device=x.device))
    if len(x) == 0:
        return result
    start = start_of(x, baseline, model)
    prefix = find_prefix(model, x, start, target, score) if USUAL * len(x) >= WORTH else None
    at_once = rows_per_chunk(model, x)
    for block in slices(len(x), max(1, min(max(BLOCK, at_once), BLOCK_BYTES // x[0].nbytes))):
        means = _means(prefix, model, x[block], start[block], target[block], score, at_once)
        for whole, part in zip(result, _refined(means, x[block] - start[block], tolerance, most), strict=True):
            whole[block] = part
    return result


def _means(
    prefix: Prefix | None, model: nn.Module, x: Tensor, start: Tensor, target: Tensor, score: Score, at_once: int
) -> Means:
    """Mean slopes on the lines of a block, with the shared layers as long as the model keeps to them."""
    plain = functools.partial(gradient, score=score)
    try:
        lines = None if prefix is None else lines_of(prefix, x, start)
    except torch.OutOfMemoryError:  # streaming takes less at once
        lines = None

    def means(rows: Tensor, places: Tensor) -> Tensor:
        at, weights = places**GRADE, _density(places) / places.shape[1]
        if prefix is not None and lines is not None:
            shared = sum_on_lines(prefix, model, lines, rows, target, at, weights, score, at_once)
            if shared is not None:
                return shared
        return mean_on_line(plain, model, x[rows], start[rows], target[rows], at, None, weights)

    return means


class _Sections(NamedTuple):
    """What each section of each example's line has come to."""

    maps: Float[Tensor, "n s c h w"]
    """Its part of the map."""
    steps: Float[Tensor, "n s"]
    """Squared length of its last two steps, in the mean of them and for as many parts; in double precision."""
    parts: Int[Tensor, "n s"]
    """Parts that it is cut into."""
    weights: Float[Tensor, "n s"]
    """What its nodes count together."""

    def joined(self) -> Float[Tensor, "n c h w"]:
        """The maps, each section at its true length, not at what its nodes count: exact for a linear model."""
        ends = (torch.arange(SECTIONS + 1).to(self.weights) / SECTIONS) ** GRADE
        return torch.einsum("nschw,ns->nchw", self.maps, (ends[1:] - ends[:-1]) / self.weights)


def _refined(means: Means, way: Float[Tensor, "n c h w"], tolerance: float, most: int) -> Estimate:
    """The maps of one block, each refined until it agrees with the one before."""
    sections = _begun(means, way)
    todo = torch.ones_like(sections.parts, dtype=torch.bool)
    while todo.any():
        parts = sections.parts.clone()
        for count in sorted(set(parts[todo].tolist())):  # those with equally many go together
            _halve(sections, (todo & (parts == count)).nonzero(as_tuple=True), count, means, way)
        maps = sections.joined()
        error = STEP_TO_ERROR * _share(sections.steps.sum(1).sqrt(), maps)
        todo = _worthwhile(sections, error, tolerance, most)
    told = (error != 0) | (maps.flatten(1).abs().amax(1) == 0)
    return Estimate(maps, error.where(told, torch.nan).to(maps.dtype), sections.parts.sum(1))


def _begun(means: Means, way: Float[Tensor, "n c h w"]) -> _Sections:
    """The trapezoid of each section, from the slopes at its ends."""
    n, ends = len(way), torch.arange(1, SECTIONS + 1).to(way) / SECTIONS
    rows = torch.arange(n, device=way.device).repeat_interleave(SECTIONS)
    maps, weights = means(rows, ends.repeat(n)[:, None]).view(n, SECTIONS, *way.shape[1:]), _density(ends).repeat(n, 1)
    for one in (maps, weights):
        one[:, 1:] += one[:, :-1].clone()  # the baseline itself counts nothing
        one /= 2 * SECTIONS
    maps *= way[:, None]
    steps, parts = torch.zeros_like(weights, dtype=torch.float64), torch.ones_like(weights, dtype=torch.int64)
    return _Sections(maps, steps, parts, weights)


def _halve(
    sections: _Sections, some: tuple[Tensor, Tensor], count: int, means: Means, way: Float[Tensor, "n c h w"]
) -> None:
    """Cut these sections, of so many parts each, into twice as many, by the slopes in the middle of the parts."""
    rows, section = some
    places = (section[:, None] + midpoints(count).to(way)) / SECTIONS
    before = sections.maps[some]
    after = means(rows, places).mul_(way[rows]).mul_(0.5 / SECTIONS).add_(before, alpha=0.5)
    step = _lengths(after - before).square()
    if count > 1:
        step = (step + sections.steps[some] / 4) / 2  # two of them scatter less
    sections.maps[some], sections.parts[some], sections.steps[some] = after, 2 * count, step
    sections.weights[some] = (sections.weights[some] + _density(places).mean(1) / SECTIONS) / 2


def _density(places: Float[Tensor, "*r k"]) -> Float[Tensor, "*r k"]:
    """How much of the line lies at a place."""
    return GRADE * places ** (GRADE - 1)


def _worthwhile(sections: _Sections, error: Float[Tensor, " n"], tolerance: float, most: int) -> Bool[Tensor, "n s"]:
    """The sections to cut next: the most gain a node first, until halving their steps would be enough.

    None of an example whose error is small enough, or NaN: nothing would mend that.
    """
    squares, count = sections.steps, sections.parts
    gain, order = (squares / count).sort(1, descending=True)
    squares, cost = squares.gather(1, order), count.gather(1, order)
    total = squares.sum(1, keepdim=True)
    left = total - 0.75 * (squares.cumsum(1) - squares)  # once those before it are halved
    enough = total * (tolerance / error[:, None]) ** 2
    wanted = (error[:, None] > tolerance) & (left > enough) & (gain >= LITTLE * gain[:, :1])
    room = count.sum(1, keepdim=True) + cost.cumsum(1) <= most
    return torch.zeros_like(wanted).scatter(1, order, wanted & room)


def _share(step: Float[Tensor, " n"], maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """The step's length as a share of the map's; no step is no share, also of a map of zeros."""
    return torch.where(step == 0, step, step / _lengths(maps))


def _lengths(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Lengths in double precision; in it too they are taken where single may not hold the squares."""
    rows = maps.flatten(1)
    quick: Tensor = rows.norm(dim=1, dtype=torch.promote_types(rows.dtype, torch.float32))
    lengths, lost = quick.double(), ~((quick > SMALL) & (quick < 1 / SMALL))
    if lost.any():
        lengths[lost] = rows[lost].norm(dim=1, dtype=torch.float64)
    return lengths
