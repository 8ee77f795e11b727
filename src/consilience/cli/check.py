"""The verb that looks into a data set before anything rests on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from consilience.cli.experiments import data_folder
from consilience.cli.single import Name, spelled


def check_data_verb(
    examples: Name,
    /,
    every: Annotated[bool, tyro.conf.arg(name="all"), tyro.conf.FlagCreatePairsOff] = False,
    data: Path | None = None,
    ids: Path | None = None,
) -> int:
    """Count a data set's examples and see whether they can be read; 1 where something is wrong.

    Writes nothing but the file of ids that is asked for.

    Args:
        examples: A data set: mnist10k, "{use = 'mimic_cxr', split = 'all', label = 'Pneumonia'}", ...
        every: Decode all images, not a sample of them.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        ids: Write which images are used into this file (CSV): subject, study, image and split of each example.
    """
    from rich.console import Console
    from rich.table import Table

    from consilience import component
    from consilience.data.inspection import look_into, manifest
    from consilience.errors import DataError
    from consilience.experiment.desk import Place, load_examples, roots_of

    chosen, folder = component.dataset.choose(spelled(examples), "examples"), data_folder(data)
    roots_of(chosen, folder)  # a folder that is not named is the caller's mistake, not the data's
    tell = _show if sys.stderr.isatty() else _quietly
    try:
        loaded = load_examples(chosen, Place(folder))
        if ids:
            _write(ids, manifest(loaded))
        findings = look_into(loaded, every=every, tell=tell)
    except DataError as error:
        print(f"consilience check-data: {error}", file=sys.stderr)
        return 1
    table = Table("", title=chosen.label)
    for head in ("what", "found"):
        table.add_column(head, overflow="fold")  # a name that is cut is of no use
    for finding in findings:
        table.add_row("wrong" if finding.wrong else "", finding.what, finding.found)
    Console(markup=False, highlight=False).print(table)
    return int(any(finding.wrong for finding in findings))


def _write(file: Path, text: str) -> None:
    from consilience.errors import DiskError
    from consilience.experiment.files import write_bytes
    from consilience.experiment.store import writing

    with writing(file.parent):
        try:
            write_bytes(file, text.encode())
        except FileNotFoundError:
            raise DiskError(f"{file}: expected a folder to write into, found none; make it or name another") from None


def _show(share: float) -> None:
    print(f"\r{share:.0%}", end="" if share < 1 else "\r", file=sys.stderr, flush=True)


def _quietly(_: float) -> None:
    """Tell nobody."""
