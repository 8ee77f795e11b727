"""From goals and artifacts to the tables of a page: plain values, the same for the page and its JSON twin."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import torch

from consilience.experiment.desk import Desk
from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.families import AnyFamily, Epochs, Randomised, Redraw, SideBySide
from consilience.experiment.specs import Condition, Entry, Summary
from consilience.experiment.store import Store
from consilience.experiment.values import table_of
from consilience.measures.power import smallest_detectable
from consilience.measures.resampling import CONTROL, columns
from consilience.tensors import Table

FamilyKind = Literal["twins", "models", "cascade", "epochs", "floor"]
"""Trained again; side by side; the base with layers drawn anew; as it was earlier; one model explained twice."""

COMPARED: tuple[FamilyKind, ...] = ("twins", "models")
"""Families whose members stand beside each other: every two of them are compared."""


MEETS: dict[Condition, str] = {
    "all": "all images",
    "both_right": "both models right",
    "both_agree": "both models agree",
}
"""Of which images a row is, in words."""


class Line(msgspec.Struct):
    """One column of one family: raw agreement between its floor and its baseline, and where that is on their scale."""

    family: str
    kind: FamilyKind
    method: str
    control: bool
    measure: str
    column: str
    pairs: int
    examples: int
    undefined: int
    """Values that are NaN, those of examples that do not meet the condition among them."""
    better: str
    """Of the measure: ``higher`` where more is more alike, ``lower`` where it is a distance."""
    agreement: float | None
    floor: float | None
    wrong_image: float | None
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    """Of the interval."""
    condition: Condition = "all"
    """Of which examples the row is; a verdict rests on rows of all."""


class Size(msgspec.Struct):
    """How many images a measure was given, where another stands beside it that differs in ``count`` only."""

    measure: str
    """But for its ``count``: rows that have this in common are one curve."""
    count: int | None
    """As it was chosen; None where all are used."""
    used: float
    """A mean over classes, of which one may have fewer than were chosen."""
    unit: str
    """What was counted: images, or groups of images that are held out together; of each class, or in all."""


class Told(msgspec.Struct):
    """One column of one family: whether a classifier tells apart which model made a map."""

    family: str
    kind: FamilyKind
    method: str
    control: bool
    measure: str
    column: str
    pairs: int
    """alpha: how many pairs C is a mean of."""
    examples: int
    undefined: int
    consistency: float | None
    low: float | None
    high: float | None
    level: float
    smallest: float | None
    """The least S, 1 - C, that one pair with as many judged images shows; None where they are too few for any."""
    null: float | None
    """C of the same maps with the models exchanged at random."""
    p: float | None
    size: Size | None = None
    condition: Condition = "all"


class Study(NamedTuple):
    """An experiment, and where it finds what was made of it."""

    experiment: Experiment
    desk: Desk
    made: list[Goal]
    """The goals that the store holds."""

    @property
    def store(self) -> Store:
        """Where the artifacts are."""
        return self.desk.store

    def family(self, name: str) -> AnyFamily:
        """The family that stands under a name."""
        return next(family for family in self.experiment.families if family.name == name)

    def kind(self, goal: Goal) -> FamilyKind:
        """What sort of family a goal is of."""
        return kind_of(self.family(goal.family))

    def control(self, goal: Goal) -> bool:
        """Whether the goal's method is one that must look bad."""
        return goal.method in self.experiment.controls

    def run_again(self, family: str) -> set[tuple[str, str]]:
        """The pairs of a family that differ in nothing, by their names: a mean over pairs leaves them out."""
        of = self.family(family)
        members = of.members(self.experiment.base)
        return {(members[a].name, members[b].name) for a, b, differs in of.pairs(members) if differs == (CONTROL,)}


def study_of(experiment: Experiment, desk: Desk) -> Study:
    """The experiment, with those of its goals that are made."""
    return Study(experiment, desk, [goal for goal in experiment.goals() if goal.spec in desk.store])


def kind_of(family: AnyFamily) -> FamilyKind:
    """What sort of family it is."""
    if isinstance(family, Redraw):
        return "floor"
    if isinstance(family, Randomised):
        return "cascade"
    if isinstance(family, Epochs):
        return "epochs"
    return "models" if isinstance(family, SideBySide) else "twins"


def lines(study: Study) -> list[Line]:
    """The rows of agreement, image by image."""
    found = []
    for goal, spec, row in summary_rows(study, "calibrated_similarity"):
        if study.kind(goal) in ("cascade", "epochs") and row["name"] == "overall":
            continue  # a mean over stages says nothing
        if goal.measure.better == "lower" and finite(row["estimate"]) is None:
            continue  # a distance that says nothing here: explained twice is no nearer than another image
        entries = [_in_column(part, row["name"]) for part in (spec.table, spec.wrong_image)]
        found.append(
            Line(
                **place_of(study, goal, row),
                better=goal.measure.better or "",
                agreement=_mean_of(entries[0], study.desk, spec.where),
                floor=_mean_of(spec.floor, study.desk, spec.where),
                wrong_image=_mean_of(entries[1], study.desk, spec.where),
                estimate=finite(row["estimate"]),
                low=finite(row["low"]),
                high=finite(row["high"]),
                level=spec.summary.option("level"),
                condition=spec.where,
            )
        )
    return found


def told(study: Study, sizes: Mapping[str, Size]) -> list[Told]:
    """The rows of consistency, of twins, models and the floor; ``sizes`` by the measures' labels."""
    return [
        Told(
            **place_of(study, goal, row),
            consistency=finite(row["estimate"]),
            low=finite(row["low"]),
            high=finite(row["high"]),
            level=spec.summary.option("level"),
            smallest=_smallest(row["n"] - math.ceil(row["undefined"] / row["pairs"])),
            null=finite(row["null"]),
            p=finite(row["p"]),
            size=sizes.get(goal.label),
            condition=spec.where,
        )
        for goal, spec, row in summary_rows(study, "consistency")
        if study.kind(goal) in COMPARED or (study.kind(goal) == "floor" and row["name"] == "overall")
    ]


@functools.cache
def _smallest(judged: int) -> float | None:
    """What so many judged images can show, at the level and power of ``plan``; rows mostly share their number."""
    return finite(smallest_detectable(judged)) if judged else None


def summary_rows(study: Study, *summaries: str) -> Iterator[tuple[Goal, Summary, dict[str, Any]]]:
    """Every row of these summaries, with its goal."""
    for goal in study.made:
        if isinstance(goal.spec, Summary) and goal.spec.summary.use in summaries:
            for row in study.store.table(goal.spec):
                yield goal, goal.spec, row


def place_of(study: Study, goal: Goal, row: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a summary says of where it stands."""
    return {
        "family": goal.family,
        "kind": study.kind(goal),
        "method": goal.method.label if goal.method else "",
        "control": study.control(goal),
        "measure": goal.label,
        "column": row["name"],
        "pairs": row["pairs"],
        "examples": row["n"],
        "undefined": row["undefined"],
    }


def _in_column(entries: Sequence[Entry], column: str) -> list[Entry]:
    """The entries of which a row is, by the summaries' own rule."""
    none = torch.empty(0)
    differs = tuple(entry.differs for entry in entries)
    chosen = dict(columns(Table((), (), differs, none, none, none)))
    return [entries[position] for position in chosen.get(column, [])]


def _mean_of(entries: Sequence[Entry], desk: Desk, where: Condition) -> float | None:
    """Mean over pairs and examples, undefined values left out, as the summaries take it."""
    if not entries:
        return None
    if where != "all":
        return finite(float(table_of(entries, desk, where).value.nanmean()))
    return finite(float(torch.stack([desk.store.tensors(entry.measure)["value"] for entry in entries]).nanmean()))


def finite(value: float | None) -> float | None:
    """The value, or None where it is undefined."""
    return value if value is not None and math.isfinite(value) else None
