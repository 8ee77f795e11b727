"""Fashion-MNIST: articles of clothing in the format of MNIST."""

from pathlib import Path
from typing import Literal

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.idx import mnist_like

ARTICLES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, SD = (0.2860,), (0.3530,)


@dataset(version=1, paper="xiao2017fashion")
def fashion_mnist(root: Path, *, split: Literal["train", "test"] = "train") -> Examples:
    """Clothes of 28 by 28 pixels, grey on black, in ten classes: 60,000 to train on and 10,000 to test on.

    Args:
        split: Which of the published parts.
    """
    return mnist_like(root, split, ARTICLES, MEAN, SD)
