import functools
import warnings

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from consilience import tensors
from consilience.attribution.controls import input_map
from consilience.attribution.expected import expected_gradients, gradient_shap
from consilience.attribution.gradient import gradient
from consilience.attribution.noise import smooth_grad
from consilience.attribution.scores import log_probability, logit
from consilience.component import attribution
from consilience.errors import ModelError, SpecError
from consilience.models.split import normalised
from consilience.rng import Rng, permutation

N, IDS, SEED = 6, [4, 8, 1, 0, 9, 3], 5
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 4
BACKGROUND = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
RNG = Rng(SEED, IDS)
ANYWHERE = functools.partial(gradient_shap, starts="background")


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 4)).double().eval()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()


def noisy(model, x, target, rng):
    """An attribution that draws."""
    return gradient(model, x, target) + rng.normal(*x.shape[1:]).to(x)


def ones(model, x, target):
    return torch.ones_like(x)


def starts_of(method, id_, draws, size):
    """The starts that an example's draws choose, in the words of the documentation."""
    if method is expected_gradients:
        order = permutation(size, SEED, "start", id_)
        return [int(order[k % size]) for k in range(draws)]
    return Rng(SEED, [id_]).at("start").integers(size, draws)[0].tolist()


def slow(method, model, x, target, starts, draws, score=logit):
    """The mean over draws of (x - b) * slope of f at b + u (x - b), one pass after the other."""
    maps = []
    for image, chosen, id_ in zip(x, target, IDS, strict=True):
        along = Rng(SEED, [id_]).at("line").uniform(draws)[0].double()
        total = torch.zeros_like(image)
        for which, u in zip(starts_of(method, id_, draws, len(starts)), along, strict=True):
            b = starts[which]
            point = (b + u * (image - b)).requires_grad_()
            score(model(point[None]), chosen[None]).sum().backward()
            total += (image - b) * point.grad
        maps.append(total / draws)
    return torch.stack(maps)


@pytest.mark.parametrize("samples", [1, 5, 7, 20])
def test_expected_gradients_are_their_definition(model, samples):
    maps = expected_gradients(model, X, T, RNG, BACKGROUND, samples=samples)
    expected = slow(expected_gradients, model, X, T, BACKGROUND, samples)
    torch.testing.assert_close(maps, expected, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("score", [logit, log_probability])
def test_gradient_shap_is_its_definition(model, score):
    maps = gradient_shap(model, X, T, RNG, BACKGROUND, starts="background", draws=12, score=score)
    expected = slow(gradient_shap, model, X, T, BACKGROUND, 12, score)
    torch.testing.assert_close(maps, expected, atol=1e-14, rtol=1e-10)


def test_the_published_starts_are_black_and_the_first_image(model):
    maps = gradient_shap(model, X, T, RNG, BACKGROUND)
    two = torch.stack([torch.zeros_like(BACKGROUND[0]), BACKGROUND[0]])
    torch.testing.assert_close(maps, slow(gradient_shap, model, X, T, two, 5), atol=1e-14, rtol=1e-10)


def test_the_published_black_is_the_zero_of_normalised_space(linear):
    model = normalised(linear, [0.25], [0.5]).double()
    maps = gradient_shap(model, X, T, RNG, BACKGROUND)
    two = torch.stack([torch.full_like(BACKGROUND[0], 0.25), BACKGROUND[0]])
    torch.testing.assert_close(maps, slow(gradient_shap, model, X, T, two, 5), atol=1e-14, rtol=1e-10)


def test_gradient_shap_is_captums_given_the_same_draws(model, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        attr = pytest.importorskip("captum.attr")
    which, along = RNG.at("start").integers(7, 9), RNG.at("line").uniform(9)
    monkeypatch.setattr("numpy.random.choice", lambda size, count: which.flatten().numpy()[:count])
    monkeypatch.setattr("numpy.random.uniform", lambda low, high, count: along.flatten().numpy()[:count])
    theirs = attr.GradientShap(model).attribute(X, BACKGROUND, n_samples=9, target=T)
    ours = gradient_shap(model, X, T, RNG, BACKGROUND, starts="background", draws=9)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_of_a_linear_model_the_maps_are_weights_times_the_way_from_the_mean_start(linear):
    way = X - BACKGROUND.mean(0)  # twice as many samples as images: each was used twice
    planted = linear[1].weight[T].view_as(X) * way
    maps = expected_gradients(linear, X, T, RNG, BACKGROUND, samples=14)
    torch.testing.assert_close(maps, planted.detach(), atol=1e-15, rtol=1e-12)

    which = RNG.at("start").integers(7, 5)
    planted = linear[1].weight[T].view_as(X) * (X - BACKGROUND[which].mean(1))
    torch.testing.assert_close(ANYWHERE(linear, X, T, RNG, BACKGROUND), planted.detach(), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("method", [functools.partial(expected_gradients, samples=7), ANYWHERE])
def test_maps_are_complete_in_expectation(model, method):
    with torch.no_grad():
        gain = model(X).gather(1, T[:, None])[:, 0] - model(BACKGROUND)[:, T].mean(0)
    sums = torch.stack([method(model, X, T, Rng(seed, IDS), BACKGROUND).sum((1, 2, 3)) for seed in range(300)])
    error = sums.std(0) / 300**0.5
    assert (error < 0.1 * gain.abs().max()).all()  # so that the next line can fail
    assert ((sums.mean(0) - gain).abs() < 4 * error).all()


def test_the_background_is_covered_evenly_and_in_each_examples_own_order(linear):
    one_pixel_each = torch.eye(64, dtype=torch.float64)[:7].view(7, 1, 8, 8)
    uses = -expected_gradients(linear, X * 0, T, RNG, one_pixel_each, of=ones, samples=17).flatten(1) * 17
    assert (uses[:, 7:] == 0).all()
    assert set(uses[:, :7].round(decimals=9).unique().tolist()) == {2.0, 3.0}
    assert len(uses.round(decimals=9).unique(dim=0)) > 1
    few = -expected_gradients(linear, X * 0, T, RNG, one_pixel_each, of=ones, samples=3).flatten(1) * 3
    assert set(few.round(decimals=9).unique().tolist()) == {0.0, 1.0}


def test_every_image_is_as_likely_to_come_first(linear):
    one_pixel_each, many = torch.eye(64, dtype=torch.float64)[:7].view(7, 1, 8, 8), range(2000)
    x, target = torch.zeros(2000, 1, 8, 8, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    for method in (functools.partial(expected_gradients, of=ones, samples=1), functools.partial(ANYWHERE, draws=1)):
        maps = method(linear, x, target, Rng(0, many), one_pixel_each)
        share = (maps != 0).double().mean(0).flatten()[:7]
        assert ((share - 1 / 7).abs() < 4 * (6 / 49 / 2000) ** 0.5).all()


def test_points_are_uniform_on_their_lines_and_independent(linear):
    x, target = torch.ones(2000, 1, 8, 8, dtype=torch.float64), torch.zeros(2000, dtype=torch.int64)
    along = functools.partial(expected_gradients, linear, x, target, Rng(0, range(2000)), BACKGROUND[:1] * 0)
    one, four = (along(of=input_map, samples=samples)[:, 0, 3, 3] for samples in (1, 4))
    assert kstest(one.numpy(), "uniform").pvalue > 1e-3
    assert four.std() == pytest.approx(48**-0.5, rel=0.1)  # a quarter of the variance of one


def methods_that_draw(of=gradient):
    return [functools.partial(expected_gradients, of=of, samples=9), functools.partial(ANYWHERE, draws=9)]


@pytest.mark.parametrize("method", [*methods_that_draw(), methods_that_draw(noisy)[0]])
@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, method, budget, monkeypatch):
    expected = method(model, X, T, RNG, BACKGROUND)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(method(model, X, T, RNG, BACKGROUND), expected, atol=1e-12, rtol=1e-10)
    few = method(model, X[[5, 0, 2]], T[[5, 0, 2]], Rng(SEED, [3, 4, 1]), BACKGROUND)
    torch.testing.assert_close(few, expected[[5, 0, 2]], atol=1e-12, rtol=1e-10)
    assert not torch.allclose(method(model, X, T, Rng(SEED + 1, IDS), BACKGROUND), expected)


def test_what_draws_draws_for_each_example_and_sample(linear):
    maps = expected_gradients(linear, X, T, RNG, BACKGROUND, of=noisy, samples=3)
    planted = torch.zeros_like(X)
    for k in range(3):
        b = torch.stack([BACKGROUND[starts_of(expected_gradients, id_, 3, 7)[k]] for id_ in IDS])
        planted += (X - b) * noisy(linear, X, T, RNG.at(k)) / 3
    torch.testing.assert_close(maps, planted)


@pytest.mark.parametrize("method", methods_that_draw())
def test_a_pair_costs_one_pass_and_nothing_else(model, method):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    method(model, X, T, RNG, BACKGROUND)
    assert sum(seen) == 9 * N + 1  # the one tells how many fit into memory


def test_a_whole_nest_is_bound_to_one_background(model):
    nest = attribution.choose({"use": "smooth_grad", "of": {"use": "expected_gradients", "samples": 3}, "samples": 2})
    of = functools.partial(expected_gradients, samples=3, background=BACKGROUND)
    maps = nest.build(background=BACKGROUND)(model, X, T, RNG)
    torch.testing.assert_close(maps, smooth_grad(model, X, T, RNG, of=of, samples=2))
    assert nest.draws


@pytest.mark.parametrize("method", methods_that_draw())
def test_the_background_may_be_of_another_type_and_stays_as_it_was(model, method):
    background = BACKGROUND.float()
    maps = method(model, X, T, RNG, background)
    torch.testing.assert_close(maps, method(model, X, T, RNG, background.double()), atol=0, rtol=0)
    assert torch.equal(background, BACKGROUND.float())


@pytest.mark.parametrize("method", [expected_gradients, gradient_shap, ANYWHERE])
@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (7, 3, 8, 8), (7, 1, 8, 9), (7, 1, 1, 1)])
def test_another_kind_of_background_is_refused(model, method, shape):
    with pytest.raises(SpecError, match=r"background: expected at least one image of \[1, 8, 8\].*found \["):
        method(model, X, T, RNG, torch.zeros(shape))
    with pytest.raises(SpecError, match="background"):
        method(model, X[:0], T[:0], Rng(0, []), torch.zeros(shape))


@pytest.mark.parametrize("method", [expected_gradients, gradient_shap])
def test_a_class_that_the_model_does_not_know_is_refused(model, method):
    with pytest.raises(ModelError, match="the model does not know them"):
        method(model, X, T + 1, RNG, BACKGROUND)


@pytest.mark.parametrize("method", [expected_gradients, gradient_shap, ANYWHERE])
def test_no_examples_give_no_maps(model, method):
    assert method(model, X[:0], T[:0], Rng(0, []), BACKGROUND).shape == (0, 1, 8, 8)


def test_a_map_of_one_channel_is_spread_over_the_images_channels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    x, background = X.repeat(1, 3, 1, 1), torch.cat([BACKGROUND, BACKGROUND * 2, BACKGROUND * 3], 1)
    maps = expected_gradients(model, x, T, RNG, background, of=lambda m, x, t: torch.ones_like(x[:, :1]), samples=7)
    torch.testing.assert_close(maps, x - background.mean(0))


def test_maps_can_be_differentiated_in_the_weights(model):
    of = functools.partial(gradient, create_graph=True)
    expected_gradients(model, X, T, RNG, BACKGROUND, of=of, samples=3).square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
