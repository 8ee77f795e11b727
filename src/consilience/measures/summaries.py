"""From the values of a family to rows that a person reads, each with its uncertainty."""

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta

from consilience.component import summary
from consilience.rng import Rng
from consilience.tensors import Row, Table


@summary(version=1)
def calibrated_similarity(
    table: Table,
    floor: Table,
    wrong_image: Table,
    rng: Rng,
    *,
    draws: Annotated[int, Meta(ge=100)] = 1000,
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95,
) -> list[Row]:
    """Where a family's agreement lies between that of other images (0) and of one model explained twice (1).

    ``(agreement - wrong image) / (floor - wrong image)``, each a mean over pairs and examples. Unclipped:
    below 0 is less alike than the maps of different images. NaN where the floor is not above the
    baseline beyond chance: there is no scale to stand on.

    One row for all pairs that differ in a single factor (``overall``), one a factor, one for pairs that
    differ in ``several``. Intervals are of a bootstrap that draws examples, and twins with all their
    pairs: percentile, at ``level``. With a single pair it draws examples only.

    Args:
        draws: Of the bootstrap.
        level: Of the intervals.
    """
    rows = []
    for name, chosen in columns(table):
        part, other = _only(table, chosen), _only(wrong_image, chosen)
        estimate, sample = _with_bootstrap(part, floor, other, rng.common(name), draws)
        low, high = _interval(sample, level)
        undefined = int(np.isnan(part.value.numpy()).sum())
        rows.append(Row(name, len(part.a), part.value.shape[1], undefined, estimate, low, high))
    return rows


def columns(table: Table) -> Iterator[tuple[str, list[int]]]:
    """Names of columns, and which pairs they hold: single-factor pairs together and by factor, the others apart."""
    single = [i for i, factors in enumerate(table.differs) if len(factors) == 1]
    if single:
        yield "overall", single
    for factor in dict.fromkeys(table.differs[i][0] for i in single):
        yield factor, [i for i in single if table.differs[i][0] == factor]
    several = [i for i, factors in enumerate(table.differs) if len(factors) > 1]
    if several:
        yield "several", several


class _Means(NamedTuple):
    """Each draw's mean agreement, floor and baseline; the first draw is the data themselves."""

    agreement: np.ndarray
    floor: np.ndarray
    baseline: np.ndarray


def _with_bootstrap(
    table: Table, floor: Table, baseline: Table, chance: np.random.Generator, draws: int
) -> tuple[float, np.ndarray]:
    """The calibrated value, and its bootstrap sample; both NaN where the floor does not clear the baseline."""
    n = table.value.shape[1]
    examples = np.vstack([np.ones(n), chance.multinomial(n, np.full(n, 1 / n), draws)])
    pairs = _pair_weights(table, chance, draws)
    means = _Means(
        _weighted(table, pairs, examples),
        _weighted(floor, np.ones((draws + 1, len(floor.a))), examples),
        _weighted(baseline, pairs, examples),
    )
    scale = means.floor - means.baseline
    if np.isnan(scale).any() or np.percentile(scale[1:], 2.5) <= 0:
        return float("nan"), np.full(draws, np.nan)
    value = (means.agreement - means.baseline) / scale
    return float(value[0]), value[1:]


def _pair_weights(table: Table, chance: np.random.Generator, draws: int) -> np.ndarray:
    """How often each pair stands in each draw of the twins; the first draw has each once.

    A draw in which no pair is left is replaced by one that has each once, so a single pair stays.
    """
    a, b = np.array(table.a), np.array(table.b)
    twins, position = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = chance.multinomial(len(twins), np.full(len(twins), 1 / len(twins)), draws)
    weights = counts[:, position[: len(a)]] * counts[:, position[len(a) :]]
    weights[weights.sum(1) == 0] = 1
    return np.vstack([np.ones(len(a)), weights])


def _weighted(table: Table, pairs: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Each draw's mean over pairs and examples, undefined values left out."""
    values = table.value.double().numpy()
    defined = np.isfinite(values)
    total = ((pairs @ np.where(defined, values, 0)) * examples).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: np.ndarray = total / ((pairs @ defined) * examples).sum(1)
    return means


def _only(table: Table, chosen: list[int]) -> Table:
    return table._replace(
        a=tuple(table.a[i] for i in chosen),
        b=tuple(table.b[i] for i in chosen),
        differs=tuple(table.differs[i] for i in chosen),
        value=table.value[chosen],
    )


def _interval(sample: np.ndarray, level: float) -> tuple[float, float]:
    if not np.isfinite(sample).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(sample, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
