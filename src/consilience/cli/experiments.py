"""Verbs about experiment files. Heavy imports wait until a verb runs, so that its help is quick."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from consilience.experiment.experiment import Experiment
    from consilience.experiment.run import Outcome
    from consilience.experiment.store import Store

File = Annotated[Path, tyro.conf.Positional]
Changes = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="KEY=VALUE"), tyro.conf.UseAppendAction]

MOST_NAMED = 3  # of the jobs that failed for one reason


def data_folder(data: Path | None) -> Path | None:
    """What was said, or else the environment's CONSILIENCE_DATA."""
    named = os.environ.get("CONSILIENCE_DATA")
    return data or (Path(named) if named else None)


def _loaded(file: Path, data: Path | None, profile: str | None = None, changes: tuple[str, ...] = ()) -> Experiment:
    from consilience.experiment.config import load

    return load(file, data=data_folder(data), profile=profile, changes=changes)


def _opened(store: Path) -> Store:
    """A store that is there; one that is only read is not made."""
    from consilience.errors import ArtifactError
    from consilience.experiment.store import Store

    if not store.exists():
        raise ArtifactError(f"{store}: expected a store, found none; name it with --store, or run the experiment first")
    return Store(store)


def run_verb(
    file: File,
    /,
    store: Path = Path("store"),
    on: str = "here",
    data: Path | None = None,
    profile: str | None = None,
    changes: Changes = (),
    device: str = "cpu",
) -> int:
    """Make what an experiment file asks for and the store lacks.

    A run that was stopped, by whatever, goes on where it stood. Jobs that fail are listed at the end;
    everything that does not rest on them is made.

    Args:
        file: The experiment file (TOML).
        store: Folder of the artifacts; made where there is none.
        on: Where to run: here, processes:N, dask:ADDRESS, ray:ADDRESS.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        profile: One of the file's profiles, such as smoke.
        changes: Single values laid over the file, as TOML: --set train.epochs=1. May be repeated.
        device: Where torch computes, in every worker: cpu, cuda, cuda:1. What is there already stays as it is.
    """
    from consilience.cli import notes

    folder = data_folder(data)
    found = notes.known(store, file, folder, profile, changes)
    if found is not None:
        print(f"made 0, found {found}, in 0.0 s")
        return 0
    from consilience.cli.progress import Watcher
    from consilience.experiment.executors import executor
    from consilience.experiment.run import run
    from consilience.experiment.specs import plan
    from consilience.experiment.store import Store

    experiment = _loaded(file, data, profile, changes)
    with executor(on) as place, Watcher(sys.stderr) as watcher:
        outcome = run(experiment, Store(store), executor=place, data=folder, device=device, on_event=watcher.show)
    if not outcome.failures:
        specs = plan(experiment.specs())
        artifacts = [f"{spec.stage}/{spec.digest}" for spec in specs if spec in Store(store)]
        notes.remember(store, file, folder, profile, changes, _roots(experiment, folder), artifacts)
    return _closing(outcome)


def _roots(experiment: Experiment, data: Path | None) -> list[Path]:
    """The folders that an experiment reads: of its data sets, and of weights where trainings start from some."""
    from consilience.experiment.desk import folder_of, roots_of
    from consilience.experiment.specs import Train

    choices = [one.choice for one in experiment.data if one.choice is not None]
    started = isinstance(experiment.base, Train) and experiment.base.start is not None
    weights = [folder_of("weights", data)] if started else []
    return [*weights, *(root for choice in choices for root in roots_of(choice, data))]


def _closing(outcome: Outcome) -> int:
    """Say what happened; 1 where something failed."""
    print(f"made {outcome.made}, found {outcome.found}, in {outcome.seconds:.1f} s")
    if not outcome.failures:
        return 0
    from consilience.cli.progress import describe

    print(f"\n{len(outcome.failures)} failed, {outcome.resting} not tried since they rest on these:", file=sys.stderr)
    alike: dict[tuple[str, str], list[str]] = {}
    for failure in outcome.failures:
        job = f"{describe(failure.group)} [{failure.group[0].digest[:12]}]"
        alike.setdefault((failure.reason, failure.trace), []).append(job)
    for (reason, trace), jobs in alike.items():
        print(f"- {jobs[0] if len(jobs) == 1 else f'{len(jobs)} jobs'}: {reason}", file=sys.stderr)
        for line in jobs[:MOST_NAMED] if len(jobs) > 1 else ():
            print(f"  {line}", file=sys.stderr)
        if len(jobs) > MOST_NAMED:
            print(f"  and {len(jobs) - MOST_NAMED} more", file=sys.stderr)
        if trace:
            print(trace, file=sys.stderr)
    return 1


def plan_verb(
    file: File,
    /,
    store: Path = Path("store"),
    data: Path | None = None,
    profile: str | None = None,
    changes: Changes = (),
) -> int:
    """Say what a run would make: jobs, minutes of one core, gigabytes; and how small a separability it can show.

    Minutes and gigabytes are those of earlier artifacts of the same stage in this store; a dash where
    there are none yet. The smallest detectable S is found four times in five at a level of 5 percent, if the
    classifiers are taken as given.

    Args:
        file: The experiment file (TOML).
        store: Folder of the artifacts; may be missing.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        profile: One of the file's profiles, such as smoke.
        changes: Single values laid over the file, as TOML: --set train.epochs=1. May be repeated.
    """
    from rich.console import Console
    from rich.table import Table

    from consilience.experiment.desk import Place
    from consilience.experiment.forecast import detectable, forecast

    experiment = _loaded(file, data, profile, changes)
    rows = forecast(experiment, store)
    table = Table("stage", *(name for name in ("there", "to make", "jobs", "minutes", "gigabytes")))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        minutes = "-" if row.seconds is None else f"{row.seconds / 60:.1f}"
        size = "-" if row.bytes is None else f"{row.bytes / 1e9:.3f}"
        table.add_row(row.stage, str(row.there), str(row.lacking), str(row.jobs), minutes, size)
    Console().print(table)
    if (least := detectable(experiment, Place(data_folder(data)))) is not None:
        print(
            f"smallest detectable S: {_shown(least.smallest)} by all {least.images} images, "
            f"{_shown(least.smallest_of_class)} by the {least.of_class} of the smallest class"
        )
    return 0


def _shown(smallest: float) -> str:
    return "none (too few images)" if math.isnan(smallest) else f"{smallest:.2f}"


def report_verb(
    file: File,
    /,
    store: Path = Path("store"),
    out: Path = Path("report.html"),
    data: Path | None = None,
    profile: str | None = None,
    changes: Changes = (),
) -> int:
    """Write what was made as one page that needs nothing else, and as JSON beside it.

    Args:
        file: The experiment file (TOML), with the profile and changes of its run.
        store: Folder of the artifacts.
        out: The page's file.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        profile: One of the file's profiles, such as smoke.
        changes: Single values laid over the file, as TOML: --set train.epochs=1. May be repeated.
    """
    from consilience.reporting.html import report

    experiment = _loaded(file, data, profile, changes)
    page = report(experiment, _opened(store), out, data=data_folder(data))
    print(page.resolve())
    return 0


def prune_verb(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    store: Path = Path("store"),
    data: Path | None = None,
    profile: str | None = None,
    changes: Changes = (),
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Remove artifacts that none of the experiment files needs, and drafts that were not finished.

    Without --yes it only says what it would remove.

    Args:
        files: The experiment files whose artifacts are kept.
        store: Folder of the artifacts.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        profile: The files' profile, such as smoke.
        changes: Single values laid over the files, as TOML: --set train.epochs=1. May be repeated.
        yes: Remove them.
    """
    from consilience.errors import SpecError
    from consilience.experiment.specs import plan

    if not files:
        raise SpecError("prune: expected the experiment files whose artifacts are kept, found none; name them")
    needed = {spec.digest for file in files for spec in plan(_loaded(file, data, profile, changes).specs())}
    opened = _opened(store)
    folders = [folder for folder in opened.artifacts() if folder.name not in needed] + opened.drafts()
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    print(f"{len(folders)} artifacts and drafts, {size / 1e6:.1f} MB{'' if yes else ' would go; add --yes to remove'}")
    if yes:
        for folder in folders:
            shutil.rmtree(folder)
    return 0
