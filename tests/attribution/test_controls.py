import torch
from torch import nn

from consilience.attribution.controls import random_map
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
