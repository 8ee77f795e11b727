"""Calibrated similarity: planted values, undefined scales, and intervals that hold what they promise."""

from itertools import combinations

import numpy as np
import pytest
import torch

from consilience.measures.summaries import calibrated_similarity, columns
from consilience.rng import Rng
from consilience.tensors import Table

PAIRS = list(combinations(range(4), 2))
FACTORS = [("init",), ("init",), ("order",), ("init",), ("init", "order"), ("init", "order")]


def table(value: torch.Tensor, factors=None) -> Table:
    pairs = PAIRS[: len(value)]
    n = value.shape[1]
    return Table(
        tuple(a for a, _ in pairs), tuple(b for _, b in pairs), tuple(factors or [("init",)] * len(pairs)),
        torch.arange(n), torch.arange(n) % 2, value.double(),
    )  # fmt: skip


def constant(value: float, pairs: int = 6, n: int = 20) -> torch.Tensor:
    return torch.full((pairs, n), value)


def test_the_estimate_is_the_place_between_baseline_and_floor():
    (row, *_) = calibrated_similarity(
        table(constant(0.5)), table(constant(0.9, 1)), table(constant(0.1)), Rng(0, []), draws=100
    )
    assert row.name == "overall"
    assert (row.estimate, row.low, row.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (row.pairs, row.n, row.undefined) == (6, 20, 0)


def test_a_value_outside_the_scale_is_not_clipped():
    given = table(constant(0.9, 1)), table(constant(0.1)), Rng(0, [])
    assert calibrated_similarity(table(constant(1.7)), *given, draws=100)[0].estimate == pytest.approx(2)
    assert calibrated_similarity(table(constant(-0.7)), *given, draws=100)[0].estimate == pytest.approx(-1)


def test_pairs_that_differ_in_one_factor_make_overall_and_the_factors_and_the_others_stand_apart():
    assert dict(columns(table(constant(0.5), FACTORS))) == {
        "overall": [0, 1, 2, 3],
        "init": [0, 1, 3],
        "order": [2],
        "several": [4, 5],
    }


def test_pairs_that_differ_in_every_chance_have_a_column_and_are_all_where_no_factor_was_varied_alone():
    every = ("init", "order", "noise", "augment")
    pairs = [every, ("init",), ("nothing",), (*every, "dropout_rate"), every, ("init", "order")]
    assert dict(columns(table(constant(0.5), pairs))) == {
        "overall": [1],
        "init": [1],
        "nothing": [2],
        "everything": [0, 4],
        "several": [3, 5],
    }
    assert dict(columns(table(constant(0.5, 3), [every, every, ("nothing",)]))) == {
        "overall": [0, 1],
        "nothing": [2],
        "everything": [0, 1],
    }


def test_a_distance_is_the_nearer_to_one_the_smaller_it_is():
    """An image of which nothing is known counts as little as in an agreement."""
    given = table(constant(1.0, 1)), table(constant(9.0)), Rng(0, []), "lower"
    for value, place in [(1.0, 1), (3.0, 0.75), (5.0, 0.5), (9.0, 0), (13.0, -0.5), (0.0, 1.125)]:
        distances = constant(value)
        distances[:, 3] = torch.nan
        (row, *_) = calibrated_similarity(table(distances), *given, draws=100)
        assert (row.estimate, row.low, row.high) == pytest.approx((place, place, place))
        assert (row.pairs, row.n, row.undefined) == (6, 20, 6)


def test_a_distance_stands_where_the_agreement_does_that_is_its_opposite():
    chance = np.random.default_rng(3)
    values = [torch.from_numpy(chance.normal(mean, 0.2, (p, 30))) for mean, p in [(0.5, 6), (0.9, 1), (0.1, 6)]]
    rows = calibrated_similarity(*(table(v) for v in values), Rng(0, []), draws=200)
    turned = calibrated_similarity(*(table(2 - v) for v in values), Rng(0, []), "lower", draws=200)
    for row, other in zip(rows, turned, strict=True):
        assert other.name == row.name
        assert other[1:7] == pytest.approx(row[1:7])
        assert np.isfinite(row.estimate)


@pytest.mark.parametrize(("better", "floor", "other"), [("higher", 0.1, 0.9), ("lower", 0.9, 0.1)])
def test_there_is_no_scale_where_one_model_explained_twice_is_worse_than_other_images(better, floor, other):
    rows = calibrated_similarity(
        table(constant(0.5)), table(constant(floor, 1)), table(constant(other)), Rng(0, []), better, draws=100
    )
    assert all(np.isnan([row.estimate, row.low, row.high]).all() for row in rows)
    assert len(rows) == 2


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_there_is_no_scale_where_the_floor_is_not_better_than_the_baseline_beyond_chance(better):
    chance = np.random.default_rng(0)
    noise = [torch.from_numpy(chance.normal(0, 1, (p, 50))) for p in (6, 1, 6)]
    (row, *_) = calibrated_similarity(*map(table, noise), Rng(0, []), better, draws=200)
    assert np.isnan([row.estimate, row.low, row.high]).all()


def test_undefined_values_are_counted_and_left_out():
    value = constant(0.5)
    value[:, 3] = torch.nan
    (row, *_) = calibrated_similarity(
        table(value), table(constant(0.9, 1)), table(constant(0.1)), Rng(0, []), draws=100
    )
    assert row.undefined == 6
    assert row.estimate == pytest.approx(0.5)


def test_nothing_defined_is_undefined_and_not_zero():
    (row, *_) = calibrated_similarity(
        table(constant(float("nan"))), table(constant(0.9, 1)), table(constant(0.1)), Rng(0, []), draws=100
    )
    assert np.isnan(row.estimate)
    assert row.undefined == 120


def test_there_is_no_scale_without_a_baseline():
    nothing = table(constant(float("nan")))
    (row, *_) = calibrated_similarity(table(constant(0.5)), table(constant(0.9, 1)), nothing, Rng(0, []), draws=100)
    assert np.isnan([row.estimate, row.low, row.high]).all()


def test_the_interval_is_a_function_of_the_seed():
    value = torch.from_numpy(np.random.default_rng(1).normal(0.5, 0.2, (6, 30)))
    rows = [
        calibrated_similarity(
            table(value), table(constant(0.9, 1, 30)), table(constant(0.1, 6, 30)), Rng(seed, []), draws=200
        )[0]
        for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1]
    assert rows[0].low != rows[2].low
    assert rows[0].low < rows[0].estimate < rows[0].high


def test_the_interval_covers_the_truth_when_examples_are_what_varies():
    """One pair, so that only examples are drawn: of 200 simulated sets about 95 % cover the planted value."""
    chance, hits = np.random.default_rng(2), 0
    for trial in range(200):
        value = torch.from_numpy(chance.normal(0.5, 0.2, (1, 60)))
        (row, *_) = calibrated_similarity(
            table(value), table(constant(0.9, 1, 60)), table(constant(0.1, 1, 60)), Rng(trial, []), draws=200
        )
        hits += row.low <= 0.5 <= row.high
    assert 176 <= hits <= 199, "outside the 99.9 % range of a binomial with 0.93 to 0.95"


def test_twins_that_differ_widen_the_interval():
    """A twin that agrees with nobody: with its pairs drawn together, the interval is wider than over images alone."""
    value = constant(0.8, 6, 50)
    value[[i for i, pair in enumerate(PAIRS) if 3 in pair]] = 0.2
    (row, *_) = calibrated_similarity(
        table(value), table(constant(1.0, 1, 50)), table(constant(0.0, 6, 50)), Rng(0, []), draws=500
    )
    assert row.estimate == pytest.approx(0.5)
    assert row.low < 0.3
    assert row.high > 0.7
