"""Layers whose signal flows back through other weights, against torch's own derivative of the layer with those."""

import copy
import functools

import pytest
import torch
from tests.laws import laws
from tests.models import Call, batch
from torch import nn
from torch.nn import functional as F

from consilience.attribution.patterns import (
    pattern_attribution,
    pattern_net,
    pattern_net_rule,
    patterns_from_weights,
)
from consilience.attribution.scores import logit
from consilience.tensors import Patterns

SETTINGS = {
    "conv1d": (F.conv1d, (4, 2, 3), {"stride": 2, "padding": 1}),
    "conv2d": (F.conv2d, (4, 6, 3, 3), {}),
    "of torch": (torch.conv2d, (4, 6, 3, 2), {"padding": (1, 0)}),
    "groups": (F.conv2d, (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": (F.conv2d, (12, 1, 3, 3), {"groups": 6, "stride": (2, 1)}),
    "dilation": (F.conv2d, (4, 6, 2, 3), {"dilation": (3, 2), "stride": 2}),
    "valid": (F.conv2d, (4, 6, 3, 3), {"padding": "valid", "stride": 2}),
    "same": (F.conv2d, (4, 6, 3, 5), {"padding": "same"}),
    "same with an even side": (F.conv2d, (4, 6, 2, 3), {"padding": "same", "dilation": (3, 1)}),
    "same with even sides": (F.conv2d, (4, 3, 4, 2), {"padding": "same", "groups": 2}),
    "tuples of one": (F.conv2d, (4, 6, 3, 3), {"stride": (2,), "padding": (1,), "dilation": (1,)}),
    "conv3d": (F.conv3d, (4, 2, 3, 2, 1), {"padding": (1, 0, 0), "stride": (1, 2, 1)}),
    "conv_transpose1d": (F.conv_transpose1d, (2, 4, 3), {"stride": 2, "output_padding": 1}),
    "conv_transpose2d": (F.conv_transpose2d, (6, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2, "dilation": 2}),
    "conv_transpose3d": (F.conv_transpose3d, (2, 3, 2, 2, 2), {"padding": 1}),
    "linear": (F.linear, (4, 6), {}),
    "linear on three axes": (F.linear, (4, 7), {}),
}
X, T = batch()
SHAPES = {1: (2, 9), 2: (6, 8, 9), 3: (2, 4, 5, 6)}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image(name, weight):
    if name.startswith("linear"):
        return normal(5, 3, 7) if name == "linear on three axes" else normal(5, 6)
    return normal(5, *SHAPES[len(weight) - 2])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("given", ["by place", "by name"])
@pytest.mark.parametrize("name", SETTINGS)
def test_signal_flows_back_as_through_a_layer_with_the_other_weights(name, given):
    function, shape, options = SETTINGS[name]
    weight, other, x = normal(*shape, seed=1), normal(*shape, seed=2), image(name, shape).requires_grad_()
    out = shape[1] * options.get("groups", 1) if "transpose" in name else shape[0]
    bias = normal(out, seed=3)
    if given == "by name":
        run = functools.partial(function, weight=weight, bias=bias, **options)
    else:
        run = lambda v: function(v, weight, bias, **options)  # noqa: E731
    model = Call(lambda m, v: run(v))
    with pattern_net_rule(model, Patterns((function.__name__,), (other,), (name,))):
        y = model(x)
    assert torch.equal(y, run(x))
    upstream = normal(*y.shape, seed=4)
    (expected,) = torch.autograd.grad(function(x, other, **options), x, upstream)
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", ["groups", "same with even sides", "conv_transpose2d", "conv1d", "linear"])
def test_layers_may_run_without_a_batch(name):
    function, shape, options = SETTINGS[name]
    weight, other, x = normal(*shape, seed=1), normal(*shape, seed=2), image(name, shape)[0].requires_grad_()
    model = Call(lambda m, v: function(v, weight, **options))
    with pattern_net_rule(model, Patterns((function.__name__,), (other,), (name,))):
        y = model(x)
    assert torch.equal(y, model(x))
    upstream = normal(*y.shape, seed=4)
    (expected,) = torch.autograd.grad(function(x, other, **options), x, upstream)
    torch.testing.assert_close(torch.autograd.grad(y, x, upstream)[0], expected)


def test_a_layer_of_what_no_pixel_enters_is_no_call():
    """A position that is embedded anew at each call, say."""

    def run(m, x):
        return m.fc(x.flatten(1)) + m.norm(m.position(torch.ones(1, 2).to(x)))

    model = Call(run, fc=nn.Linear(768, 4), norm=nn.BatchNorm1d(4), position=nn.Linear(2, 4)).double().eval()
    model.requires_grad_(False)
    patterns = patterns_from_weights(model, X, lambda _, weight: torch.ones_like(weight))
    assert patterns.labels == ("fc.weight",)
    expected = logit(model(X), T).view(-1, 1, 1, 1) * model.fc.weight[T].view_as(X)
    torch.testing.assert_close(pattern_attribution(model, X, T, patterns), expected)


def drawn(label, weight):
    return normal(*weight.shape, seed=weight.numel())


@pytest.mark.parametrize("method", [pattern_net, pattern_attribution])
def test_a_batch_norm_is_as_if_folded_into_the_layer_before(method):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4))
        model.train()(torch.randn(9, 3, 16, 16))
        nn.init.uniform_(model[1].weight, -2, 2)
    model.double().eval().requires_grad_(False)
    folded = nn.Sequential(nn.utils.fuse_conv_bn_eval(copy.deepcopy(model[0]), model[1]), *copy.deepcopy(model[2:]))
    of_folded = patterns_from_weights(folded, X[:1], drawn)
    scale = (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).view(-1, 1, 1, 1)
    first, last = of_folded.values
    split = of_folded._replace(values=(first * scale, last))
    torch.testing.assert_close(method(model, X, T, split), method(folded, X, T, of_folded), atol=1e-12, rtol=1e-12)
    unfitted = laws.patterns(model, X), laws.patterns(folded, X)
    torch.testing.assert_close(method(model, X, T, unfitted[0]), method(folded, X, T, unfitted[1]))


@pytest.mark.parametrize("norm", [
    lambda m, v: F.batch_norm(v, m.mean, m.spread, m.scale, None, False, 0.1, m.eps),
    lambda m, v: torch.batch_norm(v, m.scale, None, m.mean, m.spread, False, 0.1, m.eps, False),
])  # fmt: skip
def test_a_channel_that_is_scaled_away_passes_nothing(norm):
    def run(m, v):
        return m.last(norm(m, v).flatten(1))

    model = Call(run, last=nn.Linear(768, 4)).double().requires_grad_(False)
    model.mean, model.spread = torch.rand(2, 3, dtype=torch.float64)
    model.scale, model.eps = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64), 1e-3
    patterns = patterns_from_weights(model, X[:1], lambda _, weight: torch.ones_like(weight))
    back = pattern_net(model, X, T, patterns)
    assert (back[:, 1] == 0).all()
    root, seed = (model.spread + 1e-3).sqrt(), logit(model(X), T)
    torch.testing.assert_close(back[:, 0, 3, 4], seed * root[0] / 2)
    torch.testing.assert_close(back[:, 2, 3, 4], -seed * root[2])
    counts = pattern_attribution(model, X, T, patterns)
    expected = seed.view(-1, 1, 1, 1) * model.last.weight[T].view(-1, 3, 16, 16)
    expected[:, 1] = 0
    torch.testing.assert_close(counts, expected)
