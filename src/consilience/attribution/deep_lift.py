"""Attribution by difference from a reference: DeepLIFT with the rescale rule, from one reference or from many.

The reference's activations do not depend on the image. So each image and each reference is run once, together, and
written on a tape; every pair walks back through it with multipliers made of the two rows. There are no hooks, no graph
that holds values, and no doubled batch, and a model's operations are met however it calls them.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.expected import checked
from consilience.attribution.gradient import scored
from consilience.attribution.line import even_slices
from consilience.attribution.multipliers import Pairs, walk
from consilience.attribution.operations import opaque
from consilience.attribution.rescale import PERFORMS, RULES, keeps
from consilience.attribution.scores import logit
from consilience.attribution.tape import Tape
from consilience.attribution.unfolding import UNFOLDED
from consilience.component import attribution
from consilience.errors import ModelError
from consilience.tensors import Baseline, Score, check_batch, in_halves, rows_per_chunk, start_of

PAIR_BYTES = 2**23  # of the largest multiplier: fewer walks read the weights less often, larger ones leave the cache
PAIR_BYTES_ELSEWHERE = 2**28  # a graphics card wants more at once
LEAST_ROWS = 8  # on one tape, however large the model: a reference that is run again costs more than its memory


@attribution(version=1, paper="shrikumar2017learning", complete=())
def deep_lift(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    baseline: Baseline = 0.0,
    score: Score = logit,
) -> Float[Tensor, "n c h w"]:
    """Each pixel's share of ``score(x) - score(baseline)``, by DeepLIFT's rescale rule; NaN where a score is.

    The maps are complete: each adds up to that difference, to rounding. An operation of one number multiplies what
    comes back by the slope between the image's activation and the baseline's (the derivative where the two are
    closer than the third root of the type's precision); max pooling gives the difference of two maxima to the place
    of the larger one. Beyond the paper, which has no rule for them: a product of two activations, as in gates and
    attention, gives each factor the other's mean of image and baseline, which is exact; softmax, normalisation over
    an image and quotients are made of such parts. What no rule is known for is refused.

    Args:
        baseline: The image that stands for nothing: a value of every pixel or of each channel, ``"mean"``, or the
            image itself, blurred.
        score: What is explained.
    """
    check_batch(model, x, target)
    x = x.detach()
    start = start_of(x, baseline, model)
    one = start.stride(0) == 0  # one image for all
    return _explained(_Question("deep_lift", model, score, not one), x, start[:1] if one else start, target)


@attribution(version=1, paper="lundberg2017unified")
def deep_lift_shap(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    background: Float[Tensor, "m _ _ _"],
    *,
    score: Score = logit,
) -> Float[Tensor, "n c h w"]:
    """Mean of ``deep_lift`` over the images of the background, each as baseline; NaN where a score is.

    The maps are complete: each adds up to ``score(x)`` minus the mean score of the background. For a model that is
    linear they are the Shapley values of the pixels.

    Args:
        score: What is explained.
    """
    references = checked(model, x, target, background)
    return _explained(_Question("deep_lift_shap", model, score, False), x.detach(), references, target)


class _Question(NamedTuple):
    """What is asked of every tile."""

    name: str
    model: nn.Module
    score: Score
    matched: bool
    """Whether each image has a reference of its own."""


def _explained(question: _Question, x: Tensor, references: Tensor, target: Tensor) -> Tensor:
    """Mean over the references of each image's contributions; of its own reference, where they are matched."""
    for path, module in question.model.named_modules():
        if opaque(module):
            raise ModelError(
                f"{question.name}: expected a model whose calls can be seen, found that "
                f"'{path or type(module).__name__}' is scripted, traced or compiled; give the original module"
            )
    maps = torch.zeros_like(x)
    rows = max(LEAST_ROWS, rows_per_chunk(question.model, x))
    for some, others in _tiles(len(x), len(references), rows, question.matched):
        of_part = functools.partial(_part, question, x[some], references[others], target[some])
        maps[some] += in_halves(of_part, len(x[some]))
    return maps if question.matched else maps.div_(len(references))


def _tiles(n: int, m: int, rows: int, matched: bool) -> Iterator[tuple[slice, slice]]:
    """Images and references that are run together: of both about half of what fits, so that few are run twice."""
    if matched:
        yield from ((some, some) for some in even_slices(n, max(1, rows // 2)))
        return
    half = max(1, rows // 2)
    wide = min(m, max(half, rows - n))
    for some in even_slices(n, max(1, rows - wide)):
        yield from ((some, others) for others in even_slices(m, wide))


def _part(question: _Question, x: Tensor, references: Tensor, target: Tensor, rows: slice) -> Tensor:
    """Sum over the references of the contributions of the pixels of some of a tile's images."""
    name, model, score, matched = question
    x, target, references = x[rows], target[rows], references[rows] if matched else references
    tape = Tape(name, torch.cat([x, references]), keeps, PERFORMS, UNFOLDED)
    logits = tape.run(model)
    n, node = len(x), _checked_logits(tape, logits, target, score)
    logits, total = logits.detach(), torch.zeros_like(x)
    at_once = max(1, (PAIR_BYTES if x.device.type == "cpu" else PAIR_BYTES_ELSEWHERE) // tape.largest)
    wide = 1 if matched else min(len(references), at_once)
    for some in even_slices(n, max(1, at_once // wide)):
        for others in [some] if matched else even_slices(len(references), wide):
            pairs = Pairs(some, slice(n + others.start, n + others.stop), matched)
            begin, scores = _of_score(name, pairs, logits, target[some], score)
            multiplier = walk(tape, RULES, node, begin, pairs)
            a, b = pairs.sides(tape.pixels)
            way = a - b
            shares = torch.zeros_like(way) if multiplier is None else pairs.split(multiplier) * way
            total[some] += _complete(tape, shares, *scores)
    return total


def _checked_logits(tape: Tape, logits: object, target: Tensor, score: Score) -> int:
    """The logits' number on the tape.

    Raises:
        ModelError: The model returned no logits for these targets, or some that do not depend on the pixels.
    """
    if isinstance(logits, Tensor) and logits.shape[:1] == (tape.rows,):
        scored(logits[: len(target)].detach(), target, score)
    else:
        scored(logits, target, score)  # which refuses them
    node = tape.node(logits) if isinstance(logits, Tensor) else None
    if node is None:
        raise ModelError(
            f"{tape.name}: expected logits that depend on the pixels, found that no operation leads to them; look for "
            "compiled code or whole numbers inside the model"
        )
    return node


def _of_score(
    name: str, pairs: Pairs, logits: Tensor, target: Tensor, score: Score
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Multipliers of the logits for each pair, and the score of both: of the target of the image that is explained."""
    (n, m), k = pairs.shape, logits.shape[1]
    a, b = (side.expand(n, m, k).flatten(0, 1) for side in pairs.sides(logits))
    classes = target.repeat_interleave(m)
    if score is logit and k > 1:
        return torch.zeros_like(a).scatter_(1, classes[:, None], 1), (score(a, classes), score(b, classes))
    tape = Tape(name, torch.cat([a, b]), keeps, PERFORMS, UNFOLDED)
    answer = tape.run(score, torch.cat([classes, classes]))
    node, both = tape.node(answer), Pairs(slice(0, n * m), slice(n * m, 2 * n * m), matched=True)
    begin = None if node is None else walk(tape, RULES, node, torch.ones_like(answer[: n * m]), both)
    return torch.zeros_like(a) if begin is None else begin, tuple(answer.detach().chunk(2))


def _complete(tape: Tape, shares: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The sum over references, once it is known that each pair's shares add up to its difference of scores.

    They do by construction; if they do not, something in the model was hidden from the tape.
    """
    one, other = one.view(shares.shape[:2]), other.view(shares.shape[:2])
    difference, flat = one - other, shares.flatten(2)
    size = flat.abs().sum(2) + one.abs() + other.abs()
    gap = (flat.sum(2) - difference).abs()
    if bool((gap > torch.finfo(gap.dtype).eps ** 0.5 * size).any()):
        raise ModelError(
            f"{tape.name}: expected maps that add up to the difference of the scores, found them off by "
            f"{float((gap / size).nan_to_num().max()):.1e}; look for code that hides its calls, or overflows"
        )
    undefined = ~difference.isfinite()
    return shares.masked_fill_(undefined.view(*difference.shape, 1, 1, 1), torch.nan).sum(1)
