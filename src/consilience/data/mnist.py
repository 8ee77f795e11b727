"""MNIST: handwritten digits, from the four files in which it is published."""

from pathlib import Path
from typing import Literal

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.idx import mnist_like

DIGITS = tuple("0123456789")
MEAN, SD = (0.1307,), (0.3081,)


@dataset(version=1, paper="lecun1998gradient")
def mnist(root: Path, *, split: Literal["train", "test"] = "train") -> Examples:
    """Handwritten digits of 28 by 28 pixels, white on black: 60,000 to train on and 10,000 to test on.

    Args:
        split: Which of the published parts. The first half of the test part is the easier one.
    """
    return mnist_like(root, split, DIGITS, MEAN, SD)
