import functools
import warnings

import pytest
import torch
from tests import models
from torch import nn
from torch.nn.functional import interpolate

from consilience import tensors
from consilience.attribution.perturbation import occlusion, rise
from consilience.attribution.scores import log_probability, logit, probability
from consilience.errors import ModelError, SpecError
from consilience.models.split import normalised
from consilience.rng import Rng

N, IDS, SEED = 4, [4, 8, 1, 0], 5
RNG = Rng(SEED, IDS)
X = torch.rand(N, 2, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()


@pytest.fixture
def corner():
    """A model that reads the pixel at row 1, column 7, and nothing else."""
    linear = nn.Linear(160, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.zero_()[:, [17, 97]] = torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64)[:, None]
    return nn.Sequential(nn.Flatten(), linear)


def slow_occlusion(model, image, target, window, stride, baseline, score=logit):
    """Hide a window, note the drop; a pixel has the mean drop of the windows that hid it."""
    _, height, width = image.shape
    total, count = torch.zeros(height, width, dtype=torch.float64), torch.zeros(height, width)
    whole = score(model(image[None]), target[None])[0]
    top = 0
    while True:
        left = 0
        while True:
            hidden = image.clone()
            hidden[:, top : top + window, left : left + window] = baseline
            total[top : top + window, left : left + window] += whole - score(model(hidden[None]), target[None])[0]
            count[top : top + window, left : left + window] += 1
            if left + window >= width:
                break
            left += stride
        if top + window >= height:
            break
        top += stride
    return total / count


@pytest.mark.parametrize(("window", "stride"), [(4, 2), (3, 2), (5, 5), (1, 1), (8, 3), (4, 4)])
@pytest.mark.parametrize("score", [logit, log_probability])
def test_occlusion_is_its_definition(model, window, stride, score):
    maps = occlusion(model, X, T, window=window, stride=stride, baseline=0.25, score=score)
    with torch.no_grad():
        expected = [slow_occlusion(model, x, t, window, stride, 0.25, score) for x, t in zip(X, T, strict=True)]
    torch.testing.assert_close(maps, torch.stack(expected)[:, None], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("window", "stride"), [(4, 2), (3, 2), (5, 5), (1, 1), (8, 3)])
def test_occlusion_is_captums(model, window, stride):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        attr = pytest.importorskip("captum.attr")
        theirs = attr.Occlusion(model).attribute(
            X, (2, window, window), (2, stride, stride), baselines=0.25, target=T, perturbations_per_eval=3
        )
    maps = occlusion(model, X, T, window=window, stride=stride, baseline=0.25)
    torch.testing.assert_close(
        maps.expand_as(X).float(), theirs.detach(), atol=1e-6, rtol=1e-5
    )  # captum divides in float32


def test_occluding_what_decides_drops_the_score_by_what_it_was(corner):
    maps = occlusion(corner, X, T, window=3, stride=1)
    drop = corner(X).gather(1, T[:, None])[:, 0]
    planted = torch.zeros(N, 8, 10, dtype=torch.float64)
    for row in range(4):
        for column in range(5, 10):
            covering = [
                (top, left)
                for top in range(6)
                for left in range(8)
                if top <= row < top + 3 and left <= column < left + 3
            ]
            hit = [top <= 1 < top + 3 and left <= 7 < left + 3 for top, left in covering]
            planted[:, row, column] = drop.detach() * sum(hit) / len(hit)
    torch.testing.assert_close(maps[:, 0], planted, atol=1e-12, rtol=1e-10)


def test_the_mean_pixel_can_be_what_the_window_shows(corner):
    model = normalised(corner, [0.25, 0.5], [1.0, 1.0]).double()
    maps = occlusion(model, X, T, window=1, stride=1, baseline="mean")
    way = (X[:, :, 1, 7] - torch.tensor([0.25, 0.5])).sum(1) * torch.tensor([2.0, -2.0, 0.0])[T]
    torch.testing.assert_close(maps[:, 0, 1, 7], way)


@pytest.mark.parametrize("build", models.ALL.values(), ids=models.ALL)
def test_both_are_their_definition_on_every_network(build):
    model, (x, target) = build(3, 4).double(), models.batch(2)
    windows = occlusion(model, x, target, window=5, stride=4)
    masks = rise(model, x, target, Rng(SEED, [3, 1]), masks=6, cells=3)
    for row, (image, chosen) in enumerate(zip(x, target, strict=True)):
        expected = slow_occlusion(model, image, chosen, 5, 4, 0.0)
        torch.testing.assert_close(windows[row, 0], expected, atol=1e-10, rtol=1e-8)
        expected = slow_rise(model, image, chosen, [3, 1][row], 6, 3, 0.5, 0.0, probability)
        torch.testing.assert_close(masks[row, 0], expected, atol=1e-10, rtol=1e-8)


def test_models_without_evidence_or_an_answer():
    x, target = models.batch()
    explain = [occlusion, functools.partial(rise, rng=Rng(0, [0, 1, 2]), masks=40)]
    for method in explain:
        assert method(models.not_a_number().double(), x, target).isnan().all()
        with pytest.raises(ModelError, match="found a tuple"):
            method(models.tuple_of_outputs().double(), x, target)
    for silent in (models.constant(), models.unconnected()):
        assert (occlusion(silent, x, target) == 0).all()


def methods():
    return [functools.partial(occlusion, window=3), functools.partial(rise, masks=50, cells=3, rng=RNG)]


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, method, budget, monkeypatch):
    expected = method(model, X, T)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(method(model, X, T), expected, atol=1e-12, rtol=1e-10)
    few = functools.partial(method, rng=Rng(SEED, [0, 4])) if method.func is rise else method
    torch.testing.assert_close(few(model, X[[3, 0]], T[[3, 0]]), expected[[3, 0]], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("method", "count"), [*zip(methods(), [4 * 5 + 1, 50], strict=True)])
def test_a_hidden_part_costs_one_pass_and_nothing_else(model, method, count):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    method(model, X, T)
    assert sum(seen) == count * N + 1  # the one tells how many fit into memory
    assert len(seen) == 2


@pytest.mark.parametrize("method", methods())
def test_a_score_that_is_not_finite_makes_the_whole_map_undefined(model, method):
    class Once(nn.Module):
        def forward(self, x):
            answer = model(x)
            return answer.masked_fill((x[:, :1, 0, 0] < 0.7 * X[1, 0, 0, 0]) & (x[:, :1, 7, 9] > 0), torch.inf)

    maps = method(Once(), X[[1]], T[[1]])
    assert maps.isnan().all()


@pytest.mark.parametrize("method", methods())
def test_maps_have_one_channel_the_images_type_and_no_graph(model, method):
    for dtype in (torch.float32, torch.float64):
        maps = method(model.to(dtype), X.to(dtype).requires_grad_(), T)
        assert maps.shape == (N, 1, 8, 10)
        assert maps.dtype == dtype
        assert not maps.requires_grad


@pytest.mark.parametrize(("window", "stride"), [(9, 2), (4, 5), (0, 0), (4, 0), (4, -1)])
def test_windows_that_leave_pixels_uncovered_or_do_not_fit_are_refused(model, window, stride):
    with pytest.raises(SpecError, match=f"stride <= window <= 8.* found stride {stride} and window {window}"):
        occlusion(model, X, T, window=window, stride=stride)


def test_no_examples_give_no_maps(model):
    assert occlusion(model, X[:0], T[:0]).shape == (0, 1, 8, 10)
    assert rise(model, X[:0], T[:0], Rng(0, [])).shape == (0, 1, 8, 10)


@pytest.mark.parametrize("method", methods())
def test_a_class_that_the_model_does_not_know_is_refused(model, method):
    with pytest.raises(ModelError, match="the model does not know them"):
        method(model, X, T + 3)


def slow_rise(model, image, target, id_, masks, cells, keep, baseline, score):
    """Petsiuk et al. 2018, section 3.2, with the draws of one example."""
    own, (_, height, width) = Rng(SEED, [id_]), image.shape
    down, across = -(-height // cells), -(-width // cells)
    grids = own.at("cells").uniform(masks, cells, cells)[0] < keep
    tops, lefts = own.at("down").integers(down, masks)[0], own.at("right").integers(across, masks)[0]
    total = torch.zeros(height, width, dtype=torch.float64)
    for k in range(masks):
        large = ((cells + 1) * down, (cells + 1) * across)
        mask = interpolate(grids[k].double()[None, None], size=large, mode="bilinear")[0, 0]
        mask = mask[tops[k] : tops[k] + height, lefts[k] : lefts[k] + width]
        seen = image * mask + baseline * (1 - mask)
        total += score(model(seen[None]), target[None])[0] * mask
    return total / masks / keep


@pytest.mark.parametrize(("cells", "keep", "baseline"), [(3, 0.5, 0.0), (7, 0.3, 0.25), (1, 0.5, 0.0), (8, 0.9, 0.0)])
@pytest.mark.parametrize("score", [probability, logit])
def test_rise_is_its_definition(model, cells, keep, baseline, score):
    maps = rise(model, X, T, RNG, masks=20, cells=cells, keep=keep, baseline=baseline, score=score)
    with torch.no_grad():
        expected = [
            slow_rise(model, x, t, i, 20, cells, keep, baseline, score) for x, t, i in zip(X, T, IDS, strict=True)
        ]
    torch.testing.assert_close(maps, torch.stack(expected)[:, None], atol=1e-12, rtol=1e-10)


def test_the_explained_score_of_rise_is_the_probability(model):
    maps = rise(model, X, T, RNG, masks=10)
    torch.testing.assert_close(maps, rise(model, X, T, RNG, masks=10, score=probability))
    assert not torch.allclose(maps, rise(model, X, T, RNG, masks=10, score=logit))


def test_the_pixel_that_decides_stands_out_with_its_sign(corner):
    maps = rise(corner, X, T * 0 + torch.tensor([0, 1, 0, 1]), RNG, cells=4, masks=4000)[:, 0]
    for row, one in enumerate(maps):
        peak = one.argmax() if row % 2 == 0 else one.argmin()
        assert abs(peak // 10 - 1) <= 1
        assert abs(peak % 10 - 7) <= 1
    far = maps[:, 5:, :4]  # what is seen far from it is independent of it: the mean score
    assert (far - far.mean((1, 2), keepdim=True)).abs().max() < 0.2 * (maps.amax((1, 2)) - maps.amin((1, 2))).min()


def test_a_score_that_never_changes_is_the_same_everywhere_in_the_mean(corner):
    maps = rise(corner, X * 0, T * 0 + 2, RNG, masks=4000)  # a third, times the mean of the masks, over keep
    assert (maps - 1 / 3).abs().max() < 4 / 3 * 4000**-0.5


def test_if_all_cells_are_kept_the_map_is_the_score(model):
    maps = rise(model, X, T, RNG, keep=1.0, masks=3)
    with torch.no_grad():
        score = probability(model(X), T)
    torch.testing.assert_close(maps, score.view(-1, 1, 1, 1).expand_as(maps))


def test_each_image_has_masks_of_its_own(model):
    same = X[:1].expand(N, -1, -1, -1)
    maps = rise(model, same, T * 0, RNG, masks=20)
    assert len(maps.flatten(1).unique(dim=0)) == N
    assert not torch.allclose(rise(model, same, T * 0, Rng(SEED + 1, IDS), masks=20), maps)


@pytest.mark.parametrize(
    "options", [{"cells": 0}, {"cells": 9}, {"masks": 0}, {"keep": 0.0}, {"keep": 1.5}, {"keep": float("nan")}]
)
def test_masks_that_cannot_be_drawn_are_refused(model, options):
    with pytest.raises(SpecError, match="rise: expected at least one mask, 1 to 8 cells and 0 < keep <= 1"):
        rise(model, X, T, RNG, **options)
