"""The verb that downloads: a data set's published files, into the data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from consilience.cli.experiments import data_folder

if TYPE_CHECKING:
    from rich.progress import Progress

    from consilience.data.fetch import Published, Step


def fetch_verb(name: Annotated[str, tyro.conf.Positional], /, data: Path | None = None) -> int:
    """Download a data set's published files into its folder, and check their content.

    Files that are there are left alone. A download that was stopped goes on where it stood.

    Args:
        name: The data set, such as mnist.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from consilience.data.fetch import fetch
    from consilience.errors import SpecError
    from consilience.experiment.store import writing

    files, root = _published(name), data_folder(data)
    if root is None:
        raise SpecError(
            f"{name}: expected a folder to put it into, found none; give --data DIR or set CONSILIENCE_DATA "
            f"to the folder that is to hold '{name}/'"
        )
    folder, console = _folder(name, root), Console(stderr=True)
    counts = {"found": 0, "fetched": 0}
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True),
        TextColumn("left"), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip

    def tell(step: Step) -> None:
        counts.update({step.what: counts[step.what] + 1} if step.what in counts else {})
        _show(bar, step)

    with bar, writing(folder):
        fetch(folder, files.contents, files.mirrors, tell)
    print(f"fetched {counts['fetched']}, found {counts['found']}: {folder.resolve()}")
    return 0


def _published(name: str) -> Published:
    """Where the files of a data set can be had.

    Raises:
        SpecError: No data set has that name, or it says nothing of its files.
    """
    from consilience.component import dataset
    from consilience.data.fetch import publication
    from consilience.errors import SpecError, unknown

    known = {one: files for one in dataset.names() if (files := publication(dataset.get(one).function))}
    if name in known:
        return known[name]
    if name in dataset.names():
        raise SpecError(
            f"fetch: expected a data set that can be downloaded ({', '.join(sorted(known))}), found '{name}', which "
            + ("needs files of yours; put them into the data folder" if "root" in dataset.get(name).roles else
               "needs no files of its own; use it as it is")
        )  # fmt: skip
    raise SpecError(unknown("data set to fetch", name, known))


def _folder(name: str, root: Path) -> Path:
    """The data set's folder as it is spelled there, or as it is to be made."""
    from consilience.errors import DataError
    from consilience.experiment.desk import folder_of

    try:
        return folder_of(name, root)
    except DataError:
        return root / name


def _show(bar: Progress, step: Step) -> None:
    """One event: a bar that moves in a terminal, and a line for what is final."""
    tasks = {task.description: task.id for task in bar.tasks}
    if step.what == "received":
        task = tasks[step.file] if step.file in tasks else bar.add_task(step.file)
        bar.update(task, completed=step.done, total=step.total)
        return
    words = {
        "found": "is there",
        "fetched": f"fetched, {step.done / 1e6:.1f} MB",
        "refused": f"left a mirror: {step.why}",
    }[step.what]
    if step.file in tasks:
        bar.remove_task(tasks[step.file])
    bar.console.print(f"{step.file}: {words}", markup=False, highlight=False, soft_wrap=True)
