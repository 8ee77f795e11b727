"""Calls on maps whose channels lie last: what they give is what they gave, and nothing stale is used."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consilience.attribution.channels_last import Prepared

X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4))
        layers.train()(X * 2 + 1)
    return layers.eval().requires_grad_(False)


def norm_of(layer):
    """The arguments of a call of batch norm, some by name as modules spell them."""
    return (layer.running_mean, layer.running_var), {
        "weight": layer.weight, "bias": layer.bias, "training": False, "momentum": 0.1, "eps": layer.eps
    }  # fmt: skip


def test_a_convolution_and_a_batch_norm_give_what_they_give_without():
    layers = network()
    conv, norm = layers
    prepared = Prepared(layers)
    maps = prepared.call(torch.conv2d, (X, conv.weight, conv.bias, conv.stride, conv.padding), {})
    torch.testing.assert_close(maps, conv(X), atol=1e-5, rtol=1e-5)
    args, options = norm_of(norm)
    torch.testing.assert_close(prepared.call(F.batch_norm, (maps, *args), options), norm(maps), atol=1e-5, rtol=1e-5)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert len(prepared.made) == 2


def test_what_was_made_is_used_again_until_the_weight_changes():
    layers = network()
    conv, prepared = layers[0], Prepared(layers)
    before = prepared.call(torch.conv2d, (X, conv.weight), {})
    (made,) = prepared.made.values()
    prepared.call(torch.conv2d, (X, conv.weight), {})
    assert next(iter(prepared.made.values())) is made
    conv.weight.mul_(2)
    torch.testing.assert_close(prepared.call(torch.conv2d, (X, conv.weight), {}), 2 * before, atol=1e-5, rtol=1e-5)


def test_the_mean_of_a_batch_norm_may_change_as_well():
    layers = network()
    norm, prepared = layers[1], Prepared(layers)
    maps = layers[0](X)
    for _ in range(2):
        args, options = norm_of(norm)
        found = prepared.call(F.batch_norm, (maps, *args), options)
        torch.testing.assert_close(found, norm(maps), atol=1e-5, rtol=1e-5)
        norm.running_mean.add_(1.0)


@pytest.mark.parametrize("make", ["a weight of nobody", "contiguous maps"])
def test_other_tensors_are_left_alone(make):
    layers = network()
    prepared, conv = Prepared(layers), layers[0]
    x, weight = (X, conv.weight * 1.0) if make == "a weight of nobody" else (X.contiguous(), conv.weight)
    assert torch.equal(prepared.call(torch.conv2d, (x, weight), {}), torch.conv2d(x, weight))
    assert not prepared.made


def test_a_batch_norm_in_training_or_without_statistics_is_left_alone():
    layers = network()
    prepared, norm = Prepared(layers), layers[1]
    maps = layers[0](X)
    args, options = norm_of(norm)
    before = norm.running_mean.clone()
    prepared.call(F.batch_norm, (maps, *args), {**options, "training": True})
    assert not torch.equal(norm.running_mean, before)
    plain = prepared.call(F.batch_norm, (maps, *args), {**options, "weight": None, "bias": None})
    torch.testing.assert_close(plain, F.batch_norm(maps, *args, eps=norm.eps))
    assert not prepared.made


def test_slopes_are_those_of_the_plain_calls():
    layers = network()
    conv, norm = layers
    slopes = []
    for prepared in (None, Prepared(layers)):
        x = X.clone(memory_format=torch.channels_last).requires_grad_()
        call = (lambda f, a, o: f(*a, **o)) if prepared is None else prepared.call
        args, options = norm_of(norm)
        maps = call(torch.conv2d, (x, conv.weight, conv.bias), {})
        out = call(F.batch_norm, (maps, *args), options)
        slopes.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-4)
