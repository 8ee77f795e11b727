"""Maps as images: the pattern stays, its size goes."""

import torch

from consilience.data.examples import checked
from consilience.data.maps import maps_as_images

LABEL = torch.tensor([0, 1, 1])


def maps():
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_zero_is_grey_and_the_largest_value_is_black_or_white():
    given = maps()
    x = maps_as_images(given, LABEL, ("a", "b")).batch(range(3)).x
    for image, one in zip(x, given, strict=True):
        place = one.abs().flatten().argmax()
        assert image.flatten()[place] == (1.0 if one.flatten()[place] > 0 else 0.0)
        torch.testing.assert_close((image - 0.5) * 2 * one.abs().max(), one, atol=1e-6, rtol=0)


def test_a_factor_changes_nothing():
    one, two = (maps_as_images(maps() * factor, LABEL, ("a", "b")) for factor in (1.0, 32.0))
    assert torch.equal(one.batch(range(3)).x, two.batch(range(3)).x)


def test_maps_of_zeros_and_undefined_ones_are_grey():
    given = maps()
    given[0], given[1] = 0, torch.nan
    examples = maps_as_images(given, LABEL, ("a", "b"))
    assert (examples.batch([0, 1]).x == 0.5).all()
    checked(examples.batch(range(3)))
