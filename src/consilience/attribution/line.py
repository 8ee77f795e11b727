"""The mean slope along a straight line, with what is affine in the model computed once.

On the line from ``b`` to ``x`` the output of affine layers is again a line, ``z(a) = z_b + a (z_x - z_b)``: two
evaluations serve all nodes. Their transpose is linear, so slopes are summed over the nodes before it, and it is
applied once.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from consilience.attribution.affine import Diverged, Prefix, watched
from consilience.attribution.gradient import gradient, scored
from consilience.tensors import Score, rows_per_chunk, slices

WORTH, FEW_ROWS, WORTH_OF_FEW = 256, 16, 96  # points; on fewer, finding the layers takes longer than they save
JITTER, SENSITIVE = 64, 4  # units of precision in the pixels; how much more than these may do the layers may


def shared_line_gradient(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    start: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    nodes: Float[Tensor, " k"],
    score: Score,
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "n c h w"] | None:
    """Mean over the nodes of the score's slope at ``start + node * (x - start)``; None where nothing can be shared.

    With weights it is their weighted sum.

    Nothing can be shared where the model begins with something that is not affine, uses its input
    twice, is scripted or compiled, or where there are too few points for it to pay.
    """
    points = len(x) * len(nodes)
    if points < WORTH_OF_FEW:
        return None
    rows = rows_per_chunk(model, x)
    if points < WORTH and rows > FEW_ROWS:  # the smaller a model, the more weighs what is asked once
        return None
    if (prefix := find_prefix(model, x, start, target, score)) is None:
        return None
    weights = alike(nodes) if weights is None else weights
    return _unless_lost(lambda: _sum_of_slopes(prefix, model, x, start, target, nodes, weights, score, rows))


def sum_on_lines(
    prefix: Prefix,
    model: nn.Module,
    lines: "Lines",
    rows: Int[Tensor, " r"],
    target: Int[Tensor, " n"],
    at: Float[Tensor, "r k"],
    weights: Float[Tensor, "r k"],
    score: Score,
    at_once: int,
) -> Float[Tensor, "r c h w"] | None:
    """Weighted sums of slopes on some of the lines, each at nodes of its own; None as in ``shared_line_gradient``.

    Rows are in ascending order; a line may be asked for several times.
    """

    def sums() -> Tensor:
        begin, way = lines.begin[rows], lines.way[rows]
        total = _totals(prefix, model, begin, way, target[rows], at, weights, score, lines.pixels, at_once)
        return lines.back(rows, total)

    return _unless_lost(sums)


def _unless_lost(slopes: Callable[[], Tensor]) -> Tensor | None:
    """What is asked for; None where the model took another way, or the device's memory does not take it."""
    try:
        maps = slopes()
    except (Diverged, torch.OutOfMemoryError):  # where memory is short, streaming takes less at once
        return None
    return None if maps.sum().isnan() else maps


class Lines(NamedTuple):
    """What the layers make of lines: where each begins, its way, and its end, through which slopes go back."""

    pixels: Float[Tensor, "n c h w"]
    end: Float[Tensor, "n ..."]
    begin: Float[Tensor, "n ..."]
    way: Float[Tensor, "n ..."]

    def back(self, rows: Int[Tensor, " r"], slopes: Float[Tensor, "r ..."]) -> Float[Tensor, "r c h w"]:
        """Slopes in the pixels, of slopes in the layers' output; the layers' own answers are not made again."""
        maps = self.pixels.new_empty(len(rows), *self.pixels.shape[1:])
        several = rows.bincount()
        turn = torch.arange(len(rows), device=rows.device)
        turn -= (several.cumsum(0) - several)[rows]  # the how-manieth of its line
        for number in range(int(several.max())):
            now = (turn == number).nonzero()[:, 0]
            total, every = slopes[now], len(now) == len(self.way)
            if not every:
                total = torch.zeros_like(self.way).index_copy_(0, rows[now], total)
            (back,) = torch.autograd.grad(self.end, self.pixels, total, retain_graph=True)
            maps[now] = back if every else back[rows[now]]
        return maps


def lines_of(prefix: Prefix, x: Float[Tensor, "n c h w"], start: Float[Tensor, "n c h w"]) -> Lines:
    """The lines from ``start`` to ``x``, as the layers give them."""
    pixels = x.detach().requires_grad_()
    with torch.enable_grad():
        end = prefix.before(pixels)
    with torch.no_grad():
        one = start.stride(0) == 0  # a baseline: one image for all
        begin = prefix.before(start[:1]).expand_as(end) if one else prefix.before(start)
        return Lines(pixels, end, begin, end - begin)


def alike(nodes: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Weights of a plain mean over the nodes."""
    return torch.full_like(nodes, 1 / max(1, len(nodes)))


def find_prefix(model: nn.Module, x: Tensor, start: Tensor, target: Tensor, score: Score) -> Prefix | None:
    """The affine layers that the model begins with, proven on the line of one example, in the quickest layout.

    Proven is what changes the slope by rounding. In large networks of rectifiers and max-pooling, rounding itself
    changes it by up to a hundredth: units that stand on their edge fall to either side. So where the slope changes by
    more, it may change by a few times what a change of the pixels in their last digits does.
    """
    a = torch.tensor([0.6, 0.3]).to(x)
    points = torch.addcmul(start[:1], a[:, None, None, None], x[:1] - start[:1]).detach().requires_grad_()
    try:  # an error is the model's own and comes again without us
        found, logits = watched(model, points)
        if not found:
            return None
        with torch.enable_grad():
            answer = scored(logits, target[:1].expand(2), score).sum()
        (slope,) = torch.autograd.grad(answer, points)
    except Exception:
        return None
    other = [0, 1, 1]  # another number of rows, and another mean: a model that looks at either is found out
    expected, tolerance = slope[other].mean(0), torch.finfo(x.dtype).eps ** 0.5 * slope.abs().max()

    @functools.cache
    def allowed() -> float:
        """How far the slope may be off; not at all where it changes from call to call, or with the batch."""
        chance = torch.Generator().manual_seed(0)
        same = points.detach()[other]
        signs = torch.rand(same.shape, generator=chance).sub_(0.5).sign_().to(x)
        near = same * (1 + JITTER * torch.finfo(x.dtype).eps * signs)
        again, moved = gradient(model, torch.cat([same, near]), target[:1].expand(2 * len(other)), score=score).chunk(2)
        if bool((again.mean(0) - expected).abs().max() > tolerance):
            return 0.0
        return SENSITIVE * float((moved.mean(0) - expected).norm())

    def proven(prefix: Prefix) -> bool:
        try:
            nodes = a[other]
            shared = _sum_of_slopes(prefix, model, x[:1], start[:1], target[:1], nodes, alike(nodes), score, len(nodes))
        except Exception:  # not every model takes every layout: 'view' does not
            return False
        gap = shared - expected
        return bool(gap.abs().max() <= tolerance) or float(gap.norm()) <= allowed()

    return next(filter(proven, found), None)


def _sum_of_slopes(
    prefix: Prefix,
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    target: Tensor,
    nodes: Tensor,
    weights: Tensor,
    score: Score,
    rows: int,
) -> Tensor:
    maps, at_once = torch.empty_like(x), max(1, rows // len(nodes))
    for block in slices(len(x), at_once * max(1, rows // (8 * at_once))):  # the layers run on more than one line
        lines = lines_of(prefix, x[block], start[block])
        total = _totals(
            prefix, model, lines.begin, lines.way, target[block], nodes[None], weights[None], score, x, rows
        )
        (maps[block],) = torch.autograd.grad(lines.end, lines.pixels, total)
    return maps


def _totals(
    prefix: Prefix,
    model: nn.Module,
    begin: Tensor,
    way: Tensor,
    target: Tensor,
    at: Tensor,
    weights: Tensor,
    score: Score,
    x: Tensor,
    rows: int,
) -> Float[Tensor, "n ..."]:
    """Weighted sums over the nodes of the slopes in the layers' output, so many points at once."""
    total, count = torch.zeros_like(way), at.shape[1]
    at, weights = (one.expand(len(way), count) for one in (at, weights))
    for some in slices(len(way), max(1, rows // count)):
        for part in even_slices(count, rows):
            slopes = _slopes(prefix, model, begin[some], way[some], target[some], at[some, part], score, x)
            total[some] += weighted(weights[some, part], slopes)
            del slopes
    return total


def _slopes(
    prefix: Prefix, model: nn.Module, begin: Tensor, way: Tensor, target: Tensor, at: Tensor, score: Score, x: Tensor
) -> Float[Tensor, "n k ..."]:
    """The score's slope in the layers' output at each node; what it needed is freed with it."""
    each = at.reshape(*at.shape, *[1] * (way.ndim - 1))
    with torch.enable_grad():
        line = torch.addcmul(begin.detach().requires_grad_()[:, None], each, way[:, None])
        edge, points = get_gradient_edge(line), _flat(line)  # the edge stays, also if the model goes on in place
        del line
        logits = prefix.after(model, x, points)
        answer = scored(logits, target.repeat_interleave(at.shape[1]), score).sum()
    (slope,) = torch.autograd.grad(answer, edge)
    return slope


def _flat(line: Float[Tensor, "n k ..."]) -> Float[Tensor, "nk ..."]:
    """The points as one batch, but no view of the line, which nobody else looks at.

    Where the model goes on in place (torchvision's ReLUs do), the slope of a view would be copied, in another layout.
    """
    points: Tensor = torch.ops.aten._unsafe_view(line, [line.shape[0] * line.shape[1], *line.shape[2:]])
    return points


def weighted(weights: Float[Tensor, "n k"], maps: Float[Tensor, "n k ..."]) -> Float[Tensor, "n ..."]:
    """Sum over the second axis, each entry times its weight, in the order in which the maps lie in memory."""
    if maps.ndim == 5 and len(maps) and maps[0].is_contiguous(memory_format=torch.channels_last):
        rows = maps.permute(0, 1, 3, 4, 2)
        return (weights[:, None].to(maps) @ rows.flatten(2)).view(len(maps), *rows.shape[2:]).permute(0, 3, 1, 2)
    return (weights[:, None].to(maps) @ maps.flatten(2)).view(len(maps), *maps.shape[2:])


def even_slices(total: int, size: int) -> Iterator[slice]:
    """As few slices as ``slices`` gives, but of one length: equal chunks reuse each other's memory."""
    return slices(total, max(1, -(-total // -(-total // size)))) if total else iter(())
