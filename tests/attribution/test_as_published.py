"""The PGIG repository's explainers: its arithmetic in slow steps, and the constants by which it is wrong."""

import copy
import functools

import pytest
import torch
from tests import models
from torch import nn

from consilience.attribution import as_published
from consilience.attribution.as_published import (
    published_exp_grad,
    published_grad_x_input,
    published_guided_backprop,
    published_integrate_grad,
    published_random,
    published_sg_ig,
    published_smooth_grad,
    published_smooth_grad2,
    published_vanilla_grad,
    published_var_grad,
)
from consilience.attribution.gradient import gradient
from consilience.attribution.guided import guided_backprop, guided_rule
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import probability
from consilience.component import attribution
from consilience.errors import ModelError, SpecError
from consilience.models.split import normalised
from consilience.rng import Rng

N, IDS, SEED = 4, [4, 8, 1, 0], 5
RNG = Rng(SEED, IDS)
X, T = models.batch(N)
WALKS = [published_smooth_grad, published_smooth_grad2, published_var_grad, published_sg_ig]
DRAWING = [*WALKS, published_exp_grad]
PLAIN = [published_vanilla_grad, published_grad_x_input, published_integrate_grad]
KEYED = [*DRAWING, published_random]


@pytest.fixture
def model():
    return models.plain().double()


def explained(method, model, x=X, target=T, rng=RNG, **options):
    return method(model, x, target, **({"rng": rng} if method in KEYED else {}), **options)


class LinearProbability(nn.Module):
    """A model whose softmax probabilities are linear in the pixels, for as long as they stay positive."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(4, 3 * 16 * 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-4
        self.weight = weight - weight.mean(0)

    def forward(self, x):
        return (0.25 + x.flatten(1) @ self.weight.T).log()


def accumulated(model, start, target, deviation, noise):
    """The repository's loop: noise on the noisy image, and a gradient that is never set back to zero."""
    image, sums = start.clone().requires_grad_(), []
    for draw in noise:
        image.data.add_(deviation * draw)
        torch.softmax(model(image), 1)[range(len(start)), target].sum().backward()
        sums.append(image.grad.clone())
    return torch.stack(sums)


def noise_of(rng):
    return [rng.at(sample).normal(3, 16, 16).double() for sample in range(25)]


def slow_moments(model, x, target, rng):
    sums = accumulated(model, x, target, 0.15 * (x.max() - x.min()), noise_of(rng))
    return sums.mean(0), (sums**2).mean(0)


def slope(model, x, target):
    image = x.clone().requires_grad_()
    torch.softmax(model(image), 1)[range(len(x)), target].sum().backward()
    return image.grad


def close(found, expected):
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, atol=1e-9 * float(expected.abs().max()), rtol=1e-9)


def test_the_plain_ones_are_their_definition(model):
    g = slope(model, X, T)
    close(published_vanilla_grad(model, X, T), g)
    close(published_grad_x_input(model, X, T), X * g)
    steps = [0.04 * k for k in range(1, 25)]
    assert len(steps) == 24
    close(published_integrate_grad(model, X, T), X * sum(slope(model, a * X, T) for a in steps) / 25)


def test_the_random_walks_are_their_definition(model):
    mean, square = slow_moments(model, X, T, RNG)
    close(explained(published_smooth_grad, model), mean)
    close(explained(published_smooth_grad2, model), square)
    close(explained(published_var_grad, model), square - mean**2)
    of_steps = [slow_moments(model, X * k / 25, T, RNG.at(k))[0] for k in range(1, 25)]
    close(explained(published_sg_ig, model), X * sum(of_steps) / 25)


def test_expected_gradients_roll_the_batch_with_one_draw_for_all(model):
    x, target = models.batch(50)
    ids = list(range(100, 150))
    rolled, total = x.clone(), torch.zeros_like(x)
    for shift in range(49):
        rolled = torch.cat([rolled[-1:], rolled[:-1]])
        along = float(Rng(SEED, []).at(shift).common("line").random())
        total += (x - rolled) * slope(model, rolled + along * (x - rolled), target)
    close(published_exp_grad(model, x, target, Rng(SEED, ids)), total / 49)


def test_guided_backpropagation_is_seeded_with_the_probability(model):
    p = torch.softmax(model(X), 1)[range(N), T]
    seeded = published_guided_backprop(model, X, T)
    plain = guided_backprop(model, X, T, score=probability)
    close(seeded, p[:, None, None, None] * plain)
    assert (seeded - guided_backprop(model, X, T)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("method", "constant", "power", "way"),
    [
        (published_vanilla_grad, 1, 1, 0),
        (published_grad_x_input, 1, 1, 1),
        (published_integrate_grad, 0.96, 1, 1),
        (published_smooth_grad, 13, 1, 0),
        (published_smooth_grad2, 221, 2, 0),
        (published_var_grad, 52, 2, 0),
        (published_sg_ig, 13 * 0.96, 1, 1),
    ],
)
def test_where_the_probability_is_linear_the_published_constants_come_out(method, constant, power, way):
    model = LinearProbability()
    g = model.weight[T].view_as(X)
    torch.testing.assert_close(gradient(model, X, T, score=probability), g, atol=1e-14, rtol=1e-10)
    close(explained(method, model), constant * g**power * X**way)


def test_integrated_gradients_of_four_percent_less_than_the_whole():
    model, score = LinearProbability(), functools.partial(gradient, score=probability)
    whole = integrated_gradients(model, X, T, of=score).sum((1, 2, 3))
    close(published_integrate_grad(model, X, T).sum((1, 2, 3)), 0.96 * whole)


@pytest.mark.parametrize("method", [*PLAIN, *DRAWING])
def test_after_guided_backpropagation_every_method_has_its_rule(method):
    """The repository replaces the forward function of every ReLU for good."""

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x.clamp(min=0))
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, slope):
            return slope * (ctx.saved_tensors[0] > 0) * (slope > 0)

    model = models.plain().double()
    replaced = copy.deepcopy(model)
    for module in replaced.modules():
        if isinstance(module, nn.ReLU):
            module.forward = Guided.apply
    found = explained(method, model, rule=guided_rule)
    close(found, explained(method, replaced))
    assert (found - explained(method, model)).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize("method", [*PLAIN, *DRAWING, published_guided_backprop])
def test_behind_mean_and_deviation_it_is_the_arithmetic_of_normalised_space(model, method):
    """Slopes are divided by the deviation, which is one for all channels there; the rest is the same."""
    mean, sd = (0.48, 0.46, 0.41), (0.25, 0.25, 0.25)
    inner = (X - torch.tensor(mean).double()[:, None, None]) / 0.25
    powers = {published_smooth_grad2: 2, published_var_grad: 2, published_vanilla_grad: 1,
              published_smooth_grad: 1, published_guided_backprop: 1}  # fmt: skip
    expected = explained(method, model, inner) / 0.25 ** powers.get(method, 0)
    found = explained(method, normalised(models.plain(), mean, sd).double())
    torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("method", DRAWING)
def test_a_map_depends_on_the_other_images_of_the_batch(model, method):
    whole = explained(method, model)
    dim = X * torch.tensor([1.0, 0.3, 0.3, 0.3]).double()[:, None, None, None]
    assert (explained(method, model, dim)[0] - whole[0]).abs().max() > 1e-3 * whole[0].abs().max()
    assert set(attribution.get(method.__name__).breaks) == {"alike_in_any_batch", "undefined_stays_alone"}


@pytest.mark.parametrize("method", [*PLAIN, *DRAWING, published_guided_backprop])
def test_chunks_change_nothing(model, method, monkeypatch):
    expected = explained(method, model)
    for rows in (1, 60):
        monkeypatch.setattr(as_published, "rows_per_chunk", lambda *_, rows=rows: rows)
        torch.testing.assert_close(explained(method, model), expected, atol=1e-12, rtol=1e-9)


def test_the_random_one_is_uniform_and_each_examples_own():
    x = torch.zeros(50, 3, 20, 20)
    maps = published_random(models.plain(), x, torch.zeros(50, dtype=torch.int64), Rng(1, range(50)))
    assert maps.min() >= 0
    assert maps.max() < 1
    assert abs(maps.mean() - 0.5) < 0.01
    assert abs(maps.std() - 12**-0.5) < 0.01
    few = published_random(models.residual(), x[:2, :, :4, :4], torch.ones(2, dtype=torch.int64), Rng(1, [7, 3]))
    assert torch.equal(few[0].flatten(), maps[7].flatten()[:48])


@pytest.mark.parametrize("method", [*PLAIN, *KEYED, published_guided_backprop])
def test_it_is_marked_as_published_and_gives_nothing_for_nothing(model, method):
    component = attribution.get(method.__name__)
    assert component.legacy
    assert component.paper == "schwarzenberg2020pattern"
    assert explained(method, model, X[:0], T[:0], Rng(0, [])).shape == (0, 3, 16, 16)
    assert explained(method, models.plain(), X.float()).dtype == torch.float32


@pytest.mark.parametrize("method", [*PLAIN, *DRAWING, published_guided_backprop])
def test_what_cannot_be_explained_is_refused_or_undefined(model, method):
    with pytest.raises(ModelError, match="classes from 0 to 3"):
        explained(method, model, target=T + 1)
    with pytest.raises(ModelError, match="expected logits"):
        explained(method, models.dict_of_outputs().double())
    with pytest.raises(SpecError, match="expected several logits an image for head 'softmax', found 1"):
        explained(method, models.single_logit().double(), target=T % 2)
    assert explained(method, models.not_a_number().double()).isnan().all()
