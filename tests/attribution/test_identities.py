"""The sharpest thing known of every method, on every network of the fixtures that it accepts."""

import functools

import pytest
import torch
from tests import models
from tests.attribution.every import NAMES, background, explained, logits_of, through_the_graph

from consilience.attribution.cam import grad_cam
from consilience.attribution.excitation import excitation_backprop
from consilience.attribution.gradient import gradient
from consilience.attribution.guided import deconvolution, guided_backprop
from consilience.attribution.path import integrated_gradients
from consilience.attribution.patterns import patterns_from_weights
from consilience.attribution.relevance import epsilon_rule
from consilience.attribution.scores import logit, probability

X, T = models.batch(2)
IMAGE, CLASS = X[1:], T[1:]
NORMED = ("residual", "dense", "inception", "depthwise")
WITHOUT_NORM = [name for name in models.CONVOLUTIONAL if name not in NORMED]


def assert_alike(maps, expected, scale=None):
    largest = float((expected if scale is None else scale).abs().max())
    torch.testing.assert_close(maps, expected, atol=1e-10 * largest, rtol=1e-8)


def assert_sums(maps, expected, tolerance):
    """Sums of maps, to a share of all that stands in them."""
    assert ((maps.sum((1, 2, 3)) - expected).abs() <= tolerance * maps.abs().sum((1, 2, 3))).all()


def rise_from(model, x, target, start):
    return logits_of(model, x, target) - logits_of(model, start, target)


def slope_along_a_line(model):
    maps, step = gradient(model, X, T), torch.randn(X.shape, generator=torch.Generator().manual_seed(5)).to(X)
    slope = (logits_of(model, X + 1e-6 * step, T) - logits_of(model, X - 1e-6 * step, T)) / 2e-6
    torch.testing.assert_close((maps * step).sum((1, 2, 3)), slope, atol=1e-7, rtol=1e-5)


def pixel_times_gradient(model):
    assert_alike(explained("gradient_x_input", model, X, T), X * gradient(model, X, T))


def complete_to_rounding(name, start, **options):
    def check(model):
        maps = explained(name, model, X, T, **options)
        assert_sums(maps, rise_from(model, X, T, torch.full_like(X, start)), 1e-8)

    return check


def complete_with_many_nodes(name, tolerance=0.02, **options):
    def check(model):
        maps = explained(name, model, IMAGE, CLASS, **options)
        assert_sums(maps, rise_from(model, IMAGE, CLASS, torch.zeros_like(IMAGE)), tolerance)

    return check


def complete_over_the_background(name, tolerance, **options):
    def check(model):
        others = background(IMAGE)
        maps = explained(name, model, IMAGE, CLASS, **options)
        mean = logits_of(model, others, CLASS.expand(len(others))).mean()
        assert_sums(maps, logits_of(model, IMAGE, CLASS) - mean, tolerance)

    return check


def from_one_image_what_the_line_gives(model):
    """The draws of many lines from a black image are nodes of Integrated Gradients, placed by chance."""
    black = torch.zeros_like(IMAGE)
    maps = explained("gradient_shap", model, IMAGE, CLASS, others=black, draws=400)
    whole = integrated_gradients(model, IMAGE, CLASS, steps=100)
    assert (maps - whole).norm() < 0.15 * whole.norm()


def of_equal_copies(name, expected):
    """Without noise, all copies are the image."""

    def check(model):
        slope = gradient(model, X, T)
        assert_alike(explained(name, model, X, T, noise=0.0), expected(slope), slope.square())

    return check


def what_the_squares_have_over_the_mean(model):
    """Of the same copies, the variance is the mean square less the square of the mean."""
    of_equal_copies("var_grad", torch.zeros_like)(model)
    mean, square, spread = (explained(name, model, X, T) for name in ("smooth_grad", "square_grad", "var_grad"))
    assert_alike(spread, square - mean.square(), square)
    assert spread.min() >= 0
    assert spread.max() > 0


def guided_in_torchs_own_graph(model):
    assert_alike(guided_backprop(model, X, T), through_the_graph(model, X, T, lambda into, out: into.relu()))


def deconvolved_in_torchs_own_graph(model):
    assert_alike(deconvolution(model, X, T), through_the_graph(model, X, T, lambda into, out: out.relu()))


def guided_times_cam(model):
    assert_alike(explained("guided_grad_cam", model, X, T), guided_backprop(model, X, T) * grad_cam(model, X, T))


def linear_in_the_score(name):
    """Without its ReLU, a class activation map of a difference of logits is the difference of their maps."""

    def check(model):
        def margin(logits, target):
            return logit(logits, target) - logit(logits, 1 - target)

        whole = explained(name, model, X, T, score=margin, relu=False)
        parts = (explained(name, model, X, target, relu=False) for target in (T, 1 - T))
        assert_alike(whole, next(parts) - next(parts))
        shown = explained(name, model, X, T, resize="none")
        assert_alike(shown, explained(name, model, X, T, resize="none", relu=False).relu())

    return check


def pixel_times_gradient_without_an_epsilon(model):
    maps = explained("lrp", model, X, T, rule=functools.partial(epsilon_rule, epsilon=0.0))
    assert_alike(maps, X * gradient(model, X, T))


def one_in_all_less_what_nothing_excites(model):
    maps = excitation_backprop(model, X, T)
    assert maps.min() >= 0
    assert (maps.sum((1, 2, 3)) <= 1 + 1e-9).all()
    assert maps.sum((1, 2, 3)).max() > 0.9


def no_more_than_the_winners_share(model):
    maps, winner = explained("contrastive_excitation_backprop", model, X, T), excitation_backprop(model, X, T)
    assert maps.min() >= 0
    assert maps.max() > 0
    assert (maps <= winner.sum(1, keepdim=True) + 1e-12).all()


def ones(label, weight):
    return torch.ones_like(weight)


def the_gradient_of_patterns_that_change_nothing(name, make):
    def check(model):
        patterns = patterns_from_weights(model, X, make)
        assert_alike(explained(name, model, X, T, patterns=patterns, score=logit), gradient(model, X, T))

    return check


def the_line_of_patterns_that_change_nothing(model):
    options = {"patterns": patterns_from_weights(model, X, ones), "score": logit, "steps": 5}
    maps = explained("pattern_guided_integrated_gradients", model, X, T, **options)
    assert_alike(maps, integrated_gradients(model, X, T, steps=5))


def a_window_over_all_takes_everything(model):
    maps = explained("occlusion", model, X, T, window=16, stride=16)
    assert_alike(maps, rise_from(model, X, T, torch.zeros_like(X)).view(-1, 1, 1, 1).expand(-1, 1, 16, 16))


def a_mask_that_keeps_all_sees_the_score(model):
    maps = explained("rise", model, X, T, keep=1.0)
    assert_alike(maps, probability(model(X), T).view(-1, 1, 1, 1).expand(-1, 1, 16, 16))


def between_nothing_and_the_whole(model):
    maps = explained("extremal_perturbation", model, X, T)
    assert maps.min() >= 0
    assert maps.max() <= 1


def the_members_own(model):
    assert_alike(explained("mean_over_models", model, X, T), gradient(model, X, T))


def whatever_the_model(name):
    def check(model):
        assert torch.equal(explained(name, model, X, T), explained(name, models.plain().double(), X, 1 - T))

    return check


EVERYWHERE = tuple(models.ALL)
CONVOLVED = tuple(models.CONVOLUTIONAL)
WITH_NEGATIVE_SUMMANDS = ("residual", "dense", "depthwise")
EXCITED = [n for n in CONVOLVED if n not in (*WITH_NEGATIVE_SUMMANDS, "squeeze_excitation", "log_softmax")]

KNOWN = {
    "adaptive_integrated_gradients": (complete_with_many_nodes("adaptive_integrated_gradients", most=512), EVERYWHERE),
    "center_map": (whatever_the_model("center_map"), EVERYWHERE),
    "contrastive_excitation_backprop": (no_more_than_the_winners_share, EXCITED),
    "deconvolution": (deconvolved_in_torchs_own_graph, CONVOLVED),
    "deep_lift": (complete_to_rounding("deep_lift", 0.3, baseline=0.3), CONVOLVED),
    "deep_lift_shap": (complete_over_the_background("deep_lift_shap", 1e-8), CONVOLVED),
    "edge_map": (whatever_the_model("edge_map"), EVERYWHERE),
    "element_grad_cam": (linear_in_the_score("element_grad_cam"), EVERYWHERE),
    "excitation_backprop": (one_in_all_less_what_nothing_excites, EXCITED),
    "expected_gradients": (complete_over_the_background("expected_gradients", 0.05, samples=400), EVERYWHERE),
    "extremal_perturbation": (between_nothing_and_the_whole, EVERYWHERE),
    "grad_cam": (linear_in_the_score("grad_cam"), EVERYWHERE),
    "gradient": (slope_along_a_line, EVERYWHERE),
    "gradient_shap": (from_one_image_what_the_line_gives, EVERYWHERE),
    "gradient_x_input": (pixel_times_gradient, EVERYWHERE),
    "guided_backprop": (guided_in_torchs_own_graph, CONVOLVED),
    "guided_grad_cam": (guided_times_cam, CONVOLVED),
    "input_map": (whatever_the_model("input_map"), EVERYWHERE),
    "input_x_random": (whatever_the_model("input_x_random"), EVERYWHERE),
    "integrated_gradients": (complete_with_many_nodes("integrated_gradients", steps=100), EVERYWHERE),
    "integrated_gradients_over_background": (
        complete_over_the_background("integrated_gradients_over_background", 0.02, steps=50), EVERYWHERE),
    "kernel_shap": (complete_to_rounding("kernel_shap", 0.0), EVERYWHERE),
    "kernel_shap_over_background": (complete_over_the_background("kernel_shap_over_background", 1e-6), EVERYWHERE),
    "lrp": (  # a norm in front of its layer and a gate have rules of their own
        pixel_times_gradient_without_an_epsilon, [n for n in CONVOLVED if n not in ("dense", "squeeze_excitation")]),
    "mean_over_models": (the_members_own, EVERYWHERE),
    "occlusion": (a_window_over_all_takes_everything, EVERYWHERE),
    "pattern_attribution": (the_gradient_of_patterns_that_change_nothing("pattern_attribution", ones), WITHOUT_NORM),
    "pattern_guided_integrated_gradients": (the_line_of_patterns_that_change_nothing, WITHOUT_NORM),
    "pattern_net": (the_gradient_of_patterns_that_change_nothing("pattern_net", lambda _, w: w), WITHOUT_NORM),
    "random_map": (whatever_the_model("random_map"), EVERYWHERE),
    "rise": (a_mask_that_keeps_all_sees_the_score, EVERYWHERE),
    "smooth_grad": (of_equal_copies("smooth_grad", lambda slope: slope), EVERYWHERE),
    "square_grad": (of_equal_copies("square_grad", torch.square), EVERYWHERE),
    "uniform_map": (whatever_the_model("uniform_map"), EVERYWHERE),
    "var_grad": (what_the_squares_have_over_the_mean, EVERYWHERE),
}  # fmt: skip


def test_something_is_known_of_every_method():
    assert sorted(KNOWN) == NAMES


@pytest.mark.parametrize(("name", "build"), [(name, build) for name, (_, builds) in KNOWN.items() for build in builds])
def test_every_method_keeps_what_is_known_of_it(name, build):
    check, _ = KNOWN[name]
    check(models.ALL[build](3, 4).double())


@pytest.mark.parametrize("name", WITH_NEGATIVE_SUMMANDS)
def test_sums_and_average_pools_of_both_signs_make_negative_shares(name):
    with pytest.raises(AssertionError):  # as the documentation says
        one_in_all_less_what_nothing_excites(models.ALL[name](3, 4).double())
