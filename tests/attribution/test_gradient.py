import warnings

import pytest
import torch
from torch import nn

from consilience.attribution.gradient import gradient, gradient_x_input
from consilience.attribution.scores import log_probability, logit
from consilience.errors import ModelError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).double()


X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("score", [logit, log_probability])
def test_the_gradient_is_the_slope_of_the_score(model, score):
    maps = gradient(model, X, T, score=score)
    step = torch.zeros_like(X)
    step[:, 0, 2, 1] = 1e-6
    with torch.no_grad():
        slope = (score(model(X + step), T) - score(model(X - step), T)) / 2e-6
    torch.testing.assert_close(maps[:, 0, 2, 1], slope, atol=1e-8, rtol=1e-6)


def test_the_gradient_of_a_linear_model_is_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    torch.testing.assert_close(gradient(model, X, T).flatten(1), model[1].weight[T].detach())


def test_nothing_is_left_behind(model):
    x = X.clone()
    with torch.no_grad():
        maps = gradient(model, x, T)
    assert not maps.requires_grad
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_create_graph_keeps_the_maps_differentiable(model):
    x = X.clone().requires_grad_()
    gradient(model, x, T, create_graph=True).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert model[0].weight.grad.abs().sum() > 0


def test_a_class_that_the_model_does_not_know_is_refused(model):
    with pytest.raises(ModelError, match="classes from 0 to 2, found 0 to 5"):
        gradient(model, X, torch.tensor([0, 5, 1, 1, 0]))


def test_what_returns_no_logits_is_refused():
    with pytest.raises(ModelError, match="expected logits"):
        gradient(nn.Conv2d(1, 2, 3).double(), X, T)


@pytest.mark.parametrize("score", [logit, log_probability])
def test_gradient_times_input_is_captums(model, score):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        attr = pytest.importorskip("captum.attr")
    theirs = attr.InputXGradient(lambda x: score(model(x), T)).attribute(X.clone().requires_grad_())
    torch.testing.assert_close(gradient_x_input(model, X, T, score=score), theirs.detach())


def test_gradient_times_input_of_a_linear_model_sums_to_the_score():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)).double()
    torch.testing.assert_close(gradient_x_input(model, X, T).sum((1, 2, 3)), logit(model(X), T).detach())


def test_gradient_times_input_leaves_nothing_behind(model):
    x = X.clone().requires_grad_()
    assert not gradient_x_input(model, x, T).requires_grad
    assert torch.equal(x, X)
    assert x.grad is None
    assert gradient_x_input(model, X[:0], T[:0]).shape == (0, 1, 4, 4)


def test_a_batch_that_the_device_cannot_hold_is_halved(model):
    class Small(nn.Module):
        def __init__(self, holds):
            super().__init__()
            self.inner, self.holds, self.seen = model, holds, []

        def forward(self, x):
            if len(x) > self.holds:
                raise torch.OutOfMemoryError("the device is full")
            self.seen.append(len(x))
            return self.inner(x)

    small = Small(2)
    torch.testing.assert_close(gradient(small, X, T), gradient(model, X, T))
    assert small.seen == [2, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        gradient(Small(0), X, T)
