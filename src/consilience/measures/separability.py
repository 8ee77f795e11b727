"""Whether two models' maps of the same images can be told apart, on images that nobody learnt from."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor
from torch.nn.functional import logsigmoid

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.classifiers import Classifier, Learner, Strength, learner
from consilience.measures.holding_out import margins_of_held_out, pairs_abreast, portion_of
from consilience.measures.splits import Plan, plan_of, suffices
from consilience.pairs import Pairs, over_pairs
from consilience.rng import Rng
from consilience.tensors import slices

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
    version=2,
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
            abreast = pairs_abreast(plan, math.prod(kind.shape[1:]), way) if held else 1
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
    portion = portion_of(plan, maps.shape[2])
    for turn in range(len(plan.fold)):
        found = margins_of_held_out(maps, places, plan, turn, answer, way, portion)
        for some in slices(len(answer), portion.labellings):
            towards = torch.where(answer[some], found[:, some], -found[:, some])
            towards = towards.view(*towards.shape[:2], 2, -1)
            right[:, some] += towards.sign().mean(2)  # 1, -1, and 0 for a margin of exactly 0; NaN stays
            likely[:, some] += logsigmoid(towards).mean(2)
    for one, other in zip(right / len(plan.fold), likely / len(plan.fold), strict=True):
        yield Judged(plan.image, one, other)


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
