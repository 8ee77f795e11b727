import contextlib
import functools
import inspect
import warnings

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from consilience import tensors
from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.attribution.noise import smooth_grad
from consilience.attribution.path import (
    integrated_gradients,
    integrated_gradients_over_background,
    mean_line_gradient,
    midpoints,
    nodes_of,
    score_of_plain,
)
from consilience.attribution.scores import log_probability, logit
from consilience.component import attribution
from consilience.errors import ModelError, SpecError
from consilience.measures.faithfulness import completeness_gap
from consilience.models.split import normalised
from consilience.rng import Rng
from consilience.tensors import Blurred

RULES = {"midpoint": "riemann_middle", "right": "riemann_right", "gauss_legendre": "gausslegendre"}
BASELINES = {"value": 0.25, "of each channel": (0.2, 0.6, 0.9), "mean": "mean", "blurred": Blurred(1.5)}


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
@pytest.mark.parametrize("rule", RULES)
def test_maps_are_captums(captum_ig, of, steps, rule):
    model, x, target = deep_net(), images(8), classes(8)
    theirs = captum_ig(model).attribute(x, torch.full_like(x, 0.2), target=target, n_steps=steps, method=RULES[rule])
    ours = integrated_gradients(model, x, target, of=of, baseline=0.2, nodes=rule, steps=steps)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("of", [gradient, streamed])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_maps_of_a_linear_model_are_weights_times_way(of, rule, baseline):
    mean, start = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64).view(3, 1, 1), torch.full((3, 8, 8), 0.25)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    model.register_buffer("pixel_mean", mean[None])
    x, target = images(10, channels=3), classes(10)
    start = (
        torch.as_tensor(blurred_by_scipy(x, 1.5)) if baseline == "blurred" else start if baseline == "value" else mean
    )
    options = {"of": of, "nodes": rule, "baseline": BASELINES[baseline]}
    maps = integrated_gradients(model, x, target, **options)
    weights = model[1].weight[target].view_as(x).detach()
    torch.testing.assert_close(maps, weights * (x - start), atol=1e-14, rtol=1e-10)
    bare = integrated_gradients(model, x, target, **options, multiply=False)
    torch.testing.assert_close(bare, weights, atol=1e-14, rtol=1e-10)


def blurred_by_scipy(x, deviation):
    return np.stack([[gaussian_filter(channel, deviation, mode="nearest") for channel in image] for image in x.numpy()])


@pytest.mark.parametrize("deviation", [0.4, 2.0, 30.0])
def test_the_blurred_start_is_scipys(deviation):
    x = images(3, channels=2).repeat(1, 1, 1, 2)[..., :11]
    expected = torch.as_tensor(blurred_by_scipy(x, deviation))
    torch.testing.assert_close(tensors.blurred(x, deviation), expected, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_nodes_integrate_what_their_rule_integrates(steps):
    for rule in RULES:
        at, weights = nodes_of(rule, steps)
        assert len(at) == steps
        assert at.min() > 0
        assert at.max() <= 1
        assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    at, weights = nodes_of("gauss_legendre", steps)
    for degree in range(2 * steps):
        assert float(weights @ at**degree) == pytest.approx(1 / (degree + 1), abs=1e-13)
    assert nodes_of("right", steps).at.tolist() == pytest.approx([(k + 1) / steps for k in range(steps)])


@pytest.mark.parametrize("rule", RULES)
def test_maps_are_complete(rule):
    model, x, target = deep_net(), images(6), classes(6)
    maps = integrated_gradients(model, x, target, baseline=0.5, nodes=rule, steps=1000)
    with torch.no_grad():
        gain = logit(model(x), target) - logit(model(torch.full_like(x, 0.5)), target)
    error = 5e-3 if rule == "right" else 1e-3
    torch.testing.assert_close(maps.sum((1, 2, 3)), gain, atol=error * float(gain.abs().max()), rtol=0)


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
@pytest.mark.parametrize(
    "options", [{}, {"nodes": "gauss_legendre", "baseline": Blurred(2.0)}], ids=["default", "other"]
)
def test_an_example_is_explained_alike_in_any_chunk(of, budget, options, monkeypatch):
    model, x, target = deep_net(), images(9), classes(9)
    expected = integrated_gradients(model, x, target, of=of, **options)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    chunked = integrated_gradients(model, x, target, of=of, **options)
    torch.testing.assert_close(chunked, expected, atol=1e-12, rtol=1e-10)


def test_smoothed_gradients_are_integrated_with_the_weights_of_the_rule():
    model, x, target, rng = deep_net(), images(4), classes(4), Rng(5, [4, 8, 1, 0])
    of, (at, weights) = functools.partial(smooth_grad, samples=3), nodes_of("gauss_legendre", 4)
    by_hand = sum(w * x * of(model, x * a, target, rng.at(k)) for k, (a, w) in enumerate(zip(at, weights, strict=True)))
    maps = integrated_gradients(model, x, target, rng, of=of, nodes="gauss_legendre", steps=4)
    torch.testing.assert_close(maps, by_hand)


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


@pytest.mark.parametrize("of", [gradient, streamed])
@pytest.mark.parametrize("multiply", [True, False])
def test_over_a_background_it_is_the_mean_over_its_images(of, multiply):
    model, x, target, background = deep_net(), images(8), classes(8), images(11)[8:]
    options = {"of": of, "steps": 35, "multiply": multiply}
    maps = integrated_gradients_over_background(model, x, target, background, **options)
    factor = (lambda way: way) if multiply else torch.ones_like
    by_hand = [
        sum(gradient(model, b + a * (x - b), target) for a in midpoints(35).to(x)) / 35 * factor(x - b)
        for b in background
    ]
    torch.testing.assert_close(maps, sum(by_hand) / 3, atol=1e-12, rtol=1e-10)


def test_over_a_background_maps_are_complete():
    model, x, target, background = deep_net(), images(6), classes(6), images(10)[6:]
    maps = integrated_gradients_over_background(model, x, target, background, steps=500)
    with torch.no_grad():
        gain = logit(model(x), target) - model(background).mean(0)[target]
    torch.testing.assert_close(maps.sum((1, 2, 3)), gain, atol=2e-3 * float(gain.abs().max()), rtol=0)


def test_draws_of_a_backgrounds_images_are_independent():
    x, background = torch.ones(4, 1, 8, 8, dtype=torch.float64), torch.zeros(20, 1, 8, 8, dtype=torch.float64)
    rng = Rng(0, range(4))
    maps = integrated_gradients_over_background(deep_net(), x, classes(4), background, rng, of=random_map, steps=5)
    assert 0.07 < maps.std() < 0.13  # the mean of 100 draws
    few = integrated_gradients_over_background(
        deep_net(), x[:2], classes(4)[:2], background, Rng(0, [2, 0]), of=random_map, steps=5
    )
    torch.testing.assert_close(few, maps[[2, 0]])


@pytest.mark.parametrize("background", [images(0), images(2, channels=3)])
def test_a_background_of_other_images_is_refused(background):
    with pytest.raises(SpecError, match="background: expected at least one image"):
        integrated_gradients_over_background(deep_net(), images(2), classes(2), background)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"baseline": (0.1, 0.2, 0.3)}, "a value of each of the 1 channels, found 3"),
        ({"baseline": Blurred(0.0)}, "blur: expected a deviation above 0 pixels"),
    ],
    ids=["steps", "channels", "blur"],
)
def test_what_is_no_choice_is_refused(options, message):
    with pytest.raises(SpecError, match=message):
        integrated_gradients(deep_net(), images(2), classes(2), **options)


def test_unknown_names_are_refused():
    with pytest.raises(SpecError, match="no choice of nodes is named 'gauss_legender'; did you mean 'gauss_legendre'"):
        inspect.unwrap(nodes_of)("gauss_legender", 5)  # without the tests' own check of types
    with pytest.raises(SpecError, match="no baseline is named 'black'; there are: mean"):
        inspect.unwrap(tensors.start_of)(images(2), "black", deep_net())


def test_a_file_says_every_baseline():
    for written, read in ((0.5, 0.5), ("mean", "mean"), ([0.1, 0.2], (0.1, 0.2)), ({"blur": 4.0}, Blurred(4.0))):
        choice = attribution.choose({"use": "integrated_gradients", "baseline": written})
        assert choice.option("baseline") == read
        assert msgspec.json.decode(msgspec.json.encode(choice))["options"]["baseline"] == written
    for wrong in ("black", ["x"], {"blur": -1.0}, {"sigma": 4.0}, True):
        with pytest.raises(SpecError, match=r"integrated_gradients: .*baseline"):
            attribution.choose({"use": "integrated_gradients", "baseline": wrong})


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_the_gap_is_measured_from_every_baseline(baseline):
    model = normalised(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), [0.2, 0.4, 0.6], [0.5, 0.5, 1.0]).double()
    x, target = images(6, channels=3), classes(6)
    maps = integrated_gradients(model, x, target, baseline=baseline)
    gap = completeness_gap(maps, model, x, target, lambda x, target: logit(model(x), target).detach(), baseline)
    assert gap.max() < 1e-10
