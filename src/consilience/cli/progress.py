"""What a run says while it works: a bar with time left in a terminal, a line a job elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consilience.experiment.records import Spec
from consilience.experiment.run import Event
from consilience.experiment.specs import Explain, Measure, Predict, Summary, Train

PARTS = {"random_subset": ("subset", "seed"), "without_fold": ("fold", "fold")}
"""What a view of a data set is called in a job's name, and its option that tells it from its twins."""


class Watcher:
    """Shows the events of a run."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = Console(file=stream)
        self.bar = Progress(
            TextColumn("{task.fields[what]}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"), console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=None, what="looking", left="")

    def __enter__(self) -> "Watcher":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def show(self, event: Event) -> None:
        """One event."""
        left = left_words(event.seconds_left)
        if self.console.is_terminal:
            self.bar.update(self.task, completed=event.done, total=event.total, what=describe(event.group), left=left)
        if event.what == "failed" or (event.what == "done" and not self.console.is_terminal):
            words = f"[{event.done}/{event.total}] {describe(event.group)}"
            self.console.print(f"{words} FAILED" if event.what == "failed" else f"{words}, {left}", markup=False,
                               highlight=False, soft_wrap=True)  # fmt: skip


def left_words(seconds: float | None) -> str:
    """Time left, for a person."""
    if seconds is None:
        return "time left unknown"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds:.0f} s left"


def _part(spec: Train) -> str:
    """On which part of the examples, where they were divided."""
    choice = spec.data.choice
    name, option = PARTS.get(choice.use if choice else "", ("", ""))
    return f", {name} {choice.option(option)}" if choice and name else ""


def describe(group: Sequence[Spec]) -> str:
    """A group in a few words."""
    spec, more = group[0], f" ({len(group)})" if len(group) > 1 else ""
    if isinstance(spec, Train):
        return f"train {spec.model.label}, init {spec.init}, order {spec.order}, noise {spec.noise}{_part(spec)}"
    if isinstance(spec, Explain):
        return f"explain by {spec.method.label}{more}"
    if isinstance(spec, Predict):
        return "predict"
    if isinstance(spec, Measure):
        return f"measure {spec.measure.label}{more}"
    if isinstance(spec, Summary):
        return f"summarise by {spec.summary.label}"
    return spec.stage
