"""Bad input to every method: a sentence, or NaN, and never a map that looks like one."""

import jaxtyping
import pytest
import torch
from tests import models
from tests.attribution.every import CONTROLS, NAMES, explained, filters
from torch import nn

from consilience.attribution.patterns import patterns_from_weights
from consilience.component import attribution
from consilience.errors import ModelError, SpecError
from consilience.models.outputs import output_of

X, T = models.batch()
LOOKING = [name for name in NAMES if name not in CONTROLS]
"""What asks the model."""
PLANELESS = ("element_grad_cam", "grad_cam", "guided_grad_cam")
RULED = (
    "contrastive_excitation_backprop", "deconvolution", "excitation_backprop", "guided_backprop", "lrp",
    "pattern_attribution", "pattern_guided_integrated_gradients", "pattern_net",
)  # fmt: skip


@pytest.fixture
def unchecked():
    """Without the tests' own check of shapes, as users call a method."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


IMAGES, TARGETS = "x: expected float images", "target: expected [0-9]+ class numbers"
UNSOUND = {
    "images without a batch": (X[0], T, IMAGES),
    "images with an axis too many": (X[None], T[:1], IMAGES),
    "whole pixels": ((255 * X).long(), T, IMAGES),
    "targets that are floats": (X, T.double(), TARGETS),
    "targets that are truths": (X, T > 0, TARGETS),
    "a target too few": (X, T[:2], TARGETS),
    "targets one by one": (X, T[:, None], TARGETS),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_is_none_is_refused(name):
    model = models.plain().double()
    flows = {"ids": range(3), "others": models.batch(2)[0]}
    if "patterns" in attribution.get(name).roles:
        flows["patterns"] = patterns_from_weights(model, X, filters)
    for x, target, words in UNSOUND.values():
        with pytest.raises(SpecError, match=words):
            explained(name, model, x, target, **flows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [T + 2, T - 1])
def test_a_class_that_the_model_does_not_know_is_refused_by_all_that_ask_the_model(name, target):
    model = models.plain().double()
    if name in CONTROLS:
        assert explained(name, model, X, target).isfinite().all()
        return
    with pytest.raises(ModelError, match="target: expected classes from 0 to 3, found"):
        explained(name, model, X, target)


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize(
    ("build", "words", "which"),
    [
        (models.tuple_of_outputs, r"found a tuple of 0 \[\d+, 4\], 1 .*; say which: output_of\(model, 0\)", 0),
        (models.dict_of_outputs, r"found a dict of 'logits' \[\d+, 4\], .* output_of\(model, 'logits'\)", "logits"),
    ],
    ids=["tuple", "dict"],
)
def test_of_several_outputs_one_must_be_named(name, build, words, which):
    model = build().double()
    with pytest.raises(ModelError, match=words):
        explained(name, model, X, T)
    maps = explained(name, output_of(model, which), X, T)
    expected = explained(name, model.net, X, T)
    torch.testing.assert_close(maps, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_no_number_has_a_map_of_nan(name, value):
    model = models.fixed(lambda: models.Call(lambda m, x: m.net(x) * value, net=models.plain())).double()
    assert explained(name, model, X, T).isnan().all()


# A model whose answer is always the same


def muted():
    """The plain network, whose last layer has weights of zero."""
    model = models.plain().double()
    model[-1].weight.zero_()
    return model


NO_LAYER = "would be the plain gradient under another name"
NO_PLANE = "expected a layer with a plane through which everything goes"
NO_SLOPE = "found that no gradient reaches them"
NO_WAY = "found that no operation leads to them"
UNLIKE_ZERO = ("extremal_perturbation", "rise")
"""A constant score is no reason for a map of zeros: the search has an area to keep, the mean has a score to show."""


def refused(name, build):
    """Why a method refuses a model whose answer is always the same, if it does."""
    if build is muted:
        return None
    if name in RULED:
        return NO_LAYER
    if build is models.unconnected:
        perturbing = name in ("kernel_shap", "kernel_shap_over_background", "occlusion", "rise")
        return None if perturbing else NO_WAY if name in ("deep_lift", "deep_lift_shap") else NO_SLOPE
    return NO_PLANE if name in PLANELESS else None


@pytest.mark.parametrize("build", [muted, models.constant, models.unconnected])
@pytest.mark.parametrize("name", [name for name in LOOKING if name not in UNLIKE_ZERO])
def test_an_answer_that_is_always_the_same_has_a_map_of_zeros_or_none(name, build):
    model = build().double()
    if words := refused(name, build):
        with pytest.raises(ModelError, match=words):
            explained(name, model, X, T)
    else:
        assert not explained(name, model, X, T).any()


@pytest.mark.parametrize("build", [muted, models.constant, models.unconnected])
def test_the_mean_over_masks_of_a_constant_score_is_that_score_but_for_chance(build):
    maps = explained("rise", build().double(), X, T, masks=2000)
    score = torch.softmax(build().double()(X), 1).gather(1, T[:, None]).view(-1, 1, 1, 1)
    # a pixel's mean mask is 1/2, and its variance at most that of a cell by itself, 1/4
    assert ((maps / score - 1).abs() < 5 / 2000**0.5).all()


@pytest.mark.parametrize("build", [muted, models.constant])
def test_the_best_mask_of_a_constant_score_is_flat_but_for_the_border(build):
    maps = explained("extremal_perturbation", build().double(), X, T, iterations=60, areas=(0.1,))
    expected = maps[:1].expand_as(maps)
    torch.testing.assert_close(maps, expected, atol=1e-12, rtol=0)  # whatever the image
    for turned in (maps.flip(2), maps.flip(3), maps.mT):
        torch.testing.assert_close(maps, turned, atol=1e-12, rtol=0)
    assert maps[..., 6:10, 6:10].std() < 1e-3 * maps.mean()


def test_a_search_in_what_does_not_look_at_the_image_is_refused():
    with pytest.raises(ModelError, match=NO_SLOPE):
        explained("extremal_perturbation", models.unconnected(), X, T)


# What flows in besides


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [name for name in NAMES if "background" in attribution.get(name).roles])
@pytest.mark.parametrize("wrong", [X[:0], X[:, :1], X[..., :8], X[0]], ids=["none", "channels", "size", "rank"])
def test_a_background_of_other_images_is_refused(name, wrong):
    with pytest.raises(SpecError, match=r"background: expected at least one image of .*; give examples"):
        explained(name, models.plain().double(), X, T, others=wrong)


@pytest.mark.parametrize("name", [n for n in NAMES if "layer" in attribution.get(n).schema.__struct_fields__])
def test_a_layer_that_does_not_exist_is_refused_with_a_near_name(name):
    model = models.residual().double()
    with pytest.raises(SpecError, match=r"no layer is named 'conv44'; did you mean 'conv4'\?"):
        explained(name, model, X, T, layer="conv44")
    assert explained(name, model, X, T, layer="conv4").isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if "patterns" in attribution.get(name).roles])
def test_patterns_of_another_model_are_refused(name):
    patterns = patterns_from_weights(models.global_average().double(), X, filters)
    with pytest.raises(ModelError, match="make the patterns of this very model"):
        explained(name, models.plain().double(), X, T, patterns=patterns)


def test_an_ensemble_without_members_is_refused():
    component = attribution.get("mean_over_models")
    with pytest.raises(ModelError, match="expected an ensemble, whose models are in its ModuleList 'members'"):
        component.function(nn.Sequential(models.plain()), X, T)
