"""Distributions of weights: SciPy, and planted truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import weights as module
from consilience.measures.weights import weight_distance
from consilience.pairs import Maps, over_family

BOTH = ["wasserstein", "jensen_shannon"]


def weights(seed: int, shape: tuple[int, ...] = (6, 5, 3), values: int | None = None) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(-values, values + 1, shape, generator=chance).float()
    return torch.randn(shape, generator=chance)


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), scale=floats(1e-6, 1e6), offset=floats(-5, 5))
def test_the_way_that_values_move_is_that_of_scipy(seed, scale, offset):
    one, other = weights(seed) * scale, (weights(seed + 1) + offset) * scale
    expected = wasserstein_distance(one.flatten().double(), other.flatten().double())
    assert weight_distance(one, other).item() == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), bins=integers(2, 300), offset=floats(-5, 5))
def test_the_divergence_is_that_of_scipy_on_histograms_of_numpy(seed, bins, offset):
    one, other = weights(seed), weights(seed + 1) * 2 + offset
    both = torch.cat([one, other]).double().numpy()
    counts = [np.histogram(w.double(), bins, (both.min(), both.max()))[0] for w in (one, other)]
    found = weight_distance(one, other, distance="jensen_shannon", bins=bins)
    assert found.item() == pytest.approx(jensenshannon(*counts, base=2) ** 2, abs=1e-12)


def test_values_on_the_edges_of_bins_count_as_in_numpy():
    one, other = weights(0, values=4), weights(1, values=4)
    counts = [np.histogram(w, 8, (-4, 4))[0] for w in (one, other)]
    found = weight_distance(one, other, distance="jensen_shannon", bins=8)
    assert found.item() == pytest.approx(jensenshannon(*counts, base=2) ** 2, abs=1e-12)


@pytest.mark.parametrize("shift", [-2.5, 0.25, 3.0])
def test_weights_that_are_shifted_lie_the_shift_apart(shift):
    assert weight_distance(weights(0), weights(0) + shift).item() == pytest.approx(abs(shift), abs=1e-6)


@pytest.mark.parametrize("distance", BOTH)
def test_weights_in_another_order_are_no_distance_apart(distance):
    one = weights(0)
    other = one.flatten()[torch.randperm(90, generator=torch.Generator().manual_seed(1))].view(6, 5, 3)
    assert weight_distance(one, other, distance=distance).item() == 0


@pytest.mark.parametrize("distance", BOTH)
def test_distance_is_the_same_both_ways(distance):
    one, other = weights(0), weights(1) * 2
    assert weight_distance(one, other, distance=distance) > 0
    torch.testing.assert_close(
        weight_distance(one, other, distance=distance), weight_distance(other, one, distance=distance)
    )


def test_weights_that_share_no_bin_are_one_bit_apart():
    one, other = torch.rand(40), torch.rand(40) + 10
    assert weight_distance(one, other, distance="jensen_shannon").item() == pytest.approx(1)
    constant = (torch.zeros(3), torch.ones(3))
    assert weight_distance(*constant, distance="jensen_shannon").item() == pytest.approx(1)


@pytest.mark.parametrize("distance", BOTH)
def test_a_single_number_and_equal_constants_are_defined(distance):
    assert weight_distance(torch.tensor(2.0), torch.tensor(2.0), distance=distance).item() == 0
    assert weight_distance(torch.ones(4), torch.ones(4), distance=distance).item() == 0


@pytest.mark.parametrize("distance", BOTH)
def test_empty_weights_and_such_as_are_not_finite_are_undefined(distance):
    one, spoilt, endless = weights(0), weights(1), weights(2)
    spoilt[0, 2, 1], endless[1, 1, 1] = torch.nan, -torch.inf
    family = [one, spoilt, endless, weights(3)]
    values = torch.stack(list(over_family(weight_distance, family, [(0, 1), (2, 0), (1, 1), (0, 3)])))
    assert values.isnan().tolist() == [True, True, True, False]
    assert weight_distance(torch.ones(0, 3), torch.ones(0, 3), distance=distance).isnan()


@pytest.mark.parametrize("distance", BOTH)
def test_a_family_is_measured_as_its_pairs_are_and_sorted_once_a_model(distance, monkeypatch):
    family, ordered, pairs = [weights(seed) for seed in range(4)], [], [(1, 2), (3, 1), (2, 3)]
    order = module._ordered
    monkeypatch.setattr(module, "_ordered", lambda tensor: ordered.append(tensor) or order(tensor))
    configured = measure.choose({"use": "weight_distance", "distance": distance}).build()
    values = list(over_family(configured, Maps(4, family.__getitem__), pairs))
    assert len(ordered) == 3
    for (a, b), value in zip(pairs, values, strict=True):
        torch.testing.assert_close(value, weight_distance(family[a], family[b], distance=distance))


def test_tensors_of_other_shapes_are_refused():
    words = r"weight_distance: expected a tensor of the same shape of every model, found \[6, 4\] and \[6, 5\]; compare"
    with pytest.raises(SpecError, match=words):
        weight_distance(weights(0, (6, 5)), weights(0, (6, 4)))


@pytest.mark.parametrize("options", [{"bins": 1}, {"distance": "energy"}], ids=str)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SpecError, match=r"weight_distance: (Expected|Invalid enum value)"):
        measure.choose({"use": "weight_distance", **options})
