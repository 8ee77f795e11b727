import functools
import warnings

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.attribution.noise import smooth_grad, square_grad, var_grad
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import log_probability
from consilience.errors import ModelError
from consilience.rng import Rng, generator

N, IDS, SEED = 6, [4, 8, 1, 0, 9, 3], 5
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 4
RNG = Rng(SEED, IDS)
METHODS = [smooth_grad, square_grad, var_grad]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 4)).double().eval()


def noise_of(id_, sample, shape=(1, 8, 8)):
    """The sample's part of the example's own stream of numbers."""
    drawn = generator(SEED, "noise", id_).standard_normal((sample + 1, *shape), dtype="float32")
    return torch.as_tensor(drawn[sample]).double()


class Recorder:
    """An attribution that keeps the points where it was taken, and gives them back as maps."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, x, target):
        self.seen.append(x.clone())
        return x


def folded(method, slopes):
    """What the papers make of the slopes at the copies, in their words."""
    if method is var_grad:
        return sum((slope - sum(slopes) / len(slopes)) ** 2 for slope in slopes) / len(slopes)
    return sum(slope if method is smooth_grad else slope**2 for slope in slopes) / len(slopes)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_their_definition(model, method):
    maps = []
    for image, target, id_ in zip(X, T, IDS, strict=True):
        sigma, slopes = 0.2 * (image.max() - image.min()), []
        for sample in range(11):
            point = (image + sigma * noise_of(id_, sample)).requires_grad_()
            model(point[None])[0, target].backward()
            slopes.append(point.grad)
        maps.append(folded(method, slopes))
    ours = method(model, X, T, RNG, samples=11, noise=0.2)
    torch.testing.assert_close(ours, torch.stack(maps), atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize(
    ("method", "theirs"), [(smooth_grad, "smoothgrad"), (square_grad, "smoothgrad_sq"), (var_grad, "vargrad")]
)
def test_maps_are_captums_given_the_same_draws(model, method, theirs, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        attr = pytest.importorskip("captum.attr")
    tunnel, ours = attr.NoiseTunnel(attr.Saliency(model)), method(model, X, T, RNG, samples=7)
    for i, id_ in enumerate(IDS):  # captum has one deviation for all images of a batch
        drawn = torch.stack([noise_of(id_, sample) for sample in range(7)])
        monkeypatch.setattr(torch, "normal", lambda mean, deviation, drawn=drawn: mean + deviation * drawn)
        sigma = float(0.15 * (X[i].max() - X[i].min()))
        expected = tunnel.attribute(X[[i]], nt_type=theirs, nt_samples=7, stdevs=sigma, target=int(T[i]), abs=False)
        torch.testing.assert_close(ours[[i]], expected, atol=1e-8, rtol=0)


def test_the_mean_square_is_the_variance_and_the_square_of_the_mean(model):
    mean, square, variance = (method(model, X, T, RNG, samples=20) for method in METHODS)
    torch.testing.assert_close(square, variance + mean**2, atol=1e-15, rtol=1e-12)
    assert variance.max() > 0


def test_all_three_see_the_same_copies():
    records = [Recorder() for _ in METHODS]
    for method, record in zip(METHODS, records, strict=True):
        method(nn.Flatten(), X, T, RNG, of=record, samples=5)
    first, *others = (torch.cat(record.seen) for record in records)
    assert all(torch.equal(first, other) for other in others)


def test_nothing_varies_in_a_linear_model_or_in_one_copy(model):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    maps = var_grad(linear, X, T, RNG)
    torch.testing.assert_close(maps, torch.zeros_like(X), atol=1e-30, rtol=0)
    assert torch.equal(var_grad(model, X, T, RNG, samples=1), torch.zeros_like(X))
    assert torch.equal(var_grad(model, X, T, RNG, of=lambda m, x, t: torch.full_like(x, 0.1)), torch.zeros_like(X))


def test_a_small_variance_survives_a_large_mean(model):
    def lifted(model, x, target):
        return gradient(model, x, target) + 1000.0

    exact = var_grad(model, X, T, RNG)
    single = var_grad(model.float(), X.float(), T, RNG, of=lifted)
    rounding = 1000 * 2**-24  # of a single slope; squares of the means would round by a thousand times the variance
    assert ((single - exact).abs() <= 4 * rounding * exact.sqrt() + 4 * rounding**2).all()
    assert (single >= 0).all()


def test_of_a_linear_model_the_map_is_its_gradient():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    maps = smooth_grad(linear, X, T, RNG)
    torch.testing.assert_close(maps, gradient(linear, X, T), atol=1e-15, rtol=1e-13)


def test_noise_has_each_images_own_deviation_and_is_independent():
    """No random walk: the last sample is as far from the image as the first."""
    wide = torch.rand(4, 3, 20, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = wide * torch.tensor([1.0, 0.5, 0.1, 0.0])[:, None, None, None].double() + 0.25
    points = []
    for i in range(4):
        record = Recorder()
        smooth_grad(nn.Flatten(), x[[i]], T[:1], Rng(0, [i]), of=record, samples=40)
        points.append(torch.cat(record.seen))
    points = torch.stack(points)
    assert points.shape[1] == 40
    noise = points - x[:, None]
    span = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    each = noise.flatten(2).std(2)  # of 1,200 numbers
    torch.testing.assert_close(each, 0.15 * span[:, None].expand(4, 40), rtol=0.1, atol=0)
    torch.testing.assert_close(each.mean(1), 0.15 * span, rtol=0.01, atol=0)
    together = torch.corrcoef(noise[:3].reshape(120, -1)) - torch.eye(120)
    assert together.abs().max() < 6 / 1200**0.5
    assert noise[:3].mean().abs() < 4 * 0.15 / 144_000**0.5
    assert torch.equal(points[3], x[3].expand(40, -1, -1, -1))  # one value: no range, no noise


def test_an_image_of_one_value_has_the_map_of_what_is_smoothed(model):
    x = torch.full_like(X, 0.4)
    torch.testing.assert_close(smooth_grad(model, x, T, RNG), gradient(model, x, T))
    torch.testing.assert_close(smooth_grad(model, X, T, RNG, noise=0.0), gradient(model, X, T))


def test_the_mean_of_many_samples_is_no_longer_chance(model):
    spread = {
        samples: (
            smooth_grad(model, X, T, RNG, samples=samples) - smooth_grad(model, X, T, Rng(1, IDS), samples=samples)
        )
        .std()
        .item()
        for samples in (10, 1000)
    }
    assert spread[10] / spread[1000] == pytest.approx(10, rel=0.25)


OF = {
    "gradient": gradient,
    "log probability": functools.partial(gradient, score=log_probability),
    "integrated gradients": functools.partial(integrated_gradients, steps=3),
    "random": random_map,
    "itself": functools.partial(smooth_grad, samples=2),
}


@pytest.mark.parametrize("of", OF.values(), ids=OF)
@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
@pytest.mark.parametrize("method", METHODS)
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, method, of, budget, monkeypatch):
    expected = method(model, X, T, RNG, of=of, samples=9)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(method(model, X, T, RNG, of=of, samples=9), expected, atol=1e-12, rtol=1e-10)
    few = method(model, X[[5, 0, 2]], T[[5, 0, 2]], Rng(SEED, [3, 4, 1]), of=of, samples=9)
    torch.testing.assert_close(few, expected[[5, 0, 2]], atol=1e-12, rtol=1e-10)
    assert not torch.allclose(method(model, X, T, Rng(SEED + 1, IDS), of=of, samples=9), expected)


def test_integrated_gradients_are_smoothed(model):
    of = functools.partial(integrated_gradients, baseline=0.3, steps=4)
    sigma = 0.15 * (X.flatten(1).amax(1) - X.flatten(1).amin(1))[:, None, None, None]
    by_hand = sum(
        of(model, X + sigma * torch.stack([noise_of(id_, sample) for id_ in IDS]), T) / 5 for sample in range(5)
    )
    torch.testing.assert_close(smooth_grad(model, X, T, RNG, of=of, samples=5), by_hand)


def test_smoothed_gradients_are_integrated(model):
    of = functools.partial(smooth_grad, samples=5)
    by_hand = sum(X * of(model, X * a, T, RNG.at(k)) / 3 for k, a in enumerate([1 / 6, 3 / 6, 5 / 6]))
    torch.testing.assert_close(integrated_gradients(model, X, T, RNG, of=of, steps=3), by_hand)


def test_what_draws_draws_apart_from_the_noise(model):
    """Each (example, sample) has draws of its own, and they are not the noise over again."""
    drawn = smooth_grad(model, X, T, RNG, of=random_map, samples=3)
    torch.testing.assert_close(drawn, sum(random_map(model, X, T, RNG.at(k)) for k in range(3)) / 3)
    noise = torch.stack([sum(noise_of(id_, sample) for sample in range(3)) / 3 for id_ in IDS])
    assert torch.corrcoef(torch.stack([drawn.flatten(), noise.flatten()]))[0, 1].abs() < 4 / 384**0.5


def test_a_pair_costs_one_pass_and_nothing_else(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    smooth_grad(model, X, T, RNG, samples=9)
    assert sum(seen) == 9 * N + 1  # the one tells how many fit into memory


def test_maps_of_one_channel_stay_of_one_channel():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    x = X.repeat(1, 3, 1, 1)
    maps = smooth_grad(linear, x, T, RNG, of=lambda m, x, t: gradient(m, x, t).sum(1, keepdim=True))
    torch.testing.assert_close(maps, gradient(linear, x, T).sum(1, keepdim=True))


@pytest.mark.parametrize("method", METHODS)
def test_maps_can_be_differentiated_in_the_weights(model, method):
    of = functools.partial(gradient, create_graph=True)
    method(model, X, T, RNG, of=of, samples=3).square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_type_of_the_images(model, method):
    assert method(model.float(), X.float(), T, RNG).dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_no_examples_give_no_maps(model, method):
    assert method(model, X[:0], T[:0], Rng(0, [])).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_the_model_does_not_know_is_refused(model, method):
    with pytest.raises(ModelError, match="the model does not know them"):
        method(model, X, T + 1, RNG)
