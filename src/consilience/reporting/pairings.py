"""Every two models: their maps' likeness as a matrix, distances of whole sets of maps, and the models themselves."""

from collections.abc import Sequence
from typing import Literal

import msgspec
import torch
from torch import Tensor

from consilience.experiment.experiment import Goal
from consilience.experiment.specs import Activate, Measure, Subject
from consilience.reporting.tables import COMPARED, FamilyKind, Line, Study, finite

When = int | Literal["end", "chosen"]
"""After which epoch a model is compared: a kept one, the last, or the one that was chosen for it."""


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


class Distance(msgspec.Struct):
    """One column of a measure of whole sets of maps, over the pairs of a family."""

    family: str
    kind: FamilyKind
    method: str
    control: bool
    measure: str
    better: str
    column: str
    pairs: int
    undefined: int
    mean: float | None
    low: float | None
    """The lowest pair's."""
    high: float | None


class Represented(msgspec.Struct):
    """A layer or a tensor of two models compared, over the pairs of a family: the models, not their maps."""

    family: str
    measure: str
    better: str
    what: Literal["activations", "weights"]
    part: str
    epoch: When
    pairs: int
    undefined: int
    mean: float | None
    low: float | None
    high: float | None


def matrices(study: Study, rows: Sequence[Line]) -> list[Matrix]:
    """Every two models of each family whose members are compared with each other, by each method and measure."""
    found: dict[tuple[str, str, str], Matrix] = {}
    ends = {
        (row.family, row.method, row.measure): row
        for row in reversed(rows)
        if row.condition == "all" and row.estimate is not None
    }
    for goal in study.made:
        if not goal.b or goal.part or study.control(goal) or study.kind(goal) not in COMPARED:
            continue
        place = (goal.family, goal.method.label if goal.method else "", goal.label)
        if place not in found:
            names = [member.name for member in study.experiment.members_of(study.family(goal.family))]
            end = ends.get(place)
            found[place] = Matrix(
                *place,
                names=names,
                values=[[None] * len(names) for _ in names],
                floor=end.floor if end else None,
                wrong_image=end.wrong_image if end else None,
            )
        matrix, value = found[place], finite(float(study.store.tensors(goal.spec)["value"].nanmean()))
        a, b = matrix.names.index(goal.a), matrix.names.index(goal.b)
        matrix.values[a][b] = matrix.values[b][a] = value
    return list(found.values())


def distances(study: Study) -> list[Distance]:
    """Every column of the measures that look at a set of maps as a whole and answer with one number a pair."""
    goals: dict[tuple[str, str, str], list[Goal]] = {}
    for goal in study.made:
        columns = goal.measure.component.columns
        alone = isinstance(goal.spec, Measure) and goal.b and not goal.part and goal.method is not None
        if (
            alone
            and study.kind(goal) in (*COMPARED, "floor")
            and not any(of.startswith("n") for of in columns.values())
        ):
            goals.setdefault((goal.family, goal.method.label if goal.method else "", goal.label), []).append(goal)
    found = []
    for (family, method, measure), every in goals.items():
        pairs = _of_factors(study, every)
        values = [study.store.tensors(goal.spec) for goal in pairs]
        one = pairs[0]
        for column in one.measure.component.columns:
            count, undefined, mean, low, high = _over_pairs([value[column] for value in values])
            found.append(
                Distance(
                    family, study.kind(one), method, study.control(one), measure, one.measure.better or "",
                    column, count, undefined, mean, low, high,
                )
            )  # fmt: skip
    return found


def represented(study: Study) -> list[Represented]:
    """Every layer and tensor by which models themselves are compared, after every kept epoch."""
    goals: dict[tuple[str, str, str, When], list[Goal]] = {}
    last: When = "end" if study.experiment.select is None else "chosen"
    for goal in study.made:
        if goal.b and goal.part and isinstance(goal.spec, Measure) and isinstance(goal.spec.of, Activate | Subject):
            of = goal.spec.of
            part, subject = (of.layer, of.subject) if isinstance(of, Activate) else (goal.spec.tensor or "", of)
            epoch: When = last if subject.epoch is None else subject.epoch
            goals.setdefault((goal.family, goal.label, part, epoch), []).append(goal)
    return [
        Represented(
            family,
            measure,
            pairs[0].measure.better or "",
            "weights" if isinstance(pairs[0].spec, Measure) and pairs[0].spec.tensor else "activations",
            part,
            epoch,
            *_over_pairs([study.store.tensors(goal.spec)["value"] for goal in _of_factors(study, pairs)]),
        )
        for (family, measure, part, epoch), pairs in goals.items()
    ]


def _of_factors(study: Study, goals: Sequence[Goal]) -> Sequence[Goal]:
    """The pairs without those of the same training run again; all where there are no others."""
    again = study.run_again(goals[0].family)
    return [goal for goal in goals if (goal.a, goal.b) not in again] or goals


def _over_pairs(values: Sequence[Tensor]) -> tuple[int, int, float | None, float | None, float | None]:
    """How many pairs, how many of them undefined, the mean of the others, the lowest and the highest."""
    each = torch.stack([value.nanmean() for value in values])
    known = each[each.isfinite()].tolist()
    mean = sum(known) / len(known) if known else None
    return len(each), len(each) - len(known), mean, min(known, default=None), max(known, default=None)
