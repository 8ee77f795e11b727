import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from tests import models
from torch import nn

from consilience import tensors
from consilience.attribution.scores import logit, probability
from consilience.attribution.shapley import coalitions, grid, kernel_shap, kernel_shap_over_background
from consilience.component import attribution
from consilience.errors import ModelError, SpecError
from consilience.models.split import normalised
from consilience.rng import Rng

N, IDS = 4, [4, 8, 1, 0]
RNG = Rng(5, IDS)
X = torch.rand(N, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 3
BACKGROUND = torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()


def worth(model, image, target, starts, where, inside, score, link):
    """What the link makes of the expected score, if the regions inside are shown and the others are not."""
    shown = torch.tensor([int(r) in inside for r in where.flatten()]).view_as(where)
    with torch.no_grad():
        mean = score(model(torch.where(shown, image, starts)), target.expand(len(starts))).mean()
    return float(mean if link == "identity" else torch.log(mean / (1 - mean)))


def slow(model, image, target, starts, region, score=logit, link="identity"):
    """Shapley 1953: the mean over all coalitions of what a region adds, weighed by |S|! (M - |S| - 1)! / M!."""
    where = grid(*image.shape[1:], region)
    regions = range(int(where.max()) + 1)
    value = functools.cache(functools.partial(worth, model, image, target, starts, where, score=score, link=link))
    found = []
    for i in regions:
        others, total = [r for r in regions if r != i], 0.0
        for size in range(len(regions)):
            weight = math.factorial(size) * math.factorial(len(others) - size) / math.factorial(len(regions))
            for s in itertools.combinations(others, size):
                total += weight * (value(inside=frozenset(s) | {i}) - value(inside=frozenset(s)))
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def by_region(maps, region):
    """The values of the regions of one image's map."""
    where = grid(*maps.shape[1:], region)
    return torch.zeros(int(where.max()) + 1, dtype=maps.dtype).index_add_(0, where.flatten(), maps.sum(0).flatten())


def shapley(model, x, target, rng, baseline, **options):
    """From a value, or from every image of the background."""
    if baseline == "background":
        return kernel_shap_over_background(model, x, target, rng, BACKGROUND, **options)
    return kernel_shap(model, x, target, rng, baseline=baseline, **options)


@pytest.mark.parametrize(("region", "link"), [(4, "identity"), (3, "identity"), (4, "logit")])
@pytest.mark.parametrize("baseline", [0.25, "background"])
def test_all_coalitions_give_the_shapley_values_of_their_definition(model, region, link, baseline):
    score = probability if link == "logit" else logit
    options = {"region": region, "link": link, "score": score}
    maps = shapley(model, X[:2], T[:2], Rng(0, [0, 1]), baseline, **options)
    starts = BACKGROUND if baseline == "background" else torch.full_like(X[:1], 0.25)
    for image, target, one in zip(X, T, maps, strict=False):
        expected = slow(model, image, target, starts, region, score, link)
        torch.testing.assert_close(by_region(one, region), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("link", ["identity", "logit"])
def test_all_coalitions_give_shaps_kernel_explainer_without_regularisation(model, link):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        shap = pytest.importorskip("shap")
        score = probability if link == "logit" else logit
        maps = kernel_shap_over_background(model, X, T, RNG, BACKGROUND, region=3, link=link, score=score)
        where = grid(8, 8, 3)
        for image, target, one in zip(X[:2], T, maps, strict=False):

            def answer(present, image=image, target=target):
                shown = torch.from_numpy(present).bool()[:, where][:, None, None]
                images = torch.where(shown, image, BACKGROUND).flatten(0, 1)
                with torch.no_grad():
                    return score(model(images), target.expand(len(images))).view(len(present), -1).mean(1).numpy()

            explainer = shap.KernelExplainer(answer, np.zeros((1, 9)), link=link)
            theirs = explainer.shap_values(np.ones((1, 9)), nsamples=2**9, l1_reg=False, silent=True)[0]
            torch.testing.assert_close(by_region(one, 3), torch.from_numpy(theirs), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("samples", [None, 128, 130, 301])
def test_of_a_linear_model_every_pixel_has_its_weight_times_its_way_however_few_the_samples(linear, samples):
    maps = kernel_shap(linear, X, T, RNG, region=1, samples=samples, baseline=0.5)
    planted = (linear[1].weight[T].view_as(X) * (X - 0.5)).mean(1, keepdim=True).expand_as(X)
    torch.testing.assert_close(maps, planted.detach(), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("samples", [128, 256, None])
@pytest.mark.parametrize("link", ["identity", "logit"])
def test_maps_are_complete_in_the_space_of_the_link_also_when_estimated(model, samples, link):
    score = probability if link == "logit" else logit
    options = {"region": 1, "samples": samples, "link": link, "score": score}
    maps = kernel_shap_over_background(model, X, T, RNG, BACKGROUND, **options)
    with torch.no_grad():
        ends = score(model(X), T), torch.stack([score(model(BACKGROUND), t.expand(5)).mean() for t in T])
    there, start = (torch.logit(end) if link == "logit" else end for end in ends)
    torch.testing.assert_close(maps.sum((1, 2, 3)), there - start, atol=1e-12, rtol=1e-10)


def test_estimates_come_near_the_exact_values_and_nearer_with_more_samples(model):
    options = {"region": 2}
    exact = by_region(kernel_shap(model, X[:1], T[:1], Rng(0, [0]), samples=2**16, **options)[0], 2)
    error = []
    for samples in (64, 512, 4096):
        found = [kernel_shap(model, X[:1], T[:1], Rng(s, [0]), samples=samples, **options)[0] for s in range(12)]
        error.append(float((torch.stack([by_region(one, 2) for one in found]) - exact).square().mean().sqrt()))
    size = float(exact.square().mean().sqrt())
    assert error[0] < size
    assert error[1] < error[0] / 2
    assert error[2] < error[1] / 2


def test_a_region_like_the_baseline_gets_nothing_and_takes_no_samples(model):
    x = X.clone()
    x[:, :, 2:] = 0.5  # of 16 regions, four play: all their coalitions are asked
    maps = kernel_shap(model, x, T, RNG, region=2, samples=32, baseline=0.5)
    assert (maps[:, :, 2:] == 0).all()
    exact = kernel_shap(model, x, T, RNG, region=2, samples=2**16, baseline=0.5)
    torch.testing.assert_close(maps, exact, atol=1e-12, rtol=1e-10)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    kernel_shap(model, x, T, RNG, region=2, samples=32, baseline=0.5)
    assert sum(seen) == 16 * N + 1  # the one tells how many fit into memory


def test_an_image_like_the_baseline_gets_zeros_unless_the_model_answers_nan(model):
    x = torch.full_like(X, 0.5)
    assert (kernel_shap(model, x, T, RNG, baseline=0.5) == 0).all()
    broken = nn.Sequential(model, _Spoilt())
    assert kernel_shap(broken, x, T, RNG, baseline=0.5).isnan().all()


class _Spoilt(nn.Module):
    def forward(self, x):
        return x + torch.nan


def test_one_region_has_everything_and_two_share_it(model):
    total = logit(model(X), T) - logit(model(X * 0), T)
    whole = kernel_shap(model, X, T, RNG, region=8)
    torch.testing.assert_close(whole, (total / 128).view(-1, 1, 1, 1).expand_as(X).detach())
    wide = torch.cat([X[:, :, :4], X[:, :, :4] * 0], 2)  # of four regions the lower two are like the baseline
    maps = kernel_shap(model, wide, T, RNG, region=4, samples=8)
    for image, target, one in zip(wide, T, maps, strict=True):
        expected = slow(model, image, target, torch.zeros_like(X[:1]), 4)
        torch.testing.assert_close(by_region(one, 4), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("shape", "region"), [((8, 8), 3), ((5, 9), 2), ((1, 7), 4), ((6, 6), 6)])
def test_regions_are_squares_that_cover_the_image(shape, region):
    where = grid(*shape, region)
    squares = {}
    for row, column in itertools.product(*map(range, shape)):
        squares.setdefault((row // region, column // region), set()).add(int(where[row, column]))
    assert all(len(numbers) == 1 for numbers in squares.values())
    assert sorted(n for numbers in squares.values() for n in numbers) == list(range(len(squares)))


@pytest.mark.parametrize("players", [1, 2, 3, 4, 5, 6, 9])
def test_listed_coalitions_have_the_shapley_kernels_weights(players):
    inside, weight = coalitions(players, 2**players, RNG.rows([0]))
    both = torch.cat([inside, ~inside])
    assert len(both.unique(dim=0)) == len(both) == 2**players - 2
    size = both.sum(1).tolist()
    kernel = torch.tensor([1 / (math.comb(players, s) * s * (players - s)) for s in size], dtype=torch.float64)
    torch.testing.assert_close(torch.cat([weight, weight]) / 2, kernel / kernel.sum(), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("players", [9, 10])
def test_drawn_coalitions_have_the_shapley_kernels_chances(players):
    pairs = {9: 60, 10: 110}[players]
    drawn, total = torch.zeros(players + 1, dtype=torch.float64), torch.zeros(players, players, dtype=torch.float64)
    for seed in range(300):
        inside, weight = coalitions(players, pairs, Rng(seed, [0]))
        assert len(inside) == pairs
        assert weight.sum() == pytest.approx(1)
        both, each = torch.cat([inside, ~inside]).double(), torch.cat([weight, weight]) / 2 / 300
        drawn.index_add_(0, both.sum(1).long(), each)
        total += both.T @ (both * each[:, None])
    share = torch.tensor([0, *(1 / (s * (players - s)) for s in range(1, players)), 0], dtype=torch.float64)
    torch.testing.assert_close(drawn, share / share.sum(), atol=4e-3, rtol=0)
    together = total[~torch.eye(players, dtype=torch.bool)]
    assert together.max() - together.min() < 8e-3  # no two regions are together more often than others


def test_all_channels_of_a_region_go_together(model):
    maps = kernel_shap(model, X, T, RNG)
    assert torch.equal(maps[:, 0], maps[:, 1])
    assert len(maps[0, 0].unique()) == 4


@pytest.mark.parametrize("baseline", [0.0, "background"])
@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, baseline, budget, monkeypatch):
    method = functools.partial(shapley, baseline=baseline, region=1, samples=200)
    expected = method(model, X, T, RNG)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(method(model, X, T, RNG), expected, atol=1e-12, rtol=1e-10)
    few = method(model, X[[3, 0]], T[[3, 0]], Rng(5, [0, 4]))
    torch.testing.assert_close(few, expected[[3, 0]], atol=1e-12, rtol=1e-10)
    assert not torch.allclose(method(model, X, T, Rng(6, IDS)), expected)


def test_images_of_a_batch_share_passes(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    kernel_shap(model, X, T, RNG)
    assert seen == [1, N * 16]


def test_a_background_costs_a_pass_for_each_of_its_images(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    kernel_shap_over_background(model, X, T, RNG, BACKGROUND, region=1, samples=200)
    assert sum(seen) == N * (200 + 2) * 5 + 1


def test_the_mean_pixel_can_be_the_baseline(linear):
    model = normalised(linear, [0.25, 0.5], [1.0, 1.0]).double()
    way = X - torch.tensor([0.25, 0.5], dtype=torch.float64).view(2, 1, 1)
    planted = (linear[1].weight[T].view_as(X) * way).mean(1, keepdim=True).expand_as(X)
    maps = kernel_shap(model, X, T, RNG, region=1, baseline="mean")
    torch.testing.assert_close(maps, planted.detach(), atol=1e-10, rtol=1e-8)


def test_log_odds_of_what_is_no_probability_are_undefined(model):
    x = X.clone()
    with torch.no_grad():
        model[-1].bias.fill_(2.0)  # logits beyond 1
    assert kernel_shap(model, x, T, RNG, link="logit").isnan().all()


def test_a_sure_model_has_log_odds_of_rounding_and_no_infinite_maps(model):
    sure = nn.Sequential(model, _Times(1e6)).float()
    maps = kernel_shap(sure, X.float(), T, RNG, score=probability, link="logit")
    most = 2 * math.log(1 / torch.finfo(torch.float32).eps)
    assert maps.isfinite().all()
    assert maps.dtype == torch.float32
    assert maps.sum((1, 2, 3)).abs().max() <= most * 1.001


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_a_model_that_answers_nan_once_leaves_no_plausible_map(model):
    class Once(nn.Module):
        def forward(self, x):
            answer = model(x)
            return answer.masked_fill((x[:, :1, 0, 0] == 0) & (x[:, :1, 7, 7] != 0), torch.nan)

    maps = kernel_shap(Once(), X, T, RNG)
    assert maps.isnan().all()


@pytest.mark.parametrize("build", models.ALL.values(), ids=models.ALL)
def test_on_every_network_maps_are_complete_and_all_coalitions_give_the_definition(build):
    model, (x, target) = build(3, 4).double(), models.batch(2)
    maps = kernel_shap(model, x, target, Rng(0, [0, 1]), region=8)
    for image, chosen, one in zip(x, target, maps, strict=True):
        expected = slow(model, image, chosen, torch.zeros_like(x[:1]), 8)
        torch.testing.assert_close(by_region(one, 8), expected, atol=1e-10, rtol=1e-8)
    estimated = kernel_shap(model, x, target, Rng(0, [0, 1]), region=4, samples=64)
    gain = logit(model(x), target) - logit(model(x * 0), target)
    torch.testing.assert_close(estimated.sum((1, 2, 3)), gain, atol=1e-10, rtol=1e-8)


def test_models_without_evidence_or_an_answer():
    x, target = models.batch()
    rng = Rng(0, [0, 1, 2])
    assert kernel_shap(models.not_a_number().double(), x, target, rng).isnan().all()
    for silent in (models.constant(), models.unconnected()):
        assert (kernel_shap(silent, x, target, rng) == 0).all()
    with pytest.raises(ModelError, match="found a tuple"):
        kernel_shap(models.tuple_of_outputs().double(), x, target, rng)


@pytest.mark.parametrize("samples", [1, 127])
def test_too_few_samples_are_refused_with_the_number_needed(model, samples):
    with pytest.raises(SpecError, match=f"at least 128 samples for 64 regions, found {samples}"):
        kernel_shap(model, X, T, RNG, region=1, samples=samples)


@pytest.mark.parametrize("region", [0, 9])
def test_regions_that_are_no_parts_of_the_image_are_refused(model, region):
    with pytest.raises(SpecError, match=f"region: expected a side of 1 to 8 pixels, found {region}"):
        kernel_shap(model, X, T, RNG, region=region)


def test_a_background_must_fit(model):
    with pytest.raises(SpecError, match=r"background: expected at least one image of \[2, 8, 8\]"):
        kernel_shap_over_background(model, X, T, RNG, BACKGROUND[:, :1])


def test_a_class_that_the_model_does_not_know_is_refused(model):
    with pytest.raises(ModelError, match="the model does not know them"):
        kernel_shap(model, X, T + 3, RNG)


def test_no_examples_give_no_maps(model):
    assert kernel_shap(model, X[:0], T[:0], Rng(0, [])).shape == (0, 2, 8, 8)


def test_a_background_is_asked_for_only_by_what_shows_it():
    for baseline in ("mean", 0.5):
        chosen = attribution.choose({"use": "kernel_shap", "baseline": baseline, "samples": 300})
        assert chosen.options["baseline"] == baseline
        assert not chosen.asks("background")
    assert attribution.choose("kernel_shap_over_background").asks("background")
    with pytest.raises(SpecError, match="median"):
        attribution.choose({"use": "kernel_shap", "baseline": "median"})
