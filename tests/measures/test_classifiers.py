"""Discriminants and support vector machines: scikit-learn on the same rows, and what each of them can see."""

import sys
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.classifiers import Classifier, learner
from consilience.measures.separability import separability
from consilience.measures.splits import plan_of
from consilience.rng import Rng

OTHERS = ["lda", "linear_svm", "rbf_svm"]
SIZES = {"more features": (30, 100), "more rows": (60, 12), "as many": (30, 42)}
SVMS = {"linear_svm": "linear", "rbf_svm": "rbf"}


def rows(n: int, d: int, shift: float = 0.4, seed: int = 0) -> torch.Tensor:
    """Two models' rows, correlated, of different scales, with a constant feature, in their raw scale."""
    chance = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=chance).double() * torch.logspace(0, -2, d)[:, None]
    drawn = torch.randn(2 * n, d, generator=chance).double() @ mix
    drawn[n:] += shift * mix.norm(dim=0) * torch.randn(d, generator=chance)
    drawn[:, 1] = 0.1
    return drawn


def labellings(n: int) -> torch.Tensor:
    """The true one, and two in which pairs were exchanged."""
    exchanged = torch.rand(3, n, generator=torch.Generator().manual_seed(0)) < 0.5
    exchanged[0] = False
    return torch.cat([exchanged, ~exchanged], 1).double()


def solved(classifier, x, answer, train, c=1.0, left=()):
    """Margins of all rows; ``left`` are rows of the training part that are not learnt from."""
    way, index = learner(classifier, c), torch.as_tensor(train)[None]
    problem = way.problem([x], index, torch.ones_like(index, dtype=torch.bool))
    used = torch.tensor([[row not in left for row in train]])
    return way.margins(problem, answer[None, :, train], used, c)[0]


def twins(seed: int, n: int = 60, side: int = 8, shift: float = 0.0) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    common, pattern = torch.randn(n, side, side, generator=chance), torch.randn(side, side, generator=chance)
    return [common + torch.randn(n, side, side, generator=chance) + move * pattern for move in (0, shift)]


def told(a, b, classifier, seed=0, **options):
    n = len(a)
    given = {"permutations": 4, "classifier": classifier, **options}
    return separability(a, b, torch.zeros(n, dtype=torch.long), torch.arange(n), Rng(seed, range(n)), **given)


# Against scikit-learn


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("left", [False, True], ids=["all", "some left out"])
def test_log_odds_are_those_of_scikit_learn_s_shrunken_discriminant(size, c, left):
    """Its shrinkage is relative to the mean variance, and shortens the covariance besides."""
    x, answer = rows(*size), labellings(size[0])
    train = [i for i in range(len(x)) if i % 10 < 7]
    out = train[3::5] if left else []
    learnt = [i for i in train if i not in out]
    z = StandardScaler().fit(x[train].numpy()).transform(x.numpy())
    for found, labels in zip(solved("lda", x, answer, train, c, out), answer, strict=True):
        y, among = labels[learnt].numpy(), z[learnt]
        mean = sum((y == k).mean() * among[y == k].var(0).mean() for k in (0, 1))
        ridge = 1 / (c * len(learnt))
        shrinkage = ridge / (ridge + mean)
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(among, y)
        prior = np.log(y.mean() / (1 - y.mean()))
        expected = (peer.decision_function(z) - prior) * (1 - shrinkage) + prior
        np.testing.assert_allclose(found, expected, atol=1e-6 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("c", [0.1, 1.0])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("classifier", SVMS)
def test_margins_are_those_of_scikit_learn_s_support_vector_machine_on_the_pixels(classifier, size, c):
    x, answer = rows(*size), labellings(size[0])
    train = [i for i in range(len(x)) if i % 10 < 7]
    for found, labels in zip(solved(classifier, x, answer, train, c), answer, strict=True):
        peer = make_pipeline(StandardScaler(), SVC(C=c, kernel=SVMS[classifier], tol=1e-6))
        expected = peer.fit(x[train].numpy(), labels[train]).decision_function(x.numpy())
        np.testing.assert_allclose(found, expected, atol=1e-3 * (1 + np.abs(expected).max()))


@pytest.mark.parametrize("side", [6, 12], ids=["more rows", "more features"])
@pytest.mark.parametrize("classifier", OTHERS)
def test_held_out_values_are_those_of_scikit_learn_on_the_same_folds(classifier, side):
    a, b = twins(5, 60, side, 0.3)
    fold = plan_of(torch.arange(60), torch.arange(60), Rng(0, []), 3, 1, 4, None).fold[0]
    peers = {name: SVC(kernel=kernel) for name, kernel in SVMS.items()}
    peers["lda"] = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1 / 81)  # near 1 / 80 of the mean variance
    value = torch.full((60,), torch.nan).double()
    for kind in range(3):
        learn, ask = (fold != kind).nonzero()[:, 0], (fold == kind).nonzero()[:, 0]
        peer = make_pipeline(StandardScaler(), peers[classifier])
        peer.fit(torch.cat([a[learn], b[learn]]).flatten(1).double(), np.repeat([0, 1], len(learn)))
        right = [peer.predict(maps[ask].flatten(1).double()) == label for label, maps in enumerate((a, b))]
        value[ask] = torch.as_tensor(right[0].astype(float) + right[1] - 1)
    assert (told(a, b, classifier).value != value).sum() <= 1


def test_strength_is_chosen_by_folds_inside_the_training_part():
    """80 rows of 81 pixels: the discriminant is at its worst, unless a strong ridge holds it."""
    a, b = torch.randn(2, 60, 9, 9, generator=torch.Generator().manual_seed(0))
    b += 0.25
    chosen, fixed = (told(a, b, "lda", c=c, permutations=1).value.mean() for c in ("cross_validated", 10.0))
    assert chosen > fixed + 0.2
    assert told(a[:30], b[:30], "linear_svm", c="cross_validated", permutations=1).value.isfinite().all()


# What all classifiers keep


@pytest.mark.parametrize("side", [3, 10])
@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_identical_maps_get_exactly_nothing(classifier, side):
    a, _ = twins(0, 40, side)
    result = told(a, a.clone(), classifier, repeats=2)
    assert (result.value == 0).all()
    assert (result.null == 0).all()
    assert result.p == 1


@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_exchanging_the_models_changes_nothing(classifier):
    a, b = twins(1, shift=0.2)
    one, two = told(a, b, classifier), told(b, a, classifier)
    assert (one.value != two.value).sum() <= 1  # support vectors are found to a tolerance
    torch.testing.assert_close(one.null.mean(), two.null.mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_opposite_labels_get_opposite_margins(classifier):
    x, answer = rows(30, 20), labellings(30)
    train = list(range(0, 60, 2)) + list(range(1, 60, 4))
    one, two = (solved(classifier, x, labels, train) for labels in (answer, 1 - answer))
    torch.testing.assert_close(one, -two, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_images_of_one_model_shuffled_are_told_apart_as_before(classifier):
    a, b = twins(1, n=90, shift=0.6)
    shuffled = b[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    before, after = (told(a, other, classifier, permutations=0).value.mean() for other in (b, shuffled))
    assert before > 0.5
    assert (before - after).abs() < 0.15


@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_independent_noise_is_not_told_apart(classifier):
    a, b = torch.randn(2, 200, 6, 6, generator=torch.Generator().manual_seed(3))
    assert told(a, b, classifier, permutations=0).value.mean().abs() < 0.15


@pytest.mark.parametrize("classifier", OTHERS)
def test_a_large_shift_is_found_and_exchangeable_twins_are_not_found_too_often(classifier):
    given = {"classifier": classifier, "permutations": 4, "folds": 2}
    found = [float(told(*twins(seed, 20, 4, 1.5), seed=seed, **given).p) for seed in range(5)]
    none = [float(told(*twins(seed, 20, 4), seed=seed, **given).p) for seed in range(30)]
    assert found == [0.2] * 5
    assert sum(p <= 0.2 for p in none) <= 13  # 6 are expected; more than 13 come by chance one time in 1,000


def test_only_the_gaussian_kernel_sees_that_one_model_s_maps_vary_more():
    a, b = torch.randn(2, 120, 4, 4, generator=torch.Generator().manual_seed(0))
    found = {name: told(a, 2 * b, name, permutations=0).value.mean() for name in get_args(Classifier)}
    assert found["rbf_svm"] > 0.5
    assert max(value for name, value in found.items() if name != "rbf_svm") < 0.2


# What is refused


def test_without_scikit_learn_what_needs_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    a, b = twins(0, 12, 3)
    with pytest.raises(SpecError, match=r"expected the package 'scikit-learn' for 'rbf_svm'.*consilience\[svm\]"):
        told(a, b, "rbf_svm")
    assert told(a, b, "lda").value.isfinite().all()


def test_an_unknown_classifier_is_refused():
    with pytest.raises(SpecError, match="no classifier is named 'linear_smv'; did you mean 'linear_svm'"):
        learner("linear_smv", 1.0)
    with pytest.raises(SpecError, match="separability"):
        measure.choose({"use": "separability", "classifier": "forest"})
