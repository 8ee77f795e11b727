"""MNIST: handwritten digits, from the four files in which it is published."""

from pathlib import Path
from typing import Literal

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.fetch import published
from consilience.data.idx import mnist_like

DIGITS = tuple("0123456789")
MEAN, SD = (0.1307,), (0.3081,)
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://raw.githubusercontent.com/fgnt/mnist/master/",
)
CONTENTS = {  # SHA-256 of the unpacked file
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataset(version=1, paper="lecun1998gradient")
@published(MIRRORS, CONTENTS)
def mnist(root: Path, *, split: Literal["train", "test"] = "train") -> Examples:
    """Handwritten digits of 28 by 28 pixels, white on black: 60,000 to train on and 10,000 to test on.

    Args:
        split: Which of the published parts. The first half of the test part is the easier one.
    """
    return mnist_like(root, split, DIGITS, MEAN, SD)
