"""Explanation modes: whether the twins of a family fall into groups that explain alike."""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from msgspec import Meta
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from consilience.component import summary
from consilience.measures.resampling import example_weights, interval
from consilience.rng import Rng
from consilience.tensors import Row, Table

AGREEMENTS = (
    "cosine", "pearson", "spearman", "rank_correlation", "ssim", "top_k_agreement", "rank_agreement",
    "sign_agreement", "signed_rank_agreement", "pairwise_rank_agreement",
)  # fmt: skip
EQUAL = 1e-9  # of agreement; what is closer than this is rounding


@summary(version=1, paper="bensmail2025evoxplain", of=AGREEMENTS)
def modes(
    table: Table,
    rng: Rng,
    *,
    draws: Annotated[int, Meta(ge=100)] = 1000,
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95,
) -> list[Row]:
    """A row for each group of twins that explain alike; one for all where there are no groups, NaN if undefined.

    The table must hold an agreement, 1 for equal maps, of every two twins; with a pair missing or undefined on all
    images, the one row is undefined. Twins are clustered by 1 - mean agreement over images, with average linkage. A
    mode is what at least two twins share: a clustering needs two groups of two, and a twin alone is no mode, since
    it may as well have gone astray. Of these clusterings, the one with the largest mean silhouette is taken
    (Rousseeuw 1987).

    Whether groups mean anything is asked of twins without groups: one normal cloud, round or long. Given how far it
    reaches along each axis, where the twins lie on the axes is a random rotation. So twins are rotated ``draws``
    times and clustered by the same rule; p is how often their groups are as distinct, by the ratio of the variance
    between groups to that within (Calinski and Harabasz 1974). There is one mode where p is not below
    ``1 - level``, or NaN, since there is no such clustering, as with fewer than four twins.

    ``name`` holds the twins' positions in the family and the medoid, which agrees most with its mode. ``pairs`` and
    ``undefined`` are of the pairs inside, ``estimate`` is their mean agreement, its interval over images with the
    groups as they are, ``null`` the mean agreement with twins of other groups, p that of the whole clustering.

    Args:
        draws: Of rotated twins, and of the bootstrap over images.
        level: Of the intervals; twins without groups pass for several modes in ``1 - level`` of all cases.
    """
    twins = sorted({*table.a, *table.b})
    agreement = _agreement(table, twins)
    pairs, n = table.value.shape
    if np.isnan(agreement).any():
        nothing, undefined = float("nan"), int(table.value.isnan().sum())
        return [Row("undefined: not every two twins have an agreement", pairs, n, undefined, *[nothing] * 3)]
    groups, p = _modes(1 - agreement, rng.common("rotations"), draws, 1 - level)
    examples = example_weights(n, rng.common("examples"), draws)
    rows = []
    for i, group in enumerate(groups, 1):
        kind = "one mode" if len(groups) == 1 else f"mode {i}" if len(group) > 1 else "alone"
        row = _inside(table, [twins[j] for j in group], examples, level)
        medoid = f" (medoid {twins[_medoid(agreement, group)]})" if len(group) > 1 else ""
        rows.append(row._replace(name=f"{kind}: {row.name}{medoid}", p=p, null=_outside(agreement, group)))
    return rows


def _agreement(table: Table, twins: Sequence[int]) -> Float[np.ndarray, "twins twins"]:
    """The mean over images of every two twins, 1 with themselves; NaN where a pair is missing or undefined."""
    found = np.full((len(twins), len(twins)), np.nan)
    np.fill_diagonal(found, 1)
    place = {twin: i for i, twin in enumerate(twins)}
    for a, b, value in zip(table.a, table.b, table.value.double().nanmean(1).tolist(), strict=True):
        found[place[a], place[b]] = found[place[b], place[a]] = value
    return found


def _modes(
    distance: Float[np.ndarray, "twins twins"], chance: np.random.Generator, draws: int, most: float
) -> tuple[list[list[int]], float]:
    """Groups of twins, the largest first, and their p; all in one where p is not below ``most``."""
    found, together = _distinct(distance), [list(range(len(distance)))]
    if found is None:
        return together, float("nan")
    rotated = (_distinct(one) for one in _rotations(distance, chance, draws))
    as_distinct = sum(1 for one in rotated if one and one.ratio >= found.ratio * (1 - 1e-6))
    p = (1 + as_distinct) / (1 + draws)
    return (sorted(found.groups, key=lambda group: (-len(group), group)) if p < most else together), p


class _Clusters(NamedTuple):
    """Groups of twins, and how distinct they are."""

    groups: list[list[int]]
    silhouette: float
    ratio: float
    """Of the variance between groups to that within, each over its degrees of freedom."""


def _distinct(distance: Float[np.ndarray, "twins twins"]) -> _Clusters | None:
    """The clustering with the largest silhouette of those with two groups of two; None where there is none."""
    if len(distance) < 4:
        return None
    distance = np.where(distance < EQUAL, 0, distance)
    tree = linkage(squareform(distance, checks=False), "average")
    best: _Clusters | None = None
    for labels in reversed(list(_cuts(tree))):  # fewer groups first: they win a draw
        member = np.equal.outer(labels, np.unique(labels)).astype(float)
        if (member.sum(0) > 1).sum() < 2:
            continue
        silhouette = _silhouette(distance, member)
        if best is None or silhouette > best.silhouette + EQUAL:
            best = _Clusters([np.flatnonzero(one).tolist() for one in member.T], silhouette, _ratio(distance, member))
    return best


def _cuts(tree: Float[np.ndarray, "merges 4"]) -> Iterator[Int[np.ndarray, " twins"]]:
    """The group of each twin after every merge but the last, with which all are together."""
    labels = np.arange(len(tree) + 1)
    for merged, (a, b) in enumerate(tree[:-1, :2], len(labels)):
        labels = np.where((labels == a) | (labels == b), merged, labels)
        yield labels


def _silhouette(distance: Float[np.ndarray, "twins twins"], member: Float[np.ndarray, "twins groups"]) -> float:
    """How much nearer twins are to their own group than to the next, -1 to 1, 0 for a twin alone; the mean."""
    size, total = member.sum(0), distance @ member
    own = member.astype(bool)
    others = (member @ size) - 1
    inside = total[own] / np.maximum(others, 1)
    nearest = np.where(own, np.inf, total / size).min(1)
    larger = np.maximum(inside, nearest)
    return float(np.where((others > 0) & (larger > 0), (nearest - inside) / np.where(larger > 0, larger, 1), 0).mean())


def _ratio(distance: Float[np.ndarray, "twins twins"], member: Float[np.ndarray, "twins groups"]) -> float:
    """Of the variance between groups to that within; sums of squares are sums of squared distances over the size."""
    twins, groups = member.shape
    within = float((np.einsum("ig,ij,jg->g", member, distance, member) / (2 * member.sum(0))).sum())
    between = float(distance.sum()) / (2 * twins) - within
    if between <= 0:
        return 0.0
    return between / (groups - 1) / (within / (twins - groups)) if within > 0 else float("inf")


def _rotations(
    distance: Float[np.ndarray, "twins twins"], chance: np.random.Generator, draws: int
) -> Iterator[Float[np.ndarray, "twins twins"]]:
    """Squared distances after random rotations of the twins among themselves.

    Independent normal maps, whatever their covariance, are as likely after any rotation that mixes the twins and
    keeps their mean (Langsrud 2005); the principal coordinates' variances stay what they are.
    """
    twins = len(distance)
    frame = np.linalg.qr(np.column_stack([np.ones(twins), np.eye(twins)[:, 1:]]))[0][:, 1:]  # across the mean
    products = -0.5 * frame.T @ distance @ frame
    for _ in range(draws):
        turn, upper = np.linalg.qr(chance.standard_normal((twins - 1, twins - 1)))
        axes = frame @ (turn * np.sign(np.diag(upper)))  # the signs make all rotations equally likely
        gram = axes @ products @ axes.T
        length = np.diag(gram)
        rotated = length[:, None] + length - gram - gram.T
        np.fill_diagonal(rotated, 0)
        yield rotated


def _medoid(agreement: Float[np.ndarray, "twins twins"], group: Sequence[int]) -> int:
    """The one that agrees most with its group, the first of several."""
    return group[int(agreement[np.ix_(group, group)].sum(1).argmax())]


def _outside(agreement: Float[np.ndarray, "twins twins"], group: Sequence[int]) -> float:
    """The mean agreement of a group's twins with those of others; NaN where there are none."""
    others = [i for i in range(len(agreement)) if i not in group]
    return float(agreement[np.ix_(group, others)].mean()) if others else float("nan")


def _inside(table: Table, group: Sequence[int], examples: Float[np.ndarray, "draws n"], level: float) -> Row:
    """The mean agreement of every two twins of a group, NaN of one alone."""
    inside = [i for i, pair in enumerate(zip(table.a, table.b, strict=True)) if {*pair} <= {*group}]
    values = table.value[inside].double().numpy()
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (examples @ np.where(known, values, 0).T) / (examples @ known.T)
    sample = means.mean(1) if inside else np.full(len(examples), np.nan)
    name = f"twin{'s' if len(group) > 1 else ''} {', '.join(map(str, group))}"
    low, high = interval(sample[1:], level)
    return Row(name, len(inside), values.shape[1], int(np.isnan(values).sum()), float(sample[0]), low, high)
