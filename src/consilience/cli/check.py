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
) -> int:
    """Count a data set's examples and see whether they can be read; 1 where something is wrong. Writes nothing.

    Args:
        examples: A data set: mnist10k, "{use = 'mimic_cxr', split = 'all', label = 'Pneumonia'}", ...
        every: Decode all images, not a sample of them.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
    """
    from rich.console import Console
    from rich.table import Table

    from consilience import component
    from consilience.data.inspection import look_into
    from consilience.errors import DataError
    from consilience.experiment.desk import Place, load_examples, roots_of

    chosen, folder = component.dataset.choose(spelled(examples), "examples"), data_folder(data)
    roots_of(chosen, folder)  # a folder that is not named is the caller's mistake, not the data's
    tell = _show if sys.stderr.isatty() else _quietly
    try:
        findings = look_into(load_examples(chosen, Place(folder)), every=every, tell=tell)
    except DataError as error:
        print(f"consilience check-data: {error}", file=sys.stderr)
        return 1
    table = Table("", "what", "found", title=chosen.label)
    for finding in findings:
        table.add_row("wrong" if finding.wrong else "", finding.what, finding.found)
    Console(markup=False, highlight=False).print(table)
    return int(any(finding.wrong for finding in findings))


def _show(share: float) -> None:
    print(f"\r{share:.0%}", end="" if share < 1 else "\r", file=sys.stderr, flush=True)


def _quietly(_: float) -> None:
    """Tell nobody."""
