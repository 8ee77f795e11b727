"""Excitation backprop: a winner's shares as they are defined, with and without contrast, at pixels and layers."""

import copy
import warnings

import pytest
import torch
from tests import models
from tests.attribution.test_relevance import CANONIZERS, NONE, ByHand, Functional, Residual, assert_alike, drawn
from torch import nn
from torch.nn import functional as F

from consilience.attribution.excitation import contrastive_excitation_backprop, excitation_backprop, excitation_rule
from consilience.attribution.relevance import lrp
from consilience.attribution.scores import log_probability
from consilience.errors import ModelError, SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    from zennit.attribution import Gradient
    from zennit.composites import ExcitationBackprop

X, T = models.batch()
BOTH = [excitation_backprop, contrastive_excitation_backprop]


class Net(nn.Module):
    """Two convolutions and two dense layers with rectifiers between them, and biases."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, stride=2)
        self.dense, self.last, self.relu = nn.Linear(54, 8), nn.Linear(8, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.avg_pool2d(self.relu(self.conv2(self.relu(self.conv1(x)))), 2)
        return self.last(self.relu(self.dense(x.flatten(1))))


def down(layer, x, signal, weight=None):
    """Zhang et al. 2018, equation 10, as signal times input: positive weights, no bias, over what they give."""
    positive = (layer.weight if weight is None else weight).clamp(min=0)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = F.linear(x, positive) if x.ndim == 2 else F.conv2d(x, positive, stride=layer.stride)
        (back,) = torch.autograd.grad(z, x, signal / (z.detach() + 1e-20))
    return back * x.detach()


def slow(model, x, target, turned=False):
    """Signals at the pixels and at the second convolution's output, step by step."""
    with torch.no_grad():
        h1 = model.conv1(x).relu()
        h2 = model.conv2(h1).relu()
        pooled = F.avg_pool2d(h2, 2)
        h3 = model.dense(pooled.flatten(1)).relu()
        top = F.one_hot(target, 4).to(x)
        signal = down(model.last, h3, top, -model.last.weight if turned else None)
        signal = down(model.dense, pooled.flatten(1), signal).view_as(pooled)
        spread = F.interpolate(signal / (4 * pooled + 1e-20), scale_factor=2)
        at_two = spread * h2[:, :, : spread.shape[2], : spread.shape[3]]
        at_two = F.pad(at_two, (0, h2.shape[3] - at_two.shape[3], 0, h2.shape[2] - at_two.shape[2]))
        return down(model.conv1, x, down(model.conv2, h1, at_two)), at_two


def test_shares_are_passed_down_as_published():
    model = drawn(Net)
    pixels, layer = slow(model, X, T)
    assert_alike(excitation_backprop(model, X, T), pixels, 1e-9)
    expected = F.interpolate(layer.sum(1, keepdim=True), X.shape[2:], mode="bilinear")
    assert_alike(excitation_backprop(model, X, T, layer="conv2"), expected, 1e-9)


def test_the_opposite_is_subtracted_as_published():
    model = drawn(Net)
    (pixels, layer), (against, below) = slow(model, X, T), slow(model, X, T, turned=True)
    assert (against - pixels).abs().max() > 0.001
    assert_alike(contrastive_excitation_backprop(model, X, T), (pixels - against).sum(1, keepdim=True).relu(), 1e-9)
    expected = F.interpolate((layer - below).sum(1, keepdim=True).relu(), X.shape[2:], mode="bilinear")
    assert_alike(contrastive_excitation_backprop(model, X, T, layer="conv2"), expected, 1e-9)


def test_it_does_not_matter_where_the_opposite_is_subtracted():
    model = drawn(Functional)
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned.last.weight.neg_()
    both = excitation_backprop(model, X, T) - excitation_backprop(turned, X, T)
    assert_alike(contrastive_excitation_backprop(model, X, T), both.sum(1, keepdim=True).relu(), 1e-9)


def test_every_last_layer_is_turned():
    run = lambda m, x: m.c(F.relu(m.a(x)).mean((2, 3))) + F.linear(F.relu(m.b(x)).mean((2, 3)), m.d.weight)  # noqa: E731
    model = drawn(lambda: models.Call(run, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), c=nn.Linear(4, 4),
                                      d=nn.Linear(4, 4)))  # fmt: skip
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned.c.weight.neg_()
        turned.d.weight.neg_()
        turned.c.bias.neg_()  # so that the sum divides alike
    both = excitation_backprop(model, X, T) - excitation_backprop(turned, X, T)
    assert both.abs().max() > 0.001
    assert_alike(contrastive_excitation_backprop(model, X, T), both.sum(1, keepdim=True).relu(), 1e-9)


@pytest.mark.parametrize("written", [Residual, Functional, ByHand])
def test_shares_are_zennits_however_the_model_is_written(written):
    composite = ExcitationBackprop(stabilizer=NONE, zero_params=["bias"], canonizers=CANONIZERS)
    with Gradient(drawn(Residual), composite) as attributor:
        expected = attributor(X.clone().requires_grad_(), F.one_hot(T, 4).to(X))[1].detach()
    assert_alike(excitation_backprop(drawn(written), X, T), expected, 1e-7)


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", ["plain", "residual", "dense", "inception", "depthwise", "tied", "global_max"])
def test_networks_with_positive_weights_share_out_all(method, name):
    """With weights from 0 up every unit that wins has something that excites it, and nothing has an opposite."""
    model = models.ALL[name](3, 4).double()
    for parameter in model.parameters():
        parameter.abs_()
    maps = method(model, X, T)
    torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(len(X)).to(X), atol=0, rtol=1e-9)


def test_a_negative_logit_has_shares_too():
    model = drawn(Net)
    with torch.no_grad():
        model.last.bias -= 100
    assert (model(X) < 0).all()
    maps = excitation_backprop(model, X, T)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(len(X)).to(X), atol=1e-9, rtol=0)


def test_a_batch_norm_passes_shares_on_where_it_turns_no_channel():
    def build(norm):
        return drawn(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4)))

    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x.clone())  # in front of which no layer is seen

    folded, passed = build(lambda: nn.BatchNorm2d(4)), build(lambda: Scaled(4))
    for model in (folded, passed):
        with torch.no_grad():
            model[1].weight.abs_()
    assert_alike(excitation_backprop(folded, X, T), excitation_backprop(passed, X, T), 1e-9)


def test_a_score_gives_each_logit_its_slope_in_shares():
    model = drawn(Net)
    logits = model(X).detach().requires_grad_()
    (slope,) = torch.autograd.grad(log_probability(logits, T).sum(), logits)
    each = [excitation_backprop(model, X, torch.full_like(T, k)) * slope[:, k, None, None, None] for k in range(4)]
    assert_alike(excitation_backprop(model, X, T, score=log_probability), sum(each), 1e-9)


def test_as_relevance_it_is_the_logit_times_the_share():
    model = drawn(Net)
    logit = model(X).gather(1, T[:, None])[:, :, None, None].detach()
    assert_alike(lrp(model, X, T, rule=excitation_rule), logit * excitation_backprop(model, X, T), 1e-9)


@pytest.mark.parametrize("name", ["relu", "conv2", "last"])
@pytest.mark.parametrize("method", BOTH)
def test_a_layer_that_is_written_over_is_read_as_it_came_out(method, name):
    class Apart(Net):
        def forward(self, x):
            x = F.avg_pool2d(self.conv2(self.conv1(x).relu()).relu(), 2)
            return self.last(self.dense(x.flatten(1)).relu())

    if name == "last":
        with pytest.raises(ModelError, match=r"layer 'last': expected planes .* found \[3, 4\]"):
            method(drawn(Net), X, T, layer="last")
    elif name == "relu":
        with pytest.raises(ModelError, match=r"layer 'relu': expected planes .* found \[3, 8\]"):
            method(drawn(Net), X, T, layer="relu")  # the last of its calls
    else:
        assert_alike(method(drawn(Net), X, T, layer=name), method(drawn(Apart), X, T, layer=name), 1e-12)


@pytest.mark.parametrize("method", BOTH)
def test_a_layer_that_does_not_exist_or_is_not_called_is_refused(method):
    with pytest.raises(SpecError, match="conv1"):
        method(drawn(Net), X, T, layer="conv11")
    model = drawn(Net)
    model.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match="found that it is not called"):
        method(model, X, T, layer="spare")
    assert not any(module._forward_hooks for module in model.modules())


REFUSED = {"squeeze_excitation": "mul", "log_softmax": "log_softmax", "transformer": "layer_norm"}


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("name", REFUSED)
def test_what_excites_nothing_in_particular_is_refused(method, name):
    with pytest.raises(ModelError, match=f"excitation_rule: .* found {REFUSED[name]}"):
        method(models.ALL[name](3, 4).double(), X, T)


@pytest.mark.parametrize("method", BOTH)
def test_what_is_not_finite_or_exactly_zero_is_nan(method):
    assert method(models.not_a_number().double(), X, T).isnan().all()
    model = drawn(Net)
    with torch.no_grad():
        model.last.weight[1], model.last.bias[1] = 0, 0
    maps = method(model, X, T)
    assert maps[1].isnan().all()
    assert maps[[0, 2]].isfinite().all()


@pytest.mark.parametrize("method", BOTH)
def test_nothing_is_left_on_the_model(method):
    model, x = drawn(Functional), X.clone()
    before = copy.deepcopy(model.state_dict())
    method(model, x, T, layer="conv1")
    assert torch.equal(x, X)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
