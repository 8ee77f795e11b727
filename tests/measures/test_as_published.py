"""The published row split: scikit-learn on the same rows, and the mistake that it is kept for."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from consilience.errors import SpecError
from consilience.measures.as_published import consistency_row_split, separability_row_split, split
from consilience.measures.separability import separability
from consilience.rng import Rng
from consilience.tensors import Table


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scaled(rows: torch.Tensor) -> np.ndarray:
    return StandardScaler().fit_transform(rows.flatten(1).double().numpy())


@pytest.mark.parametrize(("n", "side", "shift"), [(40, 12, 0.3), (80, 5, 0.1), (33, 8, 0.0), (50, 8, 3.0)])
def test_it_is_the_published_arithmetic_on_its_rows(n, side, shift):
    common = noise(0, n, side, side)
    a, b = common + noise(1, n, side, side), common + noise(2, n, side, side) + shift * noise(3, side, side)
    train, test = split(Rng(4, range(n)))
    rows, answer = torch.cat([a, b]), np.repeat([0, 1], n)
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=100_000).fit(scaled(rows[train]), answer[train])
    accuracy = peer.score(scaled(rows[test]), answer[test])
    found = separability_row_split(a, b, torch.zeros(n, dtype=torch.long), Rng(4, range(n)))
    assert abs(float(found[0]) - 2 * abs(accuracy - 0.5)) <= 2 / len(test) + 1e-9


@pytest.mark.parametrize("n", range(2, 40))
def test_three_tenths_of_the_rows_are_tested_of_each_model_alike_many(n):
    train, test = split(Rng(n, range(n)))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(2 * n))
    assert len(test) == int(np.ceil(0.6 * n - 1e-9))
    first, second = int((test < n).sum()), int((test >= n).sum())
    assert abs(first - second) <= 1
    assert min(first, second) >= 1


def test_most_twins_of_tested_rows_are_learnt_from():
    train, test = split(Rng(0, range(200)))
    learnt = set(train.tolist())
    share = np.mean([(row + 200) % 400 in learnt for row in test.tolist()])
    assert 0.6 < share < 0.8


def test_identical_maps_are_called_different():
    """The mistake: a classifier that is wrong about nearly everything counts as one that is right."""
    a, label = noise(0, 100, 10, 10), torch.arange(100) % 2
    assert (separability_row_split(a, a.clone(), label, Rng(0, range(100))) > 0.3).all()
    assert (separability(a, a.clone(), label, torch.arange(100), Rng(0, range(100)), permutations=0).value == 0).all()


def test_the_order_of_examples_changes_nothing():
    a, b, label = noise(0, 60, 6, 6), noise(1, 60, 6, 6), torch.arange(60) % 3
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one = separability_row_split(a, b, label, Rng(0, range(60)))
    two = separability_row_split(a[order], b[order], label[order], Rng(0, order.tolist()))
    torch.testing.assert_close(one, two)
    assert not torch.equal(one, separability_row_split(a, b, label, Rng(1, range(60))))


def test_a_class_with_fewer_than_two_images_is_undefined():
    label = torch.tensor([0, 2, 2, 3, 3, 3])
    a, b = noise(0, 6, 4, 4), noise(1, 6, 4, 4)
    assert separability_row_split(a, b, label, Rng(0, range(6))).isnan().tolist() == [True, True, False, False]
    a[1] = torch.nan
    assert separability_row_split(a, b, label, Rng(0, range(6))).isnan().tolist() == [True, True, True, False]
    assert len(separability_row_split(a[:0], b[:0], label[:0], Rng(0, []))) == 0


def test_sets_of_maps_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match="separability_row_split: expected two sets of maps of one shape"):
        separability_row_split(noise(0, 6, 4, 4), noise(0, 6, 5, 5), torch.zeros(6, dtype=torch.long), Rng(0, range(6)))


def test_the_published_consistency_is_one_minus_the_mean_over_pairs_of_the_mean_over_classes():
    nan = float("nan")
    value = torch.tensor([[0.2, 0.4], [0.8, nan], [0.0, 1.0]], dtype=torch.float64)
    differs = (("init",), ("init",), ("init", "order"))
    table = Table((0, 0, 1), (1, 2, 2), differs, torch.arange(2), torch.arange(2), value)
    rows = {row.name: row for row in consistency_row_split(table)}
    assert rows["overall"].estimate == pytest.approx(1 - (0.3 + 0.8) / 2)
    assert rows["init"].estimate == rows["overall"].estimate
    assert rows["several"].estimate == pytest.approx(0.5)
    assert (rows["overall"].pairs, rows["overall"].n, rows["overall"].undefined) == (2, 2, 1)
