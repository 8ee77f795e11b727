"""What a store holds of an experiment, row by row."""

import functools
from collections.abc import Iterator
from typing import Any

from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.families import Ensembles
from consilience.experiment.specs import Condition, Summary, Train, plan
from consilience.experiment.store import Store
from scripts.agree_to_disagree.published import BLACK, METHODS, NONE, SHAP, TABLE, UNPUBLISHED, Row


class Made:
    """An experiment, the store that holds what was made of it, and the family that is looked at."""

    def __init__(self, experiment: Experiment, store: Store, family: str = "twins") -> None:
        self.experiment, self.store, self.family = experiment, store, family

    @functools.cached_property
    def of_family(self) -> list[Goal]:
        """The family's goals."""
        return [goal for goal in self.experiment.goals() if goal.family == self.family]

    def rows(
        self, method: str, measure: str, summary: str, normalise: str = "none", where: Condition = "all"
    ) -> dict[str, dict[str, Any]]:
        """Rows of a summary of the family by column; none where it was not made."""
        for goal in self.goals(method):
            spec, how = goal.spec, goal.how
            if not isinstance(spec, Summary) or (spec.summary.use, spec.where) != (summary, where):
                continue
            if goal.measure.use == measure and how and (how.normalise, how.pool) == (normalise, None):
                return {row["name"]: row for row in self.store.table(spec)} if spec in self.store else {}
        return {}

    def goals(self, method: str | None = None) -> Iterator[Goal]:
        """The family's goals, of one method where it is named."""
        for goal in self.of_family:
            found = goal.method and (goal.method.use, goal.method.option("baseline"))
            if method is None or found == METHODS[method]:
                yield goal

    def mean(self, goal: Goal, column: str = "value") -> float:
        """Of a measure's values; NaN where it was not made."""
        return float(self.store.tensors(goal.spec)[column].nanmean()) if goal.spec in self.store else float("nan")

    def accuracy(self) -> list[float]:
        """Of each twin on the examples that were explained."""
        judged = [g for g in self.goals() if g.measure.use == "accuracy" and g.method is None and not g.b]
        return [self.mean(goal) for goal in judged if goal.spec in self.store]

    @property
    def there(self) -> bool:
        """Whether anything of it was made."""
        return bool(self.accuracy())

    @property
    def size(self) -> dict[str, str]:
        """Architecture, members of each model, epochs, and how many models; a dash each where the file lacks them."""
        base = self.experiment.base
        family = next((one for one in self.experiment.families if one.name == self.family), None)
        if not isinstance(base, Train) or family is None:
            return dict.fromkeys(("architecture", "members", "epochs", "models"), NONE)
        of, members = base.model.option("of"), base.model.option("members")
        members = family.size if isinstance(family, Ensembles) else members or 1
        name = base.model.label if of is None else getattr(of, "label", str(of))
        return {"architecture": name, "members": str(members), "epochs": str(base.epochs),
                "models": str(len(family.members(base)))}  # fmt: skip

    def seconds(self) -> float:
        """Of one process after the other, by the clock, for everything behind the numbers."""
        specs = [spec for spec in plan(self.experiment.specs()) if spec in self.store]
        return sum(float(self.store.provenance(spec)["seconds"]) for spec in specs)


def rows_of(made: dict[str, Made]) -> list[tuple[Row, Made | None]]:
    """The paper's rows, then those that it does not have, each with what was made of it, if anything was."""
    known = {(row.file, row.method) for row in TABLE}
    more = [
        Row(made[file].experiment.name, file, method)
        for file in UNPUBLISHED
        if file in made
        for method in (SHAP, BLACK)
        if (file, method) not in known
    ]
    found: list[tuple[Row, Made | None]] = []
    for row in (*TABLE, *more):
        one = made.get(row.file)
        if one is not None and row.family != one.family:
            one = Made(one.experiment, one.store, row.family)
        found.append((row, one if one is not None and one.there else None))
    return found
