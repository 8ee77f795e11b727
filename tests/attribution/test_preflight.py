"""Preflight finds what makes a method mean something else than its name says, and lets pass what is sound."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import consilience
from consilience.attribution.controls import random_map
from consilience.attribution.expected import expected_gradients
from consilience.attribution.gradient import gradient, gradient_x_input
from consilience.attribution.guided import guided_backprop
from consilience.attribution.noise import smooth_grad
from consilience.attribution.path import integrated_gradients
from consilience.attribution.preflight import examine, preflight
from consilience.errors import ModelError, SpecError

X = torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0, 2, 1, 0])


def network(*between):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), *(between or [nn.ReLU()]), nn.Flatten(), nn.Linear(80, 3)]
    return nn.Sequential(*layers).eval()


def verdicts(method, model=None, x=X, target=T, **flows):
    return {check.name: check.verdict for check in examine(method, model or network(), x, target, **flows)}


@pytest.mark.parametrize(
    "method",
    [
        gradient,
        gradient_x_input,
        guided_backprop,
        functools.partial(integrated_gradients, steps=300),
        functools.partial(smooth_grad, samples=3),
        random_map,
        functools.partial(expected_gradients, samples=4),
        "gradient",
    ],
)
def test_what_is_sound_passes(method):
    checks = preflight(method, network(), X, T, background=X.flip(0))
    assert {check.verdict for check in checks} == {"good"}
    assert consilience.preflight is preflight


def test_it_says_what_a_rule_acts_on_and_what_it_passes_over():
    (found,) = (
        c.found for c in preflight(guided_backprop, network(nn.ReLU(), nn.Tanh()), X, T) if c.name == "guided_rule"
    )
    assert found == "acts on relu x1; plain derivative of tanh x1"


def test_a_method_that_refuses_the_model_says_so_itself():
    with pytest.raises(ModelError, match="this method would be the plain gradient under another name"):
        preflight(guided_backprop, network(nn.Tanh()), X, T)


def test_train_mode_is_wrong_where_it_matters_and_the_error_holds_the_table():
    with pytest.raises(ModelError, match=r"(?s)wrong +modes: BatchNorm2d in train mode; call model\.eval\(\)\n.*good"):
        preflight(gradient, network().train(), X, T)
    assert verdicts(gradient, nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).train())["modes"] == "good"


def test_dropout_that_is_on_is_found_twice():
    model = network(nn.Dropout(0.5))
    model[2].train()
    seen = verdicts(gradient, model)
    assert (seen["modes"], seen["deterministic"]) == ("wrong", "wrong")


class Mixing(nn.Module):
    """Its answer to an image depends on the others."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x * (1 + x.mean()) ** 2)


def test_a_model_that_mixes_examples_is_found():
    assert verdicts(gradient, Mixing().eval())["batch invariant"] == "wrong"


def test_maps_that_are_empty_or_not_finite_are_counted():
    class Dead(nn.Module):
        def forward(self, x):
            return F.relu(-x.flatten(1)[:, :3] - torch.tensor([[1.0], [-2.0], [1.0], [1.0]])[: len(x)])

    checks = {c.name: c for c in examine(gradient, Dead(), X, T)}
    assert (checks["not empty"].verdict, checks["not empty"].found) == ("doubtful", "3 of 4 maps zero everywhere")

    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * torch.nan

    assert verdicts(gradient, Broken())["finite"] == "wrong"


def test_too_few_steps_show_as_a_gap():
    steep = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Tanh()).eval()
    with torch.no_grad():
        steep[1].weight.mul_(30)
    few, many = (verdicts(functools.partial(integrated_gradients, steps=k), steep, X, T)["complete"] for k in (1, 3000))
    assert (few, many) == ("wrong", "good")


def test_completeness_is_asked_only_where_it_is_promised():
    assert "complete" not in verdicts(gradient_x_input)
    assert "complete" not in verdicts(functools.partial(integrated_gradients, of=gradient_x_input))
    assert "complete" not in verdicts(functools.partial(integrated_gradients, of=guided_backprop))
    assert "complete" in verdicts("integrated_gradients")


def test_the_gradient_under_another_name_is_doubtful():
    def mine(model, x, target):
        return gradient(model, x, target) * 1.0

    assert verdicts(mine)["not the gradient"] == "doubtful"
    assert "not the gradient" not in verdicts(gradient)


def test_nothing_to_look_at_is_refused():
    with pytest.raises(SpecError, match="expected at least one example"):
        preflight(gradient, network(), X[:0], T[:0])
