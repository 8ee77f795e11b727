"""An experiment: families x methods x measures, and the goals that follow from them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from consilience import component
from consilience.component import Choice
from consilience.errors import SpecError
from consilience.experiment.families import (
    AnyFamily,
    Ensembles,
    Folds,
    Member,
    Redraw,
    Retrain,
    SideBySide,
    Source,
)
from consilience.experiment.records import Spec
from consilience.experiment.specs import (
    Activate,
    Average,
    Condition,
    Data,
    Entry,
    Explain,
    Measure,
    Predict,
    Prepared,
    Select,
    Spread,
    Subject,
    Summary,
    Train,
    comparison,
    explanation,
)
from consilience.signature import Component
from consilience.tensors import Channels


class Goal(NamedTuple):
    """A spec, and the place of its numbers in the report."""

    family: str
    method: Choice | None
    measure: Choice
    a: str
    b: str
    spec: Measure | Summary
    how: Prepared | None = None
    """How maps were prepared; None where there are none."""
    part: str = ""
    """Layer or tensor, and epoch, where models are compared rather than their maps."""

    @property
    def label(self) -> str:
        """The measure, as a person would write it."""
        return self.measure.label if self.how is None else self.how.label


class Represented(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the models themselves are compared: their layers' answers, and their weights."""

    measures: tuple[Choice, ...] = ()
    """Of activations."""
    layers: tuple[str, ...] = ()
    places: int | None = None
    """Of each example, how many places of a plane are drawn; None takes all."""
    weights: tuple[Choice, ...] = ()
    """Measures of two tensors of weights."""
    tensors: tuple[str, ...] = ()


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """Explanation accuracy: how well a fresh network tells an image's class from its map alone."""

    epochs: int
    data: Data
    """Whose maps are learnt from; how many are right is asked about the maps of the examples."""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """Families x methods x measures, all checked."""

    name: str
    base: Source
    examples: Data
    methods: tuple[Choice, ...]
    controls: tuple[Choice, ...]
    compare: tuple[Prepared, ...]
    judge: tuple[Choice, ...]
    summarise: tuple[Choice, ...]
    channels: Channels
    families: tuple[AnyFamily, ...]
    background: Data | None = None
    """Examples that stand for 'nothing in particular', for the methods that ask for them."""
    conditions: tuple[Condition, ...] = ("all",)
    """Of which examples the summaries are."""
    represent: Represented = Represented()
    learnt: Learnt | None = None
    """How explanation accuracy is measured, if at all."""
    select: tuple[Choice, Data] | None = None
    """By which measure of its answers on which data the best kept epoch of each training is chosen, if it is."""

    @property
    def data(self) -> list[Data]:
        """All that is read: what the base was trained on, what is explained, and the background."""
        trained = [self.base.data] if isinstance(self.base, Train) else []
        more = [self.background, self.learnt and self.learnt.data, self.select and self.select[1]]
        return [*trained, self.examples, *(data for data in more if data)]

    @property
    def floor(self) -> Redraw:
        """The family that all others are measured against."""
        return next(family for family in self.families if isinstance(family, Redraw))

    def goals(self) -> list[Goal]:
        """Everything that the report shows."""
        return [goal for family in self.families for goal in self._of_family(family)]

    def members_of(self, family: AnyFamily) -> list[Member]:
        """The members of a family, each after the epoch that is chosen for it, if one is."""
        return [member._replace(subject=self._chosen(member.subject)) for member in family.members(self.base)]

    def maps_of(self, member: Member, method: Choice) -> Explain:
        """The spec of one member's maps."""
        return explanation(member.subject, method, self.examples, member.seed, self.background)

    def _chosen(self, subject: Subject) -> Subject:
        """The subject with what is chosen by its answers to ``train.select``: its best epoch, an ensemble's members."""
        source = subject.source
        if isinstance(source, Average) and source.size is not None:
            if self.select is None:
                raise SpecError("family: expected data on which members are chosen, found none; add [train.select]")
            answers = tuple(Predict(subject=one, data=self.select[1]) for one in source.members)
            return msgspec.structs.replace(subject, source=msgspec.structs.replace(source, by=answers))
        if self.select is None or not isinstance(source, Train) or not source.keep or subject.epoch is not None:
            return subject
        measure, data = self.select
        candidates = tuple(Subject(source=source, epoch=epoch) for epoch in (*source.keep, None))
        by = tuple(comparison(Prepared(measure=measure), Predict(subject=one, data=data)) for one in candidates)
        return msgspec.structs.replace(subject, source=Select(candidates=candidates, by=by))

    def _of_family(self, family: AnyFamily) -> Iterator[Goal]:
        members = self.members_of(family)
        yield from self._judged(family, members)
        yield from self._represented(family)
        for method in (*self.methods, *self.controls):
            for how in self.compare:
                table = self._entries(family, members, method, how)
                yield from self._compared(family, members, method, how, table)
                by_example = how.measure.component.columns.get("value") == "n"
                for condition in self.conditions if by_example else ("all",):
                    yield from self._summarised(family, members, method, how, table, condition)

    def _judged(self, family: AnyFamily, members: Sequence[Member]) -> Iterator[Goal]:
        """Measures of one model: of its answers, and of its maps where they have what the measure needs."""
        for measure in self.judge:
            for member in members:
                if "maps" not in measure.component.roles and "explain" not in measure.component.roles:
                    answers = Predict(subject=member.subject, data=self.examples)
                    spec = comparison(Prepared(measure=measure), answers)
                    yield Goal(family.name, None, measure, member.name, "", spec)
                    continue
                for method in (*self.methods, *self.controls):
                    if "baseline" in measure.component.roles and not method.complete:
                        continue  # defined for methods that promise to sum to a difference
                    if "output" in measure.component.roles and all(c.option("score") is None for c in method.nest):
                        continue  # it explains no output
                    how = Prepared(measure=measure, channels=self.channels)
                    spec = comparison(how, self.maps_of(member, method))
                    yield Goal(family.name, method, measure, member.name, "", spec, how)
        if self.learnt is not None and isinstance(family, Retrain | Ensembles):
            yield from self._learnt(self.learnt, family, members)

    def _learnt(self, how: Learnt, family: AnyFamily, members: Sequence[Member]) -> Iterator[Goal]:
        """What a fresh network of the base's architecture tells from each member's maps."""
        if not isinstance(self.base, Train):
            return
        right = component.measure.choose("accuracy")
        for method in (*self.methods, *self.controls):
            for member in members:
                learnt, asked = (
                    Data(fingerprint=maps.digest, maps=maps)
                    for maps in (
                        explanation(member.subject, method, data, member.seed, self.background)
                        for data in (how.data, self.examples)
                    )
                )
                reader = msgspec.structs.replace(
                    self.base, data=learnt, epochs=how.epochs, keep=(), average_from=None, start=None
                )
                spec = comparison(Prepared(measure=right), Predict(subject=Subject(source=reader), data=asked))
                yield Goal(family.name, method, right, member.name, "", spec, part="read from the map alone")

    def _represented(self, family: AnyFamily) -> Iterator[Goal]:
        """The models themselves: every pair, layer or tensor, and kept epoch."""
        if not isinstance(family, Retrain):
            return
        how, members = self.represent, family.members(self.base)  # whatever epoch is chosen
        for a, b, _ in family.pairs(members):
            for epoch in (*members[a].kept, None):
                one, two = (msgspec.structs.replace(members[i].subject, epoch=epoch) for i in (a, b))
                when = f", epoch {epoch}" if epoch is not None else ""
                names = members[a].name, members[b].name
                for measure in how.measures:
                    for layer in how.layers:
                        first, second = (
                            Activate(subject=subject, data=self.examples, layer=layer, places=how.places)
                            for subject in (one, two)
                        )
                        spec = comparison(Prepared(measure=measure), first, second)
                        yield Goal(family.name, None, measure, *names, spec, part=layer + when)
                for measure in how.weights:
                    for tensor in how.tensors:
                        spec = comparison(Prepared(measure=measure), one, two, tensor)
                        yield Goal(family.name, None, measure, *names, spec, part=tensor + when)

    def _entries(
        self, family: AnyFamily, members: Sequence[Member], method: Choice, how: Prepared
    ) -> tuple[Entry, ...]:
        maps = [self.maps_of(member, method) for member in members]
        return tuple(
            Entry(a=a, b=b, differs=differs, measure=comparison(how, maps[a], maps[b]))
            for a, b, differs in family.pairs(list(members))
        )

    def _compared(
        self,
        family: AnyFamily,
        members: Sequence[Member],
        method: Choice,
        how: Prepared,
        table: Sequence[Entry],
    ) -> Iterator[Goal]:
        for entry in table:
            names = members[entry.a].name, members[entry.b].name
            yield Goal(family.name, method, how.measure, *names, entry.measure, how)

    def _summarised(
        self,
        family: AnyFamily,
        members: Sequence[Member],
        method: Choice,
        how: Prepared,
        table: tuple[Entry, ...],
        condition: Condition,
    ) -> Iterator[Goal]:
        """The summaries that have here what they ask for: ends of a scale for agreement image by image, or a null."""
        given: dict[str, tuple[Entry, ...]] = {}
        if _per_image(how.measure.component) and family is not self.floor:
            baseline = component.measure.choose({"use": "wrong_image", "of": how.measure})
            other = msgspec.structs.replace(how, measure=baseline)
            same = self.members_of(self.floor)
            given["floor"] = self._answered(self._entries(self.floor, same, method, how), same, condition)
            given["wrong_image"] = self._answered(self._entries(family, members, method, other), members, condition)
        known = {"table", "rng", "better", *given, *how.measure.component.columns}
        for summary in self.summarise:
            roles, of = summary.component.roles.keys(), summary.component.of
            if known >= roles and (of is None or how.measure.use in of):
                wanted = {role: given[role] for role in roles if role in given}
                spec = Summary(
                    summary=summary,
                    table=self._answered(table, members, condition),
                    where=condition,
                    seed=0 if summary.draws else None,
                    **wanted,
                )
                yield Goal(family.name, method, how.measure, "", "", spec, how, condition if condition != "all" else "")

    def _answered(self, table: tuple[Entry, ...], members: Sequence[Member], condition: Condition) -> tuple[Entry, ...]:
        """The entries, with the two models' answers where they decide which examples count."""
        if condition == "all":
            return table
        answers = [Predict(subject=member.subject, data=self.examples) for member in members]
        return tuple(msgspec.structs.replace(e, answers=(answers[e.a], answers[e.b])) for e in table)

    def spread_of(self, family: AnyFamily, method: Choice) -> Spread:
        """Where the maps of a family's members disagree, pixel by pixel."""
        return Spread(of=tuple(self.maps_of(member, method) for member in self.members_of(family)))

    def spreads(self) -> list[Spread]:
        """One for each method, controls left out, and family whose members stand beside each other."""
        beside = [family for family in self.families if isinstance(family, Retrain | Folds | Ensembles | SideBySide)]
        return [self.spread_of(family, method) for family in beside for method in self.methods]

    def specs(self) -> list[Spec]:
        """The goals' specs, and what the pictures show besides."""
        return [*(goal.spec for goal in self.goals()), *self.spreads()]


def _per_image(measure: Component) -> bool:
    """Whether it gives each image a number, of two maps and of no more than the wrong-image baseline hands on to it."""
    handed_on = {role for role, needed in component.measure.get("wrong_image").roles.items() if not needed}
    asked = measure.roles.keys()
    return {"maps", "other"} <= asked <= {"maps", "other", *handed_on} and measure.columns == {"value": "n"}
