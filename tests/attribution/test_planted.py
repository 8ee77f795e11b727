"""A linear model, of which every method's answer is known: what each is of weights, pixels and baseline."""

import functools

import numpy as np
import pytest
import torch
from scipy.ndimage import sobel
from tests.attribution.every import NAMES, explained
from tests.laws.laws import Twice
from torch import nn

from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import ModelError
from consilience.rng import Rng
from consilience.tensors import Patterns

N, C, H, W, CLASSES = 3, 2, 6, 5, 3
CHANCE = torch.Generator().manual_seed(3)
X = torch.rand(N, C, H, W, generator=CHANCE, dtype=torch.float64)
OTHERS = torch.rand(4, C, H, W, generator=CHANCE, dtype=torch.float64)
T = torch.tensor([0, 2, 1])
WEIGHT = torch.randn(CLASSES, C, H, W, generator=CHANCE, dtype=torch.float64)
PATTERN = torch.randn(CLASSES, C, H, W, generator=CHANCE, dtype=torch.float64)
BIAS = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)
w, a, b = WEIGHT[T], PATTERN[T], BIAS[T].view(-1, 1, 1, 1)  # of each image's target
START = 0.25


def linear(weight=WEIGHT):
    """``w.x + b`` of each class."""
    layer = nn.Linear(C * H * W, CLASSES).double().requires_grad_(False)
    layer.weight.copy_(weight.flatten(1))
    layer.bias.copy_(BIAS)
    return nn.Sequential(nn.Flatten(), layer).eval()


def score_of(x):
    """The target's logit, as an image of one pixel."""
    return (w * x).sum((1, 2, 3), keepdim=True) + b


def maps_of(name, **options):
    return explained(name, linear(), X, T, others=OTHERS, **options)


def assert_is(maps, expected):
    torch.testing.assert_close(maps, expected, atol=1e-9, rtol=1e-7)


def formula(expected, **options):
    """The method's maps are these numbers."""

    def check(name):
        assert_is(maps_of(name, **options), expected)

    return check


def refused(words, **options):
    def check(name):
        with pytest.raises(ModelError, match=words):
            maps_of(name, **options)

    return check


def both(*checks):
    def check(name):
        for one in checks:
            one(name)

    return check


# What takes a word more


def some_of_both_starts(name):
    """Five lines, each from black or from the first image of the background: there is a number from 0 to 5 for it."""
    maps = maps_of(name)
    possible = torch.stack([w * (X - k / 5 * OTHERS[0]) for k in range(6)])
    apart = (possible - maps).abs().amax((2, 3, 4))
    assert (apart.amin(0) < 1e-6).all()
    assert len(apart.argmin(0).unique()) > 1


def shares_of_what_excites(name):
    """Pixels are from 0 up, so what excites are positive weights; with them turned, negative ones."""
    wins, loses = (part / part.sum((1, 2, 3), keepdim=True) for part in ((X * w).clamp(min=0), (-X * w).clamp(min=0)))
    expected = wins if name == "excitation_backprop" else (wins - loses).sum(1, keepdim=True).relu()
    assert_is(maps_of(name), expected)


def drops_of_all_windows_over_a_pixel(name):
    maps = maps_of(name, window=2, stride=1, baseline=START)
    drop = (w * (X - START)).sum(1)
    expected = torch.zeros(N, 1, H, W, dtype=torch.float64)
    for row in range(H):
        for column in range(W):
            tops, lefts = range(max(0, row - 1), min(row, H - 2) + 1), range(max(0, column - 1), min(column, W - 2) + 1)
            windows = [drop[:, top : top + 2, left : left + 2].sum((1, 2)) for top in tops for left in lefts]
            expected[:, 0, row, column] = sum(windows) / len(windows)
    assert_is(maps, expected)
    assert_is(maps_of(name, window=1, stride=1, baseline=START), drop[:, None])


def values_of_regions(name):
    """A region's Shapley value is what it adds; it is spread over its pixels and channels."""
    add = w * (X - START)
    assert_is(maps_of(name, region=1, samples=80, baseline=START), add.mean(1, keepdim=True).expand_as(X))
    expected = torch.zeros_like(X)
    for top in range(0, H, 3):
        for left in range(0, W, 3):
            here = (..., slice(top, top + 3), slice(left, left + 3))
            expected[here] = add[here].mean((1, 2, 3), keepdim=True)
    assert_is(maps_of(name, region=3, samples=8, baseline=START), expected)


def along(size, cells):
    """What each cell gives to each pixel, for each shift: Petsiuk et al. 2018, by hand."""
    cell = -(-size // cells)
    long = (cells + 1) * cell
    at = np.clip((np.arange(long) + 0.5) * cells / long - 0.5, 0, cells - 1)
    whole = np.stack([np.interp(at, np.arange(cells), one) for one in np.eye(cells)])
    return torch.from_numpy(np.stack([whole[:, shift : shift + size] for shift in range(cell)]))


def mean_of_masked_scores(name):
    """``E[(w.(m x) + b) m_p] / keep``, with the second moments of the masks; 64 maps of an image tell how far off."""
    keep, copies = 0.4, 64
    x, target = X[:1].expand(copies, -1, -1, -1), T[:1].expand(copies)
    maps = explained(name, linear(), x, target, score=logit, masks=1000, cells=3, keep=keep)[:, 0]
    together = [torch.einsum("sip,siq->pq", side, side) / len(side) for side in (along(H, 3), along(W, 3))]
    moment = keep**2 + keep * (1 - keep) * torch.einsum("ac,bd->abcd", *together)
    expected = (torch.einsum("cd,abcd->ab", (w * X)[0].sum(0), moment) + keep * b[0, 0]) / keep
    error = maps.std(0) / copies**0.5
    assert ((maps.mean(0) - expected).abs() < 5 * error).all()
    assert (error < 0.2 * expected.std()).all()


def brightest_where_the_evidence_is(name):
    """All evidence for the class in one corner, on an image of noise: there the mask stays open."""
    weight = torch.zeros(CLASSES, C, 16, 16, dtype=torch.float64)
    weight[:, :, 9:13, 2:6] = 1.0
    layer = nn.Linear(C * 256, CLASSES).double().requires_grad_(False)
    layer.weight.copy_(weight.flatten(1))
    x = torch.zeros(2, C, 16, 16, dtype=torch.float64)
    x[:, :, 9:13, 2:6] = 1.0
    for area in (0.05, 0.1):
        options = {"areas": (area,), "iterations": 200, "mirror": False}
        maps = explained(name, nn.Sequential(nn.Flatten(), layer), x, T[:2], **options)[:, 0]
        peak = maps.flatten(1).argmax(1)
        assert ((peak // 16 >= 9) & (peak // 16 < 13) & (peak % 16 >= 2) & (peak % 16 < 6)).all()
        assert maps[:, 9:13, 2:6].mean() > 4 * maps.mean()


def mean_of_two_models(name):
    pair = Twice(linear())
    pair.members[1] = linear(-3 * WEIGHT)
    assert_is(explained(name, pair, X, T), (w - 3 * w) / 2)


def its_own_draws(name, factor):
    assert_is(maps_of(name), factor * Rng(0, range(N)).normal(C, H, W).double())


def sobels(name):
    around = [[sobel(plane, axis=axis, mode="reflect") for axis in (0, 1)] for plane in X.flatten(0, 1).numpy()]
    expected = np.stack([np.hypot(*derivatives) for derivatives in around]).reshape(N, C, H, W)
    assert_is(maps_of(name), torch.from_numpy(expected))


def a_bump(name):
    u, v = (4 * (torch.arange(size).double() - size // 2) / size for size in (H, W))
    assert_is(maps_of(name), torch.exp(-(u[:, None] ** 2 + v**2) / 2).expand(N, C, H, W))


PATTERNS = Patterns(("linear",), (PATTERN.flatten(1),), ("1.weight",))
MIDDLE = score_of((X + START) / 2)
NO_PLANE, NO_RECTIFIER = "expected a layer with a plane", "would be the plain gradient under another name"

TRUTH = {
    "adaptive_integrated_gradients": formula(w * (X - START), baseline=START),
    "center_map": a_bump,
    "contrastive_excitation_backprop": shares_of_what_excites,
    "deconvolution": refused(NO_RECTIFIER),
    "deep_lift": both(formula(w * X), formula(w * (X - START), baseline=START)),
    "deep_lift_shap": formula(w * (X - OTHERS.mean(0))),
    "edge_map": sobels,
    "element_grad_cam": refused(NO_PLANE),
    "excitation_backprop": shares_of_what_excites,
    "expected_gradients": both(  # lines start at every image of the background as often
        formula(w * (X - OTHERS.mean(0)), samples=4), formula(w * (X - OTHERS.mean(0)), samples=12)),
    "extremal_perturbation": brightest_where_the_evidence_is,
    "grad_cam": refused(NO_PLANE),
    "gradient": formula(w),
    "gradient_shap": some_of_both_starts,
    "gradient_x_input": formula(w * X),
    "guided_backprop": refused(NO_RECTIFIER),
    "guided_grad_cam": refused(NO_PLANE),
    "input_map": formula(X),
    "input_x_random": functools.partial(its_own_draws, factor=X),
    "integrated_gradients": both(
        formula(w * (X - START), baseline=START, steps=1),
        formula(w * (X - START), baseline=START, steps=7, nodes="gauss_legendre"),
        formula(w, baseline=START, steps=7, nodes="right", multiply=False)),
    "integrated_gradients_over_background": formula(w * (X - OTHERS.mean(0)), steps=2),
    "kernel_shap": values_of_regions,
    "kernel_shap_over_background": formula(
        (w * (X - OTHERS.mean(0))).mean(1, keepdim=True).expand_as(X), region=1, samples=80),
    "lrp": formula(w * X * (1 - 1e-6 / (score_of(X).abs() + 1e-6))),  # what the epsilon absorbs
    "mean_over_models": mean_of_two_models,
    "occlusion": drops_of_all_windows_over_a_pixel,
    "pattern_attribution": both(  # the backward pass starts with the logit, or with one
        formula(w * a * score_of(X), patterns=PATTERNS), formula(w * a, patterns=PATTERNS, score=logit)),
    "pattern_guided_integrated_gradients": formula(
        w * a * MIDDLE * (X - START), patterns=PATTERNS, baseline=START, steps=4),
    "pattern_net": both(formula(a * score_of(X), patterns=PATTERNS), formula(a, patterns=PATTERNS, score=logit)),
    "random_map": functools.partial(its_own_draws, factor=1),
    "rise": mean_of_masked_scores,
    "smooth_grad": formula(w),
    "square_grad": formula(w**2),
    "uniform_map": formula(torch.ones_like(X)),
    "var_grad": formula(torch.zeros_like(X)),
}  # fmt: skip


def test_of_every_method_the_truth_is_known():
    assert sorted(TRUTH) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_of_a_linear_model_a_method_says_what_is_true(name):
    TRUTH[name](name)


# Class activation maps need a plane: a linear model with one


@pytest.mark.parametrize(("name", "layer"), [(n, at) for n in ("grad_cam", "element_grad_cam") for at in (None, "0")])
def test_of_a_linear_model_with_a_plane_the_map_is_the_evidence_of_each_place(name, layer):
    chance = torch.Generator().manual_seed(4)
    mix, last = torch.randn(4, C, generator=chance), torch.randn(CLASSES, 4, generator=chance)
    net = nn.Sequential(nn.Conv2d(C, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    net = net.double().requires_grad_(False).eval()
    net[0].weight.copy_(mix[:, :, None, None])
    net[3].weight.copy_(last)
    evidence = torch.einsum("nk,kc,nchw->nhw", last[T].double(), mix.double(), X)[:, None] / (H * W)
    maps = attribution.get(name).function(net, X, T, layer=layer, relu=False)
    assert_is(maps, evidence)
    assert_is(maps.sum((1, 2, 3)) + net[3].bias[T], net(X).gather(1, T[:, None])[:, 0])
    assert_is(attribution.get(name).function(net, X, T, layer=layer), evidence.relu())
