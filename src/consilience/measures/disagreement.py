"""How much two models' maps of the same examples disagree: in their values, their ranks, their signs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.measures.agreement import mean_ranks
from consilience.pairs import Pairs, over_pairs

SHORT = 16  # pixels: within so few, each is compared with each; blocks of twice the length are merged from there

Share = Annotated[float, Meta(gt=0, le=1)]


@measure(version=1, better="higher", paper="pearson1895note")
@over_pairs
def pearson(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Correlation of the two maps' pixels, -1 to 1. NaN where a map is constant or undefined."""
    yield from _correlations([_rows(maps) for maps in family], pairs)


@measure(version=1, better="lower")
@over_pairs
def l2(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Euclidean distance of the two maps, 0 upwards, in their own units. NaN where a map is undefined."""
    rows = [_rows(maps) for maps in family]
    for a, b in pairs:
        yield torch.linalg.vector_norm(rows[a] - rows[b], dim=1)


@measure(version=1, better="lower")
@over_pairs
def squared_distance(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Sum over pixels of the squared difference of the two maps, 0 upwards. NaN where a map is undefined.

    Of two independent draws of a map, half of it is on average the sum of the pixels' variances: so
    its means, over pairs that differ in this or in that, are compared as variances are.
    """
    rows = [_rows(maps) for maps in family]
    for a, b in pairs:
        yield (rows[a] - rows[b]).square().sum(1)


@measure(version=1, better="higher", paper="krishna2022disagreement")
@over_pairs
def rank_agreement(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, share: Share = 0.1
) -> Iterator[Float[Tensor, " n"]]:
    """Share of the largest pixels that have the same rank in both maps, 0 to 1; NaN where a map has none.

    The largest are those of ``top_k_agreement``: by absolute value, with all that are tied at the last
    place and without zeros; the larger set divides. Ranks are the paper's: 1 is the largest pixel's,
    equal ones share a rank, and the next has the next number. Without ties the measure is, too.

    Args:
        share: Of a map's pixels, how many count as the largest.
    """
    yield from _alike_on_top(family, pairs, share, lambda ranks, signs: ranks)


@measure(version=1, better="higher", paper="krishna2022disagreement")
@over_pairs
def sign_agreement(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, share: Share = 0.1
) -> Iterator[Float[Tensor, " n"]]:
    """Share of the largest pixels that are so in both maps with the same sign, 0 to 1; NaN where a map has none.

    The largest are those of ``top_k_agreement``. Of maps without negative pixels it is the same measure.

    Args:
        share: Of a map's pixels, how many count as the largest.
    """
    yield from _alike_on_top(family, pairs, share, lambda ranks, signs: signs)


@measure(version=1, better="higher", paper="krishna2022disagreement")
@over_pairs
def signed_rank_agreement(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, share: Share = 0.1
) -> Iterator[Float[Tensor, " n"]]:
    """Share of the largest pixels with the same rank and sign in both maps, 0 to 1; NaN where a map has none.

    Largest pixels and ranks are those of ``rank_agreement``.

    Args:
        share: Of a map's pixels, how many count as the largest.
    """
    yield from _alike_on_top(family, pairs, share, lambda ranks, signs: ranks * signs)


@measure(version=1, better="higher", paper="krishna2022disagreement")
@over_pairs
def rank_correlation(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Correlation of the ranks of the pixels' absolute values, -1 to 1. NaN where all are equal or one is undefined.

    As in the paper's code equal pixels share a rank and the next has the next number, so that a run of
    equal pixels, such as a black margin, takes up one rank. ``spearman`` has the sign, and mean ranks.
    """
    yield from _correlations([dense_ranks(maps.flatten(1)).double() for maps in family], pairs)


@measure(version=1, better="higher", paper="krishna2022disagreement")
@over_pairs
def pairwise_rank_agreement(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Share of all pairs of pixels that both maps order alike by absolute value, 0 to 1. NaN where a map is undefined.

    Two pixels that are equal in both maps are ordered alike; where they are equal in one map only, the
    pair counts one half. Without ties this is the paper's, and ``(1 + tau) / 2`` of Kendall's tau-a; half
    of all pairs is chance. With ties the paper's depends on the pixels' order, since it asks only
    whether the first is larger than the second: this is its mean over an order of the pixels and the
    opposite one. NaN also where a map has one pixel.
    """
    ranked = [dense_ranks(maps.flatten(1)) for maps in family]
    ranks = [rank.cpu().numpy() for rank in ranked]
    orders = [rank.argsort(1, kind="stable") for rank in ranks]
    ascending = [np.take_along_axis(rank, order, 1) for rank, order in zip(ranks, orders, strict=True)]
    tied = [_tied(rows) for rows in ascending]
    most = ranks[0].shape[1]
    for a, b in pairs:
        other = np.take_along_axis(ranks[b], orders[a], 1)
        both = ascending[a].astype(np.int64) * (most + 1) + other
        both.sort(1, kind="stable")  # what is tied in the first map, now ascends in the second
        reversed_ = _inversions((both % (most + 1)).astype(np.int32))
        differ = reversed_ + (tied[a] + tied[b]) / 2 - _tied(both)
        value = 1 - torch.from_numpy(differ) / (most * (most - 1) / 2 or torch.nan)
        undefined = (ranks[a] == 0).any(1) | (ranks[b] == 0).any(1)
        yield value.masked_fill(torch.from_numpy(undefined), torch.nan).to(ranked[a].device)


def dense_ranks(rows: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    """Ranks by absolute value, 1 for the largest; equal pixels share one and no number is left out. 0 where undefined.

    A row is undefined where it holds NaN.
    """
    twice = (2 * mean_ranks(-rows.abs())).nan_to_num(0).long()  # whole numbers, from 2 to 2 d
    there = torch.zeros(len(rows), 2 * rows.shape[1] + 1, dtype=torch.int32, device=rows.device)
    there.scatter_(1, twice, 1)
    there[:, 0] = 0
    return there.cumsum(1, dtype=torch.int32).gather(1, twice)


def _rows(maps: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
    """Each map as a row; NaN throughout where a pixel is not finite."""
    rows = maps.flatten(1).double()
    return rows.masked_fill(~rows.isfinite().all(1, keepdim=True), torch.nan)


def _correlations(rows: Sequence[Float[Tensor, "n d"]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    directions = []
    for row in rows:
        centred = row - row.mean(1, keepdim=True)
        # The mean of equal numbers may miss them by a rounding, and what is left would pass for a direction.
        centred = centred.masked_fill((row == row[:, :1]).all(1, keepdim=True), torch.nan)
        directions.append(centred / torch.linalg.vector_norm(centred, dim=1, keepdim=True))
    for a, b in pairs:
        yield torch.linalg.vecdot(directions[a], directions[b]).clamp(-1, 1)


def _alike_on_top(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, share: float, trait: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Float[Tensor, " n"]]:
    """How many of the largest pixels of both maps share a trait of their rank and sign, over the larger set's size."""
    traits, sizes = [], []
    for maps in family:
        rows = maps.flatten(1)
        ranks = dense_ranks(rows)
        top = _top(rows, ranks, share)
        traits.append(trait(ranks, rows.sign()).masked_fill(~top, 0).int())
        sizes.append(top.sum(1))
    for a, b in pairs:
        alike = ((traits[a] == traits[b]) & (traits[a] != 0)).sum(1)
        defined = (sizes[a] > 0) & (sizes[b] > 0)
        yield (alike.double() / torch.maximum(sizes[a], sizes[b])).where(defined, torch.nan)


def _top(rows: Float[Tensor, "n d"], ranks: Int[Tensor, "n d"], share: float) -> Bool[Tensor, "n d"]:
    """The largest pixels, as ``top_k_agreement`` has them; none of a row that is undefined."""
    last = ranks.kthvalue(max(1, round(share * rows.shape[1])), dim=1, keepdim=True).values
    return (ranks <= last) & (ranks > 0) & (rows != 0)


def _tied(ascending: Int[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """How many pairs of equal numbers each row has."""
    place = np.arange(ascending.shape[1])
    begins = np.ones(ascending.shape, dtype=bool)
    begins[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    first: np.ndarray = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    return np.asarray((place - first).sum(1))


def _inversions(values: Int[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """How many pairs of each row stand in descending order: counted while all rows are merge-sorted together."""
    rows, length = values.shape
    blocks = 2 ** max(0, (max(1, length) - 1).bit_length() - (SHORT.bit_length() - 1))
    padded = np.full((rows, blocks * SHORT), np.iinfo(np.int32).max // 2, dtype=np.int32)  # last and largest: no pair
    padded[:, :length] = values
    merged = padded.reshape(rows, blocks, SHORT)
    count = np.zeros(rows)
    for apart in range(1, SHORT):
        count += (merged[..., :-apart] > merged[..., apart:]).sum((1, 2))
    merged.sort(2)
    while merged.shape[1] > 1:
        half = merged.shape[2]
        merged = merged.reshape(rows, merged.shape[1] // 2, 2 * half) * 2
        merged[..., half:] += 1  # a mark on what comes from the right half, which stays behind its equals
        merged.sort(2, kind="stable")
        places = (merged & 1).astype(np.float64) @ np.arange(2 * half, dtype=np.float64)
        # Were nothing inverted, the right half's places would be the last; each inversion moves one down by one.
        count += (half * half + half * (half - 1) // 2 - places).sum(1)
        merged >>= 1
    return count
