import inspect

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from consilience.attribution.controls import edge_map, input_map, random_map
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


@pytest.mark.parametrize("control", [input_map, edge_map])
def test_a_control_knows_nothing_of_the_model(control):
    other = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    assert torch.equal(control(MODEL, X, T), control(other, X, T + 3))


@pytest.mark.parametrize("control", [input_map, edge_map])
def test_a_control_refuses_what_no_method_can_explain(control):
    with pytest.raises(SpecError, match=r"expected float images \[n, c, h, w\], found torch.float32 \[3, 4, 4\]"):
        inspect.unwrap(control)(MODEL, X[0], T)  # without the tests' own check of shapes
