"""Ten thousand digits of MNIST that come with the package: real data without a download."""

from importlib.resources import as_file, files
from typing import Literal

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.idx import idx_examples
from consilience.data.mnist import DIGITS, MEAN, SD


@dataset(version=1, paper="lecun1998gradient")
def mnist10k(*, split: Literal["train", "test"] = "train") -> Examples:
    """Handwritten digits from MNIST, balanced: 800 of each class to train on and 200 of each to test on.

    The classes take turns, 0 to 9 and again, so the first 10, 20, 30, ... examples are balanced too.
    Training digits are from MNIST's training part and test digits from its test part, drawn at random.

    Args:
        split: Which part. Mean and deviation are those of MNIST's whole training part for both.
    """
    folder = files("consilience.data") / "mnist10k_files"
    with as_file(folder / f"{split}-images.gz") as images, as_file(folder / f"{split}-labels.gz") as labels:
        return idx_examples(images, labels, DIGITS, MEAN, SD)
