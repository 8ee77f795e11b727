"""CSV tables that come with a data set, gzipped or not, read row by row and checked."""

import csv
import gzip
import io
import operator
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from consilience.errors import DataError

GZIP = b"\x1f\x8b"


def find_table(root: Path, stem: str) -> Path:
    """``stem.csv`` or ``stem.csv.gz`` in a folder.

    Raises:
        DataError: Neither is there.
    """
    for candidate in (root / f"{stem}.csv", root / f"{stem}.csv.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{root}: expected {stem}.csv or {stem}.csv.gz, found neither; download it into that folder")


def columns_of(path: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Of each row the values of these columns, two or more; gzip is recognised by its content, not by its name.

    Raises:
        DataError: The file cannot be read or ends early, lacks a column, or holds a row of another length.
    """
    with _opened(path) as file:
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        missing = [name for name in names if name not in header]
        if missing:
            raise DataError(
                f"{path}: expected the columns {', '.join(names)}, found no {', '.join(missing)} in "
                f"'{','.join(header)[:200]}'; check that it is the right file and download it again"
            )
        pick, width = operator.itemgetter(*map(header.index, names)), len(header)
        for row in rows:
            if len(row) != width:
                if not row:  # an empty line
                    continue
                raise DataError(
                    f"{path}, line {rows.line_num}: expected {width} values, found {len(row)}; "
                    "a download that was stopped ends like this: download the file again"
                )
            yield pick(row)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The file's text. What goes wrong while it is read is said with its name."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP
            raw.seek(0)
            unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
            yield io.TextIOWrapper(unpacked, "utf-8-sig", newline="")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a complete gzip file, found '{error}'; download it again") from None
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found '{error.strerror}'; check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: expected a table of comma-separated text, found '{error}'; download it again"
        ) from None
