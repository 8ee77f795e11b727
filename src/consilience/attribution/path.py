"""Attribution along a path from a baseline to the input."""

import functools
from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.backward import plain_rule
from consilience.attribution.gradient import gradient
from consilience.attribution.line import even_slices, shared_line_gradient
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.rng import Rng, keyed, takes_rng
from consilience.tensors import CHUNK_ROWS, Attribution, Baseline, Score, check_batch, rows_per_chunk, slices, start_of


@attribution(version=1, paper="sundararajan2017axiomatic")
def integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng | None = None,
    *,
    of: Attribution = gradient,
    baseline: Baseline = 0.0,
    steps: Annotated[int, Meta(ge=1)] = 50,
) -> Float[Tensor, "n c h w"]:
    """Mean of ``of`` on the straight line from a baseline to ``x``, times their difference.

    Of the plain gradient, the maps are complete: each sums to ``f(x) - f(baseline)``, up to the
    error of the midpoint rule. Of the pattern gradient, this is Pattern-Guided IG.

    Args:
        of: What is averaged along the line.
        baseline: Value of every pixel where the line starts, or ``"mean"``.
        steps: Equal parts of the line; ``of`` is taken in the middle of each.
    """
    check_batch(model, x, target)
    x = x.detach()
    start, nodes = start_of(x[:1], baseline, model).expand_as(x), midpoints(steps).to(x)
    score = score_of_plain(of)
    if score is None:
        mean = mean_on_line(of, model, x, start, target, nodes, rng)
    else:
        mean = mean_line_gradient(model, x, start, target, nodes, score)
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
) -> Float[Tensor, "n c h w"]:
    """Mean over the nodes of the score's slope at ``start + node * (x - start)``; what is affine is computed once."""
    shared = shared_line_gradient(model, x, start, target, nodes, score)
    if shared is not None:
        return shared
    return mean_on_line(functools.partial(gradient, score=score), model, x, start, target, nodes)


def mean_on_line(
    of: Attribution,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    start: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    nodes: Float[Tensor, " k"],
    rng: Rng | None = None,
) -> Float[Tensor, "n c h w"]:
    """Mean over the nodes of ``of`` at ``start + node * (x - start)``, in chunks of (example, node) pairs.

    What draws is called node by node, so that each (example, node) has draws of its own in any batch and chunk.
    """
    rows, draws = rows_per_chunk(model, x), rng is not None and takes_rng(of)
    total = torch.zeros_like(x)
    for some in slices(len(x), rows if draws else max(1, rows // len(nodes))):
        for part in even_slices(len(nodes), 1 if draws else rows):
            own = keyed(of, rng.rows(range(len(x))[some]).at(part.start)) if draws and rng is not None else of
            total[some] += _sum_on_line(own, model, x[some], start[some], target[some], nodes[part])
    return total.div_(len(nodes))


def _sum_on_line(of: Attribution, model: nn.Module, x: Tensor, start: Tensor, target: Tensor, at: Tensor) -> Tensor:
    points = torch.addcmul(start[:, None], at.view(1, -1, 1, 1, 1), (x - start)[:, None])
    maps = of(model, points.flatten(0, 1), target.repeat_interleave(len(at)))
    return maps.reshape(*points.shape[:2], *maps.shape[1:]).sum(1)


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
