"""IDX, the format of MNIST and its kin: a magic number, the sizes of the axes, then the bytes."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consilience.data.examples import Arrays
from consilience.errors import DataError, SpecError, unknown

GZIP, UNSIGNED_BYTE, MOST_AXES = b"\x1f\x8b", 8, 32
ELEMENTS = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}
PREFIXES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> Tensor:
    """The array of bytes that an IDX file holds, uint8; gzip is recognised by its content, not by its name.

    Raises:
        DataError: The file is missing, cut short, too long, of another format, or of another element type.
    """
    raw = _content(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in ELEMENTS or not 1 <= raw[3] <= MOST_AXES:
        raise DataError(
            f"{path}: expected an IDX file, which begins with the bytes 00 00 08 and the number of axes, "
            f"found {raw[:4].hex(' ') or 'an empty file'}; check that it is the right file and download it again"
        )
    if raw[2] != UNSIGNED_BYTE:
        raise DataError(
            f"{path}: expected elements of type uint8 (08), found {ELEMENTS[raw[2]]} ({raw[2]:02x}); "
            "convert the array to bytes and write it again"
        )
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(
            f"{path}: expected a header of {start} bytes, found {len(raw)} bytes in all; download the file again"
        )
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{path}: expected {math.prod(shape)} bytes after the header, which says {list(shape)}, "
            f"found {len(raw) - start}; download the file again"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8)[start:].reshape(shape).copy())


def write_idx(path: Path, array: Tensor) -> None:
    """Write bytes as a gzipped IDX file without name or time in it, so that equal arrays give equal files.

    Raises:
        SpecError: The array is not uint8, or has no axis.
    """
    if array.dtype != torch.uint8 or not 1 <= array.ndim <= MOST_AXES:
        raise SpecError(
            f"{path}: expected a uint8 array of 1 to {MOST_AXES} axes, found {array.dtype} {list(array.shape)}; "
            "convert it first"
        )
    header = bytes([0, 0, UNSIGNED_BYTE, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as file:
        file.write(header + array.cpu().numpy().tobytes())
    path.write_bytes(packed.getvalue())


def find_idx(root: Path, name: str) -> Path:
    """The file of that name in a folder, gzipped or not; ``train-images.idx3-ubyte`` is the same name.

    Raises:
        DataError: No such file is there; the message lists what was looked for.
    """
    names = [spelled + end for spelled in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        if (root / candidate).is_file():
            return root / candidate
    found = "other files only" if root.is_dir() and any(root.iterdir()) else "an empty folder"
    raise DataError(
        f"{root}: expected one of {', '.join(names)}, found {found if root.is_dir() else 'no such folder'}; "
        f"give --data DIR (or set CONSILIENCE_DATA), where DIR holds one folder a data set and its files: "
        f"DIR/{root.name}/{name}.gz"
    )


def idx_examples(
    images_path: Path, labels_path: Path, classes: tuple[str, ...], mean: tuple[float, ...], sd: tuple[float, ...]
) -> Arrays:
    """Grey images from one IDX file with their labels from another, with an axis for the one channel.

    Raises:
        DataError: A file cannot be read or has other axes, the counts differ, or a label is out of range.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, axes in ((images_path, images, ["n", "h", "w"]), (labels_path, labels, ["n"])):
        if array.ndim != len(axes):
            raise DataError(
                f"{path}: expected the axes [{', '.join(axes)}], found {list(array.shape)}; "
                "check that images and labels are not swapped"
            )
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected a label for each of the {len(images)} images of {images_path.name}, "
            f"found {len(labels)}; take both files from one set"
        )
    try:
        return Arrays(images[:, None], labels.long(), classes, mean, sd)
    except DataError as error:
        raise DataError(f"{labels_path}: {error}") from None


def mnist_like(
    root: Path, split: str, classes: tuple[str, ...], mean: tuple[float, ...], sd: tuple[float, ...]
) -> Arrays:
    """One split of a data set whose four files are named as MNIST's are.

    Raises:
        SpecError: There is no such split.
        DataError: A file is missing or is not what its name says.
    """
    if split not in PREFIXES:
        raise SpecError(unknown("split", split, PREFIXES))
    images = find_idx(root, f"{PREFIXES[split]}-images-idx3-ubyte")
    labels = find_idx(root, f"{PREFIXES[split]}-labels-idx1-ubyte")
    return idx_examples(images, labels, classes, mean, sd)


def _content(path: Path) -> bytes:
    """What the file holds, unpacked where it is gzipped."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: expected an IDX file, found no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found '{error.strerror}'; check the path") from None
    if raw[:2] != GZIP:
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: expected a complete gzip file, found '{error}'; download it again") from None
