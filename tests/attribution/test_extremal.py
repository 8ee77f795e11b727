import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from tests import models
from torch import nn

from consilience import tensors
from consilience.attribution import smooth_masks
from consilience.attribution.extremal import extremal_perturbation, nearest
from consilience.attribution.scores import log_probability, logit
from consilience.attribution.smooth_masks import blended, bumps, pyramid, smooth_mask, smooth_mask_gradient, smoothed
from consilience.component import attribution
from consilience.errors import ModelError, SpecError

N = 3
X = torch.rand(N, 2, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0, 1, 0])
DOUBLE = torch.zeros((), dtype=torch.float64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double().eval()


class Patch(nn.Module):
    """Answers how much contrast a square of five pixels has, for class 0, and its negative for class 1."""

    def __init__(self, row, column):
        super().__init__()
        self.row, self.column = row, column

    def forward(self, x):
        seen = x[:, :, self.row : self.row + 5, self.column : self.column + 5].flatten(1)
        contrast = 50 * seen.var(1)
        return torch.stack([contrast, -contrast], 1)


def slow_mask(points, height, width, step, sigma):
    """The smooth maximum over the grid's points and their mirror images, pixel by pixel."""
    down, across = points.shape
    reach = 1 + math.ceil(sigma / step)
    rows = []
    for u, v in np.ndindex(height, width):
        heights = []
        for i, j in np.ndindex(2 * reach + 1, 2 * reach + 1):
            row, column = u // step + i - reach, v // step + j - reach
            d = math.hypot(u - (step * row + (step - 1) / 2), v - (step * column + (step - 1) / 2))
            row, column = (min(at % (2 * n), 2 * n - 1 - at % (2 * n)) for at, n in ((row, down), (column, across)))
            heights.append(points[row, column] * math.exp(-2 * max(0, d / sigma - 0.5) ** 2))
        heights = torch.stack(heights)
        rows.append((heights * (20 * heights).exp()).sum() / (20 * heights).exp().sum())
    return torch.stack(rows).view(height, width)


def slow(model, image, target, area, iterations, step, sigma, blur, mirror, score):
    """Fong et al. 2019, one image and one area, by autograd and torch's own optimizer."""
    _, height, width = image.shape
    down, across = -(-height // step), -(-width // step)
    points = torch.ones(down, across, dtype=torch.float64, requires_grad=True)
    levels = torch.stack([smoothed(image, blur * (1 - level / 7), border="replicate") for level in range(8)])
    optimizer = torch.optim.SGD([points], lr=0.01, momentum=0.9, dampening=0.9)
    for t in range(iterations):
        whole = slow_mask(points, down * step, across * step, step, sigma)
        mask = whole[:height, :width]
        low = (mask.detach() * 7).floor().clamp(0, 6).long()
        part = mask * 7 - low
        shown = torch.stack([
            torch.stack([(1 - part[u, v]) * levels[low[u, v], :, u, v] + part[u, v] * levels[low[u, v] + 1, :, u, v]
                         for v in range(width)], 1)
            for u in range(height)
        ], 1)  # fmt: skip
        seen = shown.flip(2) if mirror and t % 2 == 0 else shown
        reward = score(model(seen[None]), target[None]).sum()
        flat = whole.flatten()
        ones = flat.numel() - int(flat.numel() * (1 - area))
        ideal = torch.cat([torch.zeros(flat.numel() - ones), torch.ones(ones)])
        order = flat.detach().argsort()
        same = (flat.detach()[:, None] - flat.detach()).abs() <= 1e-3
        shared = (same[order][:, order] * ideal).sum(1) / same[order][:, order].sum(
            1
        )  # equal pixels share their places
        penalty = 300 * 1.0035**t * (flat[order] - shared).square().mean()
        optimizer.zero_grad()
        (penalty - reward).backward()
        optimizer.step()
        with torch.no_grad():
            points.clamp_(0, 1)
    return slow_mask(points.detach(), down * step, across * step, step, sigma)[:height, :width]


@pytest.mark.parametrize(("step", "mirror", "score"), [(2, True, logit), (3, False, log_probability), (1, True, logit)])
def test_the_maps_are_a_slow_search_of_one_image_and_area_at_a_time(step, mirror, score):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()
    x, iterations = X[:2, :, :5, :6], 6
    maps = extremal_perturbation(
        model, x, T[:2], score=score, areas=(0.1, 0.3), iterations=iterations,
        step=step / 5, sigma=1.5 / 5, blur=0.2, smooth=0.0, mirror=mirror,
    )  # fmt: skip
    first = slow(model, x[0], T[0], 0.1, iterations, step, 1.5, 1.0, mirror, score)
    first += slow(model, x[0], T[0], 0.3, iterations, step, 1.5, 1.0, mirror, score)
    torch.testing.assert_close(maps[0, 0], first, atol=1e-10, rtol=1e-8)
    last = extremal_perturbation(
        model, x, T[:2], score=score, areas=(0.3,), iterations=iterations,
        step=step / 5, sigma=1.5 / 5, blur=0.2, smooth=0.0, mirror=mirror,
    )  # fmt: skip
    expected = slow(model, x[1], T[1], 0.3, iterations, step, 1.5, 1.0, mirror, score)
    torch.testing.assert_close(last[1, 0], expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("height", "width", "step", "sigma"), [(6, 8, 2, 3.0), (5, 7, 1, 1.2), (4, 9, 3, 2.0), (1, 3, 1, 2.5)]
)
@pytest.mark.parametrize("budget", [1, 10**9])
def test_a_smooth_mask_is_its_definition(height, width, step, sigma, budget, monkeypatch):
    monkeypatch.setattr(smooth_masks, "CHUNK_BYTES", budget)
    of = bumps(height, width, step, sigma, DOUBLE)
    points = torch.rand(2, *of.cells, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    smooth, (down, across) = smooth_mask(points, of), of.cells
    slope = torch.randn(smooth.mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = smooth_mask_gradient(points, of, smooth, slope)
    for one, mask, away, expected in zip(points, smooth.mask, slope, found, strict=True):
        one = one.clone().requires_grad_()
        slowly = slow_mask(one, down * step, across * step, step, sigma)
        torch.testing.assert_close(mask, slowly.detach())
        torch.testing.assert_close(expected, torch.autograd.grad((slowly * away).sum(), one)[0])


def test_a_mask_of_ones_favours_no_place():
    of = bumps(12, 9, 3, 4.0, DOUBLE)
    points = torch.ones(1, *of.cells, dtype=torch.float64)
    smooth = smooth_mask(points, of)
    cell = smooth.mask[:, :3, :3]
    torch.testing.assert_close(smooth.mask, cell.repeat(1, 4, 3))
    pull = smooth_mask_gradient(points, of, smooth, torch.ones_like(smooth.mask))
    torch.testing.assert_close(pull, pull[:, :1, :1].expand_as(pull))


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0, 0.0])
@pytest.mark.parametrize(("border", "mode"), [("replicate", "nearest"), ("zero", "constant")])
def test_blur_is_scipys_gaussian(sigma, border, mode):
    theirs = ndimage.gaussian_filter(X.numpy(), (0, 0, sigma, sigma), mode=mode, truncate=4)
    torch.testing.assert_close(smoothed(X, sigma, border=border), torch.from_numpy(theirs))


def test_the_pyramid_goes_from_most_blurred_to_the_image():
    levels = pyramid(X[0], 3.5)
    torch.testing.assert_close(levels[7], X[0])
    torch.testing.assert_close(levels[0], smoothed(X[0], 3.5, border="replicate"))
    assert (levels.var((2, 3)).diff(dim=0) > 0).all()


def test_a_pixel_comes_from_the_level_that_the_mask_says():
    levels = torch.stack([pyramid(image, 2.0) for image in X[:2]])
    for level in range(8):
        images, _ = blended(levels, torch.full((2, 9, 11), level / 7, dtype=torch.float64))
        torch.testing.assert_close(images, levels[:, level])
    mask = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images, slope = blended(levels, mask)
    more, _ = blended(levels, mask + 1e-7)
    torch.testing.assert_close((more - images) / 1e-7, slope, atol=1e-6, rtol=1e-6)
    _, at_one = blended(levels, torch.ones_like(mask))
    torch.testing.assert_close(at_one, 7 * (levels[:, 7] - levels[:, 6]))


def test_sorting_says_which_pixels_are_kept_and_equal_ones_share():
    mask = torch.tensor([[[0.1, 0.9, 0.4], [0.8, 0.2, 0.3]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.9]]])
    found = nearest(mask, torch.tensor([0.34, 0.5], dtype=torch.float64))
    planted = torch.tensor([[[0.0, 1, 1], [1, 0, 0]], [[0.4, 0.4, 0.4], [0.4, 0.4, 1]]])
    torch.testing.assert_close(found, planted)
    least = nearest(mask[:1], torch.tensor([1e-9], dtype=torch.float64))
    assert least.sum() == 1  # a pixel at least


@pytest.mark.parametrize("place", [(3, 12), (0, 0), (8, 15)])
def test_the_mask_lies_on_the_patch_that_decides_and_has_its_area(place):
    x = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(4))
    options = {"iterations": 300, "smooth": 0.0, "mirror": False}
    maps = extremal_perturbation(Patch(*place), x, torch.zeros(2, dtype=torch.int64), areas=(0.06,), **options)[:, 0]
    row, column = place
    on_patch = maps[:, row : row + 5, column : column + 5].sum((1, 2)) / maps.sum((1, 2))
    assert (on_patch > 0.5).all()  # the patch is a sixteenth of the image
    assert ((maps > 0.5).float().mean((1, 2)) - 0.06).abs().max() < 0.02
    assert (maps.mean((1, 2)) - 0.06).abs().max() < 0.03
    peak = maps.flatten(1).argmax(1)
    assert ((peak // 20 >= row) & (peak // 20 < row + 5) & (peak % 20 >= column) & (peak % 20 < column + 5)).all()


def test_a_patch_that_speaks_against_the_class_is_hidden():
    x = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(4))
    maps = extremal_perturbation(
        Patch(3, 12), x, torch.ones(1, dtype=torch.int64), areas=(0.3,), iterations=300, smooth=0.0, mirror=False
    )
    assert maps[0, 0, 3:8, 12:17].mean() < 0.1 < maps.mean()


def test_without_evidence_no_place_is_favoured():
    flat = extremal_perturbation(Patch(3, 12), torch.full((1, 1, 20, 20), 0.5), T[:1], areas=(0.1,), iterations=100)
    middle = flat[0, 0, 8:12, 8:12]
    assert middle.max() - middle.min() < 1e-3
    bare = extremal_perturbation(
        Patch(3, 12), torch.full((1, 1, 20, 20), 0.5), T[:1], areas=(0.1,), iterations=100, smooth=0.0
    )
    assert bare.max() - bare.min() < 1e-3


def test_the_sum_of_the_masks_is_smoothed(model):
    options = {"areas": (0.1, 0.2), "iterations": 5, "blur": 0.3}
    bare = extremal_perturbation(model, X, T, smooth=0.0, **options)
    maps = extremal_perturbation(model, X, T, smooth=0.1, **options)
    torch.testing.assert_close(maps, smoothed(bare, 0.9, border="zero"))
    alone = [extremal_perturbation(model, X, T, smooth=0.0, **{**options, "areas": (a,)}) for a in (0.1, 0.2)]
    torch.testing.assert_close(bare, sum(alone))


@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, budget, monkeypatch):
    expected = extremal_perturbation(model, X, T, iterations=20)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    monkeypatch.setattr(smooth_masks, "CHUNK_BYTES", budget)
    torch.testing.assert_close(extremal_perturbation(model, X, T, iterations=20), expected, atol=1e-9, rtol=1e-7)
    few = extremal_perturbation(model, X[[2, 0]], T[[2, 0]], iterations=20)
    torch.testing.assert_close(few, expected[[2, 0]], atol=1e-9, rtol=1e-7)


def test_an_iteration_costs_a_pass_for_each_area(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    extremal_perturbation(model, X, T, iterations=5, areas=(0.1, 0.2))
    assert seen == [1, *[2 * N] * 5]


def test_a_score_that_is_once_not_finite_makes_the_map_undefined(model):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            answer = model(x)
            rows = torch.arange(len(x))[:, None] < 4  # all areas of the first image
            return answer + torch.where(rows & torch.tensor(self.calls == 3), torch.nan, 0.0)

    maps = extremal_perturbation(Once(), X, T, iterations=6)
    assert maps[0].isnan().all()
    assert maps[1:].isfinite().all()


def test_maps_have_one_channel_the_images_type_and_no_graph(model):
    for dtype in (torch.float32, torch.float64):
        maps = extremal_perturbation(model.to(dtype), X.to(dtype).requires_grad_(), T, iterations=2)
        assert maps.shape == (N, 1, 9, 11)
        assert maps.dtype == dtype
        assert not maps.requires_grad


@pytest.mark.parametrize("options", [{"areas": ()}, {"areas": (0.1, 1.0)}, {"areas": (0.0,)}, {"iterations": 0},
                                     {"sigma": 0.0}, {"step": -0.1}, {"blur": 0.0}, {"smooth": -0.1}])  # fmt: skip
def test_what_cannot_be_searched_is_refused(model, options):
    with pytest.raises(SpecError, match="extremal_perturbation: expected areas between 0 and 1"):
        extremal_perturbation(model, X, T, **options)


def test_a_class_that_the_model_does_not_know_is_refused(model):
    with pytest.raises(ModelError, match="the model does not know them"):
        extremal_perturbation(model, X, T + 3)


def test_a_model_that_no_gradient_leaves_is_refused():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach().mean((2, 3))

    with pytest.raises(ModelError, match="no gradient reaches them"):
        extremal_perturbation(Detached(), X, T, iterations=2)


def test_rounding_does_not_decide_which_mask_is_found(model):
    x = torch.rand(6, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    target, options = torch.arange(6) % 3, {"iterations": 150, "areas": (0.1,)}  # evidence is weak in this model
    maps = extremal_perturbation(model.float(), x, target, **options)
    exact = extremal_perturbation(model.double(), x.double(), target, **options)
    torch.testing.assert_close(maps.double(), exact, atol=0.01, rtol=0)


@pytest.mark.parametrize("build", models.ALL.values(), ids=models.ALL)
def test_on_every_network_the_masked_image_keeps_more_of_the_score_than_chance_does(build):
    model, (x, target) = build(1, 4).double(), models.batch(3, 1)
    masks = extremal_perturbation(model, x, target, areas=(0.2,), iterations=150, smooth=0.0, mirror=False)[:, 0]
    levels = torch.stack([pyramid(image, 0.09 * 16) for image in x])
    kept = logit(model(blended(levels, masks)[0]), target)
    moved = [masks.roll((down, right), (1, 2)) for down in (4, 8, 12) for right in (4, 8, 12)]
    others = torch.stack([logit(model(blended(levels, mask)[0]), target) for mask in moved])
    assert (kept > others.mean(0)).all()


def test_models_without_evidence_or_an_answer():
    x, target = models.batch()
    options = {"areas": (0.1,), "iterations": 30}
    assert extremal_perturbation(models.not_a_number().double(), x, target, **options).isnan().all()
    with pytest.raises(ModelError, match="found a tuple"):
        extremal_perturbation(models.tuple_of_outputs().double(), x, target, **options)
    with pytest.raises(ModelError, match="no gradient reaches them"):
        extremal_perturbation(models.unconnected(), x, target, **options)
    flat = extremal_perturbation(models.constant(), x, target, smooth=0.0, **options)
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))


def test_no_examples_give_no_maps(model):
    assert extremal_perturbation(model, X[:0], T[:0]).shape == (0, 1, 9, 11)


def test_a_file_may_choose_the_areas():
    chosen = attribution.choose({"use": "extremal_perturbation", "areas": [0.1, 0.3], "iterations": 20})
    assert chosen.options["areas"] == (0.1, 0.3)
    with pytest.raises(SpecError, match="areas"):
        attribution.choose({"use": "extremal_perturbation", "areas": [0.1, 2.0]})
