"""The smallest separability that can be told from chance: simulated, and the normal approximation where n is large."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from consilience.errors import SpecError
from consilience.measures.power import smallest_detectable
from consilience.measures.separability import Separability, separability
from consilience.rng import Rng


def share_found(s: float, n: int, decided: float, level: float = 0.05, times: int = 1000) -> int:
    """How often values of images with that mean are told from 0 by turning signs at random, all signs counted."""
    chance = np.random.default_rng(0)
    decided = max(decided, s)
    positive, negative = (decided + s) / 2, (decided - s) / 2
    values = chance.choice([1, -1, 0], (times, n), p=[positive, negative, 1 - decided])
    turned = chance.choice([-1, 1], (2000, n))
    null = turned @ np.abs(values).T  # the same turns for all: each is a draw of the null
    return int(((null >= values.sum(1)).mean(0) <= level).sum())


@pytest.mark.parametrize("decided", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("n", [20, 50])
def test_what_it_names_is_found_as_often_as_it_says(n, decided):
    s = smallest_detectable(n, decided=decided)
    low, high = binomtest(share_found(s, n, decided), 1000).proportion_ci(0.99, method="exact")
    assert low - 0.02 <= 0.8 <= high + 0.02  # the simulated null is itself a draw
    assert share_found(0.7 * s, n, decided) < 0.75 * 1000
    assert share_found(0.0, n, decided) < 0.07 * 1000


@pytest.mark.parametrize(("decided", "n"), [(0.5, 2000), (1.0, 5000)])
def test_for_many_images_it_is_that_of_independent_rows(decided, n):
    """Lopez-Paz and Oquab 2017: the accuracy of 2n independent answers has the variance 1 / 8n, S thus 1 / 2n."""
    expected = (norm.isf(0.05) + norm.ppf(0.8)) * np.sqrt(decided / n)
    assert smallest_detectable(n, decided=decided) == pytest.approx(expected, rel=0.03)


def test_more_images_a_higher_level_and_less_power_make_it_smaller():
    sizes = [smallest_detectable(n) for n in (10, 30, 100, 300)]
    assert sizes == sorted(sizes, reverse=True)
    assert smallest_detectable(50, level=0.1) < smallest_detectable(50) < smallest_detectable(50, power=0.95)
    assert smallest_detectable(50, decided=0.2) < smallest_detectable(50)


def test_four_images_tell_nothing_and_five_only_what_is_nearly_certain():
    """By chance, four signs are all positive one time in 16."""
    assert np.isnan(smallest_detectable(4))
    assert smallest_detectable(5) == pytest.approx(2 * 0.8 ** (1 / 5) - 1)


def test_what_chance_alone_finds_is_nothing():
    assert smallest_detectable(1000, level=0.5, power=0.3) == 0


@pytest.mark.parametrize("given", [{"n": 0}, {"n": 9, "level": 0.0}, {"n": 9, "power": 1.0}, {"n": 9, "decided": 0.0}])
def test_what_is_no_number_of_images_and_no_probability_is_refused(given):
    with pytest.raises(SpecError, match="smallest_detectable: expected"):
        smallest_detectable(**given)


# What separability itself finds


def told(seed: int, shift: float, permutations: int, n: int = 40, **options) -> Separability:
    """Maps of a common signal, each with noise of its own; a few pixels of the second are shifted."""
    chance = torch.Generator().manual_seed(seed)
    signal, a, b = torch.randn(3, n, 5, 5, generator=chance)
    b[:, 2, :3] += shift
    given = torch.zeros(n, dtype=torch.long), torch.arange(n), Rng(seed, range(n))
    return separability(signal + a, signal + b, *given, permutations=permutations, **options)


def test_a_large_planted_shift_is_found_and_none_is_not_found_too_often():
    found = [told(seed, 1.5, 19) for seed in range(10)]
    assert [float(result.p) for result in found] == [0.05] * 10
    mean = torch.stack([result.value for result in found]).mean()
    assert mean > smallest_detectable(40, decided=float(torch.stack([r.value for r in found]).abs().mean()))
    none = sum(bool(told(seed, 0.0, 4).p <= 0.2) for seed in range(60))
    assert none <= 22  # 12 are expected; more than 22 come by chance one time in 1,000


def test_the_deviation_of_separability_is_that_of_independent_images_and_a_fifth_or_so():
    """What ``smallest_detectable`` leaves out: images of one fold are asked about by one classifier."""
    values = torch.stack([told(seed, 0.0, 0, classifier="lda").value for seed in range(200)])
    alone = (values.abs().mean() / 40).sqrt()
    assert values.mean().abs() < 0.03
    assert 0.95 * alone < values.mean(1).std() < 1.5 * alone
