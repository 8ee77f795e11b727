import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from consilience.component import augmentation
from consilience.data.augmentation import shift
from consilience.errors import SpecError
from consilience.rng import Rng


def moved(image, down, right):
    """Pixel by pixel: what stood at (i, j) stands at (i + down, j + right)."""
    height, width = image.shape[1:]
    result = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + down < height and 0 <= j + right < width:
                result[:, i + down, j + right] = image[:, i, j]
    return result


def images(n, c=2, h=4, w=5, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed)) + 0.5


@settings(deadline=None, max_examples=50)
@given(seed=integers(0, 2**31), n=integers(0, 4), h=integers(1, 5), w=integers(1, 5), pixels=integers(1, 6))
def test_every_image_is_moved_as_a_whole_by_at_most_as_many_pixels(seed, n, h, w, pixels):
    x = images(n, 2, h, w, seed)
    found = shift(x, Rng(seed, range(n)), pixels=pixels)
    assert found.shape == x.shape
    steps = range(-pixels, pixels + 1)
    for before, after in zip(x, found, strict=True):
        assert any(torch.equal(moved(before, down, right), after) for down in steps for right in steps)


def test_all_directions_and_distances_are_equally_likely():
    n, pixels = 2500, 2
    x = torch.zeros(n, 1, 5, 5)
    x[:, :, 2, 2] = 1
    counts = shift(x, Rng(3, range(n)), pixels=pixels).sum((0, 1))
    expected = n / 25
    assert counts.sum() == n
    assert ((counts - expected) ** 2 / expected).sum() < 51  # chi squared of 24 degrees, p = 0.001


def test_images_are_moved_apart_from_each_other_and_anew_at_another_node():
    x, rng = images(40)[:1].expand(40, -1, -1, -1), Rng(0, range(40))
    first, again, later = shift(x, rng), shift(x, rng), shift(x, rng.at(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert len({image.numpy().tobytes() for image in first}) > 10


def test_an_image_is_moved_alike_in_any_batch_and_order():
    x, rng = images(6), Rng(0, [5, 9, 2, 7, 1, 3])
    together = shift(x, rng)
    alone = torch.cat([shift(x[[i]], rng.rows([i])) for i in range(6)])
    assert torch.equal(together, alone)
    order = [3, 0, 5]
    assert torch.equal(shift(x[order], rng.rows(order)), together[order])


def test_nothing_else_is_touched():
    x, chance = images(3), torch.get_rng_state()
    before = x.clone()
    found = shift(x, Rng(0, range(3)))
    assert torch.equal(x, before)
    assert found.data_ptr() != x.data_ptr()
    assert found.dtype == x.dtype
    assert torch.equal(chance, torch.get_rng_state())


def test_the_engine_knows_what_it_needs():
    assert augmentation.get("shift").draws
    assert augmentation.choose("shift").label == "shift"
    with pytest.raises(SpecError, match="shift: Expected `int` >= 1"):
        augmentation.choose({"use": "shift", "pixels": 0})
