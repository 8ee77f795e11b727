"""From goals and artifacts to the tables of a page: plain values, the same for the page and its JSON twin."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.families import Randomised, Redraw, SideBySide
from consilience.experiment.specs import Entry, Explain, Measure, Spec, Summary
from consilience.experiment.store import Store

FamilyKind = Literal["twins", "models", "cascade", "floor"]
"""Trained again; side by side; the base with layers drawn anew; one model explained twice."""


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
    agreement: float | None
    floor: float | None
    wrong_image: float | None
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    """Of the interval."""


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
    null: float | None
    """C of the same maps with the models exchanged at random."""
    p: float | None
    size: Size | None = None


class Matrix(msgspec.Struct):
    """A measure's mean over images for every two models of a family; None where two were not compared."""

    family: str
    method: str
    measure: str
    names: list[str]
    values: list[list[float | None]]
    floor: float | None
    """None, and the baseline too, where there is no scale between them."""
    wrong_image: float | None


class Judged(msgspec.Struct):
    """One model under one measure: the mean over examples."""

    family: str
    kind: FamilyKind
    measure: str
    better: str
    method: str
    control: bool
    member: str
    examples: int
    undefined: int
    mean: float | None
    median: float | None


class Performance(msgspec.Struct):
    """A measure of the models' answers, over the models that are compared with each other."""

    family: str
    measure: str
    lowest: float
    mean: float
    highest: float


def kind_of(experiment: Experiment, name: str) -> FamilyKind:
    """What sort of family stands under a name."""
    family = next(family for family in experiment.families if family.name == name)
    if isinstance(family, Redraw):
        return "floor"
    if isinstance(family, Randomised):
        return "cascade"
    return "models" if isinstance(family, SideBySide) else "twins"


def lines(experiment: Experiment, store: Store) -> list[Line]:
    """The rows of agreement, image by image."""
    found = []
    for goal, spec, row in _rows(experiment, store, "calibrated_similarity"):
        kind = kind_of(experiment, goal.family)
        if kind == "cascade" and row["name"] == "overall":
            continue  # a mean over stages says nothing
        entries = [_in_column(part, row["name"]) for part in (spec.table, spec.wrong_image)]
        found.append(
            Line(
                **_place(experiment, goal, row),
                agreement=_mean_of(entries[0], store),
                floor=_mean_of(spec.floor, store),
                wrong_image=_mean_of(entries[1], store),
                estimate=_finite(row["estimate"]),
                low=_finite(row["low"]),
                high=_finite(row["high"]),
                level=spec.summary.option("level"),
            )
        )
    return found


def told(experiment: Experiment, store: Store, sizes: Mapping[str, Size]) -> list[Told]:
    """The rows of consistency, of twins, models and the floor; ``sizes`` by the measures' labels."""
    return [
        Told(
            **_place(experiment, goal, row),
            consistency=_finite(row["estimate"]),
            low=_finite(row["low"]),
            high=_finite(row["high"]),
            level=spec.summary.option("level"),
            null=_finite(row["null"]),
            p=_finite(row["p"]),
            size=sizes.get(goal.label),
        )
        for goal, spec, row in _rows(experiment, store, "consistency")
        if not (kind_of(experiment, goal.family) == "floor" and row["name"] != "overall")
        and kind_of(experiment, goal.family) != "cascade"
    ]


def _rows(experiment: Experiment, store: Store, summary: str) -> Iterator[tuple[Goal, Summary, dict[str, Any]]]:
    for goal in experiment.goals():
        if isinstance(goal.spec, Summary) and goal.spec.summary.use == summary and goal.spec in store:
            for row in store.table(goal.spec):
                yield goal, goal.spec, row


def _place(experiment: Experiment, goal: Goal, row: dict[str, Any]) -> dict[str, Any]:
    """What every row of a summary says of where it stands."""
    method = goal.method.label if goal.method else ""
    return {
        "family": goal.family,
        "kind": kind_of(experiment, goal.family),
        "method": method,
        "control": method in {choice.label for choice in experiment.controls},
        "measure": goal.label,
        "column": row["name"],
        "pairs": row["pairs"],
        "examples": row["n"],
        "undefined": row["undefined"],
    }


def matrices(experiment: Experiment, store: Store, rows: Sequence[Line]) -> list[Matrix]:
    """Every two models of each family whose members are compared with each other, by each method and measure."""
    found: dict[tuple[str, str, str], Matrix] = {}
    for goal in experiment.goals():
        if not goal.b or goal.method in experiment.controls or kind_of(experiment, goal.family) in ("floor", "cascade"):
            continue
        if goal.spec not in store:
            continue
        place = (goal.family, goal.method.label if goal.method else "", goal.label)
        if place not in found:
            family = next(family for family in experiment.families if family.name == goal.family)
            names = [member.name for member in family.members(experiment.base)]
            ends = next((r for r in rows if (r.family, r.method, r.measure) == place and r.estimate is not None), None)
            found[place] = Matrix(
                *place,
                names=names,
                values=[[None] * len(names) for _ in names],
                floor=ends.floor if ends else None,
                wrong_image=ends.wrong_image if ends else None,
            )
        matrix, value = found[place], _finite(float(store.tensors(goal.spec)["value"].nanmean()))
        a, b = matrix.names.index(goal.a), matrix.names.index(goal.b)
        matrix.values[a][b] = matrix.values[b][a] = value
    return list(found.values())


def judged(experiment: Experiment, store: Store) -> list[Judged]:
    """Each model by itself, those of the floor left out: they are the base."""
    controls = {choice.label for choice in experiment.controls}
    found = []
    for goal in experiment.goals():
        if goal.b or not isinstance(goal.spec, Measure) or goal.spec not in store:
            continue
        kind, method = kind_of(experiment, goal.family), goal.method.label if goal.method else ""
        if kind == "floor" or (kind == "cascade" and goal.a == "base"):
            continue
        value: Tensor = store.tensors(goal.spec)["value"]
        found.append(
            Judged(
                family=goal.family,
                kind=kind,
                measure=goal.label,
                better=goal.measure.component.better or "",
                method=method,
                control=method in controls,
                member=goal.a,
                examples=value.numel(),
                undefined=int(value.isnan().sum()),
                mean=_finite(float(value.nanmean())),
                median=_finite(float(value.nanmedian())),
            )
        )
    return found


def performances(rows: Iterable[Judged]) -> list[Performance]:
    """What the compared models are worth by each measure that needs no maps; models without a value are left out."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if not row.method and row.kind in ("twins", "models") and row.mean is not None:
            values.setdefault((row.family, row.measure), []).append(row.mean)
    return [Performance(*place, min(of), sum(of) / len(of), max(of)) for place, of in values.items()]


def coverage(experiment: Experiment, store: Store) -> dict[str, dict[str, list[str]]]:
    """What was drawn anew in each stage of the cascades, and what was kept, by the names of the state dict."""
    found: dict[str, dict[str, list[str]]] = {}
    for family in experiment.families:
        if not isinstance(family, Randomised):
            continue
        for member in family.members(experiment.base)[1:]:
            specs: Iterable[Spec] = (experiment.maps_of(member, method) for method in experiment.methods)
            there = next((spec for spec in specs if isinstance(spec, Explain) and spec in store), None)
            if there is not None:
                found[member.name] = store.table(there, "coverage")
    return found


def _in_column(entries: Sequence[Entry], column: str) -> list[Entry]:
    if column == "several":
        return [entry for entry in entries if len(entry.differs) > 1]
    return [entry for entry in entries if len(entry.differs) == 1 and column in ("overall", *entry.differs)]


def _mean_of(entries: Iterable[Entry], store: Store) -> float | None:
    """Mean over pairs and examples, undefined values left out, as the summaries take it."""
    values = [store.tensors(entry.measure)["value"] for entry in entries]
    return _finite(float(torch.stack(values).nanmean())) if values else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
