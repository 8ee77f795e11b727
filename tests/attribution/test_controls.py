import inspect

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import nn

from consilience.attribution.controls import center_map, edge_map, input_map, input_x_random, random_map, uniform_map
from consilience.errors import SpecError
from consilience.rng import Rng

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
X = torch.rand(6, 3, 4, 4)
T = torch.zeros(6, dtype=torch.int64)


def test_random_maps_are_standard_normal():
    x = torch.zeros(200, 1, 20, 20, dtype=torch.float64)
    maps = random_map(MODEL, x, torch.zeros(200, dtype=torch.int64), Rng(0, range(200)))
    assert maps.shape == x.shape
    assert maps.dtype == x.dtype
    assert abs(maps.mean()) < 0.02
    assert abs(maps.std() - 1) < 0.02


def test_a_random_map_belongs_to_its_example_and_seed_alone():
    together = random_map(MODEL, X, T, Rng(3, [5, 0, 7, 2, 9, 4]))
    few = random_map(MODEL, X[[2, 0]] + 1, T[:2] + 1, Rng(3, [7, 5]))
    assert torch.equal(few, together[[2, 0]])
    assert not torch.equal(random_map(MODEL, X, T, Rng(4, [5, 0, 7, 2, 9, 4])), together)
    assert len(together.flatten(1)[:, 0].unique()) == 6


def test_the_input_map_is_the_image_and_not_its_memory():
    maps = input_map(MODEL, X, T)
    assert torch.equal(maps, X)
    before = X.clone()
    maps += 1
    assert torch.equal(X, before)
    assert not input_map(MODEL, X.clone().requires_grad_(), T).requires_grad


@pytest.mark.parametrize(
    "shape", [(6, 3, 4, 4), (2, 1, 28, 28), (3, 2, 1, 9), (3, 2, 7, 1), (1, 1, 1, 1), (0, 3, 4, 4)]
)
def test_the_edge_map_is_scipys_sobel(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = [np.hypot(ndimage.sobel(plane, 0), ndimage.sobel(plane, 1)) for plane in x.flatten(0, 1).numpy()]
    maps = edge_map(MODEL, x, torch.zeros(len(x), dtype=torch.int64))
    torch.testing.assert_close(maps, torch.from_numpy(np.reshape(theirs, shape)), atol=1e-14, rtol=1e-12)


def test_the_edge_map_lies_on_the_edge_of_its_own_channel():
    x = torch.zeros(1, 2, 6, 6)
    x[0, 1, :, 3:] = 1
    planted = torch.zeros_like(x)
    planted[0, 1, :, 2:4] = 4
    maps = edge_map(MODEL, x, T[:1])
    assert torch.equal(maps, planted)
    assert torch.equal(edge_map(MODEL, x.mT, T[:1]), planted.mT)
    assert not edge_map(MODEL, x.requires_grad_(), T[:1]).requires_grad


@pytest.mark.parametrize("control", [input_map, edge_map, uniform_map, center_map])
def test_a_control_knows_nothing_of_the_model(control):
    other = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    assert torch.equal(control(MODEL, X, T), control(other, X, T + 3))


@pytest.mark.parametrize("control", [input_map, edge_map, uniform_map, center_map, input_x_random])
def test_a_control_refuses_what_no_method_can_explain(control):
    rng = {"rng": Rng(0, range(6))} if control is input_x_random else {}
    with pytest.raises(SpecError, match=r"expected float images \[n, c, h, w\], found torch.float32 \[3, 4, 4\]"):
        inspect.unwrap(control)(MODEL, X[0], T, **rng)  # without the tests' own check of shapes


def test_the_uniform_map_is_one_everywhere_and_each_examples_own():
    maps = uniform_map(MODEL, X.double(), T)
    assert torch.equal(maps, torch.ones(6, 3, 4, 4, dtype=torch.float64))
    maps[0] = 0
    assert maps[1].min() == 1


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (16, 9), (1, 1), (1, 6), (224, 224)])
def test_the_peak_of_the_centre_map_is_the_middle_pixel(height, width):
    maps = center_map(MODEL, torch.rand(2, 3, height, width), T[:2])
    assert torch.equal(maps.flatten(2).argmax(2), torch.full((2, 3), height // 2 * width + width // 2))
    assert (maps == 1).sum() == 6


def test_the_centre_map_is_its_formula():
    maps = center_map(MODEL, torch.zeros(1, 1, 6, 9, dtype=torch.float64), T[:1])[0, 0]
    for row in range(6):
        for column in range(9):
            u, v = (row - 3) / (6 / 4), (column - 4) / (9 / 4)
            assert float(maps[row, column]) == pytest.approx(np.exp(-(u * u + v * v) / 2), abs=1e-15)
    square = center_map(MODEL, torch.zeros(1, 1, 7, 7), T[:1])
    assert torch.equal(square, square.flip(2))
    assert torch.equal(square, square.mT)
    assert float(center_map(MODEL, torch.zeros(1, 1, 8, 8), T[:1])[0, 0, 0, 0]) == pytest.approx(np.exp(-4))


def test_the_centre_map_is_each_examples_own():
    maps = center_map(MODEL, X, T)
    maps[0, 0] = 5
    assert maps[1].max() == maps[0, 1].max() == 1


def test_the_input_times_random_is_the_pixels_times_the_random_map():
    ids = [5, 0, 7, 2, 9, 4]
    maps = input_x_random(MODEL, X, T, Rng(3, ids))
    torch.testing.assert_close(maps, X * random_map(MODEL, X, T, Rng(3, ids)), atol=0, rtol=0)
    few = input_x_random(MODEL, X[[2, 0]], T[:2] + 1, Rng(3, [7, 5]))
    assert torch.equal(few, maps[[2, 0]])
    assert input_x_random(MODEL, X.double(), T, Rng(3, ids)).dtype == torch.float64
    assert not input_x_random(MODEL, X.clone().requires_grad_(), T, Rng(3, ids)).requires_grad


@pytest.mark.parametrize("share", [0.1, 0.19, 0.5, 1.0])
def test_a_black_ground_alone_makes_two_of_them_agree(share):
    """The structural floor: ranks of absolute values, where a share of the pixels is white and the rest black."""
    x = (torch.arange(40_000) < share * 40_000).double().view(1, 1, 200, 200)
    target = torch.zeros(1, dtype=torch.int64)
    one, two = (input_x_random(MODEL, x, target, Rng(seed, [0])).flatten().numpy() for seed in (0, 1))
    floor = 3 * (1 - share) / (3 * (1 - share) + share**2)  # variance of ranks between black and white, of all
    assert stats.spearmanr(abs(one), abs(two)).statistic == pytest.approx(floor, abs=0.02)
    assert abs(stats.spearmanr(one, two).statistic) < 0.06  # four deviations of 4,000 bright pixels
