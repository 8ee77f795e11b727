"""Whether two models' maps of the same images can be told apart, on images that nobody learnt from."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.logistic import Problem, margins, problem_of, standardised
from consilience.pairs import Pairs, over_pairs
from consilience.rng import Rng, generator
from consilience.tensors import slices

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
INNER_FOLDS = 3
SIDE_BY_SIDE, SIDE_BY_SIDE_BYTES = 20_000, 48 * 2**20  # margins, and bytes of rows, of the pairs fitted at once
FEW_ROWS = 2000  # up to here, all splits of a class are fitted side by side
HELD_BYTES = 32 * 2**20  # of all twins' maps together; classes are taken in blocks of this size

Strength = Annotated[float, Meta(gt=0)] | Literal["cross_validated"]


class Separability(NamedTuple):
    """How well a held-out image's two maps are given to the right model."""

    value: Float[Tensor, " n"]
    """Twice the share of right answers, minus 1: of one image -1 to 1."""
    null: Float[Tensor, " n"]
    """The same where the two maps of each group are exchanged at random: its mean over the permutations."""
    p: Float[Tensor, ""]
    """How often exchanged maps are told apart as well as these, these included."""


@measure(
    version=1,
    paper="watson2022agree",
    better="lower",
    breaks={"measured_alike_alone": "the other images of the class are what the classifier learns from"},
)
@over_pairs
def separability(
    family: Sequence[Float[Tensor, "..."]],
    pairs: Pairs,
    label: Int[Tensor, " n"],
    groups: Int[Tensor, " n"],
    rng: Rng,
    *,
    by: Literal["class", "pooled"] = "class",
    c: Strength = 1.0,
    folds: Annotated[int, Meta(ge=2)] = 3,
    repeats: Annotated[int, Meta(ge=1)] = 1,
    permutations: Annotated[int, Meta(ge=0)] = 99,
    count: Annotated[int, Meta(ge=1)] | None = None,
) -> Iterator[Separability]:
    """Twice the share of an image's held-out maps given to the right model, minus 1. NaN where it cannot be judged.

    A logistic regression learns to tell the first model's maps from the second's, and is asked about
    images in no group that it learnt from. 0 is chance, and exactly 0 what identical maps get; 1 is every
    map given to the right model. A margin of exactly 0 is half right.

    It asks whether the two models' maps differ *at all*, and says nothing about whether the two maps of
    one image agree. The more images, the smaller the difference that is found: compare at equal ``count``.

    An image cannot be judged where a map is not finite, where it is left out by ``count``, or where its
    class is too small: each split must leave two groups to learn from, and something in each of three
    inner folds where ``c`` is cross-validated. ``p`` is over all that could be judged; NaN without permutations.

    Args:
        by: A classifier for each true class, as published, or one for all images together.
        c: Strength of fitting: the inverse of the ridge, for standardised pixels. ``"cross_validated"``
            takes the best of six from 0.0001 to 10, by folds inside each training part.
        folds: Into how many parts the groups are split; each is held out once.
        repeats: Of the split into folds, averaged.
        permutations: Of the null, for which each group's two maps are exchanged with probability one half.
        count: How many groups of each class are used at most, always the same first ones; all without it.
    """
    if not pairs:
        return
    first = family[pairs[0][0]]
    _check(first, label, groups)
    images = (
        [(label == kind).nonzero()[:, 0] for kind in sorted(set(label.tolist()))]
        if by == "class"
        else [torch.arange(len(label))]
    )
    plans = [_plan(image.cpu(), groups.cpu(), rng, folds, repeats, permutations, count) for image in images]
    value, null = torch.full((2, len(pairs), len(label)), torch.nan, dtype=torch.float64, device=first.device)
    scores: list[list[Tensor]] = [[] for _ in pairs]
    for numbers, plan, maps in _by_class(family, pairs, plans, first):
        for pair, judged in zip(numbers, _judged(maps, plan, c), strict=True):
            if judged is None:
                continue
            value[pair, judged.image] = judged.right[0]
            null[pair, judged.image] = judged.right[1:].mean(0)
            scores[pair].append(torch.stack([judged.right.mean(1), judged.likely.mean(1)]))
    for pair in range(len(pairs)):
        yield Separability(value[pair], null[pair], _p(scores[pair]).to(first.device))


class Plan(NamedTuple):
    """Who is learnt from and who is asked in one class, and which groups' maps are exchanged."""

    image: Int[Tensor, " m"]
    group: Int[Tensor, " m"]
    fold: Int[Tensor, "repeats m"]
    inner: Int[Tensor, "repeats m"]
    """The fold within a training part, by which the strength is chosen."""
    exchanged: Bool[Tensor, "labellings m"]
    """First nobody's: the maps as they are."""

    def only(self, kept: Bool[Tensor, " m"]) -> "Plan":
        """The same without some images; the others stay where they were."""
        return Plan(*(part[..., kept] for part in self))


class Judged(NamedTuple):
    """One class of one pair."""

    image: Int[Tensor, " m"]
    right: Float[Tensor, "labellings m"]
    likely: Float[Tensor, "labellings m"]
    """Mean log-likelihood of the right answers."""


def _plan(
    image: Tensor, groups: Tensor, rng: Rng, folds: int, repeats: int, permutations: int, count: int | None
) -> Plan:
    """Draws keyed by the group: whatever the order of the examples, the pair and the other groups' number."""
    names, position = np.unique(groups[image].numpy(), return_inverse=True)

    def draw(what: str, times: int) -> np.ndarray:
        streams = (generator(rng.seed, *rng.node, what, int(name)).bit_generator for name in names)
        return np.array([stream.random_raw(times) for stream in streams], dtype=np.uint64).reshape(len(names), times)

    placed = draw("fold", 1 + repeats)
    chosen = np.argsort(np.argsort(placed[:, 0])) < (len(names) if count is None else count)
    names, placed = names[chosen], placed[chosen, 1:]
    rank = np.argsort(np.argsort(placed, axis=0), axis=0).T
    kept = chosen[position]
    position = (np.cumsum(chosen) - 1)[position[kept]]
    exchanged = np.vstack([np.zeros(len(names), dtype=bool), draw("exchange", permutations).T >> np.uint64(63) > 0])
    parts = (rank % folds, rank // folds % INNER_FOLDS, exchanged)
    return Plan(image[kept], torch.as_tensor(position), *(torch.as_tensor(part[:, position]) for part in parts))


def _by_class(
    family: Sequence[Tensor], pairs: Pairs, plans: Sequence[Plan], first: Tensor
) -> Iterator[tuple[Sequence[int], Plan, Tensor]]:
    """Maps of each class, some pairs abreast: a twin is read once for as many classes as can be held of all twins."""
    most = HELD_BYTES // max(1, first[:1].nbytes * len(set(itertools.chain(*pairs))))
    blocks: list[list[Plan]] = []
    for plan in plans:
        if blocks and sum(len(other.image) for other in (*blocks[-1], plan)) <= most:
            blocks[-1].append(plan)
        else:
            blocks.append([plan])
    for block in blocks:
        images = [plan.image for plan in block]
        held = len(torch.cat(images)) <= most
        fetch = functools.lru_cache(maxsize=None if held else 2)(functools.partial(_read, family, first.shape, images))
        for position, plan in enumerate(block):
            abreast = _abreast(plan, first[:1].numel()) if held else 1
            for some in slices(len(pairs), abreast):
                numbers = range(len(pairs))[some]
                two = [torch.stack([fetch(member)[position] for member in pairs[number]]) for number in numbers]
                yield numbers, plan, torch.stack(two)


def _abreast(plan: Plan, pixels: int) -> int:
    """How many pairs are fitted side by side: enough that torch's cost of a call is shared, within a cache's reach."""
    rows = 2 * max(1, len(plan.image)) * (int(plan.fold.max()) + 1 if plan.fold.numel() else 1)
    return max(1, min(SIDE_BY_SIDE // (rows * len(plan.exchanged)), SIDE_BY_SIDE_BYTES // (8 * rows * max(1, pixels))))


def _read(family: Sequence[Tensor], shape: torch.Size, images: Sequence[Tensor], member: int) -> list[Tensor]:
    maps = family[member]
    if maps.shape != shape:
        raise SpecError(
            f"separability: expected two sets of maps of one shape, found {list(shape)} and {list(maps.shape)}; "
            "compare maps of the same examples, with their channels joined alike"
        )
    return [maps[image].flatten(1) for image in images]


def _judged(maps: Float[Tensor, "pairs 2 m d"], plan: Plan, c: Strength) -> Iterator[Judged | None]:
    """Both models' maps of one class, each asked about by those who did not learn from its group."""
    finite = maps.isfinite().all(3).all(1).cpu()
    if len(maps) > 1 and not bool(finite.all()):  # each pair leaves out images of its own
        yield from itertools.chain.from_iterable(_judged(one[None], plan, c) for one in maps)
        return
    if not bool(finite.all()):
        maps, plan = maps[:, :, finite[0]], plan.only(finite[0])
    if not all(_suffices(plan, turn, c) for turn in range(len(plan.fold))):
        yield from [None] * len(maps)
        return
    rows = maps.flatten(1, 2).double()
    answer = torch.cat([plan.exchanged, ~plan.exchanged], 1).double().to(rows.device)
    right, likely = torch.zeros(2, len(maps), *answer.shape, dtype=rows.dtype, device=rows.device)
    for fold, inner in zip(plan.fold, plan.inner, strict=True):
        towards = (2 * answer - 1) * _held_out(rows, fold.repeat(2), inner.repeat(2), answer, c)
        right += towards.sign()  # 1, -1, and 0 for a margin of exactly 0; NaN stays
        likely += logsigmoid(towards)
    shape = (len(maps), len(answer), 2, len(plan.image))
    right, likely = ((part / len(plan.fold)).view(shape).mean(2) for part in (right, likely))
    for one, other in zip(right, likely, strict=True):
        yield Judged(plan.image, one, other)


def _suffices(plan: Plan, turn: int, c: Strength) -> bool:
    """Whether every split leaves two groups to learn from, and within the training part something to choose by."""
    fold, inner, group = (part.numpy() for part in (plan.fold[turn], plan.inner[turn], plan.group))
    first = np.unique(group, return_index=True)[1]
    held = np.zeros((int(fold.max(initial=0)) + 1, INNER_FOLDS), dtype=int)
    np.add.at(held, (fold[first], inner[first]), 1)
    learnt = held.sum(0) - held[held.sum(1) > 0]  # groups outside each fold, by inner fold
    if c != "cross_validated":
        return len(learnt) > 0 and bool((learnt.sum(1) >= 2).all())
    return len(learnt) > 0 and bool((learnt >= 1).all() and (learnt.sum(1, keepdims=True) - learnt >= 2).all())


def _held_out(
    rows: Float[Tensor, "pairs n d"], fold: Tensor, inner: Tensor, answer: Tensor, c: Strength
) -> Float[Tensor, "pairs labellings n"]:
    """The margin of each row by the split that holds it out."""
    kinds = sorted(set(fold.tolist()))
    learn = [(fold != kind).nonzero()[:, 0].to(rows.device) for kind in kinds]
    fold, inner = fold.to(rows.device), inner.to(rows.device)
    found = rows.new_empty(len(rows), *answer.shape)
    for some in slices(len(kinds), len(kinds) if rows.shape[1] <= FEW_ROWS else 1):
        index = pad_sequence(learn[some], batch_first=True)
        lengths = torch.tensor([[len(one)] for one in learn[some]], device=rows.device)
        used = torch.arange(index.shape[1], device=rows.device) < lengths
        asked = answer[:, index].transpose(0, 1).repeat(len(rows), 1, 1)
        scaled = [standardised(pair, pair[one]) for pair in rows for one in learn[some]]
        index, used = index.repeat(len(rows), 1), used.repeat(len(rows), 1)
        problem = problem_of(scaled, index, used)
        f = margins(problem, asked, used, _chosen(problem, asked, used, inner) if c == "cross_validated" else c)
        f = f.view(len(rows), -1, *f.shape[1:])
        for position, kind in enumerate(kinds[some]):
            found[..., fold == kind] = f[:, position][..., fold == kind]
    return found


def _chosen(problem: Problem, answer: Tensor, used: Tensor, inner: Tensor) -> Tensor:
    """For each split and labelling, the strength under which rows of the training part foretell the others best."""
    likely, part = [], inner[problem.learnt]
    for strength in STRENGTHS:
        total = torch.zeros_like(answer[..., :1])
        for kind in range(INNER_FOLDS):
            left = used & (part == kind)
            f = margins(problem, answer, used & ~left, strength)
            f = f.gather(2, problem.learnt[:, None].expand_as(answer))
            total += (logsigmoid((2 * answer - 1) * f) * left[:, None]).sum(-1, keepdim=True)
        likely.append(total.nan_to_num(-torch.inf))
    return torch.tensor(STRENGTHS, dtype=answer.dtype, device=answer.device)[torch.stack(likely).argmax(0)]


def _p(scores: Sequence[Float[Tensor, "2 labellings"]]) -> Float[Tensor, ""]:
    """Of the mean over classes, upper tail, the observed labelling counted in.

    Accuracies are coarse, and counting their ties against the models alone would make p too large. Equal
    accuracies are therefore ordered by the mean log-likelihood. Under exchangeable maps all labellings have the
    same chance of each rank, so p is uniform on its steps. Only what is equal in both counts against.
    """
    if not scores or scores[0].shape[1] < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    right, likely = torch.stack(list(scores)).mean(0).cpu()
    more, same = right[1:] > right[0] + 1e-12, (right[1:] - right[0]).abs() <= 1e-12
    good = more | (same & (likely[1:] >= likely[0] - 1e-9))
    p = (1 + good.sum()) / torch.tensor(len(right), dtype=torch.float64)
    return p if bool(right.isfinite().all()) else torch.full_like(p, torch.nan)


def _check(maps: Tensor, label: Tensor, groups: Tensor) -> None:
    if maps.ndim < 2 or not len(maps) == len(label) == len(groups):
        raise SpecError(
            f"separability: expected a map, a label and a group for each example, found maps {list(maps.shape)}, "
            f"{len(label)} labels and {len(groups)} groups; give one of each an example"
        )
