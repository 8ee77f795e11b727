"""What a look at a data set finds before anything rests on it."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from consilience.data.examples import Examples, checked
from consilience.data.images import ImageFiles, labels_and_groups
from consilience.data.views import First, Some
from consilience.errors import DataError, SpecError
from consilience.rng import permutation
from consilience.tensors import slices

SAMPLE = 100  # images that are decoded unless all are asked for
TOGETHER = 64  # examples that are read at once
NAMED = 3  # of what is wrong, so many are named
LISTED = 20  # classes, whose numbers of examples are told one by one


class Finding(NamedTuple):
    """One line of what was found."""

    what: str
    found: str
    wrong: bool = False


@runtime_checkable
class Identified(Protocol):
    """Images that their publisher gave ids."""

    def ids(self, row: int) -> dict[str, str]:
        """The ids of an image, by the names of their columns; the same names for every image."""


def manifest(examples: Examples) -> str:
    """Which images are used, as CSV: a row for each example, its number here and its publisher's ids.

    Raises:
        SpecError: The images have no such ids.
    """
    rows = list(range(len(examples)))
    while isinstance(examples, First | Some):
        if isinstance(examples, Some):
            rows = examples.ids[rows].tolist()
        examples = examples.whole
    known = examples.path if isinstance(examples, ImageFiles) else None
    if not isinstance(known, Identified):
        raise SpecError("--ids: expected images with ids of their own, as of mimic_cxr, found none; leave --ids out")
    lines = [{"example": str(number), **known.ids(row)} for number, row in enumerate(rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def look_into(examples: Examples, *, every: bool, tell: Callable[[float], None] = lambda _: None) -> list[Finding]:
    """How many examples of what, and whether they can be read: all where they are in memory, else a sample.

    Args:
        every: Decode all images, however many.
        tell: Called with the share of the images that were read.
    """
    files = _files(examples)
    ids: Sequence[int] = range(len(examples))
    if files is not None and not every:
        ids = sorted(permutation(len(examples), "look")[:SAMPLE].tolist())
    findings = [Finding("examples", f"{len(examples):,} of shape {list(examples.shape)}"), *_known(examples)]
    if files is not None:
        findings += [_there(files), *(Finding(*note) for note in files.notes)]
    return [*findings, _read(examples, ids, tell), Finding("fingerprint", examples.fingerprint)]


def _files(examples: Examples) -> ImageFiles | None:
    """The image files that some examples rest on, if they do."""
    while isinstance(examples, First | Some):
        examples = examples.whole
    return examples if isinstance(examples, ImageFiles) else None


def _known(examples: Examples) -> list[Finding]:
    labels, groups = labels_and_groups(examples)
    counts = labels.bincount(minlength=len(examples.classes)).tolist()
    each = f"{min(counts):,} to {max(counts):,}"
    if len(counts) <= LISTED:
        each = ", ".join(f"{name}: {count:,}" for name, count in zip(examples.classes, counts, strict=True))
    return [
        Finding(f"examples of each of {len(counts)} classes", each),
        Finding("groups, which no split may separate", f"{len(set(groups.tolist())):,}"),
    ]


def _there(files: ImageFiles) -> Finding:
    missing = files.missing
    found = f"{len(files) - len(missing):,}, missing {len(missing):,}"
    if missing:
        found += _listed(list(map(files.path, missing[:NAMED])), len(missing))
    return Finding("images there", found, bool(missing))


def _read(examples: Examples, ids: Sequence[int], tell: Callable[[float], None]) -> Finding:
    """Whether these examples are images with pixels from 0 to 1."""
    refused: list[str] = []
    for rows in slices(len(ids), TOGETHER):
        some = list(ids[rows])
        if _refusals(examples, some):
            refused += [refusal for one in some for refusal in _refusals(examples, [one])]
        tell(rows.stop / len(ids))
    whole = "all" if len(ids) == len(examples) else f"a sample of {len(ids):,} of the {len(examples):,}"
    found = f"{len(ids) - len(refused):,} of {len(ids):,} ({whole}), pixels from 0 to 1"
    if refused:
        found += f", refused {len(refused):,}{_listed(refused[:NAMED], len(refused))}"
    return Finding("examples that can be read", found, bool(refused))


def _refusals(examples: Examples, ids: list[int]) -> list[str]:
    try:
        checked(examples.batch(ids))
    except DataError as error:
        return [str(error)]
    return []


def _listed(named: list[str], count: int) -> str:
    """What is wrong, a line each, with a last one where there is more."""
    return "\n".join([":", *named, *(["..."] if count > len(named) else [])])
