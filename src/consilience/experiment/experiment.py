"""An experiment: families x methods x measures, and the goals that follow from them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from consilience import component
from consilience.component import Choice
from consilience.experiment.families import AnyFamily, Member, Redraw, Source
from consilience.experiment.specs import (
    Data,
    Entry,
    Explain,
    Measure,
    Predict,
    Spec,
    Summary,
    Train,
    comparison,
    explanation,
)
from consilience.tensors import Channels


class Goal(NamedTuple):
    """A spec, and the place of its numbers in the report."""

    family: str
    method: Choice | None
    measure: Choice
    a: str
    b: str
    spec: Measure | Summary


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """Families x methods x measures, all checked."""

    name: str
    base: Source
    examples: Data
    methods: tuple[Choice, ...]
    controls: tuple[Choice, ...]
    compare: tuple[Choice, ...]
    judge: tuple[Choice, ...]
    summarise: tuple[Choice, ...]
    channels: Channels
    families: tuple[AnyFamily, ...]
    background: Data | None = None
    """Examples that stand for 'nothing in particular', for the methods that ask for them."""

    @property
    def data(self) -> list[Data]:
        """All that is read: what the base was trained on, what is explained, and the background."""
        trained = [self.base.data] if isinstance(self.base, Train) else []
        return [*trained, self.examples, *([self.background] if self.background else [])]

    @property
    def floor(self) -> Redraw:
        """The family that all others are measured against."""
        return next(family for family in self.families if isinstance(family, Redraw))

    def goals(self) -> list[Goal]:
        """Everything that the report shows."""
        return [goal for family in self.families for goal in self._of_family(family)]

    def maps_of(self, member: Member, method: Choice) -> Explain:
        """The spec of one member's maps."""
        return explanation(member.subject, method, self.examples, member.seed, self.background)

    def _of_family(self, family: AnyFamily) -> Iterator[Goal]:
        members = family.members(self.base)
        yield from self._judged(family, members)
        for method in (*self.methods, *self.controls):
            for measure in self.compare:
                table = self._entries(family, members, method, measure)
                yield from self._compared(family, members, method, measure, table)
                yield from self._summarised(family, members, method, measure, table)

    def _judged(self, family: AnyFamily, members: Sequence[Member]) -> Iterator[Goal]:
        """Measures of one model: of its answers, and of its maps where they have what the measure needs."""
        for measure in self.judge:
            for member in members:
                if "maps" not in measure.component.roles:
                    answers = Predict(subject=member.subject, data=self.examples)
                    yield Goal(family.name, None, measure, member.name, "", comparison(measure, answers))
                    continue
                for method in (*self.methods, *self.controls):
                    if "baseline" in measure.component.roles and not method.complete:
                        continue  # defined for methods that promise to sum to a difference
                    spec = comparison(measure, self.maps_of(member, method), channels=self.channels)
                    yield Goal(family.name, method, measure, member.name, "", spec)

    def _entries(
        self, family: AnyFamily, members: Sequence[Member], method: Choice, measure: Choice
    ) -> tuple[Entry, ...]:
        maps = [self.maps_of(member, method) for member in members]
        return tuple(
            Entry(
                a=a, b=b, differs=differs, measure=comparison(measure, maps[a], maps[b], channels=self.channels)
            )
            for a, b, differs in family.pairs(list(members))
        )  # fmt: skip

    def _compared(
        self,
        family: AnyFamily,
        members: Sequence[Member],
        method: Choice,
        measure: Choice,
        table: Sequence[Entry],
    ) -> Iterator[Goal]:
        for entry in table:
            names = members[entry.a].name, members[entry.b].name
            yield Goal(family.name, method, measure, *names, entry.measure)

    def _summarised(
        self,
        family: AnyFamily,
        members: Sequence[Member],
        method: Choice,
        measure: Choice,
        table: tuple[Entry, ...],
    ) -> Iterator[Goal]:
        """The summaries that have here what they ask for: ends of a scale for agreement image by image, or a null."""
        given: dict[str, tuple[Entry, ...]] = {}
        if measure.component.roles.keys() == {"maps", "other"} and family is not self.floor:
            baseline = component.measure.choose({"use": "wrong_image", "of": measure})
            given["floor"] = self._entries(self.floor, self.floor.members(self.base), method, measure)
            given["wrong_image"] = self._entries(family, members, method, baseline)
        known = {"table", "rng", *given, *measure.component.columns}
        for summary in self.summarise:
            if known >= summary.component.roles.keys():
                wanted = {role: given[role] for role in summary.component.roles if role in given}
                seed = 0 if summary.draws else None
                spec = Summary(summary=summary, table=table, seed=seed, **wanted)
                yield Goal(family.name, method, measure, "", "", spec)

    def specs(self) -> list[Spec]:
        """The goals' specs."""
        return [goal.spec for goal in self.goals()]
