"""What a page holds, but for its pictures; its JSON twin is this, written out."""

from collections.abc import Sequence
from typing import Any

import msgspec

from consilience.component import Choice
from consilience.experiment.desk import Desk
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import AnyFamily, Retrain
from consilience.experiment.specs import Train, plan
from consilience.experiment.store import Store
from consilience.reporting.alone import Judged, Performance, Reading, coverage, judged, performances, readings
from consilience.reporting.causes import Cause, causes
from consilience.reporting.choices import chosen
from consilience.reporting.learning import sizes
from consilience.reporting.pairings import Distance, Matrix, Represented, distances, matrices, represented
from consilience.reporting.tables import COMPARED, Line, Told, kind_of, lines, study_of, told
from consilience.reporting.verdicts import Answer, answer


class Page(msgspec.Struct):
    """Everything that the page says, but for its pictures."""

    title: str
    answer: Answer
    lines: list[Line]
    told: list[Told]
    matrices: list[Matrix]
    distances: list[Distance]
    """Of the measures that look at a set of maps as a whole."""
    causes: list[Cause]
    """What the disagreement comes from: rows of the other summaries."""
    represented: list[Represented]
    """The models themselves compared."""
    judged: list[Judged]
    performances: list[Performance]
    """Of the models that are compared, as they stand beside their consistency."""
    readings: list[Reading]
    """Explanation accuracy."""
    coverage: dict[str, dict[str, list[str]]]
    """Stage of the cascade to the names of weights that were drawn anew, and that were kept."""
    chosen: dict[str, str]
    references: list[str]
    made: dict[str, Any]
    missing: int
    """Numbers that were not made, since a job failed or did not run."""


def page_of(experiment: Experiment, desk: Desk) -> Page:
    """What the store holds of an experiment."""
    study, store = study_of(experiment, desk), desk.store
    rows, alone = lines(study), judged(study)
    classified, worth = told(study, sizes(experiment, desk)), performances(alone)
    drawn = coverage(study)
    partial = {stage.partition(", draw ")[0] for stage, done in drawn.items() if done["kept"]}
    compared = [family for family in experiment.families if kind_of(family) in COMPARED]
    twins = all(isinstance(family, Retrain) for family in compared)
    return Page(
        title=experiment.name,
        answer=answer(rows, classified, _models(experiment, compared), partial, twins=twins),
        lines=rows,
        told=classified,
        matrices=matrices(study, rows),
        distances=distances(study),
        causes=causes(study),
        represented=represented(study),
        judged=alone,
        performances=worth,
        readings=readings(study, worth),
        coverage=drawn,
        chosen=chosen(experiment),
        references=_references(experiment),
        made=_made(experiment, store),
        missing=sum(goal.spec not in store for goal in experiment.goals()),
    )


def _models(experiment: Experiment, compared: Sequence[AnyFamily]) -> int:
    """How many models were compared with each other."""
    subjects = {
        (member.subject.source.digest, member.subject.epoch)
        for family in compared
        for member in experiment.members_of(family)
    }
    return len(subjects)


def _references(experiment: Experiment) -> list[str]:
    """Keys of the papers that the choices rest on."""
    base = experiment.base
    chosen: list[Choice] = [base.model, base.objective, base.optimizer] if isinstance(base, Train) else []
    chosen += [data.choice for data in experiment.data if data.choice is not None]
    chosen += [*experiment.methods, *experiment.controls, *experiment.judge]
    chosen += [how.measure for how in experiment.compare]
    chosen += [*experiment.summarise, *experiment.represent.measures, *experiment.represent.weights]
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
