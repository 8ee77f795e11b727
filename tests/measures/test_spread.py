"""Spread over twins: numpy's mean and deviation, signs counted one by one, and undefined pixels."""

import numpy as np
import pytest
import torch

from consilience.errors import SpecError
from consilience.measures.spread import spread
from consilience.pairs import Maps


def maps(twins=5, seed=0):
    return torch.randn(twins, 3, 2, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("twins", [2, 3, 8])
def test_mean_and_deviation_are_numpys(twins):
    family = maps(twins)
    found = spread(list(family))
    np.testing.assert_allclose(found.mean, family.numpy().mean(0), atol=1e-12)
    np.testing.assert_allclose(found.deviation, family.numpy().std(0, ddof=1), atol=1e-12)


def test_a_small_deviation_around_a_large_mean_keeps_its_digits():
    family = maps() * 1e-3 + 1e6
    np.testing.assert_allclose(spread(list(family)).deviation, family.numpy().std(0, ddof=1), rtol=1e-6)


def test_the_agreement_of_signs_is_by_how_much_one_outnumbers_the_other():
    values = torch.tensor([[1, 1, 1, 0, -3], [2, -1, 1, 0, -1], [3, -2, 0, 0, -2], [9, 5, -1, 0, 0]]).double()
    family = [one.view(1, 1, 1, -1) for one in values]
    assert spread(family).agreement_of_sign.flatten().tolist() == [1, 0, 0.25, 0, 0.75]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("twin", [0, 3])
def test_a_pixel_is_undefined_where_a_twins_is(value, twin):
    family = maps()
    family[twin, 1, 0, 2, 3] = value
    for found in spread(list(family)):
        assert found.isnan().sum() == 1
        assert found[1, 0, 2, 3].isnan()


def test_maps_keep_their_type():
    assert all(found.dtype == torch.float32 for found in spread(list(maps().float())))


def test_maps_may_be_fetched_when_they_are_asked_for():
    family = maps()
    torch.testing.assert_close(spread(Maps(5, lambda twin: family[twin])), spread(list(family)))


def test_the_maps_stay_as_they_are():
    family = maps()
    before = family.clone()
    spread(list(family))
    assert torch.equal(family, before)


@pytest.mark.parametrize("twins", [0, 1])
def test_fewer_than_two_twins_are_refused(twins):
    with pytest.raises(SpecError, match="spread: expected the maps of two or more twins, found"):
        spread(list(maps()[:twins]))


def test_maps_of_other_images_are_refused():
    with pytest.raises(SpecError, match=r"found \[3, 2, 4, 5\] and \[2, 2, 4, 5\]; explain the same images"):
        spread([maps()[0], maps()[0, :2]])
