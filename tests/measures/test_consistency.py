"""Consistency: the definition word for word, clipped once, classes weighing alike, undefined left out and counted."""

import numpy as np
import pytest
import torch

from consilience.measures.summaries import consistency
from consilience.rng import Rng
from consilience.tensors import Table

FACTORS = [("init",), ("init",), ("order",), ("init", "order")]
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 3)]
N = 20


def table(value, label=None):
    label = torch.arange(N) % 2 if label is None else label
    pairs = PAIRS[: len(value)]
    return Table(*zip(*pairs, strict=True), tuple(FACTORS[: len(value)]), torch.arange(N), label, value.double())


def rows(value, label=None, null=0.0, p=None, **options):
    p = torch.linspace(0.1, 0.4, len(value), dtype=torch.float64) if p is None else p
    exchanged = table(torch.full_like(value, null), label)
    found = consistency(table(value, label), exchanged, p, Rng(0, []), **{"draws": 200, **options})
    return {row.name: row for row in found}


def constants(*values):
    return torch.tensor(values)[:, None].expand(-1, N).clone()


def test_c_is_one_minus_the_mean_over_pairs():
    found = rows(constants(0.2, 0.4, 0.9, 1.0))
    assert list(found) == ["overall", "init", "order", "several"]
    assert found["overall"].estimate == pytest.approx(1 - (0.2 + 0.4 + 0.9) / 3)
    assert found["init"].estimate == pytest.approx(1 - 0.3)
    assert found["several"].estimate == pytest.approx(0)
    assert [found[name].pairs for name in found] == [3, 2, 1, 1]


def test_it_is_clipped_once_after_averaging():
    assert rows(constants(-0.3, 0.3))["overall"].estimate == pytest.approx(1)
    assert rows(constants(-0.3, 0.5))["overall"].estimate == pytest.approx(0.9)
    assert rows(constants(-0.3, -0.1))["overall"].estimate == 1


def test_classes_weigh_alike_however_many_examples_they_have():
    label = (torch.arange(N) >= 15).long()
    value = (label == 0).float().expand(2, -1)
    assert rows(value, label)["overall"].estimate == pytest.approx(0.5)


def test_it_is_its_definition():
    value = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, N)) + 0.3)
    scores = [np.mean([float(v[range(kind, N, 2)].mean()) for kind in (0, 1)]) for v in value]
    assert rows(value)["overall"].estimate == pytest.approx(1 - max(0, np.mean(scores)))


def test_undefined_values_and_classes_are_left_out_and_counted():
    value = constants(0.4, 0.4)
    value[:, 3] = torch.nan
    assert (rows(value)["overall"].estimate, rows(value)["overall"].undefined) == (pytest.approx(0.6), 2)
    value[0, 1::2] = torch.nan  # a whole class of one pair
    assert rows(value)["overall"].estimate == pytest.approx(0.6)
    nothing = rows(constants(float("nan"), float("nan")))["overall"]
    assert np.isnan([nothing.estimate, nothing.low, nothing.high]).all()
    assert nothing.undefined == 2 * N


def test_the_null_stands_beside_it():
    assert rows(constants(0.4, 0.4), null=0.1)["overall"].null == pytest.approx(0.9)
    assert rows(constants(0.4, 0.4), null=-0.1)["overall"].null == 1


def test_p_is_a_single_pairs_own_and_twice_the_mean_of_several():
    found = rows(constants(0.4, 0.4, 0.4, 0.4), p=torch.tensor([0.01, 0.03, 0.04, 0.9]).double())
    assert found["order"].p == pytest.approx(0.04)
    assert found["init"].p == pytest.approx(0.04)
    assert rows(constants(0.4, 0.4), p=torch.tensor([0.7, 0.9]).double())["overall"].p == 1


def test_the_interval_is_of_the_seed_and_holds_the_estimate():
    value = torch.from_numpy(np.random.default_rng(1).normal(0.5, 0.3, (3, N)))
    one, again = rows(value)["overall"], rows(value)["overall"]
    assert one == again
    assert one.low < one.estimate < one.high
    assert rows(value, level=0.5)["overall"].high < one.high
