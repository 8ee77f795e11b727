"""Each model by itself: how well it answers, how good its maps are, and what can be read from them."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from torch import Tensor

from consilience.experiment.families import Randomised
from consilience.experiment.specs import Measure
from consilience.reporting.tables import COMPARED, FamilyKind, Study, finite

UNITS = {"n": "images", "n steps": "values", "classes": "classes", "": "number"}
"""What a number in a measure's column belongs to, in words."""


class Judged(msgspec.Struct):
    """One model under one column of one measure: the mean over examples, or over classes."""

    family: str
    kind: FamilyKind
    measure: str
    better: str
    method: str
    control: bool
    member: str
    examples: int
    """How many numbers the mean is of."""
    undefined: int
    mean: float | None
    median: float | None
    column: str = "value"
    unit: str = "images"
    """What was counted: images, classes, or one number."""

    @property
    def label(self) -> str:
        """The measure, and which of its columns, where it is not the first."""
        return self.measure if self.column == "value" else f"{self.measure}: {self.column}"


class Performance(msgspec.Struct):
    """A measure of the models' answers, over the models that are compared with each other."""

    family: str
    measure: str
    lowest: float
    mean: float
    highest: float


class Reading(msgspec.Struct):
    """Explanation accuracy: how often a fresh network that sees nothing but the maps of a model names the class."""

    family: str
    method: str
    control: bool
    examples: int
    models: dict[str, float | None]
    """The share of right answers from each model's maps."""
    lowest: float | None
    mean: float | None
    highest: float | None
    answers: float | None
    """Mean accuracy of the models themselves on the same images; None where it was not asked for."""
    chance: float
    """One of so many classes."""


def judged(study: Study) -> list[Judged]:
    """Each model by itself, those of the floor left out: they are the base."""
    found = []
    for goal in study.made:
        if goal.b or goal.part or not isinstance(goal.spec, Measure):
            continue
        kind, columns = study.kind(goal), goal.measure.component.columns
        if kind == "floor" or (kind == "cascade" and goal.a == "base"):
            continue
        values = study.store.tensors(goal.spec)
        for column, belongs in columns.items():
            found.append(
                Judged(
                    family=goal.family,
                    kind=kind,
                    measure=goal.label,
                    better=goal.measure.better or "",
                    method=goal.method.label if goal.method else "",
                    control=study.control(goal),
                    member=goal.a,
                    column=column,
                    unit=UNITS.get(belongs, "values"),
                    **_counted(values[column]),
                )
            )
    return found


def _counted(value: Tensor) -> dict[str, Any]:
    return {
        "examples": value.numel(),
        "undefined": int(value.isnan().sum()),
        "mean": finite(float(value.nanmean())),
        "median": finite(float(value.nanmedian())),
    }


def performances(rows: Iterable[Judged]) -> list[Performance]:
    """What the compared models are worth by each measure that needs no maps; models without a value are left out."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if not row.method and row.kind in COMPARED and row.mean is not None:
            values.setdefault((row.family, row.label), []).append(row.mean)
    return [Performance(*place, min(of), sum(of) / len(of), max(of)) for place, of in values.items()]


def readings(study: Study, worth: Sequence[Performance]) -> list[Reading]:
    """What a fresh network reads from the maps alone, beside the models' own ``worth``."""
    own = {one.family: one.mean for one in worth if one.measure == "accuracy"}
    values: dict[tuple[str, str, bool], dict[str, Tensor]] = {}
    for goal in study.made:
        if goal.part and not goal.b and goal.method is not None and isinstance(goal.spec, Measure):
            place = goal.family, goal.method.label, study.control(goal)
            values.setdefault(place, {})[goal.a] = study.store.tensors(goal.spec)["value"]
    found = []
    for (family, method, control), right in values.items():
        models = {name: finite(float(value.nanmean())) for name, value in right.items()}
        known = [share for share in models.values() if share is not None]
        found.append(
            Reading(
                family=family,
                method=method,
                control=control,
                examples=next(iter(right.values())).numel(),
                models=models,
                lowest=min(known, default=None),
                mean=sum(known) / len(known) if known else None,
                highest=max(known, default=None),
                answers=own.get(family),
                chance=1 / len(study.desk.examples(study.experiment.examples).classes),
            )
        )
    return found


def coverage(study: Study) -> dict[str, dict[str, list[str]]]:
    """What was drawn anew in each stage of the cascades, and what was kept, by the names of the state dict."""
    found: dict[str, dict[str, list[str]]] = {}
    for family in study.experiment.families:
        if not isinstance(family, Randomised):
            continue
        for member in study.experiment.members_of(family)[1:]:
            specs = (study.experiment.maps_of(member, method) for method in study.experiment.methods)
            there = next((spec for spec in specs if spec in study.store), None)
            if there is not None:
                found[member.name] = study.store.table(there, "coverage")
    return found
