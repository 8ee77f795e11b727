"""Views: data sets made from another data set, which stays as it is."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Int
from msgspec import Meta
from torch import Tensor

from consilience.component import dataset
from consilience.data.examples import Batch, Dataset, Example, Examples, fingerprint
from consilience.data.images import Known, labels_and_groups
from consilience.data.mnist10k import mnist10k
from consilience.errors import DataError
from consilience.rng import permutation


@dataset(version=1)
def subset(*, of: Dataset = mnist10k, count: Annotated[int, Meta(ge=1)]) -> Examples:
    """The first examples of another data set, with the ids they have there.

    Args:
        of: The data set that is shortened.
        count: How many examples are left.
    """
    return First(of(), count)


@dataset(version=1)
def random_subset(
    *, of: Dataset = mnist10k, share: Annotated[float, Meta(gt=0, le=1)] = 0.8, seed: Annotated[int, Meta(ge=0)] = 0
) -> Examples:
    """Some examples of another data set, drawn without replacement, in their order there.

    Args:
        of: The data set of which they are drawn.
        share: Of the examples, how many are drawn; at least one is.
        seed: Another seed draws others.
    """
    whole = of()
    count = max(1, round(share * len(whole)))
    ids = np.sort(permutation(len(whole), "subset", seed)[:count])
    return Some(whole, torch.from_numpy(ids), subset_fingerprint(whole.fingerprint, share, seed))


@dataset(version=1)
def without_fold(
    *, of: Dataset = mnist10k, folds: Annotated[int, Meta(ge=2)] = 5, fold: Annotated[int, Meta(ge=0)] = 0
) -> Examples:
    """The examples of another data set but for one of ``folds`` equal parts, which are the same for every fold.

    What may not be separated (an image, a patient) is in one part.

    Args:
        of: The data set that is divided.
        folds: How many parts.
        fold: The part that is left out, counted from 0.
    """
    whole = of()
    held = _held(whole, folds, fold)
    return Some(whole, (~held).nonzero()[:, 0], fold_fingerprint(whole.fingerprint, folds, fold))


@dataset(version=1)
def only_fold(
    *, of: Dataset = mnist10k, folds: Annotated[int, Meta(ge=2)] = 5, fold: Annotated[int, Meta(ge=0)] = 0
) -> Examples:
    """The part that ``without_fold`` leaves out: to choose by, or to look at, what others were learnt from.

    Args:
        of: The data set that is divided.
        folds: How many parts.
        fold: The part that is kept, counted from 0.
    """
    whole = of()
    held = _held(whole, folds, fold)
    mark = fold_fingerprint(whole.fingerprint, folds, fold)
    return Some(whole, held.nonzero()[:, 0], fingerprint(b"only", mark.encode()))


def _held(whole: Examples, folds: int, fold: int) -> Bool[Tensor, " n"]:
    """Which examples are in the fold.

    Raises:
        DataError: There is no such fold, or nothing to put into each.
    """
    if fold >= folds:
        raise DataError(f"fold: expected one from 0 to {folds - 1}, found {fold}; change it or 'folds'")
    _, groups = labels_and_groups(whole)
    names, group = torch.unique(groups, return_inverse=True)
    if len(names) < folds:
        raise DataError(f"folds: expected at least {folds} groups of examples, found {len(names)}; choose fewer folds")
    part_of = torch.from_numpy(permutation(len(names), "folds", folds)) % folds
    return part_of[group] == fold


def subset_fingerprint(whole: str, share: float, seed: int) -> str:
    """The fingerprint of a random subset, known without reading anything."""
    return fingerprint(b"random", whole.encode(), f"{share} {seed}".encode())


def fold_fingerprint(whole: str, folds: int, fold: int) -> str:
    """The fingerprint of all but a fold, known without reading anything."""
    return fingerprint(b"fold", whole.encode(), f"{folds} {fold}".encode())


class Some:
    """Some of some examples, counted anew from 0."""

    def __init__(self, whole: Examples, ids: Int[Tensor, " m"], mark: str) -> None:
        self.whole, self.ids = whole, ids
        self.shape, self.classes, self.mean, self.sd = whole.shape, whole.classes, whole.mean, whole.sd
        self.fingerprint = mark
        if isinstance(whole, Known):
            self.labels, self.groups = whole.labels[ids], whole.groups[ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):  # an IndexError, because it ends a loop over the examples
            raise IndexError(f"expected an id from 0 to {len(self) - 1}, found {index}; choose another")
        return self.whole[int(self.ids[index])]

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        rows = torch.as_tensor(ids, dtype=torch.long)
        return self.whole.batch(self.ids[rows].tolist())._replace(ids=rows)


class First:
    """The first ``count`` of some examples."""

    def __init__(self, whole: Examples, count: int) -> None:
        """Check that there are as many.

        Raises:
            DataError: There are fewer examples, or none is left.
        """
        if not 1 <= count <= len(whole):
            raise DataError(
                f"subset: expected a count from 1 to {len(whole)}, the examples that there are, found {count}; "
                "change the count or take a larger data set"
            )
        self.whole, self.count = whole, count
        self.shape, self.classes, self.mean, self.sd = whole.shape, whole.classes, whole.mean, whole.sd
        if isinstance(whole, Known):
            self.labels, self.groups = whole.labels[:count], whole.groups[:count]
        # Of the whole's, so that no image is read for it: data that differ behind the last example differ here too.
        self.fingerprint = fingerprint(b"first", whole.fingerprint.encode(), str(count).encode())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        self._check(index)
        return self.whole[index]

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        for index in ids:
            self._check(index)
        return self.whole.batch(ids)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.count:  # an IndexError, because it ends a loop over the examples
            raise IndexError(f"subset: expected an id from 0 to {self.count - 1}, found {index}; raise the count")
