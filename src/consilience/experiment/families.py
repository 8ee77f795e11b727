"""Families: sets of models that differ from a base in one way, and who is compared with whom."""

from collections.abc import Callable
from itertools import combinations
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from torch import nn

from consilience.component import architecture, edit
from consilience.errors import SpecError
from consilience.experiment.factors import Factor, differences, trained_on, varied
from consilience.experiment.specs import Average, Given, Subject, Train
from consilience.models.edits import Order, blocks_of, cascade
from consilience.rng import number

Source = Train | Given


class Member(NamedTuple):
    """One model of a family as it is explained, and the seed of the explainer's own draws."""

    name: str
    subject: Subject
    seed: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Epochs of its training whose weights were kept, but for the last."""
        return self.subject.source.keep if isinstance(self.subject.source, Train) else ()


class Pair(NamedTuple):
    """Two members, by their position, and in what they differ."""

    a: int
    b: int
    differs: tuple[str, ...]


class Retrain(msgspec.Struct, frozen=True, kw_only=True, tag="retrain", tag_field="type", forbid_unknown_fields=True):
    """Twins: the base trained again with another value of one factor at a time; every two are compared.

    The first value of each factor is the base's, so factors with three values each make a base and two
    twins a factor. Every twin is explained with draws of its own.
    """

    values: dict[Factor, list[float | int]]
    share: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Of the training examples, how many a subset holds."""
    name: str = "twins"

    def members(self, base: Source) -> list[Member]:
        """The base, then each twin."""
        base = _trained(self.name, base)
        whole = base.data
        if not self.values or any(len(set(values)) < max(2, len(values)) for values in self.values.values()):
            raise SpecError(
                f"family '{self.name}': expected two or more different values of each factor, found {self.values}; "
                "the first is the base's, each further one makes a twin"
            )
        for factor, values in self.values.items():
            base = varied(base, factor, values[0], whole, self.share)
        twins = [
            varied(base, factor, value, whole, self.share)
            for factor, values in self.values.items()
            for value in values[1:]
        ]
        names = [f"{factor} {value}" for factor, values in self.values.items() for value in values[1:]]
        return [
            Member(name, Subject(source=train), seed)
            for seed, (name, train) in enumerate(zip(["base", *names], [base, *twins], strict=True))
        ]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two members, with the factors in which their specs differ; what was run again is one of a pair only."""
        found = [
            Pair(a, b, differences(members[a].subject, members[b].subject))
            for a, b in combinations(range(len(members)), 2)
        ]
        return [pair for pair in found if "nothing" not in pair.differs or len(pair.differs) == 1]


class Folds(msgspec.Struct, frozen=True, kw_only=True, tag="folds", tag_field="type", forbid_unknown_fields=True):
    """The base trained on all examples but one fold, once for each fold; every two are compared."""

    count: Annotated[int, Meta(ge=2)] = 5
    name: str = "folds"

    def members(self, base: Source) -> list[Member]:
        """A training without each fold."""
        base = _trained(self.name, base)
        return [
            Member(f"without fold {fold}", Subject(source=trained_on(base, base.data, "fold", fold, self.count)), fold)
            for fold in range(self.count)
        ]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two of them."""
        return [Pair(a, b, ("fold",)) for a, b in combinations(range(len(members)), 2)]


class Epochs(msgspec.Struct, frozen=True, kw_only=True, tag="epochs", tag_field="type", forbid_unknown_fields=True):
    """The base as it was after each kept epoch, compared with itself at the end."""

    name: str = "epochs"

    def members(self, base: Source) -> list[Member]:
        """The finished base, then each kept epoch."""
        base = _trained(self.name, base)
        if not base.keep:
            raise SpecError(f"family '{self.name}': expected epochs that were kept, found none; add 'keep' to [train]")
        kept = [Member(f"epoch {epoch}", Subject(source=base, epoch=epoch), 1 + i) for i, epoch in enumerate(base.keep)]
        return [Member(f"epoch {base.epochs}", Subject(source=base), 0), *kept]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """The end with every kept epoch."""
        return [Pair(0, position, (member.name,)) for position, member in enumerate(members) if position]


class Ensembles(
    msgspec.Struct, frozen=True, kw_only=True, tag="ensembles", tag_field="type", forbid_unknown_fields=True
):
    """Averaging ensembles, no model in two of them; every two are compared.

    With candidates they are hyper-deep: of so many models, each with options of the architecture drawn from a list
    and seeds of its own, those are chosen one by one that help the ensemble most on the data of ``train.select``.
    """

    size: Annotated[int, Meta(ge=2)] = 3
    """Models in each ensemble; they differ in all chances."""
    count: Annotated[int, Meta(ge=2)] = 3
    candidates: Annotated[int, Meta(ge=2)] | None = None
    search: dict[str, list[Any]] = {}
    """Options of the architecture, and the values from which each candidate's are drawn."""
    seeds: Annotated[int, Meta(ge=1)] = 1
    """How often each candidate is trained, with other seeds but the same options; each time it can be chosen."""
    name: str = "averaging ensembles"

    def members(self, base: Source) -> list[Member]:
        """The ensembles; how candidates answer is for the experiment to say."""
        base, found, each = _trained(self.name, base), [], self.candidates or self.size
        self._check(base)
        for place in range(self.count):
            drawn = range(place * each, (place + 1) * each)
            parts = tuple(
                Subject(source=self._candidate(base, draw, again)) for draw in drawn for again in range(self.seeds)
            )
            whole = Average(members=parts, size=self.size if self.candidates else None)
            found.append(Member(f"ensemble {place + 1}", Subject(source=whole), place))
        return found

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two of them."""
        return [Pair(a, b, ("members",)) for a, b in combinations(range(len(members)), 2)]

    def _candidate(self, base: Train, draw: int, again: int) -> Train:
        drawn = {option: values[number(option, draw) % len(values)] for option, values in self.search.items()}
        each = self.candidates or self.size
        return varied(self._with(base, drawn), "everything", draw + again * self.count * each)

    def _with(self, base: Train, options: dict[str, Any]) -> Train:
        chosen = {"use": base.model.use, **base.model.options, **options}
        return msgspec.structs.replace(base, model=architecture.choose(chosen, f"family '{self.name}'.search"))

    def _check(self, base: Train) -> None:
        """Refuse what no candidate, or not every one, could be made of."""
        if self.seeds > 1 and self.candidates is None:
            raise SpecError(
                f"family '{self.name}': expected 'candidates' of which each is trained with {self.seeds} seeds, found "
                "none; say how many, or leave 'seeds' out"
            )
        for option, values in self.search.items():
            if not values:
                raise SpecError(
                    f"family '{self.name}'.search: expected values of '{option}' to draw from, found none; list some, "
                    "or leave the option out"
                )
            for value in values:
                self._with(base, {option: value})


class Redraw(msgspec.Struct, frozen=True, kw_only=True, tag="redraw", tag_field="type", forbid_unknown_fields=True):
    """The floor: one model explained again, with other draws where the method draws at all."""

    seeds: tuple[int, ...] = (0, 1)
    name: str = "same model explained twice"

    def members(self, base: Source) -> list[Member]:
        """The base, once for each seed."""
        if len(set(self.seeds)) < max(2, len(self.seeds)):
            raise SpecError(
                f"family '{self.name}': expected two or more different seeds, found {list(self.seeds)}; give others"
            )
        return [Member(f"draw {seed}", Subject(source=base), seed) for seed in self.seeds]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two draws."""
        return [Pair(a, b, ("draw",)) for a, b in combinations(range(len(members)), 2)]


class Randomised(
    msgspec.Struct, frozen=True, kw_only=True, tag="randomised", tag_field="type", forbid_unknown_fields=True
):
    """The cascade: the base with layers drawn anew, stage after stage, each compared with the untouched base.

    An explanation that depends on what the model learned loses its likeness on the way.
    """

    order: Order = "top_down"
    initializer: Literal["own", "shuffle"] = "own"
    batch_norm: Literal["reset", "keep"] = "reset"
    seeds: tuple[int, ...] = (0,)
    """Each stage is drawn once with each."""
    layers: tuple[str | tuple[str, ...], ...] = ()
    """From the input to the output, those of one stage together; all that hold weights, where none are named."""
    name: str = "randomised"

    def members(self, base: Source) -> list[Member]:
        """The base, then each stage with each seed."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SpecError(f"family '{self.name}': expected different seeds, found {list(self.seeds)}; give others")
        if not self.layers:
            raise SpecError(f"family '{self.name}': expected layers that hold weights, found none in the model")
        found = [Member("base", Subject(source=base), 0)]
        for name, stage in self._stages():
            chosen = {"use": "randomise", "layers": list(stage)}
            chosen |= {"initializer": self.initializer, "batch_norm": self.batch_norm}
            changed = edit.choose(chosen, f"family '{self.name}'")
            for seed in self.seeds:
                subject = Subject(source=base, edit=changed, edit_seed=seed)
                drawn = f", draw {seed}" if len(self.seeds) > 1 else ""
                found.append(Member(name + drawn, subject, len(found)))
        return found

    def pairs(self, members: list[Member]) -> list[Pair]:
        """The base with every stage; the stage's name says in what they differ, whatever the seed."""
        named = [name for name, _ in self._stages() for _ in self.seeds]
        return [Pair(0, position, (name,)) for position, name in enumerate(named, 1)]

    def _stages(self) -> list[tuple[str, tuple[str, ...]]]:
        """The name of each stage, and the layers that are drawn anew in it."""
        stages = cascade(self.layers, self.order)
        edges = [layer if isinstance(layer, str) else layer[0] for layer in self.layers]
        words = {"top_down": "down to", "bottom_up": "up to", "independent": "only", "full": ""}[self.order]
        named = [f"{words} {edge}" for edge in (reversed(edges) if self.order == "top_down" else edges)]
        if self.order != "independent" and len(edges) > 1:
            named[len(stages) - 1] = "all layers"
        return list(zip(named, stages, strict=False))


class SideBySide(msgspec.Struct, frozen=True, kw_only=True):
    """Models that a user has, every two compared."""

    models: tuple[tuple[str, Given], ...]
    name: str = "side by side"

    def members(self, base: Source) -> list[Member]:
        """The models, under their names."""
        return [Member(name, Subject(source=given), seed) for seed, (name, given) in enumerate(self.models)]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two of them."""
        return [Pair(a, b, ("model",)) for a, b in combinations(range(len(members)), 2)]


Family = Retrain | Folds | Epochs | Ensembles | Redraw | Randomised
"""What an experiment file can name."""

AnyFamily = Family | SideBySide


def with_layers(family: Family, build: Callable[[], nn.Module]) -> Family:
    """The family, a cascade with the model's layers named in it."""
    if isinstance(family, Randomised) and not family.layers:
        return msgspec.structs.replace(family, layers=tuple(blocks_of(build())))
    return family


def _trained(name: str, base: Source) -> Train:
    if not isinstance(base, Train):
        raise SpecError(f"family '{name}': expected a base that can be trained again, found weights; leave it out")
    return base
