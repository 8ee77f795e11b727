"""What the disagreement of a family comes from: the explainer, each factor of training, or the image."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float
from msgspec import Meta

from consilience.component import summary
from consilience.measures.resampling import CHANCES, CONTROL, EVERYTHING, example_weights, interval, only, pair_weights
from consilience.rng import Rng
from consilience.tensors import Row, Table

TOGETHER = "several over their sum"


@summary(version=2, paper="anderson2001new", of=("squared_distance",))
def variance_shares(
    table: Table,
    floor: Table,
    wrong_image: Table,
    rng: Rng,
    *,
    draws: Annotated[int, Meta(ge=100)] = 1000,
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95,
) -> list[Row]:
    """Shares of the maps' variance: the explainer's, each factor's, the image's. NaN where there is no variance.

    The tables must hold *squared distances*: sums over pixels of squared differences. The model is a sum. A map is
    what its class has in common, a part of the image, a part of each factor, which may differ from image to image,
    and a part of the explainer's draw; different sources, images, values of a factor and draws are uncorrelated.
    Two maps are then twice the sum of the variances of those sources apart in which they differ:

    - ``explainer`` is half the floor.
    - A factor is half of what pairs that differ in it alone exceed the floor by. What it does to each image in
      another way is in it, since maps are compared image by image.
    - ``image``, within its class, is half of what the wrong image adds to the distance of a pair that differs in
      all factors. A pair that shares a value of a factor also adds what this value does to one image and not to the
      other, which is not the image's; a linear fit over the factors in which the pairs differ takes that out.

    Nothing is clipped. Shares are of the sum: NaN where it is not positive, or where the pairs cannot tell the
    sources apart, as in a cascade. The last row is no share but the check of the model, where pairs differ in
    several factors: what they exceed the floor by, over the sum of their factors' variances. It is 1 (``null``)
    if factors add up. Below 1 they overlap: each does alone what they do together, and explainer and image come
    out too small. A factor in which no pair differs alone is left out, with its pairs; where all pairs differ in
    the same several factors, these are one.

    Intervals are of the bootstrap of ``calibrated_similarity``: it draws examples, and the twins of each row with
    their pairs. ``pairs`` and ``undefined`` are of each row's own table.

    Args:
        draws: Of the bootstrap.
        level: Of the intervals.
    """
    chance = rng.common("variance_shares")
    examples = example_weights(table.value.shape[1], chance, draws)
    table, wrong_image = _known(table), _known(wrong_image)
    noise = floor.value.double().numpy() / 2
    beyond = _beyond(table, noise)
    added = (wrong_image.value - table.value).double().numpy() / 2
    parts = [_Part("explainer", noise, _mean(noise, np.ones((draws + 1, len(noise))), examples))]
    for factor in dict.fromkeys(name for factors in table.differs for name in factors):
        chosen = [i for i, factors in enumerate(table.differs) if factors == (factor,)]
        weights = _twins(table, chosen, chance, draws)
        parts.append(_Part(factor, beyond[chosen], _mean(beyond[chosen], weights, examples)))
    everyone = _twins(table, list(range(len(table.a))), chance, draws)
    parts.append(_Part("image", added, _in_all_factors(_by_pair(added, examples), everyone, table.differs)))
    total = np.sum([part.draws for part in parts], 0)
    rows = [_row(part._replace(draws=_over(part.draws, total)), level) for part in parts]
    if several := [i for i, factors in enumerate(table.differs) if len(factors) > 1]:
        alone = {part.name: part.draws for part in parts}
        sums = np.stack([np.sum([alone[factor] for factor in table.differs[i]], 0) for i in several], 1)
        weights = _twins(table, several, chance, draws)
        ratio = _over(_mean(beyond[several], weights, examples), _over_pairs(sums, weights))
        rows.append(_row(_Part(TOGETHER, beyond[several], ratio), level)._replace(null=1.0))
    return rows


class _Part(NamedTuple):
    """One source of variance."""

    name: str
    values: Float[np.ndarray, "pairs n"]
    draws: Float[np.ndarray, " draws"]
    """Its variance in each draw of the bootstrap; the first draw is the data themselves."""


def _known(table: Table) -> Table:
    """The pairs that differ in factors which some pair differs in alone; without such a factor, in one for all.

    Its name is theirs, or ``everything`` where they are all chances. Pairs that differ in nothing are a control and
    no source.
    """
    alone = {names[0] for names in table.differs if len(names) == 1}
    if not alone:
        named = [EVERYTHING if {*names} == {*CHANCES} else ", ".join(names) for names in table.differs]
        return table._replace(differs=tuple((name,) for name in named))
    return only(table, [i for i, names in enumerate(table.differs) if {*names} <= alone - {CONTROL}])


def _beyond(table: Table, noise: Float[np.ndarray, "floors n"]) -> Float[np.ndarray, "pairs n"]:
    """The variance between the two models of each pair and image, without the explainer's."""
    known = np.isfinite(noise)
    of_image = _over(np.where(known, noise, 0).sum(0), known.sum(0))
    beyond: np.ndarray = table.value.double().numpy() / 2 - of_image
    return beyond


def _twins(
    table: Table, chosen: list[int], chance: np.random.Generator, draws: int
) -> Float[np.ndarray, "draws pairs"]:
    """How often each of some pairs stands in each draw of their twins."""
    return pair_weights(only(table, chosen), chance, draws) if chosen else np.ones((draws + 1, 0))


def _by_pair(
    values: Float[np.ndarray, "pairs n"], examples: Float[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws pairs"]:
    """Each draw's mean over examples, undefined values left out; NaN where all are."""
    known = np.isfinite(values)
    return _over(examples @ np.where(known, values, 0).T, examples @ known.T)


def _over_pairs(
    means: Float[np.ndarray, "draws pairs"], weights: Float[np.ndarray, "draws pairs"]
) -> Float[np.ndarray, " draws"]:
    """Each draw's mean over pairs, undefined ones left out; NaN where all are."""
    weights = weights * np.isfinite(means)
    return _over((np.nan_to_num(means) * weights).sum(1), weights.sum(1))


def _mean(
    values: Float[np.ndarray, "pairs n"],
    weights: Float[np.ndarray, "draws pairs"],
    examples: Float[np.ndarray, "draws n"],
) -> Float[np.ndarray, " draws"]:
    return _over_pairs(_by_pair(values, examples), weights)


def _in_all_factors(
    means: Float[np.ndarray, "draws pairs"],
    weights: Float[np.ndarray, "draws pairs"],
    differs: Sequence[tuple[str, ...]],
) -> Float[np.ndarray, " draws"]:
    """What a linear fit over the factors in which pairs differ expects of a pair that differs in all of them.

    NaN where that does not follow from the pairs. A draw of twins from which it does not is replaced by one that
    has each pair once.
    """
    factors = list(dict.fromkeys(name for names in differs for name in names))
    design = np.array([[1, *(factor in names for factor in factors)] for names in differs], dtype=float)
    everything = np.ones(len(factors) + 1)

    def fitted(weights: np.ndarray, means: np.ndarray) -> np.ndarray:
        weights = weights * np.isfinite(means)
        moments = np.einsum("dp,pi,pj->dij", weights, design, design)
        solved = np.linalg.pinv(moments, hermitian=True) @ everything
        follows = np.isclose(np.einsum("dij,dj->di", moments, solved), everything).all(1)
        values = np.einsum("di,pi,dp,dp->d", solved, design, weights, np.nan_to_num(means), optimize=True)
        return np.where(follows, values, np.nan)

    found = fitted(weights, means)
    lost = np.isnan(found)
    found[lost] = fitted(np.ones_like(weights[lost]), means[lost])
    return found


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the whole is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _row(part: _Part, level: float) -> Row:
    estimate = part.draws[0]
    low, high = interval(part.draws[1:] if np.isfinite(estimate) else part.draws[:1], level)
    pairs, n = part.values.shape
    return Row(part.name, pairs, n, int(np.isnan(part.values).sum()), float(estimate), low, high)
