"""Logistic regression of many labellings at once: scikit-learn, and rows that carry nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from consilience.measures.logistic import margins, problem_of, standardised


def rows(n: int, d: int, shift: float, seed: int = 0) -> torch.Tensor:
    """Two models' rows, correlated, of very different scales, with constant features."""
    chance = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=chance).double() * torch.logspace(0, -4, d)[:, None]
    drawn = torch.randn(2 * n, d, generator=chance).double() @ mix
    drawn[n:] += shift * mix.norm(dim=0) * torch.randn(d, generator=chance)
    drawn[:, 1], drawn[:, 2] = 0.1, 0.0
    return drawn


def labellings(n: int, seed: int = 0) -> torch.Tensor:
    """The true one, and two in which pairs were exchanged."""
    exchanged = torch.rand(3, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    exchanged[0] = False
    return torch.cat([exchanged, ~exchanged], 1).double()


def solved(z, answer, train, c=1.0):
    index = torch.as_tensor(train)[None]
    used = torch.ones_like(index, dtype=torch.bool)
    return margins(problem_of([z], index, used), answer[None, :, train], used, c)[0]


SIZES = {"more features": (25, 120), "more rows": (60, 12), "hundreds of rows": (180, 50), "as many": (30, 42)}


@pytest.mark.parametrize("c", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0], ids=["hard", "middling", "easy"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_margins_are_those_of_scikit_learn(size, shift, c):
    x, answer = rows(*size, shift), labellings(size[0])
    train = [i for i in range(len(x)) if i % 10 < 7]
    ours = solved(standardised(x, x[train]), answer, train, c)
    scaler = StandardScaler().fit(x[train].numpy())
    for found, labels in zip(ours, answer, strict=True):
        peer = LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
        expected = peer.fit(scaler.transform(x[train].numpy()), labels[train]).decision_function(
            scaler.transform(x.numpy())
        )
        np.testing.assert_allclose(found, expected, atol=1e-5 * (1 + np.abs(expected).max()))
        wrong = (np.asarray(found) > 0) != (expected > 0)
        assert wrong.sum() <= 1


def test_standardising_is_that_of_scikit_learn_also_where_a_feature_is_constant():
    x = rows(20, 15, 1.0)
    np.testing.assert_allclose(
        standardised(x, x[:30]), StandardScaler().fit(x[:30].numpy()).transform(x.numpy()), atol=1e-10
    )
    assert (standardised(x, x)[:, 1:3].abs() < 1e-9).all()


def test_at_the_optimum_the_loss_is_flat():
    """The definition: no weight and no intercept can be moved to make the loss smaller."""
    x, answer = rows(30, 20, 0.5), labellings(30)[1]
    train = list(range(60))
    z = standardised(x, x)
    f = solved(z, answer[None], train)[0]
    wrong = answer - torch.sigmoid(f)  # what the slope of the log-likelihood in each margin is
    w = z.T @ wrong
    torch.testing.assert_close(f - z @ w, (f - z @ w).mean().expand(60), atol=1e-5, rtol=0)
    assert wrong.sum().abs() < 1e-6


@pytest.mark.parametrize("apart", [1e-2, 1e-5, 1e-7])
def test_the_loss_is_flat_also_where_the_models_differ_in_the_last_digits(apart):
    half, answer = rows(30, 20, 0.0)[:30], labellings(30)
    z = standardised(both := torch.cat([half, half * (1 + apart * rows(30, 20, 0.0, seed=1)[:30].sign())]), both)
    f = solved(z, answer, list(range(60)))
    own = (answer - torch.sigmoid(f)) @ z @ z.T
    assert ((f - own) - (f - own).mean(1, keepdim=True)).abs().max() < 1e-5 * f.abs().max()
    assert (f != 0).any(1).all()


@pytest.mark.parametrize("size", [(20, 300), (400, 30), (60, 60), (300, 700)])
def test_rows_that_stand_there_twice_under_both_labels_carry_exactly_nothing(size):
    half = rows(*size, 1.0)[: size[0]]
    x, answer = torch.cat([half, half]), labellings(size[0])
    train = [i for i in range(2 * size[0]) if i % size[0] % 3]
    assert (solved(standardised(x, x[train]), answer, train) == 0).all()


def test_splits_and_labellings_side_by_side_are_as_one_by_one():
    x, answer = rows(30, 50, 0.3), labellings(30)
    splits = [[i for i in range(60) if i % 3 != k][: 40 - 7 * k] for k in range(3)]
    index = torch.tensor([mine + [0] * (40 - len(mine)) for mine in splits])
    used = torch.arange(40) < torch.tensor([[len(mine)] for mine in splits])
    z = [standardised(x, x[mine]) for mine in splits]
    together = margins(problem_of(z, index, used), answer[:, index].transpose(0, 1), used, 1.0)
    for k, mine in enumerate(splits):
        for number in range(3):
            alone = solved(z[k], answer[[number]], mine)
            torch.testing.assert_close(together[k, number], alone[0], atol=1e-6, rtol=1e-6)


def test_rows_that_are_not_used_do_not_count():
    x, answer = rows(30, 50, 0.3), labellings(30)
    index = torch.arange(60)[None]
    used = (torch.arange(60) % 4 > 0)[None]
    z = standardised(x, x)
    some = margins(problem_of([z], index, used), answer[None], used, 1.0)[0]
    torch.testing.assert_close(some, solved(z, answer, used[0].nonzero()[:, 0].tolist()), atol=1e-6, rtol=1e-6)


def test_each_labelling_may_have_a_strength_of_its_own():
    x, answer = rows(30, 20, 0.3), labellings(30)
    index = torch.arange(60)[None]
    used, z = torch.ones(1, 60, dtype=torch.bool), standardised(x, x)
    strengths = torch.tensor([0.001, 1.0, 5.0]).double()
    mixed = margins(problem_of([z], index, used), answer[None], used, strengths.view(1, 3, 1))[0]
    for number, c in enumerate(strengths.tolist()):
        torch.testing.assert_close(
            mixed[number], solved(z, answer[[number]], list(range(60)), c)[0], atol=1e-6, rtol=1e-6
        )


def test_where_labels_are_unequal_in_number_the_intercept_says_so():
    x = torch.zeros(8, 3).double()
    answer = torch.tensor([[1.0, 1, 1, 0, 1, 1, 0, 1]]).double()
    f = solved(standardised(x, x), answer, list(range(8)))
    torch.testing.assert_close(f, torch.full((1, 8), np.log(6 / 2)).double())
