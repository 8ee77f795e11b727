"""Layer-wise relevance propagation: shares as they are defined, and the same however a model is written."""

import functools
import gc
import warnings
import weakref

import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

from consilience.attribution.gradient import gradient, gradient_x_input
from consilience.attribution.guided import guided_rule
from consilience.attribution.relevance import (
    alpha_beta_rule,
    epsilon_alpha_beta_rule,
    epsilon_gamma_rule,
    epsilon_plus_rule,
    epsilon_rule,
    gamma_rule,
    lrp,
    z_plus_rule,
)
from consilience.attribution.scores import log_probability, logit
from consilience.errors import SpecError
from consilience.models.split import normalised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its imports
    from captum import attr
    from zennit import composites, rules, types
    from zennit.attribution import Gradient
    from zennit.canonizers import NamedMergeBatchNorm
    from zennit.layer import Sum

X, T = models.batch()
RULES = [
    epsilon_rule, z_plus_rule, alpha_beta_rule, gamma_rule, epsilon_plus_rule, epsilon_alpha_beta_rule,
    epsilon_gamma_rule,
]  # fmt: skip
NONE = 1e-13  # a stabiliser of theirs that changes nothing


def drawn(build, seed=0):
    """A model with weights of both signs, biases, and batch norms that turn some channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.3, 1.5)
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
                module.eps = NONE  # zennit leaves it where it has merged the rest
    return model.double().eval()


class Residual(nn.Module):
    """A residual block, written so that zennit sees all of it."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.dense, self.norm3, self.last = nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)
        self.acts, self.sum, self.pool = nn.ModuleList(nn.ReLU() for _ in range(4)), Sum(), nn.AdaptiveAvgPool2d(2)

    def forward(self, x):
        x = self.acts[0](self.norm(self.stem(x)))
        y = self.norm2(self.conv2(self.acts[1](self.norm1(self.conv1(x)))))
        x = self.acts[2](self.sum(torch.stack([x, y], -1)))
        return self.last(self.acts[3](self.norm3(self.dense(self.pool(x).flatten(1)))))


class Functional(Residual):
    """The same block as people write it: nothing but the weights is a module that is called."""

    def normed(self, x, norm):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    def forward(self, x):
        x = F.relu(self.normed(F.conv2d(x, self.stem.weight), self.norm), inplace=True)
        y = self.normed(self.conv1(x), self.norm1).relu_()
        y = self.normed(F.conv2d(y, self.conv2.weight, self.conv2.bias, padding=1, groups=2), self.norm2)
        y += x
        y.relu_()
        y = self.normed(F.adaptive_avg_pool2d(y, 2).flatten(1) @ self.dense.weight.T + self.dense.bias, self.norm3)
        return torch.addmm(self.last.bias, y.clamp(min=0), self.last.weight.T)


class ByHand(Functional):
    """The same, its batch norms a product and a sum, as frozen ones are."""

    def normed(self, x, norm):
        like = (1, -1, *[1] * (x.ndim - 2))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        x = x * scale.view(like)
        x += (norm.bias - norm.running_mean * scale).view(like)
        return x


CANONIZERS = [
    NamedMergeBatchNorm(
        [(["stem"], "norm"), (["conv1"], "norm1"), (["conv2"], "norm2"), (["dense"], "norm3")],
    )
]
SPECIAL = composites.SpecialFirstLayerMapComposite
LOW, HIGH = torch.zeros_like(X), torch.ones_like(X)


def everywhere(rule):
    base = composites.layer_map_base(NONE)
    return lambda **options: composites.LayerMapComposite(layer_map=[*base, (types.Linear, rule)], **options)


def squares(**options):
    base = composites.layer_map_base(NONE)
    first = [(types.Linear, rules.WSquare(stabilizer=NONE, zero_params=["bias"]))]
    plus = (types.Convolution, rules.ZPlus(stabilizer=NONE))
    return SPECIAL(layer_map=[*base, plus, (types.Linear, rules.Epsilon(1e-6))], first_map=first, **options)


def box(**options):
    return composites.EpsilonGammaBox(low=LOW, high=HIGH, stabilizer=NONE, **options)


THEIRS = {
    "epsilon": (everywhere(rules.Epsilon(1e-6)), {"rule": epsilon_rule}),
    "epsilon 0.1": (everywhere(rules.Epsilon(0.1)), {"rule": functools.partial(epsilon_rule, epsilon=0.1)}),
    "z plus": (everywhere(rules.ZPlus(stabilizer=NONE)), {"rule": z_plus_rule}),
    "alpha 2": (everywhere(rules.AlphaBeta(2, 1, stabilizer=NONE)), {"rule": alpha_beta_rule}),
    "gamma": (everywhere(rules.Gamma(0.25, stabilizer=NONE)), {"rule": gamma_rule}),
    "epsilon plus": (functools.partial(composites.EpsilonPlus, stabilizer=NONE), {}),
    "epsilon alpha 2": (
        functools.partial(composites.EpsilonAlpha2Beta1, stabilizer=NONE),
        {"rule": epsilon_alpha_beta_rule},
    ),
    "epsilon gamma box": (box, {"rule": epsilon_gamma_rule, "first": "box"}),
    "epsilon plus flat": (functools.partial(composites.EpsilonPlusFlat, stabilizer=NONE), {"first": "flat"}),
    "epsilon alpha 2 flat": (
        functools.partial(composites.EpsilonAlpha2Beta1Flat, stabilizer=NONE),
        {"rule": epsilon_alpha_beta_rule, "first": "flat"},
    ),
    "epsilon plus squares": (squares, {"first": "w_square"}),
}


def zennits(model, composite):
    with Gradient(model, composite) as attributor:
        return attributor(X.clone().requires_grad_(), lambda out: out * F.one_hot(T, 4))[1].detach()


def assert_alike(maps, expected, tolerance):
    assert expected.abs().max() > 0
    torch.testing.assert_close(maps, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("written", [Residual, Functional, ByHand])
@pytest.mark.parametrize("name", THEIRS)
def test_relevance_is_zennits_however_the_model_is_written(name, written):
    composite, options = THEIRS[name]
    model = drawn(Residual)
    expected = zennits(model, composite(canonizers=CANONIZERS))
    assert (expected - zennits(model, composite())).abs().max() > 1e-3 * expected.abs().max()  # merged, they differ
    assert_alike(lrp(drawn(written), X, T, **options), expected, 1e-7)


@pytest.mark.parametrize("name", ["plain", "global_max", "global_average", "overlapping_pool"])
@pytest.mark.parametrize("rule", ["epsilon plus", "epsilon alpha 2", "epsilon gamma box"])
def test_relevance_is_zennits_through_every_pooling(name, rule):
    composite, options = THEIRS[rule]
    model = models.ALL[name](3, 4).double()
    assert_alike(lrp(model, X, T, **options), zennits(model, composite()), 1e-9)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_the_epsilon_rule_is_captums():
    layers = list(models.plain().double())
    model = models.Call(lambda m, x: m.head(m.body(x).flatten(1)), body=nn.Sequential(*layers[:6]),
                        head=nn.Sequential(*layers[7:]))  # fmt: skip
    theirs = attr.LRP(model).attribute(X.clone().requires_grad_(), target=T).detach()
    assert_alike(lrp(model, X, T, rule=functools.partial(epsilon_rule, epsilon=1e-9)), theirs, 1e-6)


# The definitions


def shares(x, weight, bias, relevance, divide):
    """Relevance of a dense layer's inputs, one by one."""
    into = torch.zeros_like(x)
    for k, r in enumerate(relevance):
        each = [x[i] * weight[k, i] for i in range(len(x))]
        for i, share in enumerate(divide(each, bias[k])):
            into[i] += share * r
    return into


def epsilon_shares(each, bias):
    z = sum(each) + bias
    return [z_i / (z + (0.1 if z >= 0 else -0.1)) for z_i in each]


def plus_shares(each, bias):
    total = sum(max(z_i, 0) for z_i in each) + max(bias, 0)
    return [max(z_i, 0) / total if total else 0 for z_i in each]


def alpha_shares(each, bias):
    negative = sum(min(z_i, 0) for z_i in each) + min(bias, 0)
    inhibited = [min(z_i, 0) / negative if negative else 0 for z_i in each]
    return [3 * up - 2 * down for up, down in zip(plus_shares(each, bias), inhibited, strict=True)]


def gamma_shares(each, bias):
    z = sum(each) + bias
    more = [z_i + 0.5 * (z_i if z_i * z > 0 else 0) for z_i in each]
    total = sum(more) + bias + 0.5 * (bias if bias * z > 0 else 0)
    return [z_i / total for z_i in more]


BY_HAND = {
    "epsilon": (functools.partial(epsilon_rule, epsilon=0.1), epsilon_shares),
    "plus": (z_plus_rule, plus_shares),
    "alpha": (functools.partial(alpha_beta_rule, alpha=3.0), alpha_shares),
    "gamma": (functools.partial(gamma_rule, gamma=0.5), gamma_shares),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_dense_network_divides_relevance_as_defined(name):
    rule, divide = BY_HAND[name]
    model = drawn(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)))
    x = torch.randn(3, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)  # of both signs
    expected = torch.zeros(3, 6, dtype=torch.float64)
    with torch.no_grad():
        for n in range(3):
            before = x[n].flatten()
            h = model[1](before).relu()
            top = torch.where(F.one_hot(T[n], 4).bool(), model[3](h), 0.0)
            middle = shares(h, model[3].weight, model[3].bias, top, divide)
            expected[n] = shares(before, model[1].weight, model[1].bias, middle, divide)
    assert_alike(lrp(model, x, T, rule=rule).flatten(1), expected, 1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", ["as_others", "box", "w_square", "flat"])
def test_without_biases_the_maps_sum_to_the_score(rule, first):
    model = drawn(Functional)
    with torch.no_grad():
        model.dense.weight.abs_()  # so that in every layer something speaks for what it answers
        model.last.weight.abs_()
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.zero_()
        for norm in (model.norm, model.norm1, model.norm2, model.norm3):
            norm.running_mean.zero_()
            norm.weight.abs_()
    if rule in (alpha_beta_rule, epsilon_alpha_beta_rule):
        model = models.plain().double()  # whose last layers have no unit that nothing speaks against
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.zero_()
    answer = model(X).gather(1, T[:, None])[:, 0].detach()
    assert answer.abs().min() > 1e-3
    torch.testing.assert_close(lrp(model, X, T, rule=rule, first=first).sum((1, 2, 3)), answer, atol=0, rtol=1e-3)


@pytest.mark.parametrize("rule", [epsilon_rule, epsilon_plus_rule, epsilon_gamma_rule])
def test_a_linear_models_relevance_is_pixel_times_weight(rule):
    model = drawn(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4)))
    expected = X * model[1].weight[T].view_as(X).detach()
    assert_alike(lrp(model, X, T, rule=functools.partial(rule, epsilon=0.0)), expected, 1e-12)


@pytest.mark.parametrize("name", ["plain", "residual", "dense", "inception", "tied", "overlapping_pool"])
def test_with_rectifiers_and_no_epsilon_it_is_gradient_times_input(name):
    model = models.ALL[name](3, 4).double()
    rule = functools.partial(epsilon_rule, epsilon=0.0)
    if name == "dense":  # a batch norm behind no layer keeps no share for its shift
        assert (lrp(model, X, T, rule=rule) - gradient_x_input(model, X, T)).abs().max() > 1e-3
        return
    assert_alike(lrp(model, X, T, rule=rule), gradient_x_input(model, X, T), 1e-12)


# Refused, or undefined


def test_a_rule_that_divides_nothing_is_refused():
    with pytest.raises(SpecError, match=r"lrp.rule: .* found guided_rule"):
        lrp(models.plain().double(), X, T, rule=guided_rule)


def test_what_is_not_finite_is_nan_all_over():
    assert lrp(models.not_a_number().double(), X, T).isnan().all()
    x = X.clone()
    x[1, 0, 3, 3] = torch.nan
    maps = lrp(models.plain().double(), x, T)
    assert maps[1].isnan().all()
    assert_alike(maps[[0, 2]], lrp(models.plain().double(), X, T)[[0, 2]], 1e-12)


def test_an_undefined_score_is_nan_also_where_relevance_does_not_come():
    run = lambda m, x: m.last(torch.where(m.conv(x) > 100, m.conv(x), 0.0).mean((2, 3))) * torch.nan  # noqa: E731
    dead = drawn(lambda: models.Call(run, conv=nn.Conv2d(3, 4, 3), last=nn.Linear(4, 4)))
    assert lrp(dead, X, T).isnan().all()


def test_maps_are_not_differentiated_again():
    x = X.clone().requires_grad_()
    maps = gradient(models.plain().double(), x, T, rule=epsilon_plus_rule, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        maps.sum().backward()


def test_as_a_rule_of_the_gradient_it_is_relevance_over_pixel():
    model = models.plain().double()
    maps = gradient(model, X, T, rule=epsilon_gamma_rule)
    assert_alike(maps * X, lrp(model, X, T, rule=epsilon_gamma_rule), 1e-12)
    inside = normalised(model, [0.5] * 3, [0.25] * 3)
    torch.testing.assert_close(
        gradient(inside, X, T, rule=epsilon_gamma_rule),
        gradient(model, (X - 0.5) / 0.25, T, rule=epsilon_gamma_rule) * 4,
    )


def test_another_score_starts_with_its_own_slope():
    model = models.plain().double()
    logits = model(X).detach().requires_grad_()
    (slope,) = torch.autograd.grad(log_probability(logits, T).sum(), logits)
    each = torch.stack([lrp(model, X, torch.full_like(T, k)) * slope[:, k, None, None, None] for k in range(4)])
    assert_alike(lrp(model, X, T, score=log_probability), each.sum(0), 1e-9)
    assert_alike(lrp(nn.Sequential(model, nn.LogSoftmax(1)), X, T), each.sum(0), 1e-9)
    assert_alike(lrp(model, X, T, score=lambda y, t: 2 * logit(y, t)), 2 * lrp(model, X, T), 1e-12)


def test_what_speaks_for_one_of_two_classes_speaks_against_the_other():
    model = models.single_logit().double()
    maps = lrp(model, X, torch.ones_like(T))
    assert maps.abs().max() > 0
    assert_alike(lrp(model, X, torch.zeros_like(T)), -maps, 1e-12)


def test_single_precision_gives_the_same_maps():
    model = drawn(Functional)
    for rule in (epsilon_plus_rule, epsilon_gamma_rule, alpha_beta_rule):
        double = lrp(model.double(), X, T, rule=rule)
        assert_alike(lrp(model.float(), X.float(), T, rule=rule).double(), double, 1e-3)


def test_under_autocast_relevance_is_nearly_the_same():
    model = models.plain()
    with torch.autocast("cpu", torch.bfloat16):
        maps = lrp(model, X.float(), T, rule=gamma_rule)
    assert_alike(maps, lrp(model, X.float(), T, rule=gamma_rule), 0.2)


def test_no_graph_outlives_the_maps():
    gc.collect()
    gc.disable()
    try:
        kept, layers = [], list(models.plain().double())
        model = models.Call(lambda m, x: m.last((kept.append(weakref.ref(h := m.body(x))), h)[1]),
                            body=nn.Sequential(*layers[:-1]), last=layers[-1])  # fmt: skip
        lrp(model, X, T)
        assert kept[0]() is None
    finally:
        gc.enable()
