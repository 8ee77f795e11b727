"""The mean of explanations is that of the mean, for methods that are linear in the output and only there."""

import functools

import pytest
import torch
from tests import models
from torch import nn

from consilience.attribution.controls import random_map
from consilience.attribution.ensemble import mean_over_models
from consilience.attribution.expected import expected_gradients
from consilience.attribution.gradient import gradient, gradient_x_input
from consilience.attribution.guided import guided_backprop
from consilience.attribution.noise import smooth_grad
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import log_probability, probability, value
from consilience.errors import ModelError
from consilience.models.ensemble import mean_of_models
from consilience.models.split import normalised
from consilience.rng import Rng

IDS = [4, 1, 7]
RNG = Rng(3, IDS)
X, T = models.batch()
BACKGROUND = models.batch(5)[0]


class Mean(nn.Module):
    """An ensemble whose logits are the mean of its members'."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return torch.stack([member(x) for member in self.members]).mean(0)


@pytest.fixture
def ensemble():
    return Mean(models.plain(), models.residual(), models.smooth("tanh")).double().eval()


def drawn_alike(method, **options):
    """The method with the same draws for every member."""
    asked = {"rng": RNG, **({"background": BACKGROUND} if method is expected_gradients else {})}
    return lambda model, x, target: method(model, x, target, **asked, **options)


LINEAR = {
    "gradient": gradient,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": functools.partial(integrated_gradients, steps=7, baseline=0.2),
    "expected_gradients": drawn_alike(expected_gradients, samples=6),
    "smooth_grad": drawn_alike(smooth_grad, samples=5),
    "guided_backprop": guided_backprop,
}
OTHERS = {
    "log_probability": functools.partial(gradient, score=log_probability),
    "probability": functools.partial(gradient, score=probability),
    "value": functools.partial(gradient, score=value),
    "a square": lambda model, x, target: gradient(model, x, target) ** 2,
}


@pytest.mark.parametrize("of", [of for name, of in LINEAR.items() if name != "guided_backprop"])
def test_of_a_method_linear_in_the_output_it_explains_the_mean_output(ensemble, of):
    maps = mean_over_models(ensemble, X, T, of=of)
    torch.testing.assert_close(maps, of(ensemble, X, T), atol=1e-12, rtol=1e-9)
    assert maps.abs().max() > 1e-3


@pytest.mark.parametrize("of", OTHERS.values(), ids=OTHERS)
def test_of_another_it_does_not(ensemble, of):
    maps, whole = mean_over_models(ensemble, X, T, of=of), of(ensemble, X, T)
    assert (maps - whole).norm() > 0.05 * whole.norm()


@pytest.mark.parametrize("of", [*LINEAR.values(), *OTHERS.values()])
def test_it_is_the_mean_of_the_members_maps(of):
    ensemble = Mean(models.plain(), models.residual()).double().eval()
    expected = (of(ensemble.members[0], X, T) + of(ensemble.members[1], X, T)) / 2
    torch.testing.assert_close(mean_over_models(ensemble, X, T, of=of), expected)


def test_each_member_has_draws_of_its_own(ensemble):
    maps = mean_over_models(ensemble, X, T, RNG, of=random_map)
    expected = sum(RNG.at(place).normal(3, 16, 16).double() for place in range(3)) / 3
    torch.testing.assert_close(maps, expected)
    few = mean_over_models(ensemble, X[[2, 0]], T[[2, 0]], Rng(3, [7, 4]), of=random_map)
    assert torch.equal(few, maps[[2, 0]])


def test_chance_is_averaged_out_over_the_members():
    twins = Mean(*[models.residual()] * 8).double().eval()
    of = functools.partial(smooth_grad, samples=4)
    exact = smooth_grad(twins.members[0], X, T, Rng(0, IDS), samples=800)
    one = (smooth_grad(twins.members[0], X, T, RNG, samples=4) - exact).norm()
    eight = (mean_over_models(twins, X, T, RNG, of=of) - exact).norm()
    assert float(one / eight) == pytest.approx(8**0.5, rel=0.25)


def test_methods_nest_it_and_it_nests_methods(ensemble):
    inside = integrated_gradients(ensemble, X, T, of=mean_over_models, steps=6)
    outside = mean_over_models(ensemble, X, T, of=functools.partial(integrated_gradients, steps=6))
    torch.testing.assert_close(inside, outside)


def test_an_ensemble_behind_mean_and_deviation_is_explained_in_pixels(ensemble):
    inner = Mean(models.plain(), models.residual()).eval()
    model = normalised(inner, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).double()
    torch.testing.assert_close(mean_over_models(model, X, T), gradient(model, X, T))


def test_an_ensemble_of_one_is_its_member():
    model = Mean(models.plain()).double().eval()
    assert torch.equal(mean_over_models(model, X, T), gradient(model.members[0], X, T))
    assert mean_over_models(model, X[:0], T[:0]).shape == (0, 3, 16, 16)


def test_a_member_that_is_undefined_leaves_its_examples_undefined():
    class Half(nn.Module):
        def forward(self, x):
            return (
                x.flatten(1)[:, :4]
                * torch.where(x.mean((1, 2, 3)) > X.mean((1, 2, 3)).median(), torch.nan, 1.0)[:, None]
            )

    maps = mean_over_models(Mean(models.plain().double(), Half()).eval(), X, T)
    assert sorted(maps.isnan().flatten(1).any(1).tolist()) == [False, False, True]


@pytest.mark.parametrize("model", [models.plain().double(), Mean().eval()])
def test_a_model_without_members_is_refused(model):
    with pytest.raises(ModelError, match="mean_over_models: expected an ensemble"):
        mean_over_models(model, X, T)


def test_members_that_an_ensemble_weighs_are_weighed_in_the_mean_of_their_maps():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval() for _ in range(2)]
    model = mean_of_models(parts, weights=(3.0, 1.0))
    x, target = torch.rand(2, 1, 4, 4), torch.tensor([0, 2])
    maps = [gradient(part, x, target) for part in parts]
    torch.testing.assert_close(mean_over_models(model, x, target), 0.75 * maps[0] + 0.25 * maps[1])
    behind = mean_over_models(normalised(model, [0.0], [1.0]).eval(), x, target)
    torch.testing.assert_close(behind, 0.75 * maps[0] + 0.25 * maps[1])
