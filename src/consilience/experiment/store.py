"""The store: a folder of artifacts, each complete or absent, each under its spec's digest.

A group is drafted in ``.drafts/``, moved to ``.committed/`` by one rename and from there to its
artifacts' places ``<stage>/<digest>/``; whoever opens the store finishes a move that was cut off.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from consilience.errors import ArtifactError, DiskError, unknown
from consilience.experiment.files import checksum, read_rows, read_tensors, write_bytes
from consilience.experiment.records import Spec

FORMAT = {"consilience-store": 1}
MARKER = "consilience-store.json"
FOLDERS = (".drafts", ".committed", ".locks")
NOTES = ("spec.json", "provenance.json")
REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


class Store:
    """A folder of artifacts. Opening one makes it; a folder that holds something else is refused.

    Raises:
        ArtifactError: The folder holds other files.
        DiskError: It cannot be written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        with writing(self.root):
            if not (self.root / MARKER).exists():
                self._make()
            self._check()
            self.settle()

    def __contains__(self, spec: object) -> bool:
        return isinstance(spec, Spec) and self.folder(spec).is_dir()

    def folder(self, spec: Spec) -> Path:
        """Where the spec's artifact lies, once it is there."""
        return self.root / spec.stage / spec.digest

    def tensors(self, spec: Spec, name: str = "data") -> dict[str, Tensor]:
        """The tensors of an artifact, checked against the sum that was taken when it was made.

        Raises:
            ArtifactError: The artifact is absent, cut short or altered.
        """
        path = self._checked(spec, f"{name}.safetensors")
        return read_tensors(path)

    def maps(self, spec: Spec, rows: slice) -> Tensor:
        """Some rows of an explanation, checked in the same way; the others are not kept in memory.

        Raises:
            ArtifactError: The artifact is absent, cut short or altered.
        """
        return read_rows(self._checked(spec, "data.safetensors"), "maps", rows)

    def table(self, spec: Spec, name: str = "rows") -> Any:
        """The JSON of an artifact, checked in the same way.

        Raises:
            ArtifactError: The artifact is absent, cut short or altered.
        """
        return json.loads(self._checked(spec, f"{name}.json").read_bytes())

    def provenance(self, spec: Spec) -> dict[str, Any]:
        """With what, and in how many seconds, an artifact was made."""
        return provenance(self.folder(spec))

    def artifacts(self) -> Iterator[Path]:
        """The folders of all complete artifacts."""
        for stage in sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from sorted(p for p in stage.iterdir() if p.is_dir())

    def find(self, digest: str) -> Path:
        """The artifact whose digest starts with these letters.

        Raises:
            ArtifactError: None does, or several do.
        """
        found = [folder for folder in self.artifacts() if folder.name.startswith(digest)]
        if len(found) != 1:
            names = [folder.name for folder in self.artifacts()]
            several = f"'{digest}' names {len(found)} artifacts; give more of its letters"
            raise ArtifactError(f"{self.root}: {several if found else unknown('artifact', digest, names[:5])}")
        return found[0]

    @contextlib.contextmanager
    def draft(self, group: Sequence[Spec], device: str = "cpu") -> Iterator[Path | None]:
        """A folder in which a group is made; what lies there at the end is kept as a whole.

        Each spec's files belong into ``<stage>/<digest>/`` of it. None where another process made the
        group meanwhile. An error or an interruption leaves the draft for the next try on the same device, which
        is noted; another device begins anew, so that no artifact is half of one and half of another.
        """
        name, started = _name(group), time.perf_counter()
        draft = self.root / ".drafts" / name
        with writing(self.root), self._alone(name):
            if all(spec in self for spec in group):
                yield None
                return
            _begin(draft, device)
            for spec in group:
                (draft / spec.stage / spec.digest).mkdir(parents=True, exist_ok=True)
            yield draft
            seconds = (time.perf_counter() - started) / len(group)
            for spec in group:
                _sign(draft / spec.stage / spec.digest, spec, seconds, device)
            (self.root / ".locks" / f"{name}.share").unlink(missing_ok=True)
            draft.rename(self.root / ".committed" / name)
            self.settle()

    def settle(self) -> None:
        """Move what was committed to its place; several processes may ask for it at once."""
        if not any((self.root / ".committed").iterdir()):
            return
        with self._alone("settle"):
            for group in (self.root / ".committed").iterdir():
                for source in list(group.glob("*/*")):
                    target = self.root / source.parent.name / source.name
                    target.parent.mkdir(exist_ok=True)
                    if not target.exists():  # else another group made the same one
                        source.rename(target)
                shutil.rmtree(group)

    def tell(self, group: Sequence[Spec], share: float) -> None:
        """Note beside a draft how much of it is done, for whoever waits for it."""
        with contextlib.suppress(OSError):
            (self.root / ".locks" / f"{_name(group)}.share").write_text(str(share))

    def share(self, group: Sequence[Spec]) -> float:
        """How much of a draft is done, 0 to 1, as far as its maker told."""
        try:
            return float((self.root / ".locks" / f"{_name(group)}.share").read_text() or 0)
        except (OSError, ValueError):
            return 0.0

    def drafts(self) -> list[Path]:
        """What was begun and not finished, and what nobody is working on."""
        return [draft for draft in sorted((self.root / ".drafts").iterdir()) if self._idle(draft.name)]

    def _idle(self, name: str) -> bool:
        try:
            with FileLock(self.root / ".locks" / f"{name}.lock", timeout=0):
                return True
        except Timeout:
            return False

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        lock = FileLock(self.root / ".locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=24 * 3600)
        except Timeout:
            raise ArtifactError(
                f"{self.root}: expected another process to finish a group within a day, found it still at work; "
                "stop it, then run this again"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _make(self) -> None:
        """An empty store; what an interrupted making left is no hindrance."""
        there = {path.name for path in self.root.iterdir()} if self.root.exists() else set()
        if MARKER not in there and there - {*FOLDERS, f"{MARKER}.part"}:
            raise ArtifactError(
                f"{self.root}: expected a Consilience store or an empty folder, found other files; "
                "name another folder with --store"
            )
        for folder in FOLDERS:
            try:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:
                raise DiskError(
                    f"{self.root}: expected a place where a folder can be made, found none; name another with --store"
                ) from None
        with self._alone("store"):
            if not (self.root / MARKER).exists():
                write_bytes(self.root / MARKER, json.dumps(FORMAT).encode())

    def _check(self) -> None:
        content = (self.root / MARKER).read_bytes()
        try:
            found = json.loads(content)
        except ValueError:
            found = content[:50]
        if found != FORMAT:
            raise ArtifactError(
                f"{self.root / MARKER}: expected {FORMAT}, found {found}; this store is of another version: "
                "name another folder with --store"
            )

    def _checked(self, spec: Spec, name: str) -> Path:
        path = self.folder(spec) / name
        if not path.exists():
            raise ArtifactError(f"{path}: expected the artifact of {spec.stage}, found nothing; run the experiment")
        _verify(path, path.stat().st_mtime_ns)
        return path


def _name(group: Sequence[Spec]) -> str:
    return hashlib.blake2b("".join(spec.digest for spec in group).encode(), digest_size=16).hexdigest()


def _begin(draft: Path, device: str) -> None:
    """Make room for a draft; keep what lies there, unless another device began it."""
    note = draft / "device"
    if draft.exists() and (note.read_text("utf-8") if note.exists() else None) != device:
        shutil.rmtree(draft)
    draft.mkdir(parents=True, exist_ok=True)
    note.write_text(device, encoding="utf-8")


def provenance(folder: Path) -> dict[str, Any]:
    """What an artifact's folder says of its making.

    Raises:
        ArtifactError: The note is missing or cut short.
    """
    path = folder / "provenance.json"
    try:
        note = json.loads(path.read_bytes())
        return {**note, "seconds": float(note["seconds"]), "checksums": dict(note["checksums"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: expected the note of how the artifact was made, found none that can be read ({error!r}); delete "
            f"the folder {folder} and run the experiment again"
        ) from None


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the disk refuses into one clear error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # how safetensors says it
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number not in REFUSALS:
            raise
        raise DiskError(
            f"{root}: expected to write, found '{os.strerror(number)}'; free or choose another disk or folder, "
            "then run the same command again: what was complete is kept"
        ) from error


def _sign(folder: Path, spec: Spec, seconds: float, device: str) -> None:
    """Lay the spec beside what was made, and how it was made."""
    for passing in [*folder.glob("*.part"), folder / "checkpoint"]:
        shutil.rmtree(passing, ignore_errors=True) if passing.is_dir() else passing.unlink(missing_ok=True)
    sums = {file.name: checksum(file) for file in sorted(folder.iterdir()) if file.name not in NOTES}
    note = {
        "versions": {
            "consilience": version("consilience"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
        "device": device,
        "seconds": round(seconds, 3),
        "checksums": sums,
    }
    write_bytes(folder / "spec.json", msgspec.json.format(spec.canonical, indent=2))
    write_bytes(folder / "provenance.json", json.dumps(note, indent=2).encode())


@functools.lru_cache(maxsize=100_000)
def _verify(path: Path, _changed: int) -> None:
    expected = provenance(path.parent)["checksums"].get(path.name)
    if checksum(path) != expected:
        raise ArtifactError(
            f"{path}: expected the content that was written, found other bytes; delete the folder "
            f"{path.parent} and run the experiment again"
        )
