"""Methods on trained networks of other people: they answer rightly, and the maps are those of third parties."""

import copy
import functools
import warnings

import pytest
import torch
from tests.attribution.every import NAMES, explained, logits_of, through_the_graph
from tests.attribution.real import DIGITS, EFFICIENTNET, SQUEEZENET, quietly, recognised
from torch import nn
from torch.nn.functional import interpolate

from consilience.attribution.adaptive import integrated_gradients_with_error
from consilience.attribution.cam import grad_cam
from consilience.attribution.deep_lift import deep_lift, deep_lift_shap
from consilience.attribution.gradient import gradient
from consilience.attribution.guided import deconvolution, guided_backprop
from consilience.attribution.path import integrated_gradients
from consilience.attribution.preflight import preflight
from consilience.attribution.relevance import epsilon_rule, lrp

ALL = pytest.mark.parametrize("network", [SQUEEZENET, EFFICIENTNET, DIGITS])
IN_A_ROW = pytest.mark.parametrize("network", [SQUEEZENET, DIGITS])
RIGHT = {"squeezed": 13, "efficient": 17, "recognised": 100}
BEFORE_THE_POOL = {
    "squeezed": "model.features",
    "efficient": "model._avg_pooling",
    "recognised": "model.conv_layers",
}


def two(network):
    """The model, two images and what they show."""
    model, x, target = network()
    return model, x[2:4], target[2:4]


def doubled(network):
    """The same in double precision, without flat grounds, where max-pools tie: rounding turns nothing on or off."""
    model, x, target = two(network)
    noise = 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return copy.deepcopy(model).double(), (x + noise).double(), target


def assert_alike(maps, expected, tolerance):
    assert expected.abs().max() > 0
    torch.testing.assert_close(maps, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def assert_sums(maps, expected, tolerance):
    assert ((maps.sum((1, 2, 3)) - expected).abs() <= tolerance * maps.abs().sum((1, 2, 3))).all()


@ALL
def test_wrapped_a_network_knows_what_it_was_trained_for(network):
    model, x, target = network()
    with torch.no_grad():
        assert int((model(x).argmax(1) == target).sum()) == RIGHT[network.__name__]


@ALL
def test_integrated_gradients_are_captums(network):
    model, x, target = doubled(network)
    captum = quietly("captum.attr")
    options = {"n_steps": 4, "method": "riemann_middle", "internal_batch_size": 4}
    theirs = captum.IntegratedGradients(model).attribute(x, target=target, **options).detach()
    assert_alike(integrated_gradients(model, x, target, steps=4), theirs, 1e-9)
    single = integrated_gradients(network()[0], x.float(), target, steps=4)
    assert (single - theirs).norm() < 0.01 * theirs.norm()


@ALL
def test_class_activation_maps_are_captums(network):
    model, x, target = two(network)
    captum = quietly("captum.attr")
    name = network.__name__
    theirs = captum.LayerGradCam(model, model.get_submodule(BEFORE_THE_POOL[name])).attribute(
        x, target=target, relu_attributions=True, attribute_to_layer_input=name == "efficient"
    )
    assert_alike(grad_cam(model, x, target, resize="none"), theirs.detach(), 1e-4)
    large = interpolate(theirs.detach(), x.shape[2:], mode="bilinear", align_corners=False)
    assert_alike(grad_cam(model, x, target), large, 1e-4)


@ALL
def test_guided_maps_are_those_of_torchs_own_graph(network):
    model, x, target = two(network)
    guided = through_the_graph(model, x, target, lambda into, out: into.relu())
    assert_alike(guided_backprop(model, x, target), guided, 1e-5)
    deconvolved = through_the_graph(model, x, target, lambda into, out: out.relu())
    assert_alike(deconvolution(model, x, target), deconvolved, 1e-5)


@IN_A_ROW
def test_guided_maps_are_captums(network):
    model, x, target = two(network)
    captum = quietly("captum.attr")
    apart = copy.deepcopy(model)
    for module in apart.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's hooks do not take it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it sets hooks
        theirs = captum.GuidedBackprop(apart).attribute(x, target=target)
    assert_alike(guided_backprop(model, x, target), theirs.detach(), 1e-5)


@ALL
def test_deep_lift_adds_up_to_the_difference_of_the_scores(network):
    model, x, target = two(network)
    maps = deep_lift(model, x, target, baseline="mean")
    mean = model.pixel_mean.expand_as(x)
    assert_sums(maps, logits_of(model, x, target) - logits_of(model, mean, target), 1e-4)
    _, images, _ = network()
    background = images[5:7]
    rest = torch.stack([logits_of(model, background, t.expand(2)).mean() for t in target])
    assert_sums(deep_lift_shap(model, x, target, background), logits_of(model, x, target) - rest, 1e-4)


def test_deep_lift_shap_is_shaps():
    shap = quietly("shap")
    model, x, target = two(recognised)
    _, images, _ = recognised()
    background = images[10:15]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = torch.from_numpy(shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)).float()
    expected = torch.stack([every[i, ..., t] for i, t in enumerate(target)])
    assert_alike(deep_lift_shap(model, x, target, background), expected, 1e-3)


@IN_A_ROW
def test_relevance_is_zennits(network):
    model, x, target = doubled(network)
    composite = quietly("zennit.composites").EpsilonPlus(epsilon=1e-6, stabilizer=1e-13)
    shown = model.normalise(x).requires_grad_()
    with quietly("zennit.attribution").Gradient(model.model, composite) as attributor:
        theirs = attributor(shown, lambda out: out * nn.functional.one_hot(target, out.shape[1]))[1]
    assert_alike(lrp(model, x, target), theirs.detach(), 1e-9)


@ALL
def test_relevance_in_single_precision_is_that_in_double(network):
    model, x, target = doubled(network)
    single, double = lrp(network()[0], x.float(), target), lrp(model, x, target)
    assert (single - double).norm() < 0.01 * double.norm()


@IN_A_ROW
def test_without_an_epsilon_relevance_is_the_slope_times_the_normalised_pixel(network):
    model, x, target = doubled(network)
    relevance, shown = lrp(model, x, target, rule=functools.partial(epsilon_rule, epsilon=0.0)), model.normalise(x)
    assert_alike(relevance, shown * gradient(model.model, shown, target), 1e-9)


def test_adaptive_nodes_are_enough_and_the_maps_add_up():
    model, x, target = recognised()
    model, x, target = copy.deepcopy(model).double(), x[:5].double(), target[:5]
    found = integrated_gradients_with_error(model, x, target, tolerance=0.03, most=256)
    exact = integrated_gradients(model, x, target, steps=600)
    apart = (found.maps - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert (apart <= found.error).sum() >= 4
    assert (apart < 0.03).all()
    assert_sums(exact, logits_of(model, x, target) - logits_of(model, torch.zeros_like(x), target), 0.01)


# Every method on digits

POINTING = [
    "adaptive_integrated_gradients", "deep_lift", "deep_lift_shap", "excitation_backprop", "expected_gradients",
    "extremal_perturbation", "gradient_x_input", "integrated_gradients", "kernel_shap", "lrp", "occlusion",
]  # fmt: skip
"""What says which pixels are evidence for the class, at once and by sign."""
ENOUGH = {
    "expected_gradients": {"samples": 16},
    "extremal_perturbation": {"iterations": 60, "areas": (0.1,), "mirror": False},
    "integrated_gradients": {"steps": 16},
    "kernel_shap": {"samples": 300},
    "kernel_shap_over_background": {"samples": 300},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_explains_digits(name):
    model, x, target = two(recognised)
    maps = explained(name, model, x, target, others=torch.zeros_like(x[:1]), **ENOUGH.get(name, {}))
    assert maps.shape == x.shape
    assert maps.isfinite().all()
    assert (maps != 0).any()


@pytest.mark.parametrize("name", POINTING)
def test_pixels_that_a_method_ranks_first_matter_more_than_as_many_by_chance(name):
    """Of eight digits, forty of the inked pixels are wiped out: those of the map, or forty others."""
    model, x, target = recognised()
    x, target = x[:8], target[:8]
    maps = explained(name, model, x, target, others=torch.zeros_like(x[:1]), **ENOUGH.get(name, {}))
    inked, chance = x > 0.1, torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    drops = []
    for order in (maps, chance):
        first = order.masked_fill(~inked, -torch.inf).flatten(1).topk(40).indices
        wiped = x.flatten(1).scatter(1, first, 0.0).view_as(x)
        drops.append((logits_of(model, x, target) - logits_of(model, wiped, target)).mean())
    assert drops[0] > 1.2 * drops[1] > 0


@ALL
@pytest.mark.parametrize("method", ["deep_lift", "grad_cam", "gradient", "guided_backprop", "lrp"])
def test_preflight_lets_them_pass(network, method):
    model, x, target = two(network)
    assert preflight(method, model, x, target)
