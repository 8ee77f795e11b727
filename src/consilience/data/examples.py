"""What every data set is: examples with an id, read one by one or in batches."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from consilience.errors import DataError


class Example(NamedTuple):
    """One image, its class and, where the data has it, where the object is."""

    x: Float[Tensor, "c h w"]
    label: int
    mask: Bool[Tensor, "h w"] | None = None


class Batch(NamedTuple):
    """Some examples, in the order in which they were asked for."""

    ids: Int[Tensor, " n"]
    x: Float[Tensor, "n c h w"]
    label: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]
    mask: Bool[Tensor, "n h w"] | None = None

    def to(self, device: str | torch.device) -> "Batch":
        """The same on a device."""
        return Batch._make(part if part is None else part.to(device) for part in self)


@runtime_checkable
class Examples(Protocol):
    """A data set. The index of an example is its id, so its order is part of what it is."""

    shape: tuple[int, int, int]
    """Of one image: channels, height, width."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Of the training pixels, a channel each; models subtract it themselves."""
    sd: tuple[float, ...]
    fingerprint: str
    """A digest of the content: data that differ anywhere differ here."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        ...


Dataset = Callable[..., Examples]
"""A data set, configured: called without arguments, it gives the examples."""


class Arrays:
    """Examples that fit into memory, as floats in [0, 1] or as bytes, which become floats as they are asked for."""

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"] | Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        classes: tuple[str, ...],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        groups: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Check and keep the arrays.

        Raises:
            DataError: Other many labels than images, no example at all, or a label out of range.
        """
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(
                f"examples: expected as many labels as images and at least one, found {len(images)} images "
                f"and {len(labels)} labels; check that both files are of one set"
            )
        wrong = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
        if len(wrong):
            raise DataError(
                f"example {int(wrong[0])}: expected a label from 0 to {len(classes) - 1}, "
                f"found {int(labels[wrong[0]])} ({len(wrong)} such labels); check the labels' file"
            )
        self.images, self.labels = images, labels.long()
        self.groups = torch.arange(len(images)) if groups is None else groups
        channels, height, width = images.shape[1:]
        self.shape, self.classes, self.mean, self.sd = (channels, height, width), classes, mean, sd
        self.fingerprint = fingerprint(images.numpy().tobytes(), self.labels.numpy().tobytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self._pixels(index), int(self.labels[index]))

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        rows = torch.as_tensor(ids, dtype=torch.long)
        return Batch(rows, self._pixels(rows), self.labels[rows], self.groups[rows])

    def _pixels(self, rows: int | Tensor) -> Tensor:
        chosen = self.images[rows]
        return chosen if chosen.is_floating_point() else chosen.float() / 255


def checked(batch: Batch) -> Batch:
    """The batch itself.

    Raises:
        DataError: A value is NaN or outside [0, 1].
    """
    low, high = (bound.item() for bound in batch.x.aminmax())
    if low >= 0 and high <= 1:  # false for NaN
        return batch
    wrong = ~((batch.x >= 0) & (batch.x <= 1))
    row = int(wrong.flatten(1).any(1).nonzero()[0])
    raise DataError(
        f"example {int(batch.ids[row])}: expected pixels from 0 to 1, found {float(batch.x[row][wrong[row]][0]):.4g}; "
        "divide bytes by 255, and leave mean and deviation to the model"
    )


def fingerprint(*parts: bytes) -> str:
    """One digest of several runs of bytes, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
