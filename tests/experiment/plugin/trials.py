"""Components that go wrong on purpose: a plug-in, as somebody else would install one."""

import os
import signal
from pathlib import Path

import torch

from consilience.attribution.gradient import gradient
from consilience.component import attribution, dataset
from consilience.data.examples import Dataset
from consilience.data.mnist10k import mnist10k
from consilience.data.views import First


@dataset(version=1)
def damaged(*, of: Dataset = mnist10k, count: int = 12, pixel: str = "nan", example: int = 5):
    """Digits, one of which has a pixel that is none.

    Args:
        of: The digits.
        count: How many.
        pixel: What it has instead.
        example: Which digit.
    """
    return Damaged(of(), count, float(pixel), example)


class Damaged(First):
    def __init__(self, whole, count, pixel, example):
        super().__init__(whole, count)
        self.pixel, self.example = pixel, example

    def batch(self, ids):
        batch = super().batch(ids)
        batch.x[batch.ids == self.example, 0, 3, 4] = self.pixel
        return batch


@attribution(version=1)
def half_undefined(model, x, target):
    """The gradient; of even classes one number is NaN."""
    maps = gradient(model, x, target)
    maps[target % 2 == 0, 0, 0, 0] = torch.nan
    return maps


@attribution(version=1)
def undefined(model, x, target):
    """NaN everywhere."""
    return torch.full_like(x, torch.nan)


@attribution(version=1)
def misshapen(model, x, target):
    """One number an image."""
    return gradient(model, x, target).mean((1, 2, 3))


@attribution(version=1)
def deadly(model, x, target):
    """The gradient, unless a file tells to kill the process that is asked for it."""
    order = os.environ.get("TRIALS_DEATH")
    if order and Path(order).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return gradient(model, x, target)


@attribution(version=1)
def erroneous(model, x, target):
    """An error of Python's, as a mistake in somebody's method gives one."""
    return gradient(model, x, target[None][7])
