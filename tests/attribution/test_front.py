"""Relevance of a pixel is that of what the first layer is given for it, whatever stands between."""

import copy
import functools

import pytest
import torch
from tests import models
from tests.attribution.test_relevance import HIGH, LOW, NONE, T, X, assert_alike, drawn
from torch import nn
from torch.nn import functional as F
from zennit import composites
from zennit.attribution import Gradient

from consilience.attribution.relevance import epsilon_gamma_rule, epsilon_plus_rule, epsilon_rule, lrp
from consilience.models.split import normalised


@pytest.mark.parametrize("rule", [epsilon_rule, epsilon_plus_rule, epsilon_gamma_rule])
@pytest.mark.parametrize("first", ["as_others", "w_square", "flat", "box"])
def test_relevance_of_a_pixel_is_that_of_the_normalised_pixel(rule, first):
    inner, mean, sd = models.plain().double(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    model = normalised(inner, mean, sd)
    with torch.no_grad():
        x = X.clone()
        x[:, :, ::3] = 0  # black
        inside = model.normalise(x)
    if first == "box":
        low, high = model.normalise(LOW), model.normalise(HIGH)
        composite = composites.EpsilonGammaBox(low=low, high=high, stabilizer=NONE)
        with Gradient(inner, composite) as attributor:
            expected = attributor(inside.clone().requires_grad_(), lambda out: out * F.one_hot(T, 4))[1].detach()
        assert_alike(lrp(model, x, T, rule=epsilon_gamma_rule, first="box"), expected, 1e-9)
        return
    assert_alike(lrp(model, x, T, rule=rule, first=first), lrp(inner, inside, T, rule=rule, first=first), 1e-12)


def preprocessed(way):
    mean, sd = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).double(), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    ways = {
        "in place": lambda x: x.clone().sub_(mean).div_(sd),
        "scaled first": lambda x: (x * 255 - mean * 255) / (sd * 255),
        "negative": lambda x: (mean - x) * (-1 / sd),
        "rows": lambda x: ((x.flatten(1) - mean.expand(1, 3, 16, 16).flatten(1)).view(-1, 3, 16, 16)) / sd,
        "batch norm": lambda x: F.batch_norm(x, mean.flatten(), sd.flatten().double() ** 2, eps=0),
        "twice turned": lambda x: ((x.flip(1) - mean.flip(1)) / sd.flip(0)).flip(1),
        "last channels": lambda x: (
            ((x.permute(0, 2, 3, 1) - mean.flatten()) / sd.flatten()).permute(0, 3, 1, 2)
        ),
    }  # fmt: skip
    inner = models.plain().double()
    return models.Call(lambda m, x: m.inner(ways[way](x)), inner=inner)


@pytest.mark.parametrize(
    "way", ["in place", "scaled first", "negative", "rows", "batch norm", "twice turned", "last channels"]
)
@pytest.mark.parametrize("first", ["as_others", "box"])
def test_pixels_are_followed_however_they_are_normalised(way, first):
    model = preprocessed(way)
    x = X.clone()
    maps = lrp(model, X, T, first=first)
    assert torch.equal(x, X)
    reference = normalised(models.plain().double(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert_alike(maps, lrp(reference, X, T, first=first), 1e-6)  # the wrapper's mean is a float32
    assert not torch.allclose(maps, lrp(model.inner, X, T, first=first), atol=1e-3)


def test_a_box_is_turned_with_the_pixels():
    model = models.plain().double()
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned[0].bias += turned[0].weight.sum((1, 2, 3))
        turned[0].weight.neg_()
    expected = lrp(turned, X, T, first="box")
    assert_alike(lrp(models.Call(lambda m, x: m.net(1 - x), net=model), X, T, first="box"), expected, 1e-9)


def test_pixels_used_twice_get_both_relevances():
    conv = drawn(lambda: nn.Conv2d(3, 4, 3, bias=False))
    both = models.Call(lambda m, x: (m.conv(x) + m.conv((x - 0.5) / 0.5)).mean((2, 3)), conv=conv)
    one = models.Call(lambda m, x: m.conv(x).mean((2, 3)), conv=conv)
    rule = functools.partial(epsilon_rule, epsilon=0.0)
    expected = lrp(one, X, T, rule=rule) + lrp(one, (X - 0.5) / 0.5, T, rule=rule)
    assert_alike(lrp(both, X, T, rule=rule), expected, 1e-12)
