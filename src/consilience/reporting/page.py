"""What a page holds, but for its pictures; its JSON twin is this, written out."""

from typing import Any

import msgspec

from consilience.component import Choice
from consilience.experiment.desk import Desk
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import Randomised, Retrain, SideBySide
from consilience.experiment.specs import Train, plan
from consilience.experiment.store import Store
from consilience.reporting.learning import sizes
from consilience.reporting.tables import (
    Judged,
    Line,
    Matrix,
    Performance,
    Told,
    coverage,
    judged,
    kind_of,
    lines,
    matrices,
    performances,
    told,
)
from consilience.reporting.verdicts import Answer, answer


class Page(msgspec.Struct):
    """Everything that the page says, but for its pictures."""

    title: str
    answer: Answer
    lines: list[Line]
    told: list[Told]
    matrices: list[Matrix]
    judged: list[Judged]
    performances: list[Performance]
    """Of the models that are compared, as they stand beside their consistency."""
    coverage: dict[str, dict[str, list[str]]]
    """Stage of the cascade to the names of weights that were drawn anew, and that were kept."""
    chosen: dict[str, str]
    references: list[str]
    made: dict[str, Any]
    missing: int
    """Numbers that were not made, since a job failed or did not run."""


def page_of(experiment: Experiment, desk: Desk) -> Page:
    """What the store holds of an experiment."""
    goals, store = experiment.goals(), desk.store
    rows, alone = lines(experiment, store), judged(experiment, store)
    classified = told(experiment, store, sizes(experiment, desk))
    drawn = coverage(experiment, store)
    partial = {stage.partition(", draw ")[0] for stage, done in drawn.items() if done["kept"]}
    return Page(
        title=experiment.name,
        answer=answer(rows, classified, _models(experiment), partial),
        lines=rows,
        told=classified,
        matrices=matrices(experiment, store, rows),
        judged=alone,
        performances=performances(alone),
        coverage=drawn,
        chosen=_chosen(experiment),
        references=_references(experiment),
        made=_made(experiment, store),
        missing=sum(goal.spec not in store for goal in goals),
    )


def _models(experiment: Experiment) -> int:
    """How many models were compared with each other."""
    compared = [f for f in experiment.families if kind_of(experiment, f.name) in ("twins", "models")]
    subjects = {
        (member.subject.source.digest, member.subject.epoch)
        for family in compared
        for member in family.members(experiment.base)
    }
    return len(subjects)


def _chosen(experiment: Experiment) -> dict[str, str]:
    """What a reader has to know of the choices behind the numbers."""
    base, said = experiment.base, dict[str, str]()
    if isinstance(base, Train):
        said["Model"] = base.model.label
        said["Trained on"] = f"{base.data.label}, {base.epochs} epochs, batches of {base.batch_size}"
        said["Objective and optimiser"] = f"{base.objective.label}, {base.optimizer.label}"
    for family in experiment.families:
        if isinstance(family, Retrain):
            varied = "; ".join(f"{factor} {', '.join(map(str, values))}" for factor, values in family.values.items())
            said["Twins"] = f"one factor varied at a time: {varied}"
        elif isinstance(family, SideBySide):
            said["Models"] = ", ".join(f"{name} (weights {given.weights[:12]})" for name, given in family.models)
        elif isinstance(family, Randomised):
            layers = [layer if isinstance(layer, str) else layer[0] for layer in family.layers]
            said["Cascade"] = (
                f"{family.order.replace('_', ' ')}: {', '.join(layers)}; initialiser {family.initializer}, "
                f"batch norm {family.batch_norm}, seeds {', '.join(map(str, family.seeds))}"
            )
    said |= {
        "Explained": f"{experiment.examples.label}, the true class of each example",
        "Channels of maps": experiment.channels,
        "Floor": f"the base explained with the draws {', '.join(map(str, experiment.floor.seeds))}",
        "Baseline": "each map against another image's of the same class",
        "Intervals": "bootstrap over examples and models",
    }
    asked = any(method.asks("background") for method in (*experiment.methods, *experiment.controls))
    if asked and experiment.background is not None:
        said["Background"] = experiment.background.label
    return said


def _references(experiment: Experiment) -> list[str]:
    """Keys of the papers that the choices rest on."""
    base = experiment.base
    chosen: list[Choice] = [base.model, base.objective, base.optimizer] if isinstance(base, Train) else []
    chosen += [data.choice for data in experiment.data if data.choice is not None]
    chosen += [*experiment.methods, *experiment.controls, *experiment.judge]
    chosen += [how.measure for how in experiment.compare]
    chosen += [*experiment.summarise]
    edits = [
        member.subject.edit for family in experiment.families for member in family.members(base) if member.subject.edit
    ]
    papers = {inner.component.paper for choice in [*chosen, *edits] for inner in choice.nest}
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
