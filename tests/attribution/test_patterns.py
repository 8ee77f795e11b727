"""Signal back through hand-made patterns."""

import copy
import functools

import pytest
import torch
from tests.models import CONVOLUTIONAL, Call, batch, relus, tied
from torch import nn
from torch.nn import functional as F

from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.attribution.patterns import (
    pattern_attribution,
    pattern_attribution_rule,
    pattern_guided_integrated_gradients,
    pattern_net,
    pattern_net_rule,
    patterns_from_weights,
)
from consilience.attribution.scores import logit, value
from consilience.errors import ModelError, SpecError
from consilience.tensors import Patterns

METHODS = [pattern_net, pattern_attribution]
RULES = [pattern_net_rule, pattern_attribution_rule]
X, T = batch()
WITHOUT_NORM = [
    n for n, build in CONVOLUTIONAL.items() if not any(isinstance(m, nn.BatchNorm2d) for m in build().modules())
]


def ones(label, weight):
    return torch.ones_like(weight)


def drawn(label, weight):
    """Some pattern or other."""
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()), dtype=weight.dtype)


def filters(label, weight):
    """Kindermans et al. 2018: the signal estimator S_w, the filter over its squared length."""
    return weight / weight.flatten(1).square().sum(1).view(-1, *[1] * (weight.ndim - 1))


def row(*layers):
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def seeded(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return row(*(make() for make in layers))


# The definitions, slowly


def slow_mlp(model, x, target, patterns, attributing):
    """Section 4: 'a backward pass with W replaced by A' (by W * A), one neuron after the other."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    ahead, active = x.reshape(-1).tolist(), []
    for number, layer in enumerate(layers):
        y = [sum(w * v for w, v in zip(unit, ahead, strict=True)) + b
             for unit, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]  # fmt: skip
        last = number == len(layers) - 1
        active.append([last or v > 0 for v in y])
        ahead = y if last else [max(v, 0.0) for v in y]
    signal = [v if k == target else 0.0 for k, v in enumerate(ahead)]
    for layer, pattern, gates in reversed(list(zip(layers, patterns.values, active, strict=True))):
        w, a = layer.weight.tolist(), pattern.tolist()
        signal = [
            sum(
                (w[o][i] * a[o][i] if attributing else a[o][i]) * signal[o]
                for o in range(len(w))
                if gates[o]
            )
            for i in range(len(w[0]))
        ]  # fmt: skip
    return torch.tensor(signal, dtype=torch.float64).view_as(x)


def slow_cnn(model, x, target, patterns, attributing):
    """The same for convolution, ReLU, max-pool, convolution, ReLU, linear: each convolution is one of patches."""
    one, _, pool, two, _, _, last = model
    weights = [patterns.values[k] * (layer.weight if attributing else 1) for k, layer in enumerate((one, two, last))]
    y1 = F.conv2d(x[None], one.weight, one.bias)
    h1, where = F.max_pool2d(y1.relu(), pool.kernel_size, return_indices=True)
    y2 = (two.weight.flatten(1) @ F.unfold(h1, 3, padding=1)[0] + two.bias[:, None]).view(1, -1, *h1.shape[2:])
    y3 = last.weight @ y2.relu().flatten() + last.bias
    back = (weights[2][target] * y3[target]).view_as(y2) * (y2 > 0)
    back = F.fold((weights[1].flatten(1).T @ back[0].flatten(1))[None], h1.shape[2:], 3, padding=1)
    back = F.max_unpool2d(back, where, pool.kernel_size, output_size=y1.shape[2:]) * (y1 > 0)
    return F.fold((weights[0].flatten(1).T @ back[0].flatten(1))[None], x.shape[1:], 3)[0]


MLP = (nn.Flatten, lambda: nn.Linear(12, 7), nn.ReLU, lambda: nn.Linear(7, 6), nn.ReLU, lambda: nn.Linear(6, 3))
CNN = (lambda: nn.Conv2d(2, 4, 3), nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.Conv2d(4, 5, 3, padding=1), nn.ReLU,
       nn.Flatten, lambda: nn.Linear(45, 3))  # fmt: skip


@pytest.mark.parametrize(("layers", "slow", "shape"), [(MLP, slow_mlp, (1, 3, 4)), (CNN, slow_cnn, (2, 8, 8))])
@pytest.mark.parametrize(("method", "attributing"), [(pattern_net, False), (pattern_attribution, True)])
def test_the_backward_pass_is_its_definition(layers, slow, shape, method, attributing):
    model, target = seeded(*layers), torch.tensor([0, 2, 1, 1])
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    patterns = patterns_from_weights(model, x[:1], drawn)
    expected = torch.stack([slow(model, one, int(t), patterns, attributing) for one, t in zip(x, target, strict=True)])
    assert expected.abs().amin(0).max() > 0
    torch.testing.assert_close(method(model, x, target, patterns), expected, atol=1e-12, rtol=1e-12)


# Identities


@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_patterns_of_ones_leave_the_plain_gradient(name):
    model = CONVOLUTIONAL[name](3, 4).double()
    patterns = patterns_from_weights(model, X[:1], ones)
    for score in (value, logit):
        plain = gradient(model, X, T, score=score)
        torch.testing.assert_close(pattern_attribution(model, X, T, patterns, score=score), plain, atol=0, rtol=1e-12)
    guided = pattern_guided_integrated_gradients(model, X, T, patterns, steps=7, baseline=0.3)
    of = functools.partial(gradient, score=value)
    torch.testing.assert_close(guided, integrated_gradients(model, X, T, of=of, steps=7, baseline=0.3))


@pytest.mark.parametrize("method", METHODS)
def test_the_value_seeds_with_the_logit(method):
    model = CONVOLUTIONAL["plain"](3, 4).double()
    patterns = patterns_from_weights(model, X[:1], drawn)
    one = method(model, X, T, patterns, score=logit)
    torch.testing.assert_close(method(model, X, T, patterns), one * logit(model(X), T).view(-1, 1, 1, 1))


def test_filters_of_a_linear_model_share_out_the_logit():
    model = row(nn.Flatten(), nn.Linear(768, 4, bias=False))
    maps = pattern_attribution(model, X, T, patterns_from_weights(model, X[:1], filters))
    torch.testing.assert_close(maps.sum((1, 2, 3)), logit(model(X), T))


# Calls


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_how_a_rectifier_is_written(method):
    models = {name: model.double() for name, model in relus(3, 4).items()}
    maps = {n: method(m, X, T, patterns_from_weights(m, X[:1], drawn)) for n, m in models.items()}
    assert len(maps) > 10
    for name, one in maps.items():
        torch.testing.assert_close(one, maps["nn.ReLU"], atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_values_are_those_of_the_model_bit_for_bit(rule, name):
    model = CONVOLUTIONAL[name](3, 4)
    x = X.float().requires_grad_()
    patterns = patterns_from_weights(model, x[:1], drawn)
    with rule(model, patterns):
        logits = model(x)
    assert torch.equal(logits, model(x))
    assert logits.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_used_twice_has_a_pattern_of_each_use(method):
    model = tied(3, 4).double()
    patterns = patterns_from_weights(model, X[:1], drawn)
    assert patterns.functions == ("conv2d",) * 3 + ("linear",) * 4
    assert patterns.labels[1:3] == ("conv.weight", "conv.weight")
    maps = method(model, X, T, patterns)
    for place in (1, 2):
        values = list(patterns.values)
        values[place] = values[place].flip(0)
        assert (method(model, X, T, patterns._replace(values=tuple(values))) - maps).abs().max() > 1e-3


def test_a_pattern_changes_only_what_lies_below_it():
    model = CONVOLUTIONAL["plain"](3, 4).double()
    patterns, seen = patterns_from_weights(model, X[:1], drawn), []
    other = patterns._replace(values=(patterns.values[0], -2 * patterns.values[1], *patterns.values[2:]))
    for each in (patterns, other):
        inner = []
        with pattern_net_rule(model, each):
            y = X.clone().requires_grad_()
            for layer in model:
                inner.append(y)
                y = layer(y)
        seen.append(torch.autograd.grad(y[:, 1].sum(), inner))
    for place, (one, two) in enumerate(zip(*seen, strict=True)):
        torch.testing.assert_close(two, one * (-2 if place <= 3 else 1))  # the second convolution stands there


def test_patterns_take_the_type_of_the_model():
    model = CONVOLUTIONAL["plain"](3, 4)
    patterns = patterns_from_weights(model.double(), X[:1], drawn)
    maps = pattern_net(model.float(), X.float(), T, patterns)
    assert maps.dtype == torch.float32
    short = patterns.to(X.float())
    assert {one.dtype for one in short.values} == {torch.float32}
    torch.testing.assert_close(pattern_net(model, X.float(), T, short), maps)


@pytest.mark.parametrize("frozen", [True, False])
def test_trainable_weights_change_nothing(frozen):
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 3))
    model = nn.Sequential(normed, nn.ReLU(), nn.Flatten(), nn.Linear(392, 4)).double().requires_grad_(not frozen)
    patterns = patterns_from_weights(model, X[:1], filters)
    assert not any(one.requires_grad for one in patterns.values)
    maps = pattern_attribution(model, X, T, patterns)
    assert not maps.requires_grad
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(maps, pattern_attribution(model.requires_grad_(frozen), X, T, patterns))


def test_the_pattern_rule_may_be_chosen_for_any_method():
    model = CONVOLUTIONAL["plain"](3, 4).double()
    patterns = patterns_from_weights(model, X[:1], drawn)
    of = functools.partial(gradient, rule=functools.partial(pattern_attribution_rule, patterns=patterns), score=value)
    chosen = integrated_gradients(model, X, T, of=of, steps=5)
    torch.testing.assert_close(chosen, pattern_guided_integrated_gradients(model, X, T, patterns, steps=5))
    mean = sum(pattern_attribution(model, X * (k + 0.5) / 5, T, patterns) for k in range(5)) / 5
    torch.testing.assert_close(chosen, X * mean)


def test_the_maps_cannot_be_differentiated_again():
    """Nothing is known of how patterns follow the weights, so a loss that contains such maps is no silent half."""
    model, x = CONVOLUTIONAL["plain"](3, 4).double().requires_grad_(), X.clone().requires_grad_()
    rule = functools.partial(pattern_net_rule, patterns=patterns_from_weights(model, X[:1], drawn))
    maps = gradient(model, x, T, score=value, rule=rule, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        maps.sum().backward()


# What does not fit


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: Patterns(*(part[:3] for part in p)), "expected 3 affine calls.* found one more, linear"),
        (lambda p: Patterns((*p.functions, "conv2d"), (*p.values, p.values[0]), (*p.labels, "extra.weight")),
         r"expected 5 affine calls.* found 4; the first that was not called is extra.weight"),
        (lambda p: p._replace(functions=("conv2d", "linear", *p.functions[2:])),
         r"expected affine call 1 to be 3.weight, linear with a weight \[8, 6, 3, 3\].* found conv2d"),
        (lambda p: p._replace(values=(p.values[0][:, :1], *p.values[1:])),
         r"expected affine call 0 .* weight \[6, 1, 3, 3\].* found conv2d with a weight \[6, 3"),
    ],
    ids=["too few", "too many", "another function", "another shape"],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_patterns_of_another_model_are_refused(method, spoil, sentence):
    model = CONVOLUTIONAL["plain"](3, 4).double()
    with pytest.raises(ModelError, match=f"{method.__name__}_rule: {sentence}"):
        method(model, X, T, spoil(patterns_from_weights(model, X[:1], drawn)))
    assert pattern_net(model, X, T, patterns_from_weights(model, X[:1], drawn)).isfinite().all()  # no rule is left on


SOME = Patterns(("linear",), (torch.ones(4, 768),), ("fc.weight",))
LAST = {"fc": nn.Linear(768, 4)}
HIDDEN = {
    "a product with a matrix": lambda m, x: m.fc(x.flatten(1)) @ torch.eye(4).to(x),
    "mm": lambda m, x: torch.mm(x.flatten(1), m.fc.weight.t()),
    "addmm": lambda m, x: torch.addmm(m.fc.bias, x.flatten(1), m.fc.weight.t()),
    "einsum": lambda m, x: torch.einsum("nd,kd->nk", x.flatten(1), m.fc.weight),
    "attention": lambda m, x: m.fc(nn.MultiheadAttention(48, 2).to(x)(*[x.view(-1, 16, 48)] * 3)[0].flatten(1)),
    "a recurrent layer": lambda m, x: nn.LSTM(48, 4).to(x)(x.view(-1, 16, 48))[0][:, -1],
    "weights that depend on the pixels": lambda m, x: F.linear(x.flatten(1), x.flatten(1)[:1] * m.fc.weight),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("frozen", [True, False])
def test_weights_without_a_pattern_are_refused(name, frozen):
    model = Call(HIDDEN[name], **LAST).double().requires_grad_(not frozen)
    with pytest.raises(ModelError, match="for which there is no pattern"):
        pattern_net(model, X, T, SOME)
    with pytest.raises(ModelError, match="for which there is no pattern"):
        patterns_from_weights(model, X[:1], ones)


def test_a_layer_that_runs_out_of_sight_is_refused():
    """Inside ``vmap`` no tensor says that it depends on the pixels."""

    def run(m, x):
        return torch.vmap(lambda one: m.conv(one[None])[0, :, 0, 0])(F.relu(m.seen(x)))

    model = Call(run, seen=nn.Conv2d(3, 2, 3), conv=nn.Conv2d(2, 4, 14)).double()
    patterns = Patterns(("conv2d",), (torch.ones(2, 3, 3, 3),), ("seen.weight",))
    with pytest.raises(ModelError, match=r"patterns: .*found ConvolutionBackward0 that no call of the model shows"):
        patterns_from_weights(model, X, ones)
    with pytest.raises(ModelError, match=r"pattern_net_rule: .*found ConvolutionBackward0"):
        pattern_net(model, X, T, patterns)


def test_products_of_activations_are_no_layers():
    def run(m, x):
        tokens = x.flatten(2)
        return m.fc(((tokens @ tokens.mT).softmax(2) @ tokens).flatten(1))

    model = Call(run, **LAST).double()
    patterns = patterns_from_weights(model, X[:1], ones)
    plain = gradient(model, X, T, score=value)
    torch.testing.assert_close(pattern_attribution(model, X, T, patterns), plain)


def test_a_batch_norm_with_the_statistics_of_the_batch_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 4)).double()
    with pytest.raises(ModelError, match="evaluation mode"):
        pattern_net(model, X, T, patterns_from_weights(model, X[:1], ones))


def test_a_pattern_of_another_shape_than_its_weight_is_refused():
    with pytest.raises(SpecError, match=r"0.weight: expected a pattern \[6, 3, 3, 3\], .* found \[3, 3, 3\]"):
        patterns_from_weights(CONVOLUTIONAL["plain"](3, 4).double(), X[:1], lambda _, weight: weight[0])


def test_a_model_without_layers_has_no_patterns():
    with pytest.raises(ModelError, match="found none"):
        patterns_from_weights(Call(lambda m, x: x.mean((2, 3))), X[:1], ones)


def test_making_patterns_leaves_no_trace():
    model, x = CONVOLUTIONAL["residual"](3, 4).double(), X.clone()
    weights, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with torch.no_grad():
        patterns = patterns_from_weights(model, x, drawn)
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert patterns.labels[0] == "stem.weight"
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
