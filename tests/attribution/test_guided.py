"""Guided backpropagation and the deconvolution, however a model writes its rectifiers."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consilience.attribution.gradient import gradient
from consilience.attribution.guided import deconvolution, deconvolution_rule, guided_backprop, guided_rule
from consilience.attribution.scores import log_probability, logit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports, on some versions of torch
    from captum import attr

X = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0, 2, 1])


class Net(nn.Module):
    """Two convolutions, a rectifier behind each."""

    def __init__(self, first, second=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two, self.last = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(16, 3)
        self.first, self.second = first, second or first
        self.double().eval()

    def forward(self, x):
        return self.last(self.second(self.two(self.first(self.one(x)))).flatten(1))


def stated(change):
    """A rectifier as a statement whose result nobody takes."""

    def rectified(x):
        change(x)
        return x

    return rectified


MODULES = Net(nn.ReLU(), nn.ReLU())
WRITTEN = {
    "reused module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "statement": stated(lambda x: x.relu_()),
    "statement of F": stated(lambda x: F.relu(x, True)),
    "clamp": lambda x: x.clamp(min=0),
    "clamp of torch": lambda x: torch.clamp(x, 0),
    "clamp in place": lambda x: x.clamp_(0.0),
    "clamp_min": lambda x: x.clamp_min(0),
    "clip": lambda x: x.clip(0),
    "threshold": nn.Threshold(0, 0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "maximum from the left": lambda x: torch.maximum(torch.zeros((), dtype=x.dtype), x),
}
THEIRS = {guided_backprop: attr.GuidedBackprop, deconvolution: attr.Deconvolution}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("method", THEIRS)
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_rectifiers_are_bound_however_they_are_written(method, name):
    theirs = THEIRS[method](MODULES).attribute(X.clone().requires_grad_(), target=T)
    torch.testing.assert_close(method(Net(WRITTEN[name]), X, T), theirs.detach(), atol=1e-12, rtol=1e-12)
    assert (theirs - gradient(MODULES, X, T)).abs().max() > 1e-3


def slow(upstream, before, high, shut):
    """Springenberg et al. 2015, figure 1; ``high`` is the ceiling of a relu6."""
    out = torch.zeros_like(upstream)
    for i in range(upstream.numel()):
        open_ = 0 < before.flatten()[i] < high or not shut
        out.view(-1)[i] = upstream.flatten()[i] if upstream.flatten()[i] > 0 and open_ else 0.0
    return out


@pytest.mark.parametrize("written", [nn.ReLU6(), F.relu6, nn.Hardtanh(0, 6), lambda x: x.clamp(0, 6)])
@pytest.mark.parametrize(("rule", "shut"), [(guided_rule, True), (deconvolution_rule, False)])
def test_a_rectifier_with_a_ceiling_passes_nothing_back_above_it(written, rule, shut):
    before = torch.tensor([-2.0, 1.0, 7.0, 3.0, -1.0, 0.0], dtype=torch.float64).requires_grad_()
    upstream = torch.tensor([1.0, 2.0, 3.0, -4.0, -5.0, 6.0], dtype=torch.float64)
    with rule(nn.Identity()):
        after = written(before)
    torch.testing.assert_close(after, before.clamp(0, 6))
    (slope,) = torch.autograd.grad(after, before, upstream)
    torch.testing.assert_close(slope, slow(upstream, before.detach(), 6, shut))


@pytest.mark.parametrize("other", [nn.Hardtanh(), lambda x: x.clamp(-1, 1), lambda x: x.clamp(max=0), nn.LeakyReLU()])
def test_what_is_no_rectifier_keeps_its_derivative(other):
    mixed, half = Net(nn.ReLU(), other), Net(nn.ReLU(), nn.Identity())
    with guided_rule(mixed) as rules:
        mixed(X.clone().requires_grad_())
    assert rules.bound.total() == 1
    assert guided_backprop(mixed, X, T).shape == guided_backprop(half, X, T).shape


@pytest.mark.parametrize("score", [logit, log_probability])
@pytest.mark.parametrize("rule", [guided_rule, deconvolution_rule])
def test_the_score_and_the_values_are_those_of_the_model(rule, score):
    model, x = Net(F.relu), X.clone().requires_grad_()
    with rule(model):
        logits = model(x)
    assert torch.equal(logits, model(X))


@pytest.mark.parametrize("method", [guided_backprop, deconvolution])
def test_maps_are_differentiable_as_finite_differences_say(method):
    model, x = Net(F.relu), X[:1].clone().requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    (method(model, x, T[:1], create_graph=True) * weight).sum().backward()
    kernel = model.two.weight
    for at in [(0, 0, 0, 0), (1, 2, 1, 1), (3, 4, 2, 0)]:
        shifted = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                kernel[at] += step
            shifted.append((method(model, X[:1], T[:1]) * weight).sum())
            with torch.no_grad():
                kernel[at] -= step
        torch.testing.assert_close(kernel.grad[at], (shifted[0] - shifted[1]) / 2e-6, atol=1e-7, rtol=1e-5)


def test_a_rule_works_inside_vmap():
    model = Net(F.relu).requires_grad_(False)
    with guided_rule(model):
        slope = torch.vmap(torch.func.grad(lambda x, t: model(x[None])[0].gather(0, t)))(X, T)
    torch.testing.assert_close(slope, guided_backprop(model, X, T))


def test_a_linear_model_behind_one_rectifier_shows_the_positive_weights():
    """Planted: units above 0 pass on what is positive; the deconvolution passes it on at all units."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, last = nn.Linear(9, 20).double(), nn.Linear(20, 2).double()
    model, x, t = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last), X[:, :1, :3, :3], T % 2
    positive = last.weight[t].relu()
    open_ = (first(x.flatten(1)) > 0) * positive
    torch.testing.assert_close(guided_backprop(model, x, t).flatten(1), (open_ @ first.weight).detach())
    torch.testing.assert_close(deconvolution(model, x, t).flatten(1), (positive @ first.weight).detach())
