"""Pictures of maps: signs are seen, zero is white, undefined is grey, and few pixels lie beyond the scale."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from consilience.reporting.figures import limit_of, signed, unsigned


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
