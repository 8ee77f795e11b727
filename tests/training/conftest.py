"""A training that takes milliseconds: bright top or bottom halves, seen by the small CNN."""

import functools

import pytest
import torch

from consilience.data.examples import Arrays
from consilience.models.cnn import small_cnn
from consilience.models.split import normalised
from consilience.training.loop import Chances, train
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import adadelta


def planted(count=24, size=12):
    """Noise with a bright half, whose place is the class."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (count, 1, size, size), generator=chance, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 0, :, : size // 2] += 120
    images[labels == 1, :, size // 2 :] += 120
    return Arrays(images, labels, ("top", "bottom"), (0.4,), (0.3,))


def small(dropout=0.25, size=12):
    return normalised(small_cnn((1, size, size), 2, dropout=dropout), (0.4,), (0.3,))


@pytest.fixture
def examples():
    return planted()


@pytest.fixture
def run(examples):
    """A short training with any of its arguments changed."""

    def run(build=small, examples=examples, chances=Chances(), **changed):  # noqa: B008  (a tuple)
        given = {"objective": cross_entropy, "optimizer": adadelta, "epochs": 2, "batch_size": 10, **changed}
        return train(build, examples, chances=chances, **given)

    return run


@pytest.fixture
def without_dropout():
    return functools.partial(small, dropout=0.0)


@pytest.fixture
def same():
    """Whether two trainings are equal bit for bit."""

    def same(a, b):
        equal = [
            list(mine) == list(other) and all(torch.equal(mine[name], other[name]) for name in mine)
            for mine, other in [(a.weights, b.weights), *((a.kept[e], b.kept.get(e, {})) for e in a.kept)]
        ]
        return all(equal) and list(a.kept) == list(b.kept) and a.history == b.history

    return same
