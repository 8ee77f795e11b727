"""Infidelity: the definition in the paper's words, captum, planted truth, and the traps of the published code."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import gaussian_kde, kstest
from torch import nn

from consilience import tensors
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.errors import ModelError, SpecError
from consilience.measures.infidelity import above_threshold, infidelity
from consilience.rng import Rng, generator

N, CHANNELS, HEIGHT, WIDTH, SEED, IDS = 4, 3, 6, 5, 7, [3, 0, 9, 4]
T = torch.tensor([0, 2, 1, 2])
RNG = Rng(SEED, IDS)


def images(channels=CHANNELS):
    chance = torch.Generator().manual_seed(0)
    x = torch.rand(N, channels, HEIGHT, WIDTH, generator=chance).double()
    return x.masked_fill(torch.rand(x.shape, generator=chance) < 0.2, 0)  # black pixels stand at the baseline


def network(channels=CHANNELS, linear=False):
    torch.manual_seed(0)
    layers = [] if linear else [nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Dropout(0.5)]
    left = channels * HEIGHT * WIDTH if linear else 4 * (HEIGHT - 2) * (WIDTH - 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(left, 3)).double().eval().requires_grad_(False)


def measured(model, x, maps, rng=RNG, **options):
    return infidelity(maps, model, x, T[: len(x)], lambda x, t: model(x).gather(1, t[:, None])[:, 0], rng, **options)


def noise_of(id_, shape, samples, mean, sd):
    """The image's own stream of numbers, two uniform ones for two normal ones."""
    size = math.prod(shape)
    one, two = (
        generator(SEED, "noise", id_).random((samples, 2, (size + 1) // 2), "float32").astype(float).swapaxes(0, 1)
    )
    length = np.sqrt(-2 * np.log(1 - one))
    normal = np.concatenate([length * np.cos(2 * np.pi * two), length * np.sin(2 * np.pi * two)], 1)
    return torch.as_tensor(normal[:, :size].reshape(samples, *shape)) * sd + mean


def square_of(id_, sample, samples, window):
    """The pixels of the sample's square."""
    places = [(row, column) for row in range(HEIGHT - window + 1) for column in range(WIDTH - window + 1)]
    top, left = places[generator(SEED, "square", id_).integers(0, len(places), samples)[sample]]
    return [(row, column) for row in range(top, top + window) for column in range(left, left + window)]


def perturbation(kind, attribution, image, id_, sample, samples=5):
    """I, and what the map is multiplied with: I itself, or I over the distance from the baseline."""
    baseline, change, told = 0.0, torch.zeros_like(image), torch.zeros_like(image)
    if kind == "square":
        for row, column in square_of(id_, sample, samples, window=3):
            change[:, row, column] = image[:, row, column] - baseline
            told[:, row, column] = 1
        return change, told if attribution == "global" else change
    change = noise_of(id_, image.shape, samples, mean=0.1, sd=0.3)[sample]
    if attribution == "local":
        return change, change
    change[image == baseline] = 0
    return change, torch.where(image == baseline, 0, change / (image - baseline))


@pytest.mark.parametrize("planes", ["all channels", "one channel", "joined"])
@pytest.mark.parametrize("attribution", ["local", "global"])
@pytest.mark.parametrize("kind", ["noise", "square"])
def test_infidelity_is_its_definition(kind, attribution, planes):
    model, x = network(), images()
    maps = integrated_gradients(model, x, T, steps=3)
    maps = {"all channels": maps, "one channel": maps.sum(1, keepdim=True), "joined": maps.sum(1)}[planes]
    found = measured(model, x, maps, perturbation=kind, attribution=attribution, samples=5, mean=0.1, sd=0.3, window=3)
    for i, id_ in enumerate(IDS):
        foretold, done = [], []
        for sample in range(5):
            change, told = perturbation(kind, attribution, x[i], id_, sample)
            one = maps[i] if planes == "all channels" else maps[i].reshape(1, HEIGHT, WIDTH).expand(CHANNELS, -1, -1)
            one = one / CHANNELS if planes != "all channels" and attribution == "global" else one
            foretold.append(float((one * told).sum()))
            done.append(float(model(x[i][None])[0, T[i]] - model((x[i] - change)[None])[0, T[i]]))
        pairs = list(zip(foretold, done, strict=True))
        scale = sum(a * b for a, b in pairs) / sum(a * a for a, b in pairs)
        np.testing.assert_allclose(found.value[i], sum((a - b) ** 2 for a, b in pairs) / 5, rtol=1e-9)
        np.testing.assert_allclose(found.rescaled[i], sum((scale * a - b) ** 2 for a, b in pairs) / 5, rtol=1e-9)


@pytest.fixture(scope="module")
def captum():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("captum.metrics")


@pytest.mark.parametrize("normalise", [False, True])
def test_values_of_noise_are_captums_given_the_same_noise(captum, normalise):
    model, x, samples = network(), images(), 6
    maps = gradient(model, x, T)
    noise = torch.cat([noise_of(id_, x.shape[1:], samples, 0.0, 0.2) for id_ in IDS])
    theirs = captum.infidelity(
        model, lambda pixels: (noise, pixels - noise), x, maps, target=T, n_perturb_samples=samples, normalize=normalise
    )
    found = measured(model, x, maps, samples=samples)
    torch.testing.assert_close(found.rescaled if normalise else found.value, theirs)


@pytest.mark.parametrize(("kind", "attribution"), [("square", "local"), ("square", "global"), ("noise", "global")])
def test_values_of_removed_squares_and_of_contributions_are_captums(captum, kind, attribution):
    model, x, samples = network(), images(), 5
    maps = integrated_gradients(model, x, T, steps=4)  # 0 where the pixel is the baseline: there captum counts noise
    changes = [perturbation(kind, attribution, x[i], id_, s)[0] for i, id_ in enumerate(IDS) for s in range(samples)]

    @captum.infidelity_perturb_func_decorator(multiply_by_inputs=attribution == "global")
    def perturbed(pixels, baselines):
        return pixels - torch.stack(changes)

    theirs = captum.infidelity(model, perturbed, x, maps, baselines=0.0, target=T, n_perturb_samples=samples)
    found = measured(model, x, maps, perturbation=kind, attribution=attribution, samples=5, mean=0.1, sd=0.3, window=3)
    torch.testing.assert_close(found.value, theirs)


@pytest.mark.parametrize("kind", ["noise", "square"])
def test_the_weights_of_a_linear_model_foretell_everything(kind):
    model, x = network(linear=True), images()
    torch.testing.assert_close(
        measured(model, x, gradient(model, x, T), perturbation=kind, window=2).value, torch.zeros(N).double()
    )


@pytest.mark.parametrize("kind", ["noise", "square"])
def test_integrated_gradients_of_a_linear_model_foretell_everything_as_contributions(kind):
    model, x = network(linear=True), images()
    maps = integrated_gradients(model, x, T, baseline=0.25)
    options = {"perturbation": kind, "attribution": "global", "window": 2}
    torch.testing.assert_close(measured(model, x, maps, baseline=0.25, **options).value, torch.zeros(N).double())
    assert (measured(model, x, maps, **options).value > 1e-4).all()  # contributions from another baseline
    assert (measured(model, x, maps, perturbation=kind, baseline=0.25, window=2).value > 1e-4).all()  # as slopes


def test_contributions_over_distances_are_the_mean_slopes():
    """So the published numbers, of integrated gradients without the multiplication, come from stored maps."""
    model, x = network(), images()
    mean_slopes = integrated_gradients(model, x, T, baseline=0.1307, multiply=False)
    multiplied = integrated_gradients(model, x, T, baseline=0.1307)
    torch.testing.assert_close(
        measured(model, x, multiplied, attribution="global", baseline=0.1307), measured(model, x, mean_slopes)
    )


def test_a_map_s_scale_counts_in_the_value_and_not_where_it_is_rescaled():
    model, x = network(), images()
    maps = gradient(model, x, T)
    plain, scaled = measured(model, x, maps), measured(model, x, -5 * maps)
    torch.testing.assert_close(scaled.rescaled, plain.rescaled)
    assert (scaled.value > plain.value).all()
    assert (plain.rescaled < plain.value).all()


def test_a_map_of_zeros_foretells_nothing():
    model, x = network(), images()
    found = measured(model, x, torch.zeros_like(x))
    torch.testing.assert_close(found.value, found.rescaled)
    assert (found.value > 0).all()


def test_the_slope_foretells_better_than_a_random_map():
    model, x = network(), images()
    slope, chance = (measured(model, x, maps).rescaled for maps in (gradient(model, x, T), torch.randn_like(x)))
    assert (slope < 0.5 * chance).all()


class Recorder(nn.Module):
    """Keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return x.flatten(1)[:, :3]


def test_a_whole_square_is_removed_wherever_it_lies_and_nothing_else():
    """The published masks were whole numbers used as an index: two pixels of each image were zeroed."""
    model, x = Recorder().eval(), images() + 0.1
    measured(model, x, x, perturbation="square", window=2, samples=200, baseline=0.5)
    moved = torch.cat(model.seen)
    moved = moved[(moved[:, None] != x[None]).flatten(2).any(2).all(1)].reshape(-1, CHANNELS, HEIGHT, WIDTH)
    removed = (moved == 0.5).all(1)
    assert len(moved) == N * 200
    assert (removed.flatten(1).sum(1) == 4).all()
    assert (removed.any(1).sum(1) == 2).all()
    assert (removed.any(2).sum(1) == 2).all()
    assert removed.any(0).all()
    rest = moved.view(N, 200, *x.shape[1:]).masked_fill(removed.view(N, 200, 1, HEIGHT, WIDTH), 0)
    assert ((rest == x[:, None]) | (rest == 0)).all()


@pytest.mark.parametrize("height", [HEIGHT, HEIGHT - 1])
def test_noise_is_normal_and_no_two_numbers_are_tied(height):
    model, x = Recorder().eval(), images()[:, :, :height]  # an even or an odd number of pixels
    measured(model, x, x, mean=0.5, sd=2.0, samples=100)
    noise = (x[:, None] - model.seen[-1].view(N, 100, *x.shape[1:])).flatten(2)
    assert kstest(noise.flatten(), "norm", (0.5, 2.0)).pvalue > 0.01
    pixels = noise.flatten(0, 1).T - 0.5
    for numbers in (pixels, pixels.square()):  # of the two of a pair as well
        assert np.abs(np.corrcoef(numbers) - np.eye(len(pixels))).max() < 0.4
    assert len(noise.unique()) == noise.numel()


def test_noise_spares_pixels_of_which_contributions_say_nothing():
    model, x = Recorder().eval(), images()
    measured(model, x, x, attribution="global")
    assert all((moved.view(N, -1, *x.shape[1:])[:, :, x[i] == 0][i] == 0).all() for moved in model.seen[1:]
               for i in range(N))  # fmt: skip
    measured(model, x, x)
    assert (model.seen[-1].view(N, -1, *x.shape[1:])[0][:, x[0] == 0] != 0).all()


def test_one_undefined_pixel_makes_its_image_undefined_and_zeros_make_none():
    model, x = network(), images()
    maps = torch.where(x == 0, 0, gradient(model, x, T))
    spoilt = maps.clone()
    spoilt[1, 0, 0, 0] = torch.nan
    for kind in ("noise", "square"):
        good, bad = (measured(model, x, m, perturbation=kind, window=2).value for m in (maps, spoilt))
        assert bad.isnan().tolist() == [False, True, False, False]
        torch.testing.assert_close(good[[0, 2, 3]], bad[[0, 2, 3]])


@pytest.mark.parametrize("budget", [1, 900, 40_000])
@pytest.mark.parametrize("kind", ["noise", "square"])
def test_portions_of_memory_change_nothing(kind, budget, monkeypatch):
    model, x = network(), images()
    maps = gradient(model, x, T)
    whole = measured(model, x, maps, perturbation=kind, window=3)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    monkeypatch.setattr(tensors, "FEW_ROWS_BYTES", budget)
    torch.testing.assert_close(measured(model, x, maps, perturbation=kind, window=3), whole)
    alone = [measured(model, x[[i]], maps[[i]], Rng(SEED, [IDS[i]]), window=3, perturbation=kind) for i in [0]]
    torch.testing.assert_close(alone[0].value, whole.value[:1])


def test_no_images_have_no_values():
    model, x = network(), images()
    found = measured(model, x[:0], x[:0], Rng(SEED, []))
    assert found.value.shape == found.rescaled.shape == (0,)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_the_threshold_is_that_of_scipys_density(share):
    maps = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + torch.linspace(-1, 1, 5).view(
        5, 1, 1, 1
    )
    kept = above_threshold(maps, share)
    for one, found in zip(maps.flatten(1).double().numpy(), kept.flatten(1).double().numpy(), strict=True):
        density = gaussian_kde(one)

        def beyond(value, density=density):
            return density.integrate_box_1d(-np.inf, value) - share

        first = 0.0 if beyond(0) >= 0 else brentq(beyond, 0, 100, xtol=1e-12)
        np.testing.assert_array_equal(found, np.where(one > first, one, 0))
        assert (found >= 0).all()


def test_a_threshold_leaves_what_a_map_with_fewer_pixels_would_get():
    model, x = network(), images()
    maps = gradient(model, x, T)
    kept = above_threshold(maps, 0.8)
    assert 0 < (kept != 0).sum() < 0.5 * kept.numel()
    torch.testing.assert_close(measured(model, x, maps, threshold=0.8), measured(model, x, kept))


def test_a_map_of_one_value_has_no_density():
    model, x = network(), images()
    maps = gradient(model, x, T)
    maps[2] = 1.0
    assert measured(model, x, maps, threshold=0.5).value.isnan().tolist() == [False, False, True, False]


def test_one_sample_says_nothing_once_it_is_rescaled():
    model, x = network(), images()
    torch.testing.assert_close(measured(model, x, gradient(model, x, T), samples=1).rescaled, torch.zeros(N).double())


def test_maps_of_another_size_are_refused():
    model, x = network(), images()
    for maps in (torch.zeros(N, 2, 2), torch.zeros(N, 2, HEIGHT, WIDTH), torch.zeros(N, HEIGHT * WIDTH)):
        with pytest.raises(SpecError, match=r"infidelity: expected maps of the images' size, \[4, 6, 5\]"):
            measured(model, x, maps)


def test_a_window_beyond_the_image_is_refused_only_where_squares_are_removed():
    model, x = network(), images()
    with pytest.raises(SpecError, match="expected a window within images of 6 x 5 pixels, found one of 6"):
        measured(model, x, x, perturbation="square", window=6)
    assert measured(model, x, x, window=6).value.isfinite().all()


def test_a_model_in_train_mode_is_refused():
    model, x = network(), images()
    model[2].train()
    with pytest.raises(ModelError, match=r"infidelity: expected a model in evaluation mode, found Dropout .*eval\(\)"):
        measured(model, x, x)
    assert model[2].training
