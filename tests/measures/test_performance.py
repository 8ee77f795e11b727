"""How well a model answers: scikit-learn, slow definitions, and what is undefined."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from consilience.errors import SpecError
from consilience.measures.performance import (
    accuracy,
    auc,
    calibration_error,
    f1_overall,
    f1_per_class,
    negative_log_likelihood,
)

MEASURES = [auc, calibration_error, f1_overall, f1_per_class, negative_log_likelihood]


def answers(n=200, classes=4, decimals=1):
    """Logits with ties, and labels that they know something of."""
    chance = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (n,), generator=chance)
    logits = torch.randn(n, classes, generator=chance) + 1.5 * torch.nn.functional.one_hot(label, classes)
    return logits.mul(10**decimals).round() / 10**decimals, label


def test_accuracy_is_one_where_the_largest_logit_is_the_class():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [torch.nan, 1.0]])
    value = accuracy(logits, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(value, torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("decimals", [0, 1, 5])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_area_is_that_of_scikit_learn_with_ties_and_without(classes, decimals):
    logits, label = answers(classes=classes, decimals=decimals)
    probability = logits.double().softmax(1).numpy().round(13)  # equal ones are, whatever the order of the classes
    expected = [roc_auc_score(label == one, probability[:, one]) for one in range(classes)]
    np.testing.assert_allclose(auc(logits, label), expected, atol=1e-12)
    if classes > 2:
        np.testing.assert_allclose(auc(logits, label).mean(), roc_auc_score(label, probability, multi_class="ovr"))


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    logits, label = answers(n=40, classes=3, decimals=0)
    probability = logits.double().softmax(1).round(decimals=13)
    for one, area in enumerate(auc(logits, label)):
        pairs = [
            1.0 if p > q else 0.5 if p == q else 0.0
            for p in probability[label == one, one]
            for q in probability[label != one, one]
        ]
        torch.testing.assert_close(float(area), sum(pairs) / len(pairs))


def test_a_class_that_is_absent_or_alone_has_no_area():
    logits, _ = answers(n=6, classes=3)
    assert auc(logits, torch.tensor([0, 1, 0, 1, 0, 1])).isnan().tolist() == [False, False, True]
    assert auc(logits, torch.zeros(6, dtype=torch.int64)).isnan().all()


def test_answers_that_are_nearly_sure_keep_their_order():
    sure = torch.linspace(20, 30, 8)
    logits = torch.stack([sure, torch.zeros(8)], 1)  # in float32 their probabilities are all 1
    assert auc(logits, torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])).tolist() == [1, 1]


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_is_its_definition(bins):
    logits, label = answers()
    sure, answer = logits.double().softmax(1).max(1)
    expected = 0.0
    for lower in range(bins):
        inside = (sure > lower / bins) & (sure <= (lower + 1) / bins)
        if inside.any():
            right = (answer[inside] == label[inside]).double().mean()
            expected += float(inside.double().mean() * (right - sure[inside].mean()).abs())
    torch.testing.assert_close(float(calibration_error(logits, label, bins=bins)), expected)


def test_calibration_error_is_made_of_scikit_learns_curve():
    logits, label = answers(decimals=5)
    sure, answer = (one.numpy() for one in logits.double().softmax(1).max(1))
    right, mean = calibration_curve(answer == label.numpy(), sure, n_bins=15)
    counts = np.histogram(sure, np.linspace(0, 1, 16))[0]
    expected = (np.abs(right - mean) * counts[counts > 0]).sum() / len(label)
    np.testing.assert_allclose(calibration_error(logits, label), expected)


def test_probabilities_that_are_kept_have_no_error_and_boasts_have():
    told = torch.tensor([[0.75, 0.25]]).log().repeat(4, 1)
    assert float(calibration_error(told, torch.tensor([0, 0, 0, 1]))) == pytest.approx(0, abs=1e-7)
    assert float(calibration_error(told * 100, torch.tensor([0, 0, 0, 1]))) == pytest.approx(0.25)


def test_f1_is_that_of_scikit_learn():
    logits, label = answers()
    answered = logits.argmax(1)
    np.testing.assert_allclose(f1_per_class(logits, label), f1_score(label, answered, average=None))
    np.testing.assert_allclose(f1_per_class(logits, label).mean(), f1_score(label, answered, average="macro"))
    np.testing.assert_allclose(f1_overall(logits, label), f1_score(label, answered, average="micro"))
    np.testing.assert_allclose(f1_overall(logits, label), accuracy(logits, label).double().mean())


def test_a_class_that_is_neither_true_nor_answered_has_no_f1_and_one_never_hit_has_0():
    logits = torch.eye(4)[[0, 0, 1]]
    assert f1_per_class(logits, torch.tensor([0, 2, 1])).nan_to_num(-1).tolist() == [pytest.approx(2 / 3), 1, 0, -1]


def test_likelihood_is_that_of_scikit_learn():
    logits, label = answers()
    expected = log_loss(label, logits.double().softmax(1).numpy())
    np.testing.assert_allclose(negative_log_likelihood(logits, label).mean(), expected)


def test_an_undefined_logit_makes_its_image_undefined_or_the_whole_set():
    logits, label = answers(n=12)
    logits[3, 0] = torch.nan
    assert negative_log_likelihood(logits, label).isnan().nonzero().flatten().tolist() == [3]
    for measure in (auc, calibration_error, f1_overall, f1_per_class):
        assert measure(logits, label).isnan().all()


@pytest.mark.parametrize("measure", MEASURES)
def test_no_images_have_no_performance(measure):
    assert measure(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).isnan().all()


@pytest.mark.parametrize("measure", MEASURES)
def test_labels_beyond_the_model_s_classes_are_refused(measure):
    with pytest.raises(SpecError, match=f"{measure.__name__}: expected classes from 0 to 2, found 0 to 3"):
        measure(torch.zeros(2, 3), torch.tensor([0, 3]))
