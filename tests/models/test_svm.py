"""The kernel machine against scikit-learn's, and its slopes against differences and the closed form."""

import copy
import itertools
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.datasets import load_digits
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from consilience import tensors
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.component import architecture
from consilience.errors import DataError, ModelError, SpecError
from consilience.models import svm
from consilience.models.edits import randomise
from consilience.models.split import normalised
from consilience.models.svm import rbf_svm
from consilience.rng import Rng

SHAPE = (1, 8, 8)
SCHEMES = pytest.mark.parametrize("scheme", ["one_vs_one", "one_vs_rest"])
CLASSES = pytest.mark.parametrize("classes", [2, 3, 5])
STANDARDISE = pytest.mark.parametrize("standardise", [True, False])


def digits(classes, part=slice(0, 150)):
    """Small digits with pixels in [0, 1], some of which never change."""
    bunch = load_digits(n_class=classes)
    x = torch.from_numpy(bunch.images[part])[:, None] / 16
    return x, torch.from_numpy(bunch.target[part]).long()


def fitted(classes=3, dtype=torch.float64, data=None, **options):
    x, label = digits(classes) if data is None else data
    machine = rbf_svm(SHAPE, classes, **options).to(dtype)
    machine.fit(x.to(dtype), label)
    return machine


def theirs(x, label, scheme="one_vs_one", standardise=True, c=15.0, gamma=0.001, **options):
    one = SVC(C=c, gamma=gamma, decision_function_shape="ovo", **options)
    machine = OneVsRestClassifier(one) if scheme == "one_vs_rest" else one
    return make_pipeline(*([StandardScaler()] if standardise else []), machine).fit(x.flatten(1).numpy(), label.numpy())


def asked(pipeline, x):
    answer = torch.from_numpy(pipeline.decision_function(x.double().flatten(1).numpy()))
    return answer if answer.ndim == 2 else answer[:, None]


HELD_OUT = slice(150, 220)


@SCHEMES
@STANDARDISE
@CLASSES
def test_decisions_are_those_of_scikit_learn(classes, standardise, scheme):
    (x, label), (new, _) = digits(classes), digits(classes, HELD_OUT)
    options = {"scheme": scheme, "standardise": standardise, "gamma": 0.001 if standardise else 0.1}
    ours, expected = fitted(classes, **options), asked(theirs(x, label, **options), new)
    assert ours.decisions(new).shape == expected.shape
    torch.testing.assert_close(ours.decisions(new), expected, atol=1e-10, rtol=0)
    assert expected.std(0).min() > 0.05


@pytest.mark.parametrize("options", [{"c": 0.1}, {"c": 100.0}, {"gamma": 0.05}])
def test_options_are_those_of_scikit_learn(options):
    (x, label), (new, _) = digits(4), digits(4, HELD_OUT)
    torch.testing.assert_close(
        fitted(4, **options).decisions(new), asked(theirs(x, label, **options), new), atol=1e-10, rtol=0
    )


@CLASSES
def test_a_logit_counts_the_soft_votes_for_its_class(classes):
    """Word for word, from pairs that scikit-learn decided."""
    (x, label), (new, _) = digits(classes), digits(classes, HELD_OUT)
    decided = asked(theirs(x, label), new)
    if classes == 2:  # scikit-learn turns the sign of a single pair
        decided = -decided
    expected = torch.zeros(len(new), classes, dtype=torch.float64)
    for column, (first, second) in enumerate(itertools.combinations(range(classes), 2)):
        vote = decided[:, column] if classes == 2 else decided[:, column].tanh()
        expected[:, first] += vote
        expected[:, second] -= vote
    torch.testing.assert_close(fitted(classes)(new), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("classes", [3, 5])
def test_a_logit_against_the_rest_is_the_decision_itself(classes):
    machine, (new, _) = fitted(classes, scheme="one_vs_rest"), digits(classes, HELD_OUT)
    torch.testing.assert_close(machine(new), machine.decisions(new), atol=0, rtol=0)


@SCHEMES
def test_most_held_out_digits_are_recognised(scheme):
    new, label = digits(10, slice(600, 1000))
    machine = fitted(10, data=digits(10, slice(0, 600)), scheme=scheme)
    assert (machine(new).argmax(1) == label).double().mean() > 0.85


def test_the_largest_logit_is_as_a_rule_that_of_the_class_with_most_votes():
    (x, label), (new, _) = digits(10, slice(0, 600)), digits(10, slice(600, 1000))
    pipeline = theirs(x, label)
    votes = torch.from_numpy(pipeline.predict(new.flatten(1).numpy()))
    share = (fitted(10, data=(x, label))(new).argmax(1) != votes).double().mean()
    assert 0 < share < 0.1


# Slopes


@SCHEMES
@pytest.mark.parametrize("classes", [2, 3])
def test_slopes_are_differences_and_so_are_slopes_of_slopes(classes, scheme):
    machine, (x, _) = fitted(classes, data=digits(classes, slice(0, 40)), scheme=scheme, gamma=0.01), digits(classes)
    some = x[40:42].requires_grad_()
    assert torch.autograd.gradcheck(machine, some, atol=1e-6)
    assert torch.autograd.gradgradcheck(machine, some, atol=1e-6)


def test_the_slope_is_its_closed_form():
    """-2 gamma sum_k alpha_k K(x, x_k) (x - x_k), with scikit-learn's support vectors and coefficients."""
    (x, label), (new, _) = digits(2), digits(2, HELD_OUT)
    machine = theirs(x, label, standardise=False, gamma=0.1)[-1]
    expected = torch.zeros(len(new), 64, dtype=torch.float64)
    for row, image in enumerate(new.flatten(1)):
        for alpha, vector in zip(machine.dual_coef_[0], torch.from_numpy(machine.support_vectors_), strict=True):
            kernel = torch.exp(-0.1 * (image - vector).square().sum())
            expected[row] += -2 * 0.1 * alpha * kernel * (image - vector)
    maps = gradient(fitted(2, standardise=False, gamma=0.1), new, torch.ones(len(new), dtype=torch.long))
    torch.testing.assert_close(maps.flatten(1), expected, atol=1e-12, rtol=1e-8)
    assert expected.abs().max() > 0.1


def test_a_pixel_that_is_divided_by_its_deviation_has_a_slope_in_pixels():
    (x, label), (new, target) = digits(3), digits(3, HELD_OUT)
    scaler = StandardScaler().fit(x.flatten(1).numpy())
    inner = fitted(3, data=(torch.from_numpy(scaler.transform(x.flatten(1).numpy())).view_as(x), label))
    seen = torch.from_numpy(scaler.transform(new.flatten(1).numpy())).view_as(new)
    expected = gradient(inner, seen, target).flatten(1) / torch.from_numpy(scaler.scale_)
    torch.testing.assert_close(gradient(fitted(3), new, target).flatten(1), expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("wrapped", [False, True])
def test_integrated_gradients_are_complete(wrapped):
    x, label = digits(3)
    machine = fitted(3, data=((x - 0.3) / 0.4 if wrapped else x, label))
    model = normalised(machine, (0.3,), (0.4,)).double() if wrapped else machine
    new, target = digits(3, HELD_OUT)
    maps = integrated_gradients(model, new, target)
    gained = (model(new) - model(torch.zeros_like(new[:1]))).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(maps.flatten(1).sum(1), gained, atol=1e-3, rtol=1e-3)


# Precision and memory


@pytest.mark.parametrize("shift", [0.0, 30.0])
@SCHEMES
@STANDARDISE
def test_float32_is_good_to_a_ten_thousandth_also_far_from_zero(standardise, scheme, shift):
    """Products of pixels near 30 are near 58,000, and their squared distances near 20."""
    (x, label), (new, target) = digits(5), digits(5, HELD_OUT)
    options = {"scheme": scheme, "standardise": standardise, "gamma": 0.001 if standardise else 0.1}
    x, new = (x + shift).float(), (new + shift).float()
    single = fitted(5, torch.float32, (x, label), **options)
    assert {value.dtype for value in single.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(
        single.decisions(new).double(), asked(theirs(x.double(), label, **options), new), atol=1e-4, rtol=0
    )
    double = fitted(5, data=(x.double(), label), **options)
    maps, expected = gradient(single, new, target).double(), gradient(double, new.double(), target)
    torch.testing.assert_close(maps, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


def test_a_pixel_that_hardly_ever_changes_does_no_harm():
    x, label = digits(3)
    x[7, 0, 0, 0] = 1e-4  # the deviation becomes 8e-6, and a white pixel 120,000 of them
    machine, (new, _) = fitted(3, torch.float32, (x, label)), digits(3, HELD_OUT)
    new[0, 0, 0, 0] = 1.0
    torch.testing.assert_close(machine.decisions(new.float()).double(), asked(theirs(x, label), new), atol=1e-4, rtol=0)
    torch.testing.assert_close(machine(new[:1].float()), machine.intercept[None].tanh() @ machine.share.T)


def test_images_in_pieces_have_the_same_answers_and_slopes(monkeypatch):
    machine, (new, target) = fitted(3), digits(3, HELD_OUT)
    whole, maps, seen = machine(new), gradient(machine, new, target), []
    decide = svm.KernelMachine._decided
    monkeypatch.setattr(svm.KernelMachine, "_decided", lambda self, z: seen.append(len(z)) or decide(self, z))
    monkeypatch.setattr(svm, "CHUNK_BYTES", 16 * len(machine.support) * 8)
    torch.testing.assert_close(machine(new), whole)
    assert seen == [16, 16, 16, 16, 6]
    torch.testing.assert_close(gradient(machine, new, target), maps)
    assert machine(new[:0]).shape == (0, 3)


def test_an_image_alone_has_the_answer_that_it_has_among_others_and_nan_stays_alone():
    machine, (new, _) = fitted(3), digits(3, HELD_OUT)
    whole = machine(new)
    torch.testing.assert_close(machine(new[5:6]), whole[5:6])
    spoilt = new.clone()
    spoilt[5, 0, 2, 2] = torch.nan
    assert machine(spoilt)[5].isnan().all()
    others = [row for row in range(len(new)) if row != 5]
    torch.testing.assert_close(machine(spoilt)[others], whole[others])


# Weights


@SCHEMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_machine_is_loaded_into_a_fresh_one(dtype, scheme):
    machine, fresh = fitted(4, dtype, scheme=scheme), rbf_svm(SHAPE, 4, scheme=scheme).to(dtype)
    new = digits(4, HELD_OUT)[0].to(dtype)
    assert list(machine.state_dict()) == ["mean", "scale", "support", "dual", "intercept"]
    assert len(list(machine.parameters())) == 0
    assert not any(fresh.load_state_dict(load(save(machine.state_dict()))))
    assert torch.equal(fresh(new), machine(new))
    larger = fitted(4, dtype, digits(4, slice(0, 200)), scheme=scheme)  # one that was fitted before is loaded as well
    assert len(larger.support) != len(machine.support)
    larger.load_state_dict(machine.state_dict())
    assert torch.equal(larger(new), machine(new))


def test_a_machine_behind_mean_and_deviation_is_loaded_under_its_own_names():
    machine, (new, _) = normalised(fitted(3), (0.2,), (0.5,)).double(), digits(3, HELD_OUT)
    fresh = normalised(rbf_svm(SHAPE, 3), (0.2,), (0.5,)).double()
    fresh.load_state_dict(machine.state_dict())
    assert "support" in machine.state_dict()
    assert torch.equal(fresh(new), machine(new))
    assert torch.equal(copy.deepcopy(fresh)(new), machine(new))


def test_a_machine_of_another_type_takes_what_it_can_hold():
    machine, (new, _) = fitted(3), digits(3, HELD_OUT)
    single = rbf_svm(SHAPE, 3)
    single.load_state_dict(machine.state_dict())
    assert single.support.dtype == torch.float32
    torch.testing.assert_close(single.double()(new), machine(new), atol=1e-5, rtol=0)
    assert single.support.dtype == torch.float64


@pytest.mark.parametrize("other", [((1, 8, 9), 3), (SHAPE, 4)])
def test_weights_of_another_machine_are_refused(other):
    with pytest.raises(RuntimeError, match="size mismatch"):
        rbf_svm(*other).load_state_dict(fitted(3).state_dict())


def test_missing_weights_are_named():
    weights = fitted(3).state_dict()
    del weights["support"]
    with pytest.raises(RuntimeError, match="support"):
        rbf_svm(SHAPE, 3).load_state_dict(weights)


def test_fitting_again_forgets_and_a_failed_fit_changes_nothing():
    machine, (x, label) = fitted(3), digits(3, slice(0, 60))
    once = {name: value.clone() for name, value in machine.state_dict().items()}
    with pytest.raises(DataError):
        machine.fit(x, torch.zeros_like(label))
    assert all(torch.equal(value, once[name]) for name, value in machine.state_dict().items())
    machine.fit(x, label)
    fresh = fitted(3, data=(x, label))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in machine.state_dict().items())


# What a seed, the order and the images change


@SCHEMES
def test_a_seed_changes_nothing(scheme):
    (x, label), (new, _) = digits(3), digits(3, HELD_OUT)
    answers = []
    for seed in (1, 12303):
        torch.manual_seed(seed)
        np.random.seed(seed)
        answers.append(fitted(3, scheme=scheme)(new))
        decided = asked(theirs(x, label, scheme, random_state=seed), new)
        torch.testing.assert_close(fitted(3, scheme=scheme).decisions(new), decided, atol=1e-10, rtol=0)
    assert torch.equal(*answers)


@SCHEMES
def test_the_order_of_the_images_changes_no_more_than_the_solver_tolerates_and_other_images_do(scheme):
    (x, label), (new, _) = digits(4), digits(4, HELD_OUT)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    answer = fitted(4, scheme=scheme)(new)
    moved = (fitted(4, data=(x[order], label[order]), scheme=scheme)(new) - answer).abs().max()
    other = (fitted(4, data=(x[:75], label[:75]), scheme=scheme)(new) - answer).abs().max()
    assert 0 < moved < 1e-2
    assert other > 0.1


# What is refused


def test_nothing_is_answered_before_it_is_fitted():
    with pytest.raises(ModelError, match="expected a fitted machine, found one without support vectors; fit or load"):
        rbf_svm(SHAPE, 3)(torch.rand(2, *SHAPE))


@pytest.mark.parametrize(
    "label", [torch.zeros(150), torch.arange(150) % 2, torch.arange(150) % 4, torch.arange(150) % 3 - 1]
)
def test_labels_that_are_not_all_of_the_classes_are_refused(label):
    with pytest.raises(DataError, match=r"each class from 0 to 2 among them, found 150 labels, of the classes \[.*\];"):
        rbf_svm(SHAPE, 3).fit(digits(3)[0], label.long())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    x, label = digits(3)
    x[3, 0, 4, 4] = value
    with pytest.raises(DataError, match="expected finite pixels, found others in 1 images; leave those out"):
        rbf_svm(SHAPE, 3).fit(x, label)


@pytest.mark.parametrize("shape", [(1, 8, 9), (4, 4, 4), (2, 8, 8)])
def test_images_of_another_shape_are_refused_also_where_they_have_as_many_pixels(shape):
    x, label = torch.rand(150, *shape, dtype=torch.float64), digits(3)[1]
    with pytest.raises(ModelError, match=r"expected images of the shape \[1, 8, 8\] for which rbf_svm was made, found"):
        rbf_svm(SHAPE, 3).fit(x, label)
    with pytest.raises(ModelError, match=r"expected images of the shape \[1, 8, 8\]"):
        fitted(3)(x)


def test_one_class_is_refused_where_the_machine_is_made():
    with pytest.raises(SpecError, match="expected at least 2 classes, found 1"):
        rbf_svm(SHAPE, 1)


@pytest.mark.parametrize("wrong", [{"c": 0.0}, {"gamma": -1.0}, {"scheme": "votes"}])
def test_options_out_of_range_are_refused_where_they_are_written(wrong):
    with pytest.raises(SpecError, match=r"train\.model\.rbf_svm: "):
        architecture.choose({"use": "rbf_svm", **wrong}, "train.model")


def test_there_are_no_weights_to_randomise():
    with pytest.raises(ModelError, match="expected a model with weights, found none in KernelMachine"):
        randomise(fitted(3), Rng(0, []))


def test_what_is_not_installed_is_named_when_it_is_needed(monkeypatch):
    machine, (new, _) = fitted(3), digits(3, HELD_OUT)
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    machine(new)  # to answer, nothing more is needed
    with pytest.raises(ModelError, match=r"expected the package 'scikit-learn', .* pip install consilience\[svm\]"):
        machine.fit(*digits(3))


def test_the_machine_says_that_it_is_fitted_and_its_memory_is_bounded_as_everywhere():
    assert rbf_svm(SHAPE, 3).fitted
    assert svm.CHUNK_BYTES == tensors.CHUNK_BYTES
