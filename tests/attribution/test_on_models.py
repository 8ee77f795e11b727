"""Every method on every network as people write them: it keeps the sharpest property known of it, or it refuses."""

import functools

import pytest
import torch
from tests import models
from tests.attribution.every import FEWER, NAMES, background, explained, filters
from tests.laws.laws import Twice

from consilience.attribution.patterns import patterns_from_weights
from consilience.attribution.preflight import examine
from consilience.component import attribution
from consilience.errors import ModelError, SpecError

SMOOTH = {name: functools.partial(models.smooth, name) for name in models.SMOOTH}
OTHERS = {
    "single_logit": lambda channels, classes: models.single_logit(channels),
    "scripted": models.scripted,
    "partly_scripted": models.partly_scripted,
}
BUILDS = {**models.ALL, **SMOOTH, **OTHERS}
X, T = models.batch()
TARGETS = {"single_logit": T % 2}

# What is refused, by the words of the error

RECTIFIED = ("deconvolution", "guided_backprop", "guided_grad_cam")
EXCITED = ("contrastive_excitation_backprop", "excitation_backprop")
PATTERNED = ("pattern_attribution", "pattern_guided_integrated_gradients", "pattern_net")
DIFFERED = ("deep_lift", "deep_lift_shap")
CAMS = ("element_grad_cam", "grad_cam")
RULED = (*RECTIFIED, *EXCITED, *PATTERNED, "lrp")

REFUSED = {
    (name, build): words
    for names, builds, words in [
        (RECTIFIED, ("transformer", "pooled_transformer", *SMOOTH), "would be the plain gradient under another name"),
        (EXCITED, ("squeeze_excitation",), "expected operations that the rule knows, found mul"),
        (EXCITED, ("log_softmax",), "expected operations that the rule knows, found log_softmax"),
        ((*EXCITED, "lrp"), ("transformer", "pooled_transformer"), "found layer_norm for which it has no rule"),
        (DIFFERED, ("transformer", "pooled_transformer"), "found 'multi_head_attention_forward'"),
        (PATTERNED, ("transformer", "pooled_transformer"), "multi_head_attention_forward, for which there is no patte"),
        (RULED, ("checkpointed",), "found a checkpoint"),
        (("rise",), ("single_logit",), "choose head = 'binary'"),
        ((*RULED, *DIFFERED), ("scripted", "partly_scripted"), "scripted, traced or compiled; give the orig"),
        (CAMS, ("scripted", "partly_scripted"), "scripted or compiled .* give the model as it was before"),
        (("guided_grad_cam",), ("scripted", "partly_scripted"), "give the model as it was before"),
    ]
    for name in names
    for build in builds
}
EVERY = [(name, build) for name in NAMES for build in BUILDS]


@functools.cache
def built(build, channels=3):
    return BUILDS[build](channels, 4).double()


@pytest.mark.parametrize(("name", "build"), EVERY)
def test_a_map_for_each_image_alone_or_among_others_in_either_precision_or_a_sentence(name, build):
    model, target = built(build), TARGETS.get(build, T)
    if (name, build) in REFUSED:
        with pytest.raises((ModelError, SpecError), match=REFUSED[name, build]):
            explained(name, model, X, target)
        return
    maps = explained(name, model, X, target)
    assert maps.shape in {(3, 3, 16, 16), (3, 1, 16, 16)}
    assert maps.dtype == X.dtype
    assert maps.isfinite().all()
    scale = maps.abs().max()
    alone = explained(name, model, X[2:], target[2:], [2])
    torch.testing.assert_close(alone, maps[2:], atol=1e-9 * scale, rtol=0)
    single = explained(name, BUILDS[build](3, 4), X[:1].float(), target[:1])
    assert single.dtype == torch.float32
    assert (single - maps[:1]).abs().max() <= 1e-3 * scale


@pytest.mark.parametrize("name", NAMES)
def test_of_one_channel_and_another_number_of_classes_maps_are_as_sound(name):
    x, target = models.batch(2, channels=1, classes=7, dtype=torch.float32)
    for build in ("plain", "residual", "dense"):
        maps = explained(name, models.ALL[build](1, 7), x, target + 5)
        assert maps.shape == (2, 1, 16, 16)
        assert maps.isfinite().all()


# However a rectifier is written


@functools.cache
def original(name):
    return explained(name, models.relus()["nn.ReLU"].double(), X, T)


def assert_as_original(name, model):
    assert (explained(name, model.double(), X, T) - original(name)).abs().max() <= 1e-9 * original(name).abs().max()


OF_NO_AXES = [(name, "maximum(x, 0)") for name in (*CAMS, "guided_grad_cam")]


@pytest.mark.parametrize("name", NAMES)
def test_however_a_rectifier_is_written_the_maps_are_equal(name):
    for written, model in models.relus().items():
        if (name, written) not in OF_NO_AXES:
            assert_as_original(name, model)


@pytest.mark.parametrize(("name", "written"), OF_NO_AXES)
def test_also_where_the_model_makes_a_tensor_of_no_axes(name, written):
    assert_as_original(name, models.relus()[written])


NONE, HIDDEN = "would be the plain gradient under another name", "found a tensor made of the pixels by code that hides"
UNSEEN = {
    (name, written): words
    for names, kinds, words in [
        (RECTIFIED, ("product", "where", "scripted"), NONE),
        (DIFFERED, ("product", "where"), "found 'gt'"),
        (DIFFERED, ("scripted",), HIDDEN),
        ((*CAMS, "guided_grad_cam"), ("scripted",), "found a plane behind the last layer that no call shows"),
    ]
    for name in names
    for written in kinds
}


@pytest.mark.parametrize("written", models.unseen_relus())
@pytest.mark.parametrize("name", NAMES)
def test_a_rectifier_that_no_list_holds_makes_no_difference_or_is_refused(name, written):
    model = models.unseen_relus()[written]
    if (name, written) in UNSEEN:
        with pytest.raises(ModelError, match=UNSEEN[name, written]):
            explained(name, model.double(), X, T)
    else:
        assert_as_original(name, model)


# Preflight

ENOUGH = {"adaptive_integrated_gradients": {"most": 512}, "integrated_gradients": {"steps": 100}}


@pytest.mark.parametrize("build", ["plain", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_preflight_finds_nothing_wrong_where_a_method_is_sound(name, build):
    component, model = attribution.get(name), models.ALL[build]().double()
    method = functools.partial(component.function, **{**FEWER.get(name, {}), **ENOUGH.get(name, {})})
    flows = {"background": background(X)}
    if "patterns" in component.roles:
        flows["patterns"] = patterns_from_weights(model, X, filters)
    checks = examine(method, Twice(model) if name == "mean_over_models" else model, X, T, **flows)
    assert [check for check in checks if check.verdict == "wrong"] == []
    assert {"modes", "finite", "not empty", "deterministic", "batch invariant"} <= {check.name for check in checks}
    choice = attribution.choose(method)
    assert ("complete" in {check.name for check in checks}) == choice.complete
    assert all(check.verdict == "good" for check in checks if check.name == "complete")
