"""From goals and artifacts to what a page says: plain values, the same for the page and its JSON twin."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from consilience.component import Choice
from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.families import Redraw
from consilience.experiment.specs import Entry, Measure, Summary, Train, plan
from consilience.experiment.store import Store


class Line(msgspec.Struct):
    """One column of one family: raw agreement between its floor and its baseline, and where that is on their scale."""

    family: str
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


class Judged(msgspec.Struct):
    """One model under one measure: the mean over examples."""

    measure: str
    better: str
    method: str
    member: str
    examples: int
    undefined: int
    mean: float | None
    median: float | None


class Page(msgspec.Struct):
    """Everything that the page says, but for its pictures."""

    title: str
    answer: list[str]
    lines: list[Line]
    judged: list[Judged]
    chosen: dict[str, str]
    references: list[str]
    made: dict[str, Any]
    missing: int
    """Numbers that were not made, since a job failed or did not run."""


def page_of(experiment: Experiment, store: Store) -> Page:
    """What the store holds of an experiment."""
    goals = experiment.goals()
    there = [goal for goal in goals if goal.spec in store]
    lines = [
        line
        for goal in there
        if isinstance(goal.spec, Summary)
        for line in _lines(goal, goal.spec, experiment, store)
    ]  # fmt: skip
    floor = experiment.floor.name
    judged = [
        _judged(goal, store)
        for goal in there
        if isinstance(goal.spec, Measure) and not goal.b and goal.family != floor
    ]  # fmt: skip
    return Page(
        title=experiment.name,
        answer=[answer(line, lines) for line in lines if line.column == "overall" and not line.control],
        lines=lines,
        judged=judged,
        chosen=_chosen(experiment),
        references=_references(experiment),
        made=_made(experiment, store),
        missing=len(goals) - len(there),
    )


def answer(line: Line, lines: Sequence[Line] = ()) -> str:
    """A line of the table as a sentence, with the factor that changes explanations most."""
    who = f"Explained by {line.method}, the twins"
    if line.estimate is None or line.low is None or line.high is None:
        return (
            f"{who} cannot be placed: by {line.measure}, one model explained twice is no more alike than maps of "
            "different images, so there is no scale to stand on."
        )
    if line.low > 0.95:
        verdict = "agree almost as well as one model explained twice"
    elif line.high < 0.05:
        verdict = "agree no better than maps of different images"
    else:
        verdict = "agree only in part"
    interval = f"{100 * line.level:.0f} % interval {line.low:.2f} to {line.high:.2f}"
    return (
        f"{who} {verdict}: {line.estimate:.2f} ({interval}) on the scale from 0, maps of different images of one "
        f"class, to 1, one model explained twice; by {line.measure}, from {line.pairs} pairs of twins and "
        f"{line.examples} images.{_worst(line, lines)}"
    )


def _worst(line: Line, lines: Sequence[Line]) -> str:
    """Which factor makes twins explain least alike, where there are several."""
    place = (line.family, line.method, line.measure)
    factors = [
        (other.estimate, other.column)
        for other in lines
        if (other.family, other.method, other.measure) == place
        and other.column not in ("overall", "several")
        and other.estimate is not None
    ]
    if len(factors) < 2:
        return ""
    estimate, name = min(factors)
    return f" They are least alike where they differ in {name} ({estimate:.2f})."


def _lines(goal: Goal, spec: Summary, experiment: Experiment, store: Store) -> Iterable[Line]:
    method = goal.method.label if goal.method else ""
    controls = {choice.label for choice in experiment.controls}
    for row in store.table(spec):
        entries = [_in_column(part, row["name"]) for part in (spec.table, spec.wrong_image)]
        yield Line(
            family=goal.family,
            method=method,
            control=method in controls,
            measure=goal.measure.label,
            column=row["name"],
            pairs=row["pairs"],
            examples=row["n"],
            undefined=row["undefined"],
            agreement=_mean_of(entries[0], store),
            floor=_mean_of(spec.floor, store),
            wrong_image=_mean_of(entries[1], store),
            estimate=_finite(row["estimate"]),
            low=_finite(row["low"]),
            high=_finite(row["high"]),
            level=spec.summary.option("level"),
        )


def _in_column(entries: Sequence[Entry], column: str) -> list[Entry]:
    if column == "several":
        return [entry for entry in entries if len(entry.differs) > 1]
    return [entry for entry in entries if len(entry.differs) == 1 and column in ("overall", *entry.differs)]


def _mean_of(entries: Iterable[Entry], store: Store) -> float | None:
    """Mean over pairs and examples, undefined values left out, as the summaries take it."""
    values = [store.tensors(entry.measure)["value"] for entry in entries]
    return _finite(float(torch.stack(values).nanmean())) if values else None


def _judged(goal: Goal, store: Store) -> Judged:
    value: Tensor = store.tensors(goal.spec)["value"]
    return Judged(
        measure=goal.measure.label,
        better=goal.measure.component.better or "",
        method=goal.method.label if goal.method else "",
        member=goal.a,
        examples=value.numel(),
        undefined=int(value.isnan().sum()),
        mean=_finite(float(value.nanmean())),
        median=_finite(float(value.nanmedian())),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _chosen(experiment: Experiment) -> dict[str, str]:
    """What a reader has to know of the choices behind the numbers."""
    base = experiment.base
    twins = [family for family in experiment.families if not isinstance(family, Redraw)]
    factors = "; ".join(
        f"{factor} {', '.join(map(str, values))}" for family in twins for factor, values in family.values.items()
    )
    return {
        "Model": base.model.label,
        "Trained on": f"{base.data.choice.label}, {base.epochs} epochs, batches of {base.batch_size}",
        "Objective and optimiser": f"{base.objective.label}, {base.optimizer.label}",
        "Twins": f"one factor varied at a time: {factors}" if factors else "none",
        "Explained": f"{experiment.examples.choice.label}, the true class of each example",
        "Channels of maps": experiment.channels,
        "Floor": f"the base explained with the draws {', '.join(map(str, experiment.floor.seeds))}",
        "Baseline": "each map against another image's of the same class",
        "Intervals": "bootstrap over examples and twins",
    }


def _references(experiment: Experiment) -> list[str]:
    """Keys of the papers that the choices rest on."""
    base = experiment.base
    chosen: list[Choice] = [base.data.choice, base.model, base.objective, base.optimizer, experiment.examples.choice]
    chosen += [*experiment.methods, *experiment.controls, *experiment.compare, *experiment.judge]
    papers = {inner.component.paper for choice in chosen for inner in choice.nest}
    return sorted(paper for paper in papers if paper)


def _made(experiment: Experiment, store: Store) -> dict[str, Any]:
    """Versions, machine and seconds of everything behind the page."""
    notes = [(spec, store.provenance(spec)) for spec in plan(experiment.specs()) if spec in store]
    versions = sorted({tuple(sorted(note["versions"].items())) for _, note in notes})
    return {
        "artifacts": len(notes),
        "seconds": round(sum(note["seconds"] for _, note in notes), 1),
        "training seconds": round(sum(note["seconds"] for spec, note in notes if isinstance(spec, Train)), 1),
        "machine": ", ".join(sorted({note["machine"] for _, note in notes})),
        "device": ", ".join(sorted({note["device"] for _, note in notes})),
        "versions": [dict(one) for one in versions],
    }
