"""Examples whose images lie on disk, too many for memory: each is decoded when it is asked for."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from consilience.data.examples import Batch, Example, Examples, fingerprint
from consilience.errors import DataError
from consilience.tensors import slices

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training pixels
SHORT, CROP = 256, 224  # pixels: the short side before the middle is cut out, and what is cut out
TOGETHER = 256  # examples that are read at once where only their labels are wanted


@runtime_checkable
class Source(Protocol):
    """Where images are found by their path below the data set's folder."""

    def image(self, path: str) -> Image.Image:
        """The image in grey, decoded."""

    def contents(self, paths: Iterable[str]) -> bytes:
        """What a fingerprint takes for the content of these images."""

    def missing(self, paths: Iterable[str]) -> list[int]:
        """Positions of the images that are not there."""


@runtime_checkable
class Known(Protocol):
    """Examples that know their classes and groups apart from their images."""

    labels: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]


class Folder:
    """Image files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def image(self, path: str) -> Image.Image:
        """The image in grey, decoded.

        Raises:
            DataError: The file is missing, cut short, or no image of 8 bits a channel.
        """
        file = self.root / path
        try:
            with Image.open(file) as image:
                if image.mode not in ("L", "RGB"):
                    raise DataError(
                        f"{file}: expected an image of 8 bits, grey or RGB, found the mode '{image.mode}'; convert it"
                    )
                return image.convert("L")
        except FileNotFoundError:
            raise DataError(
                f"{file}: expected an image, found no such file; download it, "
                "and let 'consilience check-data' look for others"
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: expected a complete image, found '{error}'; download it again") from None

    def contents(self, paths: Iterable[str]) -> bytes:
        """The files' sizes in bytes; -1 where there is none."""
        return np.fromiter(map(self._size, paths), np.int64).tobytes()

    def missing(self, paths: Iterable[str]) -> list[int]:
        """Positions of the images that are not there."""
        return [position for position, path in enumerate(paths) if self._size(path) < 0]

    def _size(self, path: str) -> int:
        try:
            return os.stat(f"{self.root}/{path}").st_size  # noqa: PTH116  (a Path each: 1.4 s for 377,110, not 0.4)
        except OSError:
            return -1


class Hdf5:
    """One HDF5 file with a group for each image, named by its path, whose dataset ``img`` holds the pixels.

    The path in the file may go on above the data set's folder, as where the images lay when the file was made.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def image(self, path: str) -> Image.Image:
        """The image in grey.

        Raises:
            DataError: There is no such image, or it holds no bytes ``[h, w]`` or ``[h, w, 3]``.
        """
        try:
            pixels = self._images[f"{path}/img"][()]
        except KeyError:
            raise DataError(
                f"{self.file}: expected a group '{path}' with a dataset 'img', found none; add the image to the file"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self.file}: expected to read '{path}/img', found '{error}'; make the file again"
            ) from None
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise DataError(
                f"{self.file}: expected bytes [h, w] or [h, w, 3] as '{path}/img', "
                f"found {pixels.dtype} {list(pixels.shape)}; write decoded images"
            )
        return Image.fromarray(pixels).convert("L")

    def contents(self, paths: Iterable[str]) -> bytes:
        """The size of the file as a whole."""
        return b"hdf5 %d" % self.file.stat().st_size

    def missing(self, paths: Iterable[str]) -> list[int]:
        """Positions of the images that are not there."""
        return [position for position, path in enumerate(paths) if f"{path}/img" not in self._images]

    @functools.cached_property
    def _images(self) -> Any:
        """The group below which images are named as in the data set's folder."""
        try:
            import h5py
        except ImportError:
            raise DataError(
                f"{self.file}: expected h5py to read it with, found none; pip install 'consilience[hdf5]'"
            ) from None
        try:
            group = h5py.File(self.file, "r")
        except OSError as error:
            raise DataError(f"{self.file}: expected an HDF5 file, found '{error}'; make it again") from None
        while "files" not in group and len(group) == 1 and isinstance(above := group[next(iter(group))], h5py.Group):
            group = above
        return group


class ImageFiles:
    """Examples of a source of images, in grey on three channels, cut to a square and scaled alike every time."""

    def __init__(
        self,
        source: Source,
        path: Callable[[int], str],
        labels: Int[Tensor, " n"],
        groups: Int[Tensor, " n"],
        classes: tuple[str, ...],
        size: int,
        identity: Sequence[bytes],
        notes: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Keep what is known without decoding.

        Args:
            source: Where the images are.
            path: Of an id, the image's path.
            labels: Of each example.
            groups: Of each example, what a split may not separate.
            classes: Their names.
            size: Pixels of a side.
            identity: What makes these examples different from others, but for the content of the images.
            notes: What is to be known of them; for people.
        """
        self.source, self.path, self.size, self.notes = source, path, size, notes
        self.labels, self.groups, self.classes = labels, groups, classes
        self.shape = (3, size, size)
        self.mean: tuple[float, ...] = MEAN
        self.sd: tuple[float, ...] = SD
        contents = source.contents(map(path, range(len(labels))))
        self.fingerprint = fingerprint(*identity, str(size).encode(), contents)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(self._pixels(index), int(self.labels[index]))

    def batch(self, ids: Sequence[int]) -> Batch:
        """These examples, stacked."""
        rows = torch.as_tensor(ids, dtype=torch.long)
        pixels = [self._pixels(index) for index in rows.tolist()]
        x = torch.stack(pixels) if pixels else torch.empty(0, *self.shape)
        return Batch(rows, x, self.labels[rows], self.groups[rows])

    @property
    def missing(self) -> list[int]:
        """Ids of the examples whose image is not there."""
        return self.source.missing(map(self.path, range(len(self))))

    def _pixels(self, index: int) -> Float[Tensor, "3 h w"]:
        if not 0 <= index < len(self):  # an IndexError, because it ends a loop over the examples
            raise IndexError(f"expected an id from 0 to {len(self) - 1}, found {index}; choose another")
        return centre(self.source.image(self.path(index)), self.size).expand(3, -1, -1)


def centre(image: Image.Image, size: int) -> Float[Tensor, "h w"]:
    """The middle of a grey image, ``size`` pixels a side, once its short side is 256 pixels for every 224 of them.

    Scaled bilinearly with antialiasing, in bytes, as torchvision does with PIL's images.
    """
    short = round(size * SHORT / CROP)
    width, height = image.size
    scaled = (short, short * height // width) if width <= height else (short * width // height, short)
    left, top = (round((side - size) / 2) for side in scaled)
    cut = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cut)).float() / 255


def labels_and_groups(examples: Examples) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """The class and the group of every example; no image is decoded where the data set holds them apart."""
    if isinstance(examples, Known):
        return examples.labels, examples.groups
    parts = [examples.batch(range(some.start, some.stop)) for some in slices(len(examples), TOGETHER)]
    return torch.cat([part.label for part in parts]), torch.cat([part.groups for part in parts])
