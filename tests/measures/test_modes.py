"""Modes: planted groups, none where there are none, scikit-learn's silhouettes, and what is undefined."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import calinski_harabasz_score, silhouette_score

from consilience import component
from consilience.measures import modes as module
from consilience.measures.agreement import cosine
from consilience.measures.modes import modes
from consilience.rng import Rng
from consilience.tensors import Table


def table(maps):
    """The cosine of every two twins' maps [twins, n, d]."""
    pairs = list(combinations(range(len(maps)), 2))
    value = torch.stack([cosine(torch.from_numpy(maps[a]), torch.from_numpy(maps[b])) for a, b in pairs])
    n = value.shape[1]
    return Table(*zip(*pairs, strict=True), (("init",),) * len(pairs), torch.arange(n), torch.arange(n) % 2, value)


def simulated(seed, group, distinct=1.0):
    """The image, what a group makes of it, and what each twin makes of it."""
    chance = np.random.default_rng(seed)
    image, groups = chance.standard_normal((20, 16)), chance.standard_normal((max(group) + 1, 20, 16))
    return image + distinct * groups[group] + chance.standard_normal((len(group), 20, 16))


def rows(given, seed=0, **options):
    return modes(given, Rng(seed, []), **{"draws": 100, **options})


def twins_in(row):
    return [int(word) for word in row.name.split("twin")[1].split("(")[0].strip("s ").split(", ")]


@pytest.mark.parametrize(
    "group", [[0, 1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 2, 0, 1, 2, 2, 0], [0, 1, 1, 0]], ids=str
)
def test_planted_groups_are_found_with_their_members(group):
    found = rows(table(simulated(1, group)))
    expected = sorted(
        ([i for i, own in enumerate(group) if own == kind] for kind in set(group)), key=lambda g: (-len(g), g)
    )
    assert [twins_in(row) for row in found] == expected
    assert [row.name.split(":")[0] for row in found] == [f"mode {i}" for i in range(1, len(expected) + 1)]
    assert all(row.p < 0.05 for row in found)
    assert all(row.null < row.low < row.estimate < row.high for row in found)


def test_a_row_holds_the_agreement_inside_and_outside_and_the_medoid():
    given = table(simulated(2, [0, 0, 0, 1, 1, 1]))
    mean = {
        pair: float(value.mean())
        for *pair, value in zip(given.a, given.b, given.value, strict=True)
        for pair in [tuple(pair)]
    }
    first = rows(given)[0]
    assert first.estimate == pytest.approx(np.mean([mean[0, 1], mean[0, 2], mean[1, 2]]))
    assert first.null == pytest.approx(np.mean([mean[a, b] for a in range(3) for b in range(3, 6)]))
    assert (first.pairs, first.n, first.undefined) == (3, 20, 0)
    total = [mean[0, 1] + mean[0, 2], mean[0, 1] + mean[1, 2], mean[0, 2] + mean[1, 2]]
    assert first.name == f"mode 1: twins 0, 1, 2 (medoid {int(np.argmax(total))})"


def test_twins_without_groups_are_one_mode():
    """Of 40 simulated families, 5 % are expected to pass for several modes."""
    several = sum(len(rows(table(simulated(seed, [0] * 6)), seed)) > 1 for seed in range(40))
    assert several <= 6, "above the 99 % range of a binomial with 0.05"


def test_twins_that_differ_in_quality_are_one_mode():
    several = 0
    for seed in range(40):
        chance = np.random.default_rng(seed)
        noise = np.exp(0.3 * chance.standard_normal((7, 1, 1))) * chance.standard_normal((7, 20, 16))
        several += len(rows(table(chance.standard_normal((20, 16)) + noise), seed)) > 1
    assert several <= 6, "above the 99 % range of a binomial with 0.05"


def test_one_mode_is_one_row_with_its_p():
    (row,) = rows(table(simulated(0, [0] * 5)))
    assert row.name.startswith("one mode: twins 0, 1, 2, 3, 4 (medoid ")
    assert row.p > 0.05
    assert np.isnan(row.null)
    assert (row.pairs, row.n) == (10, 20)


def test_a_twin_that_went_astray_is_no_mode():
    (row,) = rows(table(simulated(0, [0, 0, 0, 0, 0, 1], distinct=3.0)))
    assert twins_in(row) == list(range(6))


def test_beside_two_modes_a_stray_twin_stands_alone():
    *both, stray = rows(table(simulated(3, [0, 0, 0, 1, 1, 1, 2], distinct=2.0)))
    assert [twins_in(row) for row in both] == [[0, 1, 2], [3, 4, 5]]
    assert stray.name == "alone: twin 6"
    assert np.isnan([stray.estimate, stray.low, stray.high]).all()
    assert stray.pairs == 0
    assert stray.null < both[0].estimate


@pytest.mark.parametrize("twins", [2, 3])
def test_too_few_twins_for_two_groups_are_one_mode_without_p(twins):
    (row,) = rows(table(simulated(0, [0] * twins)))
    assert row.name.startswith("one mode")
    assert np.isnan(row.p)
    assert np.isfinite(row.estimate)


def test_equal_maps_are_one_mode():
    (row,) = rows(table(np.repeat(simulated(0, [0]), 6, 0)))
    assert row.estimate == pytest.approx(1)
    assert not row.p < 0.05


def test_two_heaps_of_equal_maps_are_two_modes():
    assert [twins_in(row) for row in rows(table(simulated(0, [0, 1])[[0, 1, 0, 1, 0]]))] == [[0, 2, 4], [1, 3]]


def test_undefined_values_are_counted_and_left_out():
    given = table(simulated(1, [0, 0, 0, 1, 1, 1]))
    given.value[0, :3] = torch.nan  # twins 0 and 1
    first, second = rows(given)
    assert (first.undefined, second.undefined) == (3, 0)
    assert first.estimate == pytest.approx(float(given.value[[0, 1, 5]].nanmean(1).mean()))


@pytest.mark.parametrize("lost", ["missing", "undefined"])
def test_without_an_agreement_of_every_two_twins_there_is_one_undefined_row(lost):
    given = table(simulated(1, [0, 0, 1, 1]))
    if lost == "missing":
        given = given._replace(a=given.a[1:], b=given.b[1:], differs=given.differs[1:], value=given.value[1:])
    else:
        given.value[0] = torch.nan
    (row,) = rows(given)
    assert row.name.startswith("undefined")
    assert np.isnan([row.estimate, row.low, row.high, row.p]).all()


def test_silhouette_and_ratio_are_scikit_learns():
    points = np.random.default_rng(0).standard_normal((9, 4))
    distance = ((points[:, None] - points) ** 2).sum(-1)
    for labels in ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 0, 0, 2, 1]):
        member = np.eye(3)[labels]
        assert module._silhouette(distance, member) == pytest.approx(
            silhouette_score(distance, labels, metric="precomputed")
        )
        assert module._ratio(distance, member) == pytest.approx(calinski_harabasz_score(points, labels))


@pytest.mark.parametrize("seed", range(5))
def test_the_clustering_is_scikit_learns_with_the_largest_silhouette(seed):
    points = np.random.default_rng(seed).standard_normal((8, 3))
    distance = ((points[:, None] - points) ** 2).sum(-1)
    best, labels = max(
        (silhouette_score(distance, labels, metric="precomputed"), labels.tolist())
        for count in range(2, 7)
        for labels in [AgglomerativeClustering(count, metric="precomputed", linkage="average").fit_predict(distance)]
        if (np.bincount(labels) > 1).sum() > 1
    )
    found = module._distinct(distance)
    assert found.silhouette == pytest.approx(best)
    assert sorted(found.groups) == sorted(np.flatnonzero(np.array(labels) == one).tolist() for one in set(labels))


def test_rotated_twins_keep_the_variances_and_no_two_are_nearer_than_others():
    points = np.random.default_rng(1).standard_normal((6, 3)) * [3, 1, 0.2]
    distance = ((points[:, None] - points) ** 2).sum(-1)
    centred = np.eye(6) - 1 / 6
    variances = np.linalg.eigvalsh(-0.5 * centred @ distance @ centred)
    rotated = list(module._rotations(distance, np.random.default_rng(0), 4000))
    for one in rotated[:5]:
        np.testing.assert_allclose(np.linalg.eigvalsh(-0.5 * centred @ one @ centred), variances, atol=1e-9)
        assert (np.diag(one) == 0).all()
        np.testing.assert_allclose(one, one.T)
    mean = np.mean(rotated, 0)[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(mean, 2 * variances.sum() / 5, rtol=0.1)


def test_rows_are_a_function_of_the_seed():
    given = table(simulated(1, [0, 0, 0, 1, 1, 1]))
    assert rows(given) == rows(given)
    assert rows(given, seed=1)[0].low != rows(given)[0].low
    assert rows(given, level=0.5)[0].high < rows(given)[0].high


def test_it_is_offered_for_agreements_of_two_maps_alone():
    for name in component.summary.get("modes").of:
        measure = component.measure.get(name)
        assert measure.better == "higher"
        assert measure.roles.keys() == {"maps", "other"}
