"""From the values of a family to rows that a person reads, each with its uncertainty."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from consilience.component import summary
from consilience.measures.resampling import columns, example_weights, interval, only, pair_weights
from consilience.rng import Rng
from consilience.tensors import Row, Table

Better = Literal["higher", "lower"]


@summary(version=3)
def calibrated_similarity(
    table: Table,
    floor: Table,
    wrong_image: Table,
    rng: Rng,
    better: Better = "higher",
    *,
    draws: Annotated[int, Meta(ge=100)] = 1000,
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95,
) -> list[Row]:
    """Where a family's agreement lies between that of other images (0) and of one model explained twice (1).

    ``(agreement - wrong image) / (floor - wrong image)``, each a mean over pairs and examples; of a distance,
    whose ``better`` is ``"lower"``, as well. Unclipped: below 0 is less alike than the maps of different
    images. NaN where the floor is not better than the baseline beyond chance: there is no scale to stand on.

    One row for all pairs that differ in a single factor (``overall``), one a factor, one for pairs that
    differ in ``several``. Intervals are of a bootstrap that draws examples, and twins with all their
    pairs: percentile, at ``level``. With a single pair it draws examples only.

    Args:
        draws: Of the bootstrap.
        level: Of the intervals.
    """
    rows = []
    for name, chosen in columns(table):
        part, other = only(table, chosen), only(wrong_image, chosen)
        estimate, sample = _with_bootstrap(part, floor, other, better, rng.common(name), draws)
        low, high = interval(sample, level)
        undefined = int(np.isnan(part.value.numpy()).sum())
        rows.append(Row(name, len(part.a), part.value.shape[1], undefined, estimate, low, high))
    return rows


class _Means(NamedTuple):
    """Each draw's mean agreement, floor and baseline; the first draw is the data themselves."""

    agreement: np.ndarray
    floor: np.ndarray
    baseline: np.ndarray


def _with_bootstrap(
    table: Table, floor: Table, baseline: Table, better: Better, chance: np.random.Generator, draws: int
) -> tuple[float, np.ndarray]:
    """The calibrated value, and its bootstrap sample; both NaN where the floor does not clear the baseline."""
    examples = example_weights(table.value.shape[1], chance, draws)
    pairs = pair_weights(table, chance, draws)
    means = _Means(
        _weighted(table, pairs, examples),
        _weighted(floor, np.ones((draws + 1, len(floor.a))), examples),
        _weighted(baseline, pairs, examples),
    )
    scale = means.floor - means.baseline
    clear = scale[1:] * {"higher": 1, "lower": -1}[better]
    if np.isnan(scale).any() or np.percentile(clear, 2.5) <= 0:
        return float("nan"), np.full(draws, np.nan)
    value = (means.agreement - means.baseline) / scale
    return float(value[0]), value[1:]


def _weighted(table: Table, pairs: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Each draw's mean over pairs and examples, undefined values left out."""
    values = table.value.double().numpy()
    defined = np.isfinite(values)
    total = ((pairs @ np.where(defined, values, 0)) * examples).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: np.ndarray = total / ((pairs @ defined) * examples).sum(1)
    return means


@summary(version=2, paper="watson2022agree")
def consistency(
    table: Table,
    null: Table,
    p: Float[Tensor, " pairs"],
    rng: Rng,
    *,
    draws: Annotated[int, Meta(ge=100)] = 1000,
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95,
) -> list[Row]:
    """C, 1 where nobody can tell which twin made a map and 0 where everybody can; NaN where nothing could be judged.

    ``1 - max(0, S)``, S the mean of ``2 * held-out accuracy - 1`` over pairs, of the mean over classes, of the
    mean over examples; clipped once, at the end. Rows are those of ``calibrated_similarity``, and so are the
    bootstrap's draws; the classifiers are not fitted anew in them. Beside C stands ``null``, the C of the same
    maps with the models exchanged at random, and p: of a single pair its own, of several twice their mean,
    which is valid however the pairs depend on each other.

    C falls as examples and pixels are added, for any fixed difference; it is comparable at equal numbers only.

    Args:
        draws: Of the bootstrap.
        level: Of the interval.
    """
    rows = []
    for name, chosen in columns(table):
        part, exchanged, chance = only(table, chosen), only(null, chosen), rng.common(name)
        examples = example_weights(part.value.shape[1], chance, draws)
        pairs = pair_weights(part, chance, draws)
        sample = 1 - np.clip(_over_classes(part, pairs, examples), 0, 1)
        control = 1 - np.clip(_over_classes(exchanged, pairs[:1], examples[:1]), 0, 1)
        low, high = interval(sample[1:], level)
        undefined = int(np.isnan(part.value.numpy()).sum())
        own = p[chosen].double().numpy()
        joint = float(own[0]) if len(own) == 1 else min(1.0, 2 * float(own.mean()))
        rows.append(
            Row(
                name, len(chosen), part.value.shape[1], undefined, float(sample[0]), low, high, joint, float(control[0])
            )
        )
    return rows


def _over_classes(table: Table, pairs: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Each draw's mean over pairs of the mean over classes of the mean over examples, undefined values left out."""
    values, label = table.value.double().numpy(), table.label.numpy()
    total, classes = np.zeros((len(values), len(examples))), np.zeros((len(values), len(examples)))
    for kind in np.unique(label):
        part, weight = values[:, label == kind], examples[:, label == kind].T
        defined = np.isfinite(part)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (np.where(defined, part, 0) @ weight) / (defined @ weight)
        classes += np.isfinite(mean)
        total += np.nan_to_num(mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = total / classes
        weights = pairs.T * np.isfinite(scores)
        result: np.ndarray = (np.nan_to_num(scores) * weights).sum(0) / weights.sum(0)
    return result
