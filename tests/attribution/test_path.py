import contextlib
import functools
import warnings

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients, mean_line_gradient, midpoints, score_of_plain
from consilience.attribution.scores import log_probability, logit
from consilience.errors import ModelError
from consilience.models.split import normalised
from consilience.rng import Rng


def chance(seed):
    return torch.Generator().manual_seed(seed)


def images(n, channels=1, size=8):
    return torch.rand(n, channels, size, size, generator=chance(0), dtype=torch.float64)


def classes(n):
    return torch.arange(n) % 4


def deep_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)).double().eval()


def streamed(model, x, target):
    """The plain gradient, but not the very function: nothing is shared."""
    return gradient(model, x, target)


def noisy(model, x, target, rng):
    """An attribution that draws, as smoothing methods do."""
    return gradient(model, x + 0.1 * rng.normal(*x.shape[1:]).to(x), target)


@pytest.fixture
def captum_ig():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        attr = pytest.importorskip("captum.attr")
    return attr.IntegratedGradients


@pytest.mark.parametrize("of", [gradient, streamed])
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_maps_are_captums(captum_ig, of, steps):
    model, x, target = deep_net(), images(8), classes(8)
    theirs = captum_ig(model).attribute(
        x, torch.full_like(x, 0.2), target=target, n_steps=steps, method="riemann_middle"
    )
    ours = integrated_gradients(model, x, target, of=of, baseline=0.2, steps=steps)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("of", [gradient, streamed])
def test_maps_of_a_linear_model_are_weights_times_way(of):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    x, target = images(10), classes(10)
    maps = integrated_gradients(model, x, target, of=of, baseline=0.25)
    planted = model[1].weight[target].view_as(x) * (x - 0.25)
    torch.testing.assert_close(maps, planted.detach(), atol=1e-14, rtol=1e-12)


def test_maps_are_complete():
    model, x, target = deep_net(), images(6), classes(6)
    maps = integrated_gradients(model, x, target, baseline=0.5, steps=1000)
    with torch.no_grad():
        gain = logit(model(x), target) - logit(model(torch.full_like(x, 0.5)), target)
    torch.testing.assert_close(maps.sum((1, 2, 3)), gain, atol=1e-3 * float(gain.abs().max()), rtol=0)


def test_another_score_is_explained_with_or_without_sharing():
    model, x, target = deep_net(), images(8), classes(8)
    of = functools.partial(gradient, score=log_probability)
    shared = integrated_gradients(model, x, target, of=of)
    plain = integrated_gradients(model, x, target, of=lambda *flow: of(*flow))
    torch.testing.assert_close(shared, plain, atol=1e-12, rtol=1e-10)
    assert not torch.allclose(shared, integrated_gradients(model, x, target))


@pytest.mark.parametrize("of", [gradient, streamed])
def test_an_example_is_explained_alike_in_any_batch(of):
    model, x, target = deep_net(), images(9), classes(9)
    together = integrated_gradients(model, x, target, of=of)
    alone = [integrated_gradients(model, x[[i]], target[[i]], of=of) for i in range(9)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("of", [gradient, streamed])
@pytest.mark.parametrize("budget", [1, 30_000, 400_000])
def test_an_example_is_explained_alike_in_any_chunk(of, budget, monkeypatch):
    model, x, target = deep_net(), images(9), classes(9)
    expected = integrated_gradients(model, x, target, of=of)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(integrated_gradients(model, x, target, of=of), expected, atol=1e-12, rtol=1e-10)


def test_what_draws_draws_for_each_example_and_node(monkeypatch):
    model, x, target, ids = deep_net(), images(6), classes(6), [4, 8, 1, 0, 9, 3]
    together = integrated_gradients(model, x, target, Rng(5, ids), of=noisy, steps=3)
    by_hand = sum(noisy(model, x * a, target, Rng(5, ids).at(k)) for k, a in enumerate([1 / 6, 3 / 6, 5 / 6])) / 3
    torch.testing.assert_close(together, x * by_hand)
    order = [5, 0, 2]
    few = integrated_gradients(model, x[order], target[order], Rng(5, [3, 4, 1]), of=noisy, steps=3)
    torch.testing.assert_close(few, together[order])
    monkeypatch.setattr(tensors, "CHUNK_BYTES", 1)
    chunked = integrated_gradients(model, x, target, Rng(5, ids), of=noisy, steps=3)
    torch.testing.assert_close(chunked, together)


def test_draws_of_nodes_are_independent():
    x = torch.ones(4, 1, 8, 8, dtype=torch.float64)
    maps = integrated_gradients(deep_net(), x, classes(4), Rng(0, range(4)), of=random_map, steps=100)
    assert 0.07 < maps.std() < 0.13  # the mean of 100 draws, not one draw 100 times


def test_the_mean_baseline_is_the_models_mean_pixel():
    model = normalised(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), [0.2, 0.4, 0.6], [0.5, 0.5, 1.0])
    x, target = images(6, channels=3).float(), classes(6)
    mean = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None]
    planted = gradient(model, x, target) * (x - mean)
    torch.testing.assert_close(integrated_gradients(model, x, target, baseline="mean"), planted)


def test_the_mean_baseline_asks_for_a_model_that_holds_one():
    with pytest.raises(ModelError, match="wrap it with normalised"):
        integrated_gradients(deep_net(), images(2), classes(2), baseline="mean")


@pytest.mark.parametrize("mode", [torch.no_grad, contextlib.nullcontext])
@pytest.mark.parametrize("of", [gradient, streamed])
def test_gradients_flow_though_the_caller_wants_none(mode, of):
    model, x, target = deep_net(), images(8).requires_grad_(), classes(8)
    with mode():
        maps = integrated_gradients(model, x, target, of=of)
    assert maps.abs().sum() > 0
    assert not maps.requires_grad
    assert x.grad is None


def test_maps_can_be_differentiated_in_the_weights():
    model, x, target = deep_net(), images(2), classes(2)
    of = functools.partial(gradient, create_graph=True)
    integrated_gradients(model, x, target, of=of, steps=3).square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_no_examples_give_no_maps():
    assert integrated_gradients(deep_net(), images(0), classes(0)).shape == (0, 1, 8, 8)


def test_a_class_that_the_model_does_not_know_is_refused():
    with pytest.raises(ModelError, match="the model does not know them"):
        integrated_gradients(deep_net(), images(8), classes(8) + 1)


def test_the_mean_on_a_line_may_start_anywhere():
    model, x, target = deep_net(), images(8), classes(8)
    start, nodes = images(16)[8:], midpoints(40).to(x) ** 2
    mean = mean_line_gradient(model, x, start, target, nodes)
    by_hand = sum(gradient(model, start + a * (x - start), target) for a in nodes) / 40
    torch.testing.assert_close(mean, by_hand, atol=1e-12, rtol=1e-10)


def test_only_the_plain_gradient_is_known_as_plain():
    assert score_of_plain(gradient) is logit
    assert score_of_plain(functools.partial(gradient, score=log_probability)) is log_probability
    assert score_of_plain(functools.partial(gradient, create_graph=False)) is logit
    assert score_of_plain(functools.partial(gradient, create_graph=True)) is None
    assert score_of_plain(streamed) is None
    assert score_of_plain(integrated_gradients) is None
