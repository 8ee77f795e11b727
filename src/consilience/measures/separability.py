"""Whether two models' maps of the same images can be told apart, on images that nobody learnt from."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import lockstep
from consilience.measures.classifiers import Classifier, Learner, Strength, learner
from consilience.measures.logistic import Problem, margins
from consilience.measures.splits import INNER_FOLDS, Plan, plan_of, suffices
from consilience.pairs import Pairs, over_pairs
from consilience.rng import Rng
from consilience.tensors import slices

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SIDE_BY_SIDE, FEWEST = 60_000, 50  # margins of the pairs fitted at once; labellings, however many rows
LARGE = 50_000  # pixels of all rows, from which a fit that shares nothing with other labellings goes in lockstep
FIT_BYTES = 24 * 2**20  # of all that is fitted at once: pairs, splits and labellings are taken in such portions
HELD_BYTES = 32 * 2**20  # of all twins' maps together; classes are taken in blocks of this size


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
    classifier: Classifier = "logistic",
    c: Strength = 1.0,
    folds: Annotated[int, Meta(ge=2)] = 3,
    repeats: Annotated[int, Meta(ge=1)] = 1,
    permutations: Annotated[int, Meta(ge=0)] = 99,
    count: Annotated[int, Meta(ge=1)] | None = None,
) -> Iterator[Separability]:
    """Twice the share of an image's held-out maps given to the right model, minus 1. NaN where it cannot be judged.

    A classifier learns to tell the first model's maps from the second's, and is asked about
    images in no group that it learnt from. 0 is chance, and exactly 0 what identical maps get; 1 is every
    map given to the right model. A margin of exactly 0 is half right.

    It asks whether the two models' maps differ *at all*, and says nothing about whether the two maps of
    one image agree. The more images, the smaller the difference that is found: compare at equal ``count``.

    An image cannot be judged where a map is not finite, where it is left out by ``count``, or where its
    class is too small: each split must leave two groups to learn from, and something in each of three
    inner folds where ``c`` is cross-validated. ``p`` is over all that could be judged; NaN without permutations.

    Of memory it takes fixed portions, however many the models, classes and permutations; but all maps of one class
    of two models are learnt from at once, at 15 bytes a pixel, and up to 4 KiB a map for 50 permutations.

    Args:
        by: A classifier for each true class, as published, or one for all images together.
        classifier: What learns: logistic regression, or the linear discriminant with a ridge, or scikit-learn's
            support vector machine, linear or of the Gaussian kernel, which is fitted one labelling after the other
            and holds some 24 bytes for each two of a class's maps besides.
        c: Strength of fitting: the inverse of the ridge, for standardised pixels; to the variances of the discriminant
            ``1 / (c * rows)`` is added. ``"cross_validated"`` takes the best of six from 0.0001 to 10, by folds
            inside each training part.
        folds: Into how many parts the groups are split; each is held out once.
        repeats: Of the split into folds, averaged.
        permutations: Of the null, for which each group's two maps are exchanged with probability one half.
        count: How many groups of each class are used at most, always the same first ones; all without it.
    """
    if not pairs:
        return
    way = learner(classifier, c)
    kind = _kind(family[pairs[0][0]], label, groups)
    images = (
        [(label == name).nonzero()[:, 0] for name in sorted(set(label.tolist()))]
        if by == "class"
        else [torch.arange(len(label))]
    )
    plans = [plan_of(image.cpu(), groups.cpu(), rng, folds, repeats, permutations, count) for image in images]
    value, null = torch.full((2, len(pairs), len(label)), torch.nan, dtype=torch.float64, device=kind.device)
    scores: list[list[Tensor]] = [[] for _ in pairs]
    for numbers, plan, maps, places in _by_class(family, pairs, plans, kind, way):
        for pair, judged in zip(numbers, _judged(maps, places, plan, way), strict=True):
            if judged is None:
                continue
            value[pair, judged.image] = judged.right[0]
            null[pair, judged.image] = judged.right[1:].mean(0)
            scores[pair].append(torch.stack([judged.right.mean(1), judged.likely.mean(1)]))
    for pair in range(len(pairs)):
        yield Separability(value[pair], null[pair], _p(scores[pair]).to(kind.device))


class Judged(NamedTuple):
    """One class of one pair."""

    image: Int[Tensor, " m"]
    right: Float[Tensor, "labellings m"]
    likely: Float[Tensor, "labellings m"]
    """Mean log-likelihood of the right answers."""


class Kind(NamedTuple):
    """What all twins' maps have in common; the maps themselves are not held for it."""

    shape: torch.Size
    bytes: int
    """Of one map."""
    device: torch.device


def _by_class(
    family: Sequence[Tensor], pairs: Pairs, plans: Sequence[Plan], kind: Kind, way: Learner
) -> Iterator[tuple[Sequence[int], Plan, Tensor, Tensor]]:
    """Maps of each class, some pairs abreast: a twin is read once for as many classes as can be held of all twins.

    They come once for each model, and with them the places of the pairs among them.
    """
    most = HELD_BYTES // max(1, kind.bytes * len(set(itertools.chain(*pairs))))
    blocks: list[list[Plan]] = []
    for plan in plans:
        if blocks and sum(len(other.image) for other in (*blocks[-1], plan)) <= most:
            blocks[-1].append(plan)
        else:
            blocks.append([plan])
    for block in blocks:
        images, kept = [plan.image for plan in block], dict[int, list[Tensor]]()
        held = len(torch.cat(images)) <= most
        for position, plan in enumerate(block):
            abreast = _abreast(plan, math.prod(kind.shape[1:]), way) if held else 1
            for some in slices(len(pairs), abreast):
                numbers = range(len(pairs))[some]
                members = list(dict.fromkeys(itertools.chain.from_iterable(pairs[some])))
                for member in members:
                    if member not in kept:
                        kept[member] = _read(family, kind.shape, images, member)
                maps = torch.stack([kept[member][position] for member in members])
                if not held:  # of the one class of this block, the two that are looked at, not twice
                    kept = {member: [own] for member, own in zip(members, maps, strict=True)}
                places = torch.tensor([[members.index(member) for member in pair] for pair in pairs[some]])
                yield numbers, plan, maps, places.to(maps.device)


def _in_lockstep(plan: Plan, pixels: int, way: Learner) -> int:
    """How many pairs, within ``FIT_BYTES``; 0 where it is not the cheapest: of several labellings, or of small maps."""
    rows, splits = 2 * len(plan.image), 1 + int(plan.fold.max()) if len(plan.image) else 1
    if way.margins is not margins or way.c == "cross_validated" or len(plan.exchanged) > 1 or rows * pixels < LARGE:
        return 0
    inverses, fit = 4 * splits * min(rows, pixels) * pixels, 120 * pixels + 100 * rows
    return max(0, FIT_BYTES - inverses) // (splits * fit)


def _abreast(plan: Plan, pixels: int, way: Learner) -> int:
    return _in_lockstep(plan, pixels, way) or _portion(plan, pixels).pairs


class Portion(NamedTuple):
    """How many are fitted side by side."""

    pairs: int
    splits: int
    labellings: int


def _portion(plan: Plan, pixels: int) -> Portion:
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


def _read(family: Sequence[Tensor], shape: torch.Size, images: Sequence[Tensor], member: int) -> list[Tensor]:
    maps = family[member]
    if maps.shape != shape:
        raise SpecError(
            f"separability: expected two sets of maps of one shape, found {list(shape)} and {list(maps.shape)}; "
            "compare maps of the same examples, with their channels joined alike"
        )
    return [maps[image].flatten(1) for image in images]


def _judged(
    maps: Float[Tensor, "models m d"], places: Int[Tensor, "pairs 2"], plan: Plan, way: Learner
) -> Iterator[Judged | None]:
    """Both models' maps of one class, each asked about by those who did not learn from its group."""
    finite = maps.isfinite().all(2).all(0).cpu()
    if len(places) > 1 and not bool(finite.all()):  # each pair leaves out images of its own
        for pair in places:
            yield from _judged(maps[pair], torch.arange(2, device=maps.device)[None], plan, way)
        return
    if not bool(finite.all()):
        maps, plan = maps[:, finite], plan.only(finite)
    if not all(suffices(plan, turn, way.c == "cross_validated") for turn in range(len(plan.fold))):
        yield from [None] * len(places)
        return
    answer = torch.cat([plan.exchanged, ~plan.exchanged], 1).to(maps.device)
    right, likely = torch.zeros(2, len(places), *plan.exchanged.shape, dtype=torch.float64, device=maps.device)
    portion = _portion(plan, maps.shape[2])
    for turn in range(len(plan.fold)):
        found = _asked(maps, places, plan, turn, answer, way, portion)
        for some in slices(len(answer), portion.labellings):
            towards = torch.where(answer[some], found[:, some], -found[:, some])
            towards = towards.view(*towards.shape[:2], 2, -1)
            right[:, some] += towards.sign().mean(2)  # 1, -1, and 0 for a margin of exactly 0; NaN stays
            likely[:, some] += logsigmoid(towards).mean(2)
    for one, other in zip(right / len(plan.fold), likely / len(plan.fold), strict=True):
        yield Judged(plan.image, one, other)


def _asked(
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


def _kind(maps: Tensor, label: Tensor, groups: Tensor) -> Kind:
    if maps.ndim < 2 or not len(maps) == len(label) == len(groups):
        raise SpecError(
            f"separability: expected a map, a label and a group for each example, found maps {list(maps.shape)}, "
            f"{len(label)} labels and {len(groups)} groups; give one of each an example"
        )
    return Kind(maps.shape, maps[:1].nbytes, maps.device)
