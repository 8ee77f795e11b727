"""The margins of rows by classifiers that did not learn from them: of a class, its pairs, splits and labellings.

All pairs of a class go in lockstep where that is cheapest; else, and where a fit is not finished there, in portions.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from consilience.measures import lockstep
from consilience.measures.classifiers import Learner
from consilience.measures.logistic import Problem, margins
from consilience.measures.splits import INNER_FOLDS, Plan
from consilience.tensors import slices

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SIDE_BY_SIDE, FEWEST = 60_000, 50  # margins of the pairs fitted at once; labellings, however many rows
AXES, SHARED = 50, 350  # the fewer of rows and pixels, and the same times pairs that there is room for: for lockstep
FIT_BYTES = 24 * 2**20  # of all that is fitted at once: pairs, splits and labellings are taken in such portions


def _in_lockstep(plan: Plan, pixels: int, way: Learner) -> int:
    """How many pairs, within ``FIT_BYTES``; 0 where it is not the cheaper way: of several labellings, or little work.

    The other way costs products of all rows, or pixels, with each other; lockstep some forty steps, however small. So
    it must be given many rows and pixels, and room for some pairs that share the steps. How many pairs are asked for
    has no say: results of the two ways differ by up to ``lockstep.ACCURACY``, and those of a pair must not depend on
    which others are measured with it. ``benchmarks.separability --rule`` measures both.
    """
    rows, splits = 2 * len(plan.image), 1 + int(plan.fold.max()) if len(plan.image) else 1
    axes = min(rows, pixels)
    if way.margins is not margins or way.c == "cross_validated" or len(plan.exchanged) > 1 or axes < AXES:
        return 0
    inverses, fit = 4 * splits * axes * pixels, 120 * pixels + 110 * rows
    abreast = max(0, FIT_BYTES - inverses) // (splits * fit)
    return abreast if abreast * axes >= SHARED else 0


def pairs_abreast(plan: Plan, pixels: int, way: Learner) -> int:
    """How many pairs of a class are fitted side by side."""
    return _in_lockstep(plan, pixels, way) or portion_of(plan, pixels).pairs


class Portion(NamedTuple):
    """How many are fitted side by side."""

    pairs: int
    splits: int
    labellings: int


def portion_of(plan: Plan, pixels: int) -> Portion:
    """As many that torch's cost of a call is shared, within a cache's reach and ``FIT_BYTES``.

    Of a class with many rows, it is one split, and as many labellings as there is room for, but no few.
    """
    rows, labellings = 2 * len(plan.image), len(plan.exchanged)
    splits = 1 + int(plan.fold.max()) if rows else 1
    learnt = rows - rows // splits
    axes = min(pixels, learnt) + 1
    maps, turned, single, eigh = 4 * rows * pixels, 8 * rows * axes, 4 * learnt * axes, 32 * axes**2
    labelling = 8 * (12 * learnt + 10 * axes)  # as many vectors as ``logistic`` holds at its highest
    pair = maps + splits * (turned + max(eigh, single + labellings * labelling))
    if pair <= FIT_BYTES:
        return Portion(max(1, min(FIT_BYTES // pair, SIDE_BY_SIDE // (rows * splits * labellings))), splits, labellings)
    times = math.ceil(labellings / max(FEWEST, (FIT_BYTES - maps - turned - single) // labelling))
    return Portion(1, 1, math.ceil(labellings / times))


def margins_of_held_out(
    maps: Tensor, places: Tensor, plan: Plan, turn: int, answer: Tensor, way: Learner, portion: Portion
) -> Float[Tensor, "pairs labellings n"]:
    """The margin of each row by the split that holds it out; what is not found in lockstep, alone."""
    fold, inner = plan.fold[turn], plan.inner[turn]
    alone = torch.arange(len(places), device=maps.device)
    found = maps.new_empty(len(places), *answer.shape, dtype=torch.float64)
    if (abreast := _in_lockstep(plan, maps.shape[2], way)) and way.c != "cross_validated":
        for some in slices(len(places), abreast):
            found[some, 0] = lockstep.held_out(maps, places[some], fold.to(maps.device), way.c)
        alone = found.isnan().any(2).any(1).nonzero()[:, 0]
    for some in slices(len(alone), portion.pairs):
        chosen = alone[some]
        rows = maps[None] if places.tolist() == [[0, 1]] else maps[places[chosen]]  # a large class is not copied
        found[chosen] = _held_out(rows.flatten(1, 2), fold.repeat(2), inner.repeat(2), answer, way, portion)
    return found


def _held_out(
    rows: Float[Tensor, "pairs n d"],
    fold: Int[Tensor, " n"],
    inner: Int[Tensor, " n"],
    answer: Bool[Tensor, "labellings n"],
    way: Learner,
    portion: Portion,
) -> Float[Tensor, "pairs labellings n"]:
    """The margin of each row by the split that holds it out."""
    found = torch.empty(len(rows), *answer.shape, dtype=torch.float64, device=rows.device)
    kinds = torch.tensor(sorted(set(fold.tolist())))
    for some in slices(len(kinds), portion.splits):
        for labellings, held, f in _portions(rows, fold, kinds[some], inner.to(rows.device), answer, way, portion):
            found[:, labellings, held] = f
    return found


def _portions(
    rows: Tensor, fold: Tensor, kinds: Tensor, inner: Tensor, answer: Tensor, way: Learner, portion: Portion
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For some splits: labellings, who is held out, and their margins; what they share goes with the last of them."""
    learn = [(fold != kind).nonzero()[:, 0].to(rows.device) for kind in kinds]
    index = pad_sequence(learn, batch_first=True)
    lengths = torch.tensor([[len(one)] for one in learn], device=rows.device)
    used = torch.arange(index.shape[1], device=rows.device) < lengths
    index, used = index.repeat(len(rows), 1), used.repeat(len(rows), 1)
    problem = way.problem([pair for pair in rows for _ in learn], index, used)
    for some in slices(len(answer), portion.labellings):
        asked = answer[some][:, index].transpose(0, 1).double()
        strength = _chosen(problem, asked, index, used, inner, way) if way.c == "cross_validated" else way.c
        f = way.margins(problem, asked, used, strength)
        for kind, one in zip(kinds, f.view(len(rows), -1, *f.shape[1:]).unbind(1), strict=True):
            held = (fold == kind).to(rows.device)
            yield some, held, one[..., held]


def _chosen(
    problem: Problem, answer: Tensor, index: Tensor, used: Tensor, inner: Tensor, way: Learner
) -> Float[Tensor, "splits labellings 1"]:
    """For each split and labelling, the strength under which rows of the training part foretell the others best."""
    likely, part = [], inner[index]
    for strength in STRENGTHS:
        total = torch.zeros_like(answer[..., :1])
        for kind in range(INNER_FOLDS):
            left = used & (part == kind)
            f = way.margins(problem, answer, used & ~left, strength)
            f = f.gather(2, index[:, None].expand_as(answer))
            total += (logsigmoid((2 * answer - 1) * f) * left[:, None]).sum(-1, keepdim=True)
        likely.append(total.nan_to_num(-torch.inf))
    return torch.tensor(STRENGTHS, dtype=answer.dtype, device=answer.device)[torch.stack(likely).argmax(0)]
