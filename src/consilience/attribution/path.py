"""Attribution along a straight path to the input, from one baseline or from many."""

import functools
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.backward import plain_rule
from consilience.attribution.expected import checked
from consilience.attribution.gradient import gradient
from consilience.attribution.line import alike, even_slices, shared_line_gradient, weighted
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import SpecError, unknown
from consilience.rng import Rng, keyed, takes_rng
from consilience.tensors import CHUNK_ROWS, Attribution, Baseline, Score, check_batch, rows_per_chunk, slices, start_of

Quadrature = Literal["midpoint", "gauss_legendre", "right"]
"""Where ``of`` is taken on the line, and what each place counts."""

Steps = Annotated[int, Meta(ge=1)]


class Nodes(NamedTuple):
    """Places on [0, 1], and what each counts."""

    at: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]


@attribution(version=1, paper="sundararajan2017axiomatic", complete=("of", "multiply"))
def integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng | None = None,
    *,
    of: Attribution = gradient,
    baseline: Baseline = 0.0,
    nodes: Quadrature = "midpoint",
    steps: Steps = 50,
    multiply: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Mean of ``of`` on the straight line from a baseline to ``x``, times their difference. NaN where ``of`` is.

    Of the plain gradient, the maps are complete: each sums to ``f(x) - f(baseline)``, up to the
    error of the rule. Of the pattern gradient, this is Pattern-Guided IG. The slope of a network of
    piecewise linear parts jumps on the line, so Gauss-Legendre gains little there; the right ends of the parts,
    which published code takes, lean to the image and need more steps than either.

    Args:
        of: What is averaged along the line.
        baseline: Where the line starts: a value of every pixel, one of each channel, ``"mean"`` (the mean pixel of
            the data) or ``{blur = 4.0}``, the image itself blurred by a Gaussian of that deviation in pixels.
        nodes: Where ``of`` is taken: in the middle of each of the equal parts (``midpoint``), at their right ends
            (``right``, the image itself the last), or at the nodes of Gauss and Legendre, with their weights.
        steps: Equal parts of the line, or nodes.
        multiply: Times the difference of ``x`` and the baseline; without it, the maps are the mean slope alone.
    """
    check_batch(model, x, target)
    x = x.detach()
    return _from(start_of(x, baseline, model), of, model, x, target, nodes_of(nodes, steps), rng, multiply)


@attribution(version=1, paper="erion2021improving")
def integrated_gradients_over_background(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    background: Float[Tensor, "m _ _ _"],
    rng: Rng | None = None,
    *,
    of: Attribution = gradient,
    nodes: Quadrature = "midpoint",
    steps: Steps = 50,
    multiply: bool = True,
) -> Float[Tensor, "n c h w"]:
    """Mean of ``integrated_gradients`` over lines from every image of the background. NaN where ``of`` is.

    It is what ``expected_gradients`` estimates by chance, at the cost of all images times all steps. Of the plain
    gradient, each map sums to ``f(x)`` minus the mean of ``f`` over the background, up to the error of the rule.

    Args:
        of: What is averaged along the lines.
        nodes: Where on each line ``of`` is taken, as in ``integrated_gradients``.
        steps: Equal parts of each line, or nodes.
        multiply: Times the difference of ``x`` and each image; without it, the maps are the mean slope alone.
    """
    starts, x, points = checked(model, x, target, background), x.detach(), nodes_of(nodes, steps)
    total = torch.zeros_like(x)
    for image, start in enumerate(starts):
        own = None if rng is None else rng.at("image").at(image)
        total += _from(start.expand_as(x), of, model, x, target, points, own, multiply)
    return total.div_(len(starts))


def _from(
    start: Tensor,
    of: Attribution,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    nodes: Nodes,
    rng: Rng | None,
    multiply: bool,
) -> Tensor:
    at, weights = nodes.at.to(x), nodes.weights.to(x)
    score = score_of_plain(of)
    if score is None:
        mean = mean_on_line(of, model, x, start, target, at[None], rng, weights[None])
    else:
        mean = mean_line_gradient(model, x, start, target, at, score, weights)
    if multiply:
        for rows in slices(len(x), CHUNK_ROWS):  # no second copy of the examples
            mean[rows] *= x[rows] - start[rows]
    return mean


def mean_line_gradient(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    start: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    nodes: Float[Tensor, " k"],
    score: Score = logit,
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Mean over the nodes of the score's slope at ``start + node * (x - start)``; what is affine is computed once.

    With weights it is their weighted sum.
    """
    shared = shared_line_gradient(model, x, start, target, nodes, score, weights)
    if shared is not None:
        return shared
    plain, own = functools.partial(gradient, score=score), alike(nodes) if weights is None else weights
    return mean_on_line(plain, model, x, start, target, nodes[None], None, own[None])


def mean_on_line(
    of: Attribution,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    start: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    nodes: Float[Tensor, "#n k"],
    rng: Rng | None = None,
    weights: Float[Tensor, "#n k"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """Mean over the nodes of ``of`` at ``start + node * (x - start)``, in chunks of (example, node) pairs.

    Nodes are the same for all examples, or each one's own. With weights it is their weighted sum. What draws is called
    node by node, so that each (example, node) has draws of its own in any batch and chunk.
    """
    weights = alike(nodes[0])[None] if weights is None else weights
    rows, draws = rows_per_chunk(model, x), rng is not None and takes_rng(of)
    total, count = torch.zeros_like(x), nodes.shape[1]
    nodes, weights = (one.expand(len(x), count) for one in (nodes, weights))
    for some in slices(len(x), rows if draws else max(1, rows // count)):
        for part in even_slices(count, 1 if draws else rows):
            own = keyed(of, rng.rows(range(len(x))[some]).at(part.start)) if draws and rng is not None else of
            total[some] += weighted(
                weights[some, part], _on_line(own, model, x[some], start[some], target[some], nodes[some, part])
            )
    return total


def _on_line(of: Attribution, model: nn.Module, x: Tensor, start: Tensor, target: Tensor, at: Tensor) -> Tensor:
    points = torch.addcmul(start[:, None], at[:, :, None, None, None], (x - start)[:, None])
    maps = of(model, points.flatten(0, 1), target.repeat_interleave(at.shape[1]))
    return maps.reshape(*points.shape[:2], *maps.shape[1:])


def nodes_of(quadrature: Quadrature, steps: int) -> Nodes:
    """The nodes of a quadrature on [0, 1]; their weights sum to one.

    Raises:
        SpecError: There is no such quadrature, or no step.
    """
    if quadrature not in get_args(Quadrature):
        raise SpecError(unknown("choice of nodes", str(quadrature), get_args(Quadrature)))
    if steps < 1:
        raise SpecError(f"steps: expected at least 1, found {steps}; 50 are usual")
    if quadrature == "gauss_legendre":
        at, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(steps))
        return Nodes((at + 1) / 2, weights / 2)
    middles = midpoints(steps)
    return Nodes(middles if quadrature == "midpoint" else middles + 0.5 / steps, alike(middles))


def midpoints(steps: int) -> Float[Tensor, " steps"]:
    """The middles of equal parts of [0, 1]."""
    return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps


def score_of_plain(of: Attribution) -> Score | None:
    """The score of which ``of`` is the plain gradient; None where ``of`` is anything else."""
    if of is gradient:
        return logit
    if isinstance(of, functools.partial) and of.func is gradient and not of.args:
        options = {"score": logit, "rule": plain_rule, "create_graph": False, **of.keywords}
        rule = options["rule"].func if isinstance(options["rule"], functools.partial) else options["rule"]
        if options.keys() == {"score", "rule", "create_graph"} and rule is plain_rule and not options["create_graph"]:
            score: Score = options["score"]
            return score
    return None
