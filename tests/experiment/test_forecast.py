"""What a plan says of how small a separability the explained examples can show."""

import math

import pytest
import torch
from msgspec.structs import replace
from scipy.stats import binom

from consilience.component import measure
from consilience.data.examples import Arrays
from consilience.experiment import forecast
from consilience.experiment.desk import Place
from consilience.experiment.forecast import detectable
from consilience.experiment.specs import Prepared


def power(n, s):
    """Of the exact sign test at a level of 5 percent, where every one of n images is decided, by its definition."""
    rare = [k for k in range(n + 1) if sum(math.comb(n, j) for j in range(k, n + 1)) / 2**n <= 0.05]
    return float(binom.sf(rare[0] - 1, n, (1 + s) / 2))


@pytest.fixture
def separated(tiny):
    """The tiny experiment, its maps told apart."""
    return replace(tiny, compare=(Prepared(measure=measure.choose("separability")),))


def test_the_smallest_separability_is_found_four_times_in_five_by_all_images_and_by_those_of_the_smallest_class(
    separated,
):
    least = detectable(separated, Place())
    assert (least.images, least.of_class) == (30, 3), "digits of all ten classes"
    assert power(30, least.smallest) == pytest.approx(0.8)
    assert math.isnan(least.smallest_of_class), "three images that are all told apart are not rare enough"


def test_the_smallest_class_is_the_one_with_the_fewest_images_that_has_any(separated, monkeypatch):
    label = torch.tensor([0] * 12 + [2] * 6 + [3] * 20)
    examples = Arrays(torch.zeros(len(label), 1, 2, 2), label, ("a", "b", "c", "d"), (0.5,), (0.5,))
    monkeypatch.setattr(forecast, "load_examples", lambda choice, place: examples)
    least = detectable(separated, Place())
    assert (least.images, least.of_class) == (38, 6)
    assert power(38, least.smallest) == pytest.approx(0.8)
    assert power(6, least.smallest_of_class) == pytest.approx(0.8)


def test_without_a_measure_that_tells_maps_apart_or_examples_with_a_name_there_is_none(tiny, separated):
    assert detectable(tiny, Place()) is None
    assert detectable(replace(separated, examples=replace(separated.examples, choice=None)), Place()) is None
