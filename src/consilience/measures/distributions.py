"""How far apart two models' maps lie as sets: the values of each pixel over all images, and all values together.

Whether the two maps of one image are alike does not enter, except for ``wilcoxon``. Images of which one of the
two maps is not finite are left out on both sides.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.measures.pixelwise import NEAR, by_pixel, of_pairs, pooled_values
from consilience.pairs import Pairs, over_pairs
from consilience.tensors import slices

LEVEL = 0.05  # of a family of tests, one a pixel: how often any of them may reject what is true
PART, PARTS = 64, 256  # values of one model between two cuts; parts that are merged with another model's at a time


class Distance(NamedTuple):
    """How far apart two sets of maps lie."""

    value: Float[Tensor, ""]
    """Mean over pixels of the distance between the two models' values of that pixel."""
    pooled: Float[Tensor, ""]
    """Distance between the two models' values of all pixels together."""


class Tested(NamedTuple):
    """How far apart two sets of maps lie, and where that is beyond chance."""

    value: Float[Tensor, ""]
    """Mean over pixels of the statistic of that pixel's values."""
    pooled: Float[Tensor, ""]
    """The statistic of all pixels' values together."""
    rejected: Float[Tensor, ""]
    """Share of the pixels whose values differ beyond chance, by Holm's method at the level 0.05."""


class Signed(NamedTuple):
    """How one-sided the differences of the two maps of an image are."""

    value: Float[Tensor, ""]
    """Mean over pixels of the distance from 0 of that pixel's statistic."""
    pooled: Float[Tensor, ""]
    """The same of all pixels' values together."""
    rejected: Float[Tensor, ""]
    """Share of the pixels whose differences are one-sided beyond chance, by Holm's method at the level 0.05."""
    smaller: Float[Tensor, ""]
    """Of all pixels' values together, the smaller of the two sums of ranks: the statistic as it is published."""


@measure(version=1, better="lower", paper="lin1991divergence")
@over_pairs
def jensen_shannon(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, bins: Annotated[int, Meta(ge=2)] = 32
) -> Iterator[Distance]:
    """Jensen-Shannon divergence of the two models' values, in bits, 0 to 1. NaN where no image has two finite maps.

    Of histograms with bins of equal width, from the smallest to the largest value of the two models
    together: of each pixel by itself for ``value``, of all pixels for ``pooled``. Few images make models
    look apart: alike ones get about ``(bins - 1) / (2.8 n)`` a pixel.

    Args:
        bins: Of each histogram.
    """
    for numbers in of_pairs(family, pairs, functools.partial(_divergences, bins=bins), 2):
        yield Distance(*numbers)


@measure(version=1, better="lower", paper="vallender1974calculation")
@over_pairs
def wasserstein(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Distance]:
    """Wasserstein-1 distance of the two models' values, in the maps' units. NaN where no image has two finite maps.

    The mean distance between the two models' values, each side sorted. It grows with the maps: compare
    what is scaled alike.
    """
    for numbers in of_pairs(family, pairs, _transports, 2):
        yield Distance(*numbers)


@measure(version=1, better="lower", paper="smirnov1948table")
@over_pairs
def kolmogorov_smirnov(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Tested]:
    """Largest gap of the two models' cumulative shares, 0 to 1. NaN where no image has two finite maps.

    A pixel is rejected by the exact distribution of two independent samples without ties. Ties make that
    too rare, and so does it that the two maps of an image are alike: it errs on the safe side. Values of
    different pixels of an image are not independent, so that ``pooled`` has no test.
    """
    for numbers in of_pairs(family, pairs, _gaps, 3):
        yield Tested(*numbers)


@measure(version=1, better="lower", paper="wilcoxon1945individual")
@over_pairs
def wilcoxon(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Signed]:
    """How one-sided the differences of an image's two maps are, 0 to 1. NaN where no image has two finite maps.

    Differences are ranked by absolute value, zeros dropped, equal ones sharing their mean rank. The
    statistic is the sum of the ranks of positive differences less that of negative ones, over the
    largest sum that so many images can have: the rank-biserial correlation where no difference is 0.
    0 is as much above as below, 1 is one model always above the other. A pixel is rejected by the normal
    approximation of the signed-rank test, with the variance that ties leave. ``pooled`` has no test, as
    values of different pixels of an image are not independent.
    """
    for numbers in of_pairs(family, pairs, _sides, 4):
        yield Signed(*numbers)


def _divergences(family: Sequence[Tensor], pairs: Pairs, bins: int) -> list[list[float]]:
    def of_some(values: np.ndarray, held: Pairs) -> np.ndarray:
        ordered = torch.from_numpy(np.sort(values, axis=2).astype(np.float64))
        return torch.stack([_divergence(ordered[a], ordered[b], bins) for a, b in held]).numpy()

    value, pooled, found = by_pixel(family, pairs, of_some).mean(1), pooled_values(family), []
    for mean, (a, b) in zip(value, pairs, strict=True):
        one, other = (torch.from_numpy(pooled(member)).double()[None] for member in (a, b))
        found.append([float(mean), float(_divergence(one, other, bins))])
    return found


def _divergence(one: Float[Tensor, "p n"], other: Float[Tensor, "p n"], bins: int) -> Float[Tensor, " p"]:
    """In bits, of two sets of values, each ascending."""
    low = torch.minimum(one[:, :1], other[:, :1])
    width = (torch.maximum(one[:, -1:], other[:, -1:]) - low) / bins
    inner = (torch.arange(1, bins, dtype=one.dtype) * width + low).contiguous()
    shares = []
    for values in (one, other):
        below = torch.searchsorted(values.contiguous(), inner)  # a value on an edge belongs to the bin above it
        edges = torch.nn.functional.pad(below, (1, 0)), torch.nn.functional.pad(below, (0, 1), value=values.shape[1])
        shares.append((edges[1] - edges[0]).double() / values.shape[1])
    p, q = shares
    entropy, of_p, of_q = (torch.special.entr(share).sum(1) for share in ((p + q) / 2, p, q))
    bits: Tensor = (entropy - (of_p + of_q) / 2) / math.log(2)
    return bits.clamp(0, 1)


def _transports(family: Sequence[Tensor], pairs: Pairs) -> list[list[float]]:
    def of_some(values: np.ndarray, held: Pairs) -> np.ndarray:
        ordered = np.sort(values, axis=2).astype(np.float64)
        room = np.empty_like(ordered[0])
        return np.stack([_gaps_between(ordered[a], ordered[b], room).mean(1) for a, b in held])

    value, pooled, found = by_pixel(family, pairs, of_some).mean(1), pooled_values(family), []
    room = np.empty(NEAR)
    for mean, (a, b) in zip(value, pairs, strict=True):
        one, other = pooled(a), pooled(b)
        way = sum(_gaps_between(one[some], other[some], room).sum() for some in slices(len(one), NEAR))
        found.append([float(mean), float(way / len(one))])
    return found


def _gaps_between(
    one: Float[np.ndarray, "*n"], other: Float[np.ndarray, "*n"], room: Float[np.ndarray, "*m"]
) -> Float[np.ndarray, "*n"]:
    """How far values are apart, in double precision; they are written into the room, which stays in the cache."""
    out: np.ndarray = room[: len(one)]
    np.subtract(one, other, out=out, dtype=np.float64)
    np.abs(out, out=out)
    return out


def _gaps(family: Sequence[Tensor], pairs: Pairs) -> list[list[float]]:
    n, pooled = len(family[pairs[0][0]]), pooled_values(family)
    gaps = by_pixel(family, pairs, _gaps_of_some)
    chance = np.ones(n + 1)
    for size in np.unique(gaps):
        chance[size] = _chance(int(size), n)
    return [
        [float(gap.mean() / n), _gap(pooled(a), pooled(b)) / len(pooled(a)), _rejected(chance[gap])]
        for gap, (a, b) in zip(gaps, pairs, strict=True)
    ]


def _gaps_of_some(values: Float[np.ndarray, "k p n"], pairs: Pairs) -> Int[np.ndarray, "pairs p"]:
    """The largest gap of the two models' cumulative counts, by one sorting of all models' values together."""
    twins, pixels, n = values.shape
    joint = values.transpose(1, 0, 2).reshape(pixels, -1)
    order = joint.argsort(1)
    kind = np.int16 if n < 2**15 else np.int32  # the narrower, the more at once
    ends = _ends(np.take_along_axis(joint, order, 1)).astype(kind)
    owner = order // n
    counts = [(owner == twin).cumsum(1, dtype=kind) * ends for twin in range(twins)]
    return np.stack([np.abs(counts[a] - counts[b]).max(1) for a, b in pairs])


def _ends(ascending: Float[np.ndarray, "*p n"]) -> np.ndarray:
    """Where a run of equal values ends: between them, cumulative counts are those of no value."""
    ends = np.ones(ascending.shape, dtype=bool)
    ends[..., :-1] = ascending[..., 1:] != ascending[..., :-1]
    return ends


def _gap(one: Float[np.ndarray, " m"], other: Float[np.ndarray, " m"]) -> int:
    """The largest gap of the cumulative counts of two sets of values, each ascending.

    Both are cut into parts at the same values. A part is merged only where its gap could be the largest,
    which is where the gap at its start and the number of its values allow that.
    """
    cuts = np.unique(one[::PART])
    first, second = (np.concatenate([[0], np.searchsorted(x, cuts), [len(x)]]) for x in (one, other))
    start, up, down = (first - second)[:-1], np.diff(first), np.diff(second)
    largest = int(np.abs(start).max())
    unsure = np.maximum(start + up, down - start) > largest
    for some in slices(len(unsure), PARTS):
        here = unsure[some]
        if not here.any():
            continue
        left = one[first[some.start] : first[some.stop]][np.repeat(here, up[some])]
        right = other[second[some.start] : second[some.stop]][np.repeat(here, down[some])]
        joint = np.concatenate([left, right])
        order = joint.argsort(kind="stable")  # two runs in order: they are merged
        rise = (up - down)[some][here]
        missed = start[some][here] - (rise.cumsum() - rise)  # what the parts before would have added
        counts = np.where(order < len(left), 1, -1).cumsum() + np.repeat(missed, (up + down)[some][here])
        largest = max(largest, int(np.abs(counts[_ends(joint[order])]).max()))
    return largest


def _chance(gap: int, n: int) -> float:
    """How often two samples of ``n`` from one distribution without ties have such a gap of counts or a larger one.

    Of all paths of ``n`` steps up and ``n`` down, those that leave a strip, by reflection.
    """
    if gap == 0:
        return 1.0
    away = torch.arange(1, n // gap + 1, dtype=torch.float64) * gap
    size = torch.tensor(n + 1.0, dtype=torch.float64)
    paths = (2 * size.lgamma() - (size - away).lgamma() - (size + away).lgamma()).exp()
    return float(2 * (paths[::2].sum() - paths[1::2].sum()).clamp(0, 0.5))


def _rejected(p: Float[np.ndarray, " d"]) -> float:
    """Share of the tests that Holm's method rejects, which holds its level whatever depends on what."""
    allowed = LEVEL / np.arange(len(p), 0, -1)
    return float(np.logical_and.accumulate(np.sort(p) <= allowed).mean())


def _sides(family: Sequence[Tensor], pairs: Pairs) -> list[list[float]]:
    def of_some(values: np.ndarray, held: Pairs) -> np.ndarray:
        ranked = [_side(torch.from_numpy(values[a].astype(np.float64) - values[b])) for a, b in held]
        return np.stack([torch.stack([one.statistic, one.p]).numpy() for one in ranked], 1)

    statistic, p = by_pixel(family, pairs, of_some)
    found = []
    for mean, chance, (a, b) in zip(statistic.mean(1), p, pairs, strict=True):
        whole = _side((family[a].double() - family[b]).flatten()[None])
        found.append([float(mean), float(whole.statistic), _rejected(chance), float(whole.smaller)])
    return found


class Side(NamedTuple):
    """How one-sided each row of differences is."""

    statistic: Float[Tensor, " p"]
    p: Float[Tensor, " p"]
    smaller: Float[Tensor, " p"]


def _side(differences: Float[Tensor, "p n"]) -> Side:
    values = differences.numpy()
    n = values.shape[1]
    keys = (np.abs(values).view(np.uint64) << 1) | (values > 0)  # a size's bits ascend with it; behind them the sign
    keys.sort(1)
    sizes = keys >> 1
    begins = np.ones(values.shape, dtype=bool)
    begins[:, 1:] = sizes[:, 1:] != sizes[:, :-1]
    begin = np.flatnonzero(begins)
    length = np.diff(begin, append=begins.size)
    ranks = np.repeat(begin % n + (length + 1) / 2, length).reshape(values.shape)
    zero = sizes == 0  # they have the first ranks, which are taken away again
    signed = torch.from_numpy((ranks - zero.sum(1, keepdims=True)) * np.where(zero, 0, 2.0 * (keys & 1) - 1))
    total: Tensor = signed.sum(1).abs()
    # Signs are fair coins under the null: the variance is the sum of the squares, which holds what ties take from it.
    deviation = signed.square().sum(1).sqrt()
    p = torch.special.erfc(total / deviation / math.sqrt(2)).nan_to_num(1.0)  # 1 where there is no difference
    return Side(total / (n * (n + 1) / 2), p, (signed.abs().sum(1) - total) / 2)
