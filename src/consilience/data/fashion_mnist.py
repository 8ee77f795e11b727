"""Fashion-MNIST: articles of clothing in the format of MNIST."""

from pathlib import Path
from typing import Literal

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.fetch import published
from consilience.data.idx import mnist_like

ARTICLES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN, SD = (0.2860,), (0.3530,)
MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
)
CONTENTS = {  # SHA-256 of the unpacked file
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataset(version=1, paper="xiao2017fashion")
@published(MIRRORS, CONTENTS)
def fashion_mnist(root: Path, *, split: Literal["train", "test"] = "train") -> Examples:
    """Clothes of 28 by 28 pixels, grey on black, in ten classes: 60,000 to train on and 10,000 to test on.

    Args:
        split: Which of the published parts.
    """
    return mnist_like(root, split, ARTICLES, MEAN, SD)
