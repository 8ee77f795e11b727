"""What a run would make, and what it will cost, judged by what the store holds already."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from consilience.experiment.desk import Place, labels, load_examples
from consilience.experiment.experiment import Experiment
from consilience.experiment.specs import groups, plan
from consilience.experiment.store import Store, provenance
from consilience.measures.power import smallest_detectable


class Forecast(NamedTuple):
    """One stage of a run. None: nothing of the stage was ever made here, so nothing is known of its cost."""

    stage: str
    there: int
    lacking: int
    jobs: int
    seconds: float | None
    bytes: int | None


def forecast(experiment: Experiment, root: Path) -> list[Forecast]:
    """Jobs, seconds of one core and bytes of each stage; a missing store is not made."""
    store = Store(root) if root.is_dir() else None
    specs = plan(experiment.specs())
    jobs = groups(plan(experiment.specs(), () if store is None else store))
    rows = []
    for stage in dict.fromkeys(spec.stage for spec in specs):
        mine = [group for group in jobs if group[0].stage == stage]
        lacking = sum(len(group) for group in mine)
        there = sum(store is not None and spec in store for spec in specs if spec.stage == stage)
        seconds, size = _past(store, stage)
        rows.append(
            Forecast(
                stage, there, lacking, len(mine),
                None if lacking and seconds is None else lacking * (seconds or 0),
                None if lacking and size is None else round(lacking * (size or 0)),
            )
        )  # fmt: skip
    return rows


class Detectable(NamedTuple):
    """The smallest separability that the explained examples can tell from none, of all and of the smallest class.

    NaN where they are too few to tell any.
    """

    images: int
    smallest: float
    of_class: int
    smallest_of_class: float


def detectable(experiment: Experiment, place: Place) -> Detectable | None:
    """What the number of examples can show; None where maps are not told apart, or the examples have no name."""
    if all("null" not in how.measure.component.columns for how in experiment.compare):
        return None
    choice = experiment.examples.choice
    if choice is None:
        return None
    counts = labels(load_examples(choice, place)).bincount()
    few = int(counts[counts > 0].min())
    return Detectable(int(counts.sum()), smallest_detectable(int(counts.sum())), few, smallest_detectable(few))


def _past(store: Store | None, stage: str) -> tuple[float | None, float | None]:
    """Mean seconds and bytes of at most twenty artifacts of a stage."""
    folders: Sequence[Path] = list((store.root / stage).glob("*"))[:20] if store else []
    if not folders:
        return None, None
    seconds = [float(provenance(folder)["seconds"]) for folder in folders]
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
    return sum(seconds) / len(seconds), sum(sizes) / len(sizes)
