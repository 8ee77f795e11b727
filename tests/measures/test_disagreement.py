"""Disagreement of two models' maps: the paper's definitions word for word, SciPy, and planted truth."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from scipy.stats import kendalltau, pearsonr, rankdata

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import disagreement
from consilience.measures.agreement import wrong_image
from consilience.measures.disagreement import (
    dense_ranks,
    l2,
    pairwise_rank_agreement,
    pearson,
    rank_agreement,
    rank_correlation,
    sign_agreement,
    signed_rank_agreement,
    squared_distance,
)
from consilience.measures.similarity import top_k_agreement

TOP = [rank_agreement, sign_agreement, signed_rank_agreement]
AGREEMENTS = [*TOP, pearson, rank_correlation, pairwise_rank_agreement]
DISTANCES = [l2, squared_distance]


def maps(seed: int, n: int = 5, values: int | None = None, shape: tuple[int, ...] = (6, 7)) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(-values, values + 1, (n, *shape), generator=chance).float()
    return torch.randn(n, *shape, generator=chance)


def one_by_one(slow, one, two, *args):
    return [slow(a.flatten().tolist(), b.flatten().tolist(), *args) for a, b in zip(one, two, strict=True)]


def ranks_of(a):
    """1 is the largest by absolute value; equal ones share a rank, and no rank is left out."""
    levels = sorted({abs(v) for v in a}, reverse=True)
    return [levels.index(abs(v)) + 1 for v in a]


def top_of(a, share):
    """The convention of ``top_k_agreement``: ties at the last place are in, zeros are not."""
    k = max(1, round(share * len(a)))
    least = sorted((abs(v) for v in a), reverse=True)[k - 1]
    return {i for i, v in enumerate(a) if abs(v) >= least and v != 0}


def slow_on_top(a, b, share, alike):
    first, second = top_of(a, share), top_of(b, share)
    if not first or not second:
        return math.nan
    return sum(alike(i) for i in first & second) / max(len(first), len(second))


def slow_rank_agreement(a, b, share):
    one, two = ranks_of(a), ranks_of(b)
    return slow_on_top(a, b, share, lambda i: one[i] == two[i])


def slow_sign_agreement(a, b, share):
    return slow_on_top(a, b, share, lambda i: np.sign(a[i]) == np.sign(b[i]))


def slow_signed_rank_agreement(a, b, share):
    one, two = ranks_of(a), ranks_of(b)
    return slow_on_top(a, b, share, lambda i: one[i] == two[i] and np.sign(a[i]) == np.sign(b[i]))


def papers_on_top(a, b, k, alike):
    """Krishna et al. 2022: the share of the k features that are on top of both and alike."""
    first, second = (sorted(range(len(m)), key=lambda i: -abs(m[i]))[:k] for m in (a, b))
    return sum(alike(first.index(i), second.index(i), a[i], b[i]) for i in set(first) & set(second)) / k


def papers_pairwise(a, b):
    """Krishna et al. 2022: over pairs in the order of the features, whether RelRank says the same in both."""
    one, two = ranks_of(a), ranks_of(b)
    same = [(one[i] < one[j]) == (two[i] < two[j]) for i, j in itertools.combinations(range(len(a)), 2)]
    return sum(same) / len(same)


def slow_pairwise(a, b):
    """Ordered alike, also as equals: 1; equal in one map only: a half."""
    one, two = ranks_of(a), ranks_of(b)
    total, pairs = 0.0, list(itertools.combinations(range(len(a)), 2))
    for i, j in pairs:
        p, q = np.sign(one[i] - one[j]), np.sign(two[i] - two[j])
        total += 1.0 if p == q else 0.5 if p * q == 0 else 0.0
    return total / len(pairs)


SLOW = {
    rank_agreement: slow_rank_agreement,
    sign_agreement: slow_sign_agreement,
    signed_rank_agreement: slow_signed_rank_agreement,
}
PAPERS = {
    rank_agreement: lambda p, q, v, w: p == q,
    sign_agreement: lambda p, q, v, w: v * w > 0,
    signed_rank_agreement: lambda p, q, v, w: p == q and v * w > 0,
}


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=integers(1, 9))
def test_ranks_are_dense_and_the_largest_is_first(seed, values):
    for rows in (maps(seed).flatten(1), maps(seed, values=values).flatten(1)):
        np.testing.assert_array_equal(dense_ranks(rows), rankdata(-rows.abs(), method="dense", axis=1))


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=integers(1, 9), share=floats(0.01, 1))
@pytest.mark.parametrize("fast", TOP)
def test_largest_pixels_agree_by_their_definition_with_ties_and_without(fast, seed, values, share):
    for one, two in [(maps(seed), maps(seed + 1)), (maps(seed, values=values), maps(seed + 1, values=values))]:
        np.testing.assert_allclose(fast(one, two, share=share), one_by_one(SLOW[fast], one, two, share), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), share=floats(0.01, 1))
@pytest.mark.parametrize("fast", TOP)
def test_without_ties_largest_pixels_agree_as_in_the_paper(fast, seed, share):
    one, two = maps(seed), maps(seed) + 0.1 * maps(seed + 1)
    expected = one_by_one(papers_on_top, one, two, max(1, round(share * 42)), PAPERS[fast])
    np.testing.assert_allclose(fast(one, two, share=share), expected, atol=1e-12)


def test_each_further_condition_leaves_fewer_pixels():
    one, two = maps(0, 400), maps(0, 400) + 3 * maps(1, 400)
    feature, rank, sign, both = (f(one, two, share=0.3) for f in (top_k_agreement, *TOP))
    assert (both <= torch.minimum(rank, sign)).all()
    assert (torch.maximum(rank, sign) <= feature).all()
    assert 0 < both.mean() < rank.mean() < sign.mean() < feature.mean()


def test_a_negative_map_agrees_in_rank_and_not_in_sign():
    one = maps(0)
    assert rank_agreement(one, -one).tolist() == [1] * 5
    assert sign_agreement(one, -one).tolist() == [0] * 5
    assert signed_rank_agreement(one, -one).tolist() == [0] * 5
    np.testing.assert_allclose(rank_correlation(one, -one), 1, atol=1e-12)
    np.testing.assert_allclose(pearson(one, -one), -1, atol=1e-12)


def test_a_tie_above_moves_the_ranks_below():
    one = torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0]])
    two = torch.tensor([[9.0, -9.0, 7.0, 1.0, 0.0]])  # ranks 1, 1, 2, 3
    assert rank_agreement(one, two, share=0.8).tolist() == [1 / 4]
    assert sign_agreement(one, two, share=0.8).tolist() == [3 / 4]


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=integers(1, 9))
def test_pearson_and_the_correlation_of_dense_ranks_are_those_of_scipy(seed, values):
    for one, two in [(maps(seed), maps(seed + 1)), (maps(seed, values=values), maps(seed + 1, values=values))]:
        both = list(zip(one.double().flatten(1).numpy(), two.double().flatten(1).numpy(), strict=True))
        np.testing.assert_allclose(pearson(one, two), [pearsonr(a, b).statistic for a, b in both], atol=1e-10)
        if all(len(np.unique(np.abs(row))) > 1 for pair in both for row in pair):
            ranks = [[rankdata(-np.abs(row), method="dense") for row in pair] for pair in both]
            np.testing.assert_allclose(
                rank_correlation(one, two), [pearsonr(*pair).statistic for pair in ranks], atol=1e-10
            )


def test_distances_are_their_definitions():
    one, two = maps(0), maps(1)
    expected = one_by_one(lambda a, b: sum((p - q) ** 2 for p, q in zip(a, b, strict=True)), one, two)
    np.testing.assert_allclose(squared_distance(one, two), expected, rtol=1e-12)
    np.testing.assert_allclose(l2(one, two), np.sqrt(expected), rtol=1e-12)


def test_half_the_squared_distance_of_two_draws_is_the_sum_of_the_pixels_variances():
    one, two = (2 * maps(seed, 4000) + 5 for seed in (0, 1))
    assert float(squared_distance(one, two).mean()) / 2 == pytest.approx(42 * 2**2, rel=0.01)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=integers(1, 30), height=integers(1, 9), width=integers(2, 13))
def test_pairs_of_pixels_are_ordered_alike_by_the_definition_with_ties_and_without(seed, values, height, width):
    shape = (height, width)
    for kind in (None, values):
        one, two = (maps(seed + i, 2, kind, shape) for i in range(2))
        np.testing.assert_allclose(pairwise_rank_agreement(one, two), one_by_one(slow_pairwise, one, two), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=integers(1, 9))
def test_it_is_the_papers_where_nothing_is_tied_and_its_mean_over_two_orders_where_something_is(seed, values):
    one, two = maps(seed), maps(seed + 1)
    np.testing.assert_allclose(pairwise_rank_agreement(one, two), one_by_one(papers_pairwise, one, two), atol=1e-12)
    one, two = maps(seed, values=values).flatten(1), maps(seed + 1, values=values).flatten(1)
    both = [one_by_one(papers_pairwise, one, two), one_by_one(papers_pairwise, one.flip(1), two.flip(1))]
    np.testing.assert_allclose(pairwise_rank_agreement(one, two), np.mean(both, 0), atol=1e-12)


def test_the_papers_count_depends_on_the_order_of_the_pixels_where_they_tie():
    """As the docstring says: why there is another convention."""
    one, two = [2.0, 1.0], [1.0, 1.0]
    assert papers_pairwise(one, two) == 0
    assert papers_pairwise(one[::-1], two[::-1]) == 1
    assert pairwise_rank_agreement(torch.tensor([one]), torch.tensor([two])).tolist() == [0.5]


@pytest.mark.parametrize("side", [1, 3, 4, 5, 17, 40])
def test_without_ties_it_is_kendalls_tau_of_any_length(side):
    one, two = maps(0, 3, shape=(side, 3)), maps(1, 3, shape=(side, 3))
    tau = [
        kendalltau(a.abs().flatten(), b.abs().flatten(), method="asymptotic").statistic
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(pairwise_rank_agreement(one, two), (1 + np.array(tau)) / 2, atol=1e-12)


def test_inversions_are_counted_in_rows_of_any_length():
    for length in (0, 1, 2, 15, 16, 17, 32, 33, 100):
        rows = torch.randint(0, 20, (3, length), generator=torch.Generator().manual_seed(length)).int().numpy()
        slow = [sum(a > b for a, b in itertools.combinations(row.tolist(), 2)) for row in rows]
        assert disagreement._inversions(rows).tolist() == slow


@pytest.mark.parametrize("agreement", AGREEMENTS)
@pytest.mark.parametrize("values", [None, 2])
def test_a_map_agrees_with_itself_and_both_ways_alike(agreement, values):
    one, two = maps(0, values=values), maps(1, values=values)
    np.testing.assert_allclose(agreement(one, one), 1, atol=1e-12)
    torch.testing.assert_close(agreement(one, two), agreement(two, one))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_map_has_no_distance_from_itself_and_both_ways_the_same(distance):
    assert distance(maps(0), maps(0)).tolist() == [0] * 5
    torch.testing.assert_close(distance(maps(0), maps(1)), distance(maps(1), maps(0)))


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_the_order_of_the_pixels_and_a_common_factor_do_not_matter(agreement):
    one, two = maps(0, values=3).flatten(1), maps(1, values=3).flatten(1)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(agreement(one[:, order], two[:, order]), agreement(one, two))
    torch.testing.assert_close(agreement(one * 1000, two), agreement(one, two))


def test_unrelated_maps_agree_by_chance():
    one, two = maps(0, 2000), maps(1, 2000)
    assert pairwise_rank_agreement(one, two).mean() == pytest.approx(0.5, abs=0.005)
    assert rank_correlation(one, two).mean() == pytest.approx(0, abs=0.02)
    assert pearson(one, two).mean() == pytest.approx(0, abs=0.02)
    assert sign_agreement(one, two, share=0.5).mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("fast", [*AGREEMENTS, *DISTANCES])
def test_a_map_with_nan_is_undefined(fast):
    one, two = maps(0), maps(1)
    one[1, 2, 3], two[3] = torch.nan, torch.nan
    assert fast(one, two).isnan().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("fast", [pearson, *DISTANCES])
def test_a_map_that_is_not_finite_has_no_distance_and_no_direction(fast):
    one = maps(0)
    one[2, 0, 0] = torch.inf
    assert fast(one, maps(1)).isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("fast", [pearson, rank_correlation])
def test_a_constant_map_correlates_with_nothing(fast):
    one = maps(0).double()
    one[1] = 0.1  # whose mean over 42 pixels is not 0.1 in floating point
    one[3] = 0
    assert fast(one, maps(1)).isnan().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("fast", TOP)
def test_largest_pixels_are_undefined_where_a_map_marks_nothing(fast):
    one, two = maps(0), maps(1)
    one[1], two[3] = 0.0, 0.0
    assert fast(one, two).isnan().tolist() == [False, True, False, True, False]


def test_a_single_pixel_has_no_pair():
    assert pairwise_rank_agreement(torch.ones(2, 1, 1), torch.ones(2, 1, 1)).isnan().all()


def test_a_map_that_orders_nothing_agrees_by_a_half():
    np.testing.assert_allclose(pairwise_rank_agreement(torch.zeros(5, 6, 7), maps(0)), 0.5, atol=1e-12)


@pytest.mark.parametrize("fast", TOP)
@pytest.mark.parametrize("share", [0.0, 1.1])
def test_shares_out_of_range_are_refused(fast, share):
    with pytest.raises(SpecError, match=r"Expected `float` (>|<)=? "):
        measure.choose({"use": fast.__name__, "share": share})


@pytest.mark.parametrize("fast", [*AGREEMENTS, *DISTANCES])
def test_the_baseline_takes_them(fast):
    label = torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(wrong_image(maps(0), maps(1), label, of=fast), fast(maps(0), maps(1).roll(-1, 0)))


@pytest.mark.parametrize("fast", [*AGREEMENTS, *DISTANCES])
def test_no_image_has_no_value(fast):
    assert fast(maps(0)[:0], maps(1)[:0]).shape == (0,)
