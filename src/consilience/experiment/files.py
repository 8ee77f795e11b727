"""Tensors in files: written whole or row by row, read with a check. Nothing in them is code."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from consilience.errors import ArtifactError

NOTE = "consilience"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, complete or not there: written beside its name, then renamed."""
    note = {NOTE: json.dumps(dict(metadata), sort_keys=True)} if metadata else {}  # one: safetensors keeps no order
    write_bytes(path, save({k: v.contiguous() for k, v in tensors.items()}, note))


def write_bytes(path: Path, content: bytes) -> None:
    """A file, complete or not there, on the disk when this returns."""
    draft = path.with_name(path.name + ".part")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ArtifactError: The file is missing, cut short, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(unreadable(path, error)) from None


def read_rows(path: Path, name: str, rows: slice) -> Tensor:
    """Some rows of one tensor of a safetensors file; the others are not read.

    Raises:
        ArtifactError: The file is missing, cut short, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            part: Tensor = file.get_slice(name)[rows]
            return part
    except (SafetensorError, OSError) as error:
        raise ArtifactError(unreadable(path, error)) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The notes that ``write_tensors`` put into a safetensors file's header; none in others' files.

    Raises:
        ArtifactError: The file is missing, cut short, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(NOTE, "{}")))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(unreadable(path, error)) from None


def unreadable(path: Path, error: object) -> str:
    """The sentence for a file that is not what it should be."""
    return f"{path}: expected a complete safetensors file, found {error}; delete it and make it again"


def checksum(path: Path) -> str:
    """BLAKE2b of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class RowWriter:
    """A safetensors file of one float32 tensor, written row by row in constant memory.

    An interrupted file goes on where it stood: ``done`` says how many rows are complete.
    """

    def __init__(self, path: Path, name: str, rows: int) -> None:
        self.path, self.name, self.rows = path, name, rows
        self.shape: tuple[int, ...] | None = None
        self.start = 0
        if path.exists():
            self._resume()

    @property
    def done(self) -> int:
        """Complete rows in the file."""
        if self.shape is None:
            return 0
        return max(0, self.path.stat().st_size - self.start) // self._row_bytes()

    def keep(self, rows: int) -> None:
        """Forget all rows after the first ``rows``."""
        if self.shape is not None:
            os.truncate(self.path, self.start + rows * self._row_bytes())

    def append(self, rows: Tensor) -> None:
        """Write the next rows ``[m, ...]``."""
        content = rows.detach().cpu().to(torch.float32).numpy()
        if self.shape is None:
            self._begin(content.shape[1:])
        if content.shape[1:] != self.shape:
            raise ArtifactError(
                f"{self.path}: expected rows {list(self.shape or ())} as before, found {list(content.shape[1:])}; "
                "delete it and make it again"
            )
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(content).tobytes())

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def _row_bytes(self) -> int:
        return 4 * int(np.prod(self.shape or ()))

    def _begin(self, row: Sequence[int]) -> None:
        self.shape = tuple(row)
        size = self.rows * self._row_bytes()
        entry = {"dtype": "F32", "shape": [self.rows, *self.shape], "data_offsets": [0, size]}
        header = json.dumps({self.name: entry}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self.start = 8 + len(header)
        write_bytes(self.path, struct.pack("<Q", len(header)) + header)

    def _resume(self) -> None:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(min(length, 10_000))
        try:
            rows, *row = json.loads(header)[self.name]["shape"]
        except (ValueError, KeyError):  # cut off in its header: it begins anew
            return
        if rows == self.rows and len(header) == length:
            self.start, self.shape = 8 + length, tuple(row)
