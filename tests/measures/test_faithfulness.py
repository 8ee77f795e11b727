"""Completeness: what a map's sum misses of the rise of the output."""

import torch
from torch import nn

from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.measures.faithfulness import completeness_gap


def linear() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double().requires_grad_(False)
    model[1].weight.copy_(torch.randn(3, 9, generator=chance))
    return model, torch.rand(4, 1, 3, 3, generator=chance).double(), torch.tensor([0, 1, 2, 0])


def gap(model, x, target, maps, baseline=0.0):
    def output(x, target):
        return model(x).gather(1, target[:, None])[:, 0]

    return completeness_gap(maps, model, x, target, output, baseline)


def test_integrated_gradients_of_a_linear_model_miss_nothing():
    model, x, target = linear()
    torch.testing.assert_close(gap(model, x, target, integrated_gradients(model, x, target)), torch.zeros(4).double())


def test_a_map_of_zeros_misses_everything_and_a_doubled_one_as_much():
    model, x, target = linear()
    maps = integrated_gradients(model, x, target)
    torch.testing.assert_close(gap(model, x, target, 0 * maps), torch.ones(4).double())
    torch.testing.assert_close(gap(model, x, target, 2 * maps), torch.ones(4).double())


def test_the_plain_gradient_is_not_complete():
    model, x, target = linear()
    assert (gap(model, x, target, gradient(model, x, target)) > 0.01).all()


def test_the_gap_is_measured_from_the_method_s_own_baseline():
    model, x, target = linear()
    maps = integrated_gradients(model, x, target, baseline=0.25)
    torch.testing.assert_close(gap(model, x, target, maps, 0.25), torch.zeros(4).double())
    assert (gap(model, x, target, maps, 0.0) > 1e-3).any()


def test_the_gap_is_undefined_where_the_output_does_not_rise():
    model, x, target = linear()
    x[1] = 0
    value = gap(model, x, target, integrated_gradients(model, x, target))
    assert value.isnan().tolist() == [False, True, False, False]
