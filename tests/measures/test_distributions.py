"""Two models' maps as sets: SciPy pixel by pixel, definitions in plain words, and planted truth."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from scipy.spatial.distance import jensenshannon

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import distributions, pixelwise
from consilience.measures.distributions import jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon
from consilience.pairs import Maps, over_family

ALL = [jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon]


def maps(seed: int, n: int = 20, values: int | None = None, shape: tuple[int, ...] = (2, 3)) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(-values, values + 1, (n, *shape), generator=chance).double()
    return torch.randn(n, *shape, generator=chance).double()


def by_pixel(slow, one, two):
    """The mean of a statistic over pixels, and the statistic of all values together."""
    a, b = one.double().flatten(1).numpy(), two.double().flatten(1).numpy()
    return np.mean([slow(p, q) for p, q in zip(a.T, b.T, strict=True)]), slow(a.ravel(), b.ravel())


def slow_divergence(a, b, bins):
    """Lin 1991, of NumPy's histograms over the common range; SciPy's is the root of it."""
    span = min(a.min(), b.min()), max(a.max(), b.max())
    if span[0] == span[1]:
        return 0.0
    p, q = (np.histogram(values, bins, span)[0] for values in (a, b))
    return float(jensenshannon(p, q, base=2) ** 2)


def slow_gap(a, b):
    """Smirnov: the largest distance of the two empirical distribution functions, wherever a value is."""
    return max(abs(np.mean(a <= v) - np.mean(b <= v)) for v in [*a, *b])


def slow_sums(a, b):
    """Wilcoxon 1945: ranks of the differences that are not 0, by size; sums of those above and below."""
    differences = [p - q for p, q in zip(a.tolist(), b.tolist(), strict=True) if p != q]
    sizes = sorted(abs(d) for d in differences)
    rank = {size: np.mean([i + 1 for i, other in enumerate(sizes) if other == size]) for size in sizes}
    return sum(rank[abs(d)] for d in differences if d > 0), sum(rank[abs(d)] for d in differences if d < 0)


def slow_side(a, b):
    above, below = slow_sums(a, b)
    return abs(above - below) / (len(a) * (len(a) + 1) / 2)


def holm(p, level=0.05):
    """Holm 1979: the smallest p against level / m, the next against level / (m - 1), until one fails."""
    rejected = 0
    for i, one in enumerate(sorted(p)):
        if one > level / (len(p) - i):
            break
        rejected += 1
    return rejected / len(p)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=sampled_from([None, 1, 2, 5]), n=integers(1, 30), bins=integers(2, 12))
def test_the_divergence_is_that_of_two_histograms(seed, values, n, bins):
    one, two = maps(seed, n, values), maps(seed + 1, n, values) / 2
    found = jensen_shannon(one, two, bins=bins)
    np.testing.assert_allclose(found, by_pixel(lambda a, b: slow_divergence(a, b, bins), one, two), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=sampled_from([None, 1, 2, 5]), n=integers(1, 30))
def test_the_distance_is_that_of_scipy(seed, values, n):
    one, two = maps(seed, n, values), maps(seed + 1, n, values) / 2
    np.testing.assert_allclose(wasserstein(one, two), by_pixel(scipy.stats.wasserstein_distance, one, two), atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=sampled_from([None, 1, 2, 5]), n=integers(2, 30))
def test_the_gap_is_its_definition_and_scipys_with_ties_and_without(seed, values, n):
    one, two = maps(seed, n, values), maps(seed + 1, n, values) / 2
    found = kolmogorov_smirnov(one, two)
    np.testing.assert_allclose(found[:2], by_pixel(slow_gap, one, two), atol=1e-12)
    np.testing.assert_allclose(
        found[:2], by_pixel(lambda a, b: scipy.stats.ks_2samp(a, b, method="asymp").statistic, one, two), atol=1e-12
    )


@pytest.mark.parametrize("n", [1, 2, 7, 30, 400])
def test_the_chance_of_a_gap_is_exact(n):
    a = np.arange(n, dtype=float)
    for gap in sorted({n // 3, n // 2, n} - {0, 1}):
        b = a + gap - 0.5  # the first values of a lie below all of b
        assert slow_gap(a, b) == pytest.approx(gap / n)
        expected = scipy.stats.ks_2samp(a, b, method="exact").pvalue
        assert distributions._chance(gap, n) == pytest.approx(expected, rel=1e-9)
    assert distributions._chance(0, n) == 1
    assert distributions._chance(1, n) == pytest.approx(1)  # the smallest of all values makes one


def test_the_chance_of_a_gap_is_the_share_of_all_orders_that_have_one():
    """Four values of each model: all ways in which they can lie among each other are equally likely."""
    largest = []
    for mine in itertools.combinations(range(8), 4):
        others = [place for place in range(8) if place not in mine]
        largest.append(round(4 * slow_gap(np.array(mine), np.array(others))))
    for gap in range(5):
        assert distributions._chance(gap, 4) == pytest.approx(np.mean([size >= gap for size in largest]))


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=sampled_from([None, 1, 2, 5]), n=integers(1, 30))
def test_the_sums_of_signed_ranks_are_their_definition(seed, values, n):
    one, two = maps(seed, n, values), maps(seed + 1, n, values)
    found = wilcoxon(one, two)
    np.testing.assert_allclose(found[:2], by_pixel(slow_side, one, two), atol=1e-12)
    above, below = slow_sums(one.flatten().numpy(), two.flatten().numpy())
    assert float(found.smaller) == pytest.approx(min(above, below))
    assert float(found.smaller) == scipy.stats.wilcoxon(one.flatten(), two.flatten(), method="asymptotic").statistic


@settings(deadline=None, max_examples=20)
@given(seed=integers(0, 2**31), values=sampled_from([None, 2, 5]))
def test_pixels_are_rejected_by_holms_method_from_scipys_p(seed, values):
    n, shape = 40, (3, 4)
    shift = torch.linspace(0, 2, 12).view(shape).double()  # from no difference to a large one
    one, two = maps(seed, n, values, shape), maps(seed + 1, n, values, shape) + shift.round()
    columns = list(zip(one.flatten(1).numpy().T, two.flatten(1).numpy().T, strict=True))
    p = [scipy.stats.ks_2samp(a, b, method="exact").pvalue for a, b in columns]
    assert float(kolmogorov_smirnov(one, two).rejected) == pytest.approx(holm(p))
    p = [scipy.stats.wilcoxon(a, b, method="asymptotic").pvalue for a, b in columns]
    assert float(wilcoxon(one, two).rejected) == pytest.approx(holm(p))


def test_a_shift_is_rejected_where_it_is_and_chance_is_not():
    shape = (10, 10)
    one, two = maps(0, 200, shape=shape), maps(1, 200, shape=shape)
    assert kolmogorov_smirnov(one, two).rejected == 0
    assert wilcoxon(one, two).rejected == 0
    two[:, :3] += 2
    assert float(kolmogorov_smirnov(one, two).rejected) == pytest.approx(0.3)
    assert float(wilcoxon(one, two).rejected) == pytest.approx(0.3)


def test_among_models_that_do_not_differ_few_have_a_rejected_pixel():
    """100 pairs of 20 pixels: at the level 0.05, five are to be expected, and 12 would be 1 in 1000."""
    pairs = [(maps(2 * seed, 60, shape=(4, 5)), maps(2 * seed + 1, 60, shape=(4, 5))) for seed in range(100)]
    for test in (kolmogorov_smirnov, wilcoxon):
        assert sum(float(test(*pair).rejected) > 0 for pair in pairs) < 12


def test_planted_distances_are_found():
    one = maps(0, 2000)
    assert wasserstein(one, one + 3).value == pytest.approx(3)
    assert wasserstein(one, 2 * one).value == pytest.approx(math.sqrt(2 / math.pi), rel=0.05)  # E |x|
    assert kolmogorov_smirnov(one, one + 1).value == pytest.approx(2 * scipy.stats.norm.cdf(0.5) - 1, abs=0.04)
    np.testing.assert_allclose(jensen_shannon(one, one + 100), 1, atol=1e-12)
    assert kolmogorov_smirnov(one, one + 100)[:2] == (1, 1)
    assert wilcoxon(one, one + 100)[:2] == (1, 1)


def test_the_images_order_matters_to_signed_ranks_alone():
    one, two = maps(0), maps(1)
    for distance in (jensen_shannon, kolmogorov_smirnov, wasserstein):
        torch.testing.assert_close(distance(one, two.flip(0)), distance(one, two), rtol=0, atol=1e-12)
    assert wilcoxon(one, one).pooled == 0
    assert wilcoxon(one, one.flip(0)).smaller > 0


def test_alike_models_get_about_the_stated_divergence_for_want_of_images():
    one, two = (torch.rand(1000, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for bins in (8, 32):
        assert jensen_shannon(one, two, bins=bins).value == pytest.approx((bins - 1) / (2.8 * 1000), rel=0.2)


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize("values", [None, 2])
def test_a_model_is_as_itself_and_both_ways_are_alike(distance, values):
    one, two = maps(0, values=values), maps(1, values=values)
    assert all(number == 0 for number in distance(one, one))
    torch.testing.assert_close(distance(one, two), distance(two, one), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", ALL)
def test_pixels_that_are_always_the_same_have_no_distance(distance):
    """Black margins: all maps are 0 there, and -0 is 0."""
    one, two = maps(0), maps(1)
    one[:, 0], two[:, 0] = 0.0, -0.0
    torch.testing.assert_close(2 * distance(one, two).value, distance(one[:, 1:], two[:, 1:]).value)


@pytest.mark.parametrize("distance", ALL)
def test_images_with_an_undefined_map_are_left_out_of_both(distance):
    family = [maps(seed) for seed in range(4)]
    family[0][3, 1, 1], family[1][5], family[2][7, 0, 0] = torch.nan, torch.nan, torch.inf
    pairs = [(0, 1), (1, 2), (3, 3), (0, 3), (2, 2)]
    left_out = [{3, 5}, {5, 7}, set(), {3}, {7}]
    for (a, b), out, found in zip(pairs, left_out, over_family(distance, family, pairs), strict=True):
        kept = [i for i in range(20) if i not in out]
        torch.testing.assert_close(found, distance(family[a][kept], family[b][kept]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", ALL)
def test_without_an_image_everything_is_undefined(distance):
    one = maps(0)
    one[:] = torch.nan
    for found in (distance(one, maps(1)), distance(maps(0)[:0], maps(1)[:0])):
        assert all(bool(number.isnan()) for number in found)


@pytest.mark.parametrize("distance", ALL)
def test_a_few_pixels_at_a_time_give_the_same(distance, monkeypatch):
    family = [maps(seed, 30, 3, (5, 4)) for seed in range(3)]
    pairs = [(0, 1), (2, 1), (0, 2), (1, 1)]
    whole = list(over_family(distance, family, pairs))
    for name, size in [("HELD", 7 * 30 * 3), ("NEAR", 2 * 30 * 3)]:
        monkeypatch.setattr(pixelwise, name, size)
    for name, size in [("NEAR", 2 * 30 * 3), ("PART", 3), ("PARTS", 2)]:
        monkeypatch.setattr(distributions, name, size)
    asked = []
    lazy = Maps(3, lambda i: asked.append(i) or family[i])
    for one, other in zip(over_family(distance, lazy, pairs), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert set(asked) == {0, 1, 2}


@settings(deadline=None, max_examples=40)
@given(seed=integers(0, 2**31), n=integers(1, 300), values=integers(1, 200), part=integers(1, 20), parts=integers(1, 5))
def test_the_gap_of_many_values_is_exact_however_they_are_cut(seed, n, values, part, parts):
    chance = np.random.default_rng(seed)
    one, two = np.sort(chance.integers(0, values, (2, n)) + chance.integers(0, 3, (2, 1)), axis=1) / 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributions, "PART", part)
        patch.setattr(distributions, "PARTS", parts)
        found = distributions._gap(one, two)
    counts = [(values <= np.concatenate([one, two])[:, None]).sum(1) for values in (one, two)]
    assert found == np.abs(counts[0] - counts[1]).max()


@pytest.mark.parametrize("distance", ALL)
def test_single_precision_and_channels_are_taken_as_they_are(distance):
    one, two = maps(0, shape=(2, 2, 3)).float(), maps(1, shape=(2, 2, 3)).float()
    expected = distance(one.double().flatten(1)[..., None], two.double().flatten(1)[..., None])
    torch.testing.assert_close(distance(one, two), expected, rtol=1e-6, atol=1e-12)


def test_a_histogram_of_one_bin_is_refused():
    with pytest.raises(SpecError, match=r"Expected `int` >= 2"):
        measure.choose({"use": "jensen_shannon", "bins": 1})
