"""A rule of relevance acts on what a model calculates, however the model is written."""

import copy
import functools
import warnings

import pytest
import torch
from tests import models
from tests.attribution.test_relevance import RULES, ByHand, Functional, Residual, T, X, assert_alike, drawn
from torch import nn
from torch.nn import functional as F

from consilience.attribution.gradient import gradient_x_input
from consilience.attribution.relevance import epsilon_gamma_rule, epsilon_plus_rule, epsilon_rule, lrp, z_plus_rule
from consilience.errors import ModelError


@pytest.mark.parametrize("rule", [epsilon_plus_rule, epsilon_gamma_rule])
def test_rectifiers_divide_alike_however_they_are_written(rule):
    nets = {**models.relus(), **models.unseen_relus()}
    assert len(nets) > 15
    first = lrp(nets.pop("nn.ReLU").double(), X, T, rule=rule)
    for net in nets.values():
        assert_alike(lrp(net.double(), X, T, rule=rule), first, 1e-12)


@pytest.mark.parametrize("written", [Residual, Functional, ByHand])
def test_values_stay_as_they_are_bit_for_bit(written):
    model = drawn(written)
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), X.to(dtype)
        with epsilon_gamma_rule(model):
            under = model(x.clone().requires_grad_())
        assert torch.equal(under, model(x))


C = torch.tensor([0.5, -2.0, 1.5, -0.3], dtype=torch.float64)
W = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)
SPATIAL = torch.linspace(-1, 1, 196, dtype=torch.float64).view(14, 14)
BEHIND = {
    "scaled": lambda h: h * C.view(4, 1, 1),
    "scaled from the left": lambda h: C.view(1, 4, 1, 1) * h,
    "divided": lambda h: h / C.view(4, 1, 1) / 3,
    "divided in place": lambda h: h.div_(C.view(4, 1, 1)).mul_(2.0),
    "shifted": lambda h: 1 + h - C.view(4, 1, 1),
    "shifted in place": lambda h: h.sub_(C.view(4, 1, 1)).add_(1),
    "shifted by other": lambda h: torch.add(h, other=C.view(4, 1, 1)),
    "shifted by more": lambda h: torch.add(h, C.view(4, 1, 1), alpha=2),
    "turned and shifted": lambda h: 1 - h,
    "subtracted": lambda h: torch.sub(C.view(4, 1, 1), h),
    "scaled everywhere": lambda h: h * SPATIAL,
    "shifted everywhere": lambda h: h + SPATIAL,
    "spread": lambda h: (h.mean((2, 3), keepdim=True) * SPATIAL).contiguous(),
    "mixed": lambda h: torch.einsum("nchw,cd->ndhw", h, W),
    "mixed from the left": lambda h: (W @ h.flatten(2)).view_as(h),
    "mixed from the right": lambda h: (h.flatten(2).mT @ W).mT.view_as(h),
    "with a constant layer": lambda h: h + F.conv2d(torch.ones(1, 4, 14, 14).double(), W[:, :, None, None]),
    "with a constant norm": lambda h: h + F.batch_norm(SPATIAL.expand(1, 4, 14, 14), C, C.abs()).sigmoid(),
}


@pytest.mark.parametrize("name", BEHIND)
def test_whatever_is_linear_divides_as_it_must(name):
    model = drawn(lambda: models.Call(lambda m, x: m.last(BEHIND[name](m.conv(x)).relu().flatten(1)),
                                      conv=nn.Conv2d(3, 4, 3), last=nn.Linear(784, 4)))  # fmt: skip
    rule = functools.partial(epsilon_rule, epsilon=0.0)
    expected = gradient_x_input(model, X, T)
    assert_alike(lrp(model, X, T, rule=rule), expected, 1e-12)
    with rule(model):
        under = model(X.clone().requires_grad_())
    assert torch.equal(under, model(X))


FOLDED = ["scaled", "scaled from the left", "divided", "divided in place", "shifted", "shifted in place",
          "shifted by other"]  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_what_scales_or_shifts_channels_is_folded_into_the_layer_before(name):
    conv = drawn(lambda: nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        shift = BEHIND[name](torch.zeros(1, 4, 1, 1).double()).flatten()
        scale = BEHIND[name](torch.ones(1, 4, 1, 1).double()).flatten() - shift
        folded = copy.deepcopy(conv)
        folded.weight *= scale.view(4, 1, 1, 1)
        folded.bias *= scale
        folded.bias += shift
    maps, expected = (
        lrp(models.Call(lambda m, x, act=act: act(m.conv(x)).relu().mean((2, 3)), conv=each), X, T, rule=z_plus_rule)
        for act, each in ((BEHIND[name], conv), (lambda h: h, folded))
    )
    assert_alike(maps, expected, 1e-9)


def test_whether_parameters_are_frozen_does_not_matter():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
            self.scale = nn.Parameter(torch.randn(1, 4, 1, 1))
            self.last = nn.Linear(4, 4)

        def forward(self, x):
            x = self.conv(x) * self.scale.tanh() * torch.sigmoid(self.scale.mean())
            return self.last(x.relu().mean((2, 3)))

    model = drawn(Scaled)
    learning = lrp(model, X, T)
    assert_alike(lrp(model.requires_grad_(False), X, T), learning, 1e-12)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("activation", models.SMOOTH)
def test_an_activation_leaves_relevance_where_it_is(activation):
    act = models.SMOOTH[activation]
    model = drawn(lambda: models.Call(lambda m, x: m.last(act(m.conv(x)).flatten(1)), conv=nn.Conv2d(3, 4, 3),
                                      last=nn.Linear(784, 4)))  # fmt: skip
    rule = functools.partial(epsilon_rule, epsilon=0.0)
    with torch.no_grad():
        z = model.conv(X)
        relevance = act(z) * model.last.weight[T].view_as(z)
        expected = X * F.conv_transpose2d(relevance / z, model.conv.weight)
    assert_alike(lrp(model, X, T, rule=rule), expected, 1e-9)


def test_an_activation_in_place_leaves_relevance_where_it_is():
    def net(act):
        return drawn(lambda: models.Call(lambda m, x: m.last(act(m.conv(x)).flatten(1)), conv=nn.Conv2d(3, 4, 3),
                                         last=nn.Linear(784, 4)))  # fmt: skip

    for act, in_place in [
        (torch.sigmoid, lambda x: x.sigmoid_()),
        (F.hardswish, nn.Hardswish(inplace=True)),
        (F.silu, lambda x: F.silu(x, inplace=True)),
        (F.relu6, nn.ReLU6(inplace=True)),
    ]:
        assert_alike(lrp(net(in_place), X, T), lrp(net(act), X, T), 1e-12)


def test_a_gate_and_its_signal_get_half_each():
    torch.manual_seed(0)
    gated = drawn(lambda: models.Call(lambda m, x: m.last((m.conv(x).relu() * m.gate(x).relu()).flatten(1)),
                                      conv=nn.Conv2d(3, 4, 3, bias=False), gate=nn.Conv2d(3, 4, 3, bias=False),
                                      last=nn.Linear(784, 4, bias=False)))  # fmt: skip
    rule = functools.partial(epsilon_rule, epsilon=0.0)
    maps = lrp(gated, X, T, rule=rule)
    assert_alike(maps, gradient_x_input(gated, X, T) / 2, 1e-12)  # of degree two in the pixels
    assert_alike(maps.sum((1, 2, 3)), gated(X).gather(1, T[:, None])[:, 0].detach(), 1e-12)


def test_a_batch_norm_behind_no_layer_passes_relevance_on():
    model = drawn(lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 4)))  # fmt: skip
    with torch.no_grad():
        z = model[0](X)
        h = z.relu()
        top = model[2](h).flatten(1) * model[4].weight[T]
        slope = torch.where(h > 0, top.view_as(h) / h, 0.0)
        expected = X * F.conv_transpose2d(slope, model[0].weight)
    assert_alike(lrp(model, X, T, rule=functools.partial(epsilon_rule, epsilon=0.0)), expected, 1e-9)


def test_what_was_written_over_is_no_layers_output():
    def build(act):
        run = lambda m, x: m.last(m.norm(act(m.conv(x))).flatten(1))  # noqa: E731
        layers = lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(784, 4))  # noqa: E731
        return drawn(lambda: models.Call(run, **dict(zip(("conv", "norm", "last"), layers(), strict=True))))

    expected = lrp(build(torch.relu), X, T)
    assert_alike(lrp(build(lambda x: x.relu_()), X, T), expected, 1e-12)
    assert (lrp(build(lambda x: x), X, T) - expected).abs().max() > 1e-3 * expected.abs().max()


# Refused


@pytest.mark.parametrize("name", models.CONVOLUTIONAL)
@pytest.mark.parametrize("rule", RULES)
def test_convolutional_networks_are_explained(name, rule):
    maps = lrp(models.CONVOLUTIONAL[name](3, 4).double(), X, T, rule=rule)
    assert maps.isfinite().all()
    assert maps[0].abs().max() > 0


@pytest.mark.parametrize("name", models.ATTENTION)
def test_attention_is_refused(name):
    with pytest.raises(ModelError, match="operations that the rule knows, found layer_norm"):
        lrp(models.ATTENTION[name](3, 4).double(), X, T)


def net(run, **layers):
    return drawn(lambda: models.Call(run, conv=nn.Conv2d(3, 4, 3), last=nn.Linear(4, 4), **layers))


REFUSED = {
    "exp": (lambda m, x: m.last(m.conv(x).exp().mean((2, 3))), "found exp"),
    "a softmax that goes on": (lambda m, x: m.last(m.conv(x).mean((2, 3)).softmax(1)), "found a softmax"),
    "a softmax that weighs": (
        lambda m, x: m.last((m.conv(x) * m.conv(x).flatten(2).softmax(2).view(-1, 4, 14, 14)).mean((2, 3))),
        "found a softmax",
    ),
    "a quotient": (lambda m, x: m.last((m.conv(x) / x.mean((1, 2, 3), keepdim=True)).mean((2, 3))), "found div"),
    "a sum of products": (
        lambda m, x: m.last(torch.addmm(m.conv(x).mean((2, 3)), m.conv(x).mean((2, 3)), torch.ones(4, 4).double())),
        "found addmm",
    ),
    "a product of three": (
        lambda m, x: m.last(torch.einsum("nchw,c,c->nc", m.conv(x), torch.ones(4), torch.ones(4))),
        "found einsum of more",
    ),
    "a length": (lambda m, x: m.last(F.normalize(m.conv(x).mean((2, 3)))), "norm"),
    "own weights": (
        lambda m, x: (
            m.last(F.conv2d(m.conv(x[:1]), m.conv(x)[:1, :, :1, :1] * torch.ones(4, 4, 1, 1)).mean((2, 3)))
            * torch.ones(3, 1)
        ),
        "weights that depend on the pixels",
    ),
    "batch statistics": (lambda m, x: m.last(F.batch_norm(m.conv(x), None, None, training=True).mean((2, 3))), "batch"),
    "a recurrent layer": (lambda m, x: m.last(m.rnn(m.conv(x).flatten(2))[0][:, -1, :4]), "found lstm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_has_no_rule_for_is_refused(name):
    run, words = REFUSED[name]
    with pytest.raises(ModelError, match=words):
        lrp(net(run, rnn=nn.LSTM(196, 4, batch_first=True)), X, T)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match=r"expected layers whose relevance is divided, found none among \["):
        lrp(models.Call(lambda m, x: x.relu().mean((2, 3))), X, torch.zeros_like(T))
    with pytest.raises(ModelError, match="expected operations that the rule is about"):
        lrp(models.constant(), X, T)


def test_models_whose_calls_hide_are_refused():
    for build in (models.scripted, models.partly_scripted):
        with pytest.raises(ModelError, match="scripted, traced or compiled"):
            lrp(build().double(), X, T)
    with pytest.raises(ModelError, match="found a checkpoint"):
        lrp(models.checkpointed().double(), X, T)


def test_a_layer_that_hides_in_a_scripted_function_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        hidden = torch.jit.script(nn.Conv2d(4, 4, 1).double())
    with pytest.raises(ModelError, match="ConvolutionBackward0"):
        lrp(net(lambda m, x: m.last(hidden(m.conv(x)).mean((2, 3)))), X, T)


def test_a_first_layer_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="first: expected a layer that takes the pixels"):
        lrp(net(lambda m, x: m.last(m.conv(F.max_pool2d(x, 2)).mean((2, 3)))), X, T, first="flat")
