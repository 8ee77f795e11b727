"""Max-sensitivity: the definition in the paper's words, captum, and planted truth."""

import functools
import warnings

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.attribution.noise import smooth_grad
from consilience.attribution.path import integrated_gradients
from consilience.errors import ModelError
from consilience.measures.robustness import max_sensitivity
from consilience.rng import Rng, generator

N, SHAPE, SEED, IDS = 4, (2, 6, 6), 7, [3, 0, 9, 4]
X = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
T = torch.tensor([0, 2, 1, 2])
RNG = Rng(SEED, IDS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 3)).double().eval().requires_grad_(False)


def nearby(image, id_, sample, radius):
    """The image with the noise of one of its samples."""
    drawn = generator(SEED, sample, id_).random(SHAPE, dtype="float32")
    return image + radius * (2 * torch.as_tensor(drawn).double() - 1)


@pytest.mark.parametrize("explain", [gradient, integrated_gradients])
def test_max_sensitivity_is_its_definition(model, explain):
    found = max_sensitivity(model, X, T, explain, RNG, radius=0.1, samples=4)
    for i, id_ in enumerate(IDS):
        here = explain(model, X[[i]], T[[i]])
        changes = [
            float((explain(model, nearby(X[i], id_, s, 0.1)[None], T[[i]]) - here).square().sum().sqrt())
            for s in range(1, 5)
        ]
        torch.testing.assert_close(float(found[i]), max(changes) / float(here.square().sum().sqrt()))


def test_values_are_captums_given_the_same_noise(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = pytest.importorskip("captum.metrics")
    near = torch.stack([nearby(X[i], id_, s, 0.02) for i, id_ in enumerate(IDS) for s in range(1, 11)])

    def explain(pixels, target):  # captum asks once with a tuple, then with a tensor
        return (integrated_gradients(model, pixels[0] if isinstance(pixels, tuple) else pixels, target),)

    theirs = captum.sensitivity_max(explain, X, lambda _: near, target=T)
    torch.testing.assert_close(max_sensitivity(model, X, T, integrated_gradients, RNG), theirs)


def test_a_constant_explainer_does_not_change(model):
    torch.testing.assert_close(
        max_sensitivity(model, X, T, lambda m, x, t: torch.ones_like(x), RNG), torch.zeros(N).double(), atol=0, rtol=0
    )


def test_the_slope_of_a_linear_model_does_not_change():
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()
    torch.testing.assert_close(max_sensitivity(model, X, T, gradient, RNG), torch.zeros(N).double())


def test_the_image_as_its_own_map_changes_as_much_as_the_image(model):
    found = max_sensitivity(model, X, T, lambda m, x, t: x, RNG, radius=0.5, samples=3)
    for i, id_ in enumerate(IDS):
        largest = max((nearby(X[i], id_, s, 0.5) - X[i]).norm() for s in range(1, 4))
        torch.testing.assert_close(found[i], largest / X[i].norm())


def test_an_explainer_s_own_noise_does_not_count(model):
    assert max_sensitivity(model, X, T, random_map, RNG).tolist() == [0, 0, 0, 0]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double()

    def noisy(model, x, target, rng):
        return gradient(model, x, target) + rng.normal(*x.shape[1:]).to(x)

    torch.testing.assert_close(max_sensitivity(linear, X, T, noisy, RNG), torch.zeros(N).double())


def test_pixels_leave_their_range_only_where_they_are_not_clipped(model):
    seen = []

    def watched(model, x, target):
        seen.append((float(x.min()), float(x.max())))
        return x + 1

    max_sensitivity(model, X.round(), T, watched, RNG)
    assert seen[-1][0] < -0.01
    assert seen[-1][1] > 1.01
    max_sensitivity(model, X.round(), T, watched, RNG, clip=True)
    assert seen[-1] == (0, 1)


def test_a_map_of_zeros_or_an_undefined_one_has_no_share_to_change(model):
    def spoilt(model, x, target):
        maps = x.clone()
        maps[target == 0] = 0
        maps[target == 1, 0, 0, 0] = torch.inf
        return maps

    assert max_sensitivity(model, X, T, spoilt, RNG).isnan().tolist() == [True, False, True, False]


def test_a_map_that_is_undefined_nearby_only_makes_the_maximum_undefined(model):
    def breaks(model, x, target):
        return torch.where((x > 1).flatten(1).any(1).view(-1, 1, 1, 1), torch.nan, x)

    x = X * 0.5
    x[2, 0, 0, 0] = 1
    assert max_sensitivity(model, x, T, breaks, RNG, samples=20).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("budget", [1, 20_000])
def test_portions_of_memory_change_nothing(model, budget, monkeypatch):
    draws = functools.partial(smooth_grad, samples=2)
    whole = max_sensitivity(model, X, T, draws, RNG, samples=3)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    monkeypatch.setattr(tensors, "FEW_ROWS_BYTES", budget)
    torch.testing.assert_close(max_sensitivity(model, X, T, draws, RNG, samples=3), whole)


def test_maps_of_one_channel_are_measured_as_they_come(model):
    def joined(model, x, target):
        return gradient(model, x, target).sum(1, keepdim=True)

    assert (max_sensitivity(model, X, T, joined, RNG) > 0).all()


def test_no_images_have_no_values(model):
    assert max_sensitivity(model, X[:0], T[:0], gradient, Rng(SEED, [])).shape == (0,)


def test_a_model_in_train_mode_is_refused(model):
    model.train()
    with pytest.raises(ModelError, match="max_sensitivity: expected a model in evaluation mode, found Dropout"):
        max_sensitivity(model, X, T, gradient, RNG)
    assert model.training
