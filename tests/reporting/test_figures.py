"""Pictures of maps: signs are seen, zero is white, undefined is grey, and few pixels lie beyond the scale."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.reporting.figures import Mode, limit_of, medoids, signed, unsigned


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))).convert("RGB")).tolist()


def test_colours_show_the_sign():
    values = torch.tensor([[-1.0, -0.2, 0.0, 0.2, 1.0, 7.0, float("nan")]])
    (low, less, zero, more, high, beyond, undefined) = pixels(signed(values, 1.0))[0]
    for red, _, blue in (low, less):
        assert blue > red
    for red, _, blue in (high, more):
        assert red > blue
    assert min(zero) > 240
    assert beyond == high
    assert undefined == [153, 153, 153]
    assert pixels(signed(torch.zeros(1, 3), 1.0))[0] == [zero] * 3


def test_the_limit_of_colours_passes_over_one_pixel_in_two_hundred():
    maps = torch.linspace(-1, 1, 401)
    assert limit_of(maps) == pytest.approx(np.quantile(maps.abs().numpy(), 0.995))
    spike = torch.zeros(1000)
    spike[0] = -3.0
    assert limit_of(spike) == 3.0
    assert limit_of(torch.zeros(4)) == limit_of(torch.full((4,), float("nan"))) == 1.0


def test_a_deviation_goes_from_white_to_a_colour_that_is_neither_red_nor_blue():
    zero, half, full, beyond, undefined = pixels(unsigned(torch.tensor([[0.0, 0.5, 1.0, 9.0, float("nan")]]), 1.0))[0]
    assert min(zero) > 240
    assert sum(zero) > sum(half) > sum(full)
    assert full == beyond
    red, green, blue = full
    assert green < red
    assert green < blue
    assert undefined == [153, 153, 153]


MODES = {  # of each measure and condition
    ("cosine", "all"): ["mode 1: twins 0, 2, 3 (medoid 2)", "mode 2: twins 1, 4 (medoid 1)", "alone: twin 5"],
    ("cosine", "both_right"): ["one mode: twins 0 to 5 (medoid 5)"],
}


def marks(rows):
    """Of six twins with such rows, behind their names."""
    modes = [Mode("twins", "gradient", *place, row) for place, several in rows.items() for row in several]
    found = medoids(modes, {"twins": [f"init {seed}" for seed in range(10, 16)]})
    assert {place[:2] for place in found} <= {("twins", "gradient")}
    return {name: mark for (_, _, name), mark in found.items()}


def test_each_mode_of_all_images_has_a_medoid():
    assert marks(MODES) == {"init 12": ", medoid of mode 1", "init 11": ", medoid of mode 2"}


def test_modes_of_a_condition_are_marked_where_there_are_no_others():
    rows = {place: row for place, row in MODES.items() if place[1] != "all"}
    assert marks(rows) == {"init 15": ", medoid of the one mode"}


def test_of_several_measures_each_medoid_says_by_which():
    rows = {**MODES, ("ssim", "all"): ["mode 1: twins 2, 3 (medoid 2)", "mode 2: twins 0, 1 (medoid 0)"]}
    rows["spearman", "all"] = ["mode 1: twins 1, 2 (medoid 1)", "mode 2: twins 3, 4 (medoid 3)"]
    assert marks(rows) == {
        "init 10": ", medoid of mode 2 by ssim",
        "init 11": ", medoid of mode 2 by cosine, medoid of mode 1 by spearman",
        "init 12": ", medoid of mode 1 by cosine and ssim",
        "init 13": ", medoid of mode 2 by spearman",
    }


def test_without_modes_nobody_is_a_medoid():
    undefined = {("cosine", "all"): ["undefined: not every two twins have an agreement"]}
    assert marks(undefined) == marks({}) == {}


def test_a_medoid_is_that_of_its_own_family_and_method():
    names = {"twins": ["a", "b"], "folds": ["c", "d"]}
    rows = [
        Mode("twins", "gradient", "cosine", "all", "one mode: twins 0, 1 (medoid 1)"),
        Mode("folds", "gradient", "cosine", "all", "one mode: twins 0, 1 (medoid 1)"),
        Mode("twins", "edge_map", "cosine", "all", "one mode: twins 0, 1 (medoid 0)"),
    ]
    assert set(medoids(rows, names)) == {
        ("twins", "gradient", "b"), ("folds", "gradient", "d"), ("twins", "edge_map", "a"),
    }  # fmt: skip
