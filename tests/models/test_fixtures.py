"""The networks that all methods are tested on: always the same, and not degenerate."""

import pytest
import torch
from torch import nn

from tests import models

BUILDS = pytest.mark.parametrize("build", models.ALL.values(), ids=models.ALL)


@BUILDS
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_is_always_the_same_and_tells_images_apart(build, channels):
    before = torch.get_rng_state()
    one, two = build(channels, 5), build(channels, 5)
    x, _ = models.batch(4, channels, dtype=torch.float32)
    assert torch.equal(one(x), two(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert one(x).shape == (4, 5)
    assert one(x).std(0).min() > 5e-4
    torch.testing.assert_close(one(x[1:2]), one(x)[1:2], atol=1e-5, rtol=1e-5)
    assert not any(module.training for module in one.modules())
    assert not any(parameter.requires_grad for parameter in one.parameters())


@BUILDS
def test_every_network_sees_every_channel_and_has_both_signs(build):
    model, (x, target) = build(3, 4).double(), models.batch()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)
    assert (slope.abs().sum((0, 2, 3)) > 0).all()
    assert slope.min() < 0 < slope.max()


def test_however_a_relu_is_written_the_outputs_are_equal():
    x, _ = models.batch()
    found = {**models.relus(), **models.unseen_relus()}
    assert len(found) > 15
    expected = found["nn.ReLU"].double()(x)
    for name, model in found.items():
        assert torch.equal(model.double()(x), expected), name
    hidden = nn.functional.relu(found["nn.ReLU"].conv1(x))
    assert 0.1 < (hidden == 0).double().mean() < 0.9


@pytest.mark.parametrize("name", models.SMOOTH)
def test_smooth_networks_bend(name):
    model, (x, _) = models.smooth(name).double(), models.batch()
    middle = (model(x) + model(x.flip(0))) / 2 - model((x + x.flip(0)) / 2)
    assert middle.abs().max() > 1e-6


def test_the_others_are_what_they_say():
    x, _ = models.batch(2, dtype=torch.float32)
    assert [tuple(part.shape) for part in models.tuple_of_outputs()(x)] == [(2, 4), (2, 8, 3, 3)]
    assert {name: tuple(part.shape) for name, part in models.dict_of_outputs()(x).items()} == {
        "logits": (2, 4),
        "features": (2, 8, 3, 3),
    }
    assert torch.equal(models.scripted()(x), models.plain()(x))
    assert torch.equal(models.partly_scripted()(x), models.plain()(x))
    assert isinstance(models.scripted(), torch.jit.ScriptModule)
    assert models.single_logit()(x).shape == (2, 1)
    assert models.not_a_number()(x).isnan().all()
    assert torch.equal(models.constant()(x), models.unconnected()(x))
    assert models.constant()(x.requires_grad_()).requires_grad
    assert not models.unconnected()(x).requires_grad
