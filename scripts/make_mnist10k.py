"""Make the four files of the data set ``mnist10k``, which the package carries, from MNIST itself.

Of each class, 800 digits are drawn from MNIST's training set and 200 from its test set, by a seeded
permutation inside the class. The first ones are not simply taken: the first 5,000 test images of MNIST
come from other writers than the last 5,000 and are cleaner and easier, so a prefix would be biased.

The classes take turns, 0, 1, ..., 9, 0, 1, ..., so every prefix whose length is a multiple of ten is
balanced. The same four source files give the same content on every machine.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consilience.data.idx import mnist_like, write_idx
from consilience.data.mnist import DIGITS, MEAN, SD
from consilience.errors import ConsilienceError, DataError
from consilience.rng import generator

HOME = Path(__file__).parents[1] / "src" / "consilience" / "data" / "mnist10k_files"
SEED = 0
COUNTS = {"train": 800, "test": 200}
PUBLISHED = {"train": "9cd46ddd5d73871ccbe4ec3eef0119c5", "test": "2c25cf78bfcdf0f0e76a44863b7ca4b2"}
"""Fingerprints of MNIST as published; Fashion-MNIST and others have files of the same names."""


def select(labels: Tensor, split: str, count: int) -> Tensor:
    """Which examples are taken: ``count`` of each class at random, the classes taking turns."""
    turns = []
    for digit in range(len(DIGITS)):
        there = (labels == digit).nonzero().flatten()
        # Raw numbers of a bit generator, unlike permutation(), are the same in every release of NumPy.
        chance = generator("mnist10k", SEED, split, digit).bit_generator.random_raw(len(there))
        turns.append(there[torch.from_numpy(np.argsort(chance, kind="stable")[:count])])
    return torch.stack(turns, 1).flatten()


def make(source: Path, to: Path) -> None:
    """Read MNIST in one folder and write the four files into another.

    Raises:
        DataError: What lies in ``source`` is not MNIST as published.
    """
    for split, count in COUNTS.items():
        whole = mnist_like(source, split, DIGITS, MEAN, SD)
        if whole.fingerprint != PUBLISHED[split]:
            raise DataError(
                f"{source}: expected the {split} part of MNIST as published (fingerprint {PUBLISHED[split]}), "
                f"found {whole.fingerprint}; download MNIST again"
            )
        to.mkdir(parents=True, exist_ok=True)
        chosen = select(whole.labels, split, count)
        for what, array in (("images", whole.images[chosen, 0]), ("labels", whole.labels[chosen].to(torch.uint8))):
            path = to / f"{split}-{what}.gz"
            write_idx(path, array)
            print(f"{path}: {list(array.shape)}, {path.stat().st_size:,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR",
        help="folder with MNIST's four files, {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, gzipped or not",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=Path, default=HOME, metavar="DIR", help="folder of the four new files (default: the package's own)"
    )
    options = parser.parse_args(arguments)
    try:
        make(options.source, options.to)
    except ConsilienceError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
