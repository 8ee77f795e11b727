"""What a finished run remembers, so that the same run later knows without a look inside that nothing is to do.

Reading an experiment means importing torch, which takes longer than everything else together. A run
that left nothing unmade therefore notes what it looked at (files, by size and time of change) and
which artifacts it rests on. While all of these are as they were, there is nothing to make.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
FOLDER = ".notes"


def known(
    store: Path, file: Path, data: Path | None, profile: str | None, changes: Sequence[str]
) -> int | None:  # fmt: skip
    """How many artifacts such a run would find, if it would find all; None where only a look inside can tell."""
    try:
        note = json.loads(_place(store, file, data, profile, changes).read_bytes())
        if note["seen"] != seen(map(Path, note["roots"])):
            return None
        artifacts: list[str] = note["artifacts"]
    except (OSError, ValueError, KeyError):
        return None
    return len(artifacts) if all((store / artifact).is_dir() for artifact in artifacts) else None


def remember(
    store: Path, file: Path, data: Path | None, profile: str | None, changes: Sequence[str],
    roots: Iterable[Path], artifacts: Sequence[str],
) -> None:  # fmt: skip
    """Note a run that left nothing unmade. ``roots`` are the folders of the data it read."""
    if entry_points(group="consilience.components"):
        return  # whether an installed plug-in changed, only importing it can tell
    folders = [str(root) for root in (PACKAGE, *roots)]
    place = _place(store, file, data, profile, changes)
    with contextlib.suppress(OSError):  # a run does not fail for want of a note
        note = {"roots": folders, "seen": seen(map(Path, folders)), "artifacts": list(artifacts)}
        place.parent.mkdir(exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(note))
        draft.replace(place)


def seen(roots: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change of all files below some folders."""
    digest = hashlib.blake2b(digest_size=16)
    for root in roots:
        for file in _files(root):
            state = file.stat()
            digest.update(repr((file.path, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()


def _files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All files below a folder in a fixed order, but for compiled code."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            yield entry
        elif entry.name != "__pycache__":
            yield from _files(entry.path)


def _place(store: Path, file: Path, data: Path | None, profile: str | None, changes: Sequence[str]) -> Path:
    """Where the note of a run lies: named after what was said and the experiment file's content."""
    said = [*_contents(file), str(data), profile, list(changes)]
    return store / FOLDER / f"{hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()}.json"


def _contents(file: Path) -> list[str]:
    """Digests of an experiment file and of those that it extends, as far as there are any."""
    text = file.read_bytes()
    with contextlib.suppress(ValueError, OSError, RecursionError, TypeError):
        base = tomllib.loads(text.decode()).get("extends")
        below = [] if base is None else _contents(file.parent / base)
        return [hashlib.blake2b(text).hexdigest(), *below]
    return [hashlib.blake2b(text).hexdigest()]
