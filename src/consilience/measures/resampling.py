"""Resampling of a family: which pairs a column holds, and how often each pair and example stands in each draw."""

from collections.abc import Iterator

import numpy as np

from consilience.tensors import Table

CONTROL = "nothing"  # of twins that differ in nothing: no factor, so not among those of which a mean is taken
CHANCES = ("init", "order", "noise", "augment")  # of a training
EVERYTHING = "everything"  # of twins that differ in all of them


def columns(table: Table) -> Iterator[tuple[str, list[int]]]:
    """Names of columns, and which pairs they hold: single-factor pairs together and by factor, the others apart.

    Pairs that differ in every chance have a column of their own. Where no pair differs in one factor alone, they are
    the column of all factors too. Pairs that differ in nothing are a control: a column of their own, and not in the
    one of all factors.
    """
    alone = [i for i, factors in enumerate(table.differs) if len(factors) == 1]
    single = [i for i in alone if table.differs[i] != (CONTROL,)]
    together = [i for i, factors in enumerate(table.differs) if {*factors} == {*CHANCES}]
    if single or together:
        yield "overall", single or together
    for factor in dict.fromkeys(table.differs[i][0] for i in [*single, *alone]):
        yield factor, [i for i in alone if table.differs[i][0] == factor]
    if together:
        yield EVERYTHING, together
    several = [i for i, factors in enumerate(table.differs) if len(factors) > 1 and i not in together]
    if several:
        yield "several", several


def only(table: Table, chosen: list[int]) -> Table:
    """Some of the pairs."""
    return table._replace(
        a=tuple(table.a[i] for i in chosen),
        b=tuple(table.b[i] for i in chosen),
        differs=tuple(table.differs[i] for i in chosen),
        value=table.value[chosen],
    )


def pair_weights(table: Table, chance: np.random.Generator, draws: int) -> np.ndarray:
    """How often each pair stands in each draw of the twins; the first draw has each once.

    A draw in which no pair is left is replaced by one that has each once, so a single pair stays.
    """
    a, b = np.array(table.a), np.array(table.b)
    twins, position = np.unique(np.concatenate([a, b]), return_inverse=True)
    counts = chance.multinomial(len(twins), np.full(len(twins), 1 / len(twins)), draws)
    weights = counts[:, position[: len(a)]] * counts[:, position[len(a) :]]
    weights[weights.sum(1) == 0] = 1
    return np.vstack([np.ones(len(a)), weights])


def example_weights(n: int, chance: np.random.Generator, draws: int) -> np.ndarray:
    """How often each example stands in each draw; the first draw has each once."""
    return np.vstack([np.ones(n), chance.multinomial(n, np.full(n, 1 / n), draws)])


def interval(sample: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles of the defined draws, as many below as above; NaN where none is defined."""
    if not np.isfinite(sample).any():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(sample, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
