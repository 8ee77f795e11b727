"""Fetching a data set's published files: mirror after mirror, resumable, and each file right or absent."""

import gzip
import hashlib
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from consilience.errors import DataError

F = TypeVar("F", bound=Callable[..., Any])

GZIP, BLOCK, SECONDS = b"\x1f\x8b", 2**16, 30.0
PARTIAL, TOO_FAR = 206, 416  # what a server answers to a request for the rest of a file


class Published(NamedTuple):
    """Where a data set's files can be had, and what they hold."""

    mirrors: tuple[str, ...]
    """Addresses of folders, tried in this order."""
    contents: Mapping[str, str]
    """Name of a file to the SHA-256 of what it holds, unpacked: mirrors may pack the same content differently."""


class Step(NamedTuple):
    """Something that happened to one file: bytes there and bytes in all, where known, or why a mirror was left."""

    file: str
    what: Literal["found", "received", "refused", "fetched"]
    done: int = 0
    total: int | None = None
    why: str = ""


def published(mirrors: Sequence[str], contents: Mapping[str, str]) -> Callable[[F], F]:
    """Say of the data set below where its files can be had; the function stays as it is.

    Args:
        mirrors: Addresses of folders, tried in this order.
        contents: Name of a file to the SHA-256 of what it holds, unpacked.
    """

    def note(function: F) -> F:
        function.__dict__["published"] = Published(tuple(mirrors), contents)
        return function

    return note


def publication(function: Callable[..., Any]) -> Published | None:
    """Where a data set's files can be had; None where it does not say."""
    said: Published | None = getattr(function, "published", None)
    return said


def fetch(
    folder: Path,
    contents: Mapping[str, str],
    mirrors: Sequence[str],
    tell: Callable[[Step], None] = lambda step: None,
) -> list[Path]:
    """Make every file be in the folder with its content, and return their paths. Right files are left alone.

    A file is received as ``NAME.part`` and moved to its name once its content was checked. A part that is
    there already, from a stopped call or another mirror, is gone on with, where the server can.

    Args:
        folder: Where the files belong; made where there is none.
        contents: Name of a file to the SHA-256 of what it holds, unpacked.
        mirrors: Addresses of folders, tried in this order for each file.
        tell: Called with everything that happens.

    Raises:
        DataError: No mirror gives a file, a file of that name holds something else, or another call is at work.
    """
    there = {name: _there(folder / name, digest) for name, digest in contents.items()}
    for name, path in there.items():
        if path is not None:
            tell(Step(name, "found"))
    missing = [name for name, path in there.items() if path is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".fetch.lock", timeout=0):
                for name in missing:
                    _fetch_one(folder / name, contents[name], mirrors, tell)
        except Timeout:
            raise DataError(
                f"{folder}: expected to be the only one to fetch into it, found another at work; "
                "wait until it is done, then run the same command again"
            ) from None
    return [path or folder / name for name, path in there.items()]


def _there(path: Path, digest: str) -> Path | None:
    """The file that holds this content, packed or not.

    Raises:
        DataError: A file of that name holds something else.
    """
    for candidate in (path, path.with_suffix("") if path.suffix == ".gz" else path):
        if candidate.is_file():
            if digest_of(candidate) != digest:
                raise DataError(
                    f"{candidate}: expected the published content (SHA-256 {digest[:12]}... unpacked), found another; "
                    "it may be damaged: move it away, then run the same command again"
                )
            return candidate
    return None


def _fetch_one(path: Path, digest: str, mirrors: Sequence[str], tell: Callable[[Step], None]) -> None:
    if _there(path, digest):  # another call has fetched it meanwhile
        tell(Step(path.name, "found"))
        return
    part = path.with_name(f"{path.name}.part")
    if digest_of(part) != digest:  # else it is whole: a call was stopped before it could move it
        _from_any(mirrors, path, part, digest, tell)
    part.replace(path)
    size = path.stat().st_size
    tell(Step(path.name, "fetched", size, size))


def _from_any(
    mirrors: Sequence[str], path: Path, part: Path, digest: str, tell: Callable[[Step], None]
) -> None:  # fmt: skip
    reasons = []
    for mirror in mirrors:
        try:
            return _from_mirror(f"{mirror.rstrip('/')}/{path.name}", part, digest, tell)
        except DataError as error:
            reasons.append(str(error))
            tell(Step(path.name, "refused", why=str(error)))
    raise DataError(
        f"{path}: expected a mirror to give this file, found none that does ({'; '.join(reasons)}); "
        "check the network, then run the same command again: what was received is kept"
    )


def _from_mirror(url: str, part: Path, digest: str, tell: Callable[[Step], None]) -> None:
    """Receive a file and check it; a part that was begun elsewhere and does not fit is given up for a whole one."""
    resumed = _receive(url, part, tell)
    found = digest_of(part)
    if found != digest and resumed:
        part.unlink()
        _receive(url, part, tell)
        found = digest_of(part)
    if found != digest:
        part.unlink()
        raise DataError(
            f"{url}: expected content with the SHA-256 {digest[:12]}..., found "
            f"{f'{found[:12]}...' if found else 'a damaged file'}"
        )


def _receive(url: str, part: Path, tell: Callable[[Step], None]) -> bool:
    """Add to the part what it lacks; whether there was a part to add to.

    Raises:
        DataError: The server refuses, or the connection broke. The part keeps what came.
    """
    done = part.stat().st_size if part.exists() else 0
    with _opened(url, done) as answer:
        resumed: bool = answer.status == PARTIAL
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise DataError(f"{url}: expected the bytes from {done} on, found {answer.headers.get('Content-Range')!r}")
        done = done if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with part.open("ab" if resumed else "wb") as file:
            for block in _blocks(answer, url):
                file.write(block)
                done += len(block)
                tell(Step(part.stem, "received", done, total))
    if total is not None and done < total:
        raise DataError(f"{url}: expected {total} bytes, found that the connection broke after {done}")
    return resumed


def _opened(url: str, start: int) -> Any:
    """The server's answer to a request for the bytes from ``start`` on, or for all where there are none."""
    asked = {"User-Agent": "consilience"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == TOO_FAR and start:  # the part is longer than the file, so it is of another
            return _opened(url, 0)
        raise DataError(f"{url}: expected the file, found '{error.code} {error.reason}'") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url}: expected a server, found '{getattr(error, 'reason', error)}'") from None


def _blocks(answer: Any, url: str) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{url}: expected the rest of the file, found a broken connection ({error})") from None
        if not block:
            return
        yield block


def digest_of(path: Path) -> str | None:
    """SHA-256 of what a file holds, unpacked where it is gzipped; None where there is none or it is damaged."""
    if not path.is_file():
        return None
    with path.open("rb") as raw:
        packed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        try:
            return hashlib.file_digest(gzip.GzipFile(fileobj=raw) if packed else raw, "sha256").hexdigest()
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return None
