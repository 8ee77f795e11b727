"""Families: sets of models that differ from a base in one way, and who is compared with whom."""

from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal, NamedTuple

import msgspec
from torch import nn

from consilience.component import architecture, edit
from consilience.errors import SpecError
from consilience.experiment.specs import Given, Subject, Train
from consilience.models.edits import Order, blocks_of, cascade

Source = Train | Given
CHANCES = ("init", "order", "noise", "augment")
Factor = Literal["init", "order", "noise", "augment", "dropout_rate"]


class Member(NamedTuple):
    """One model of a family as it is explained, and the seed of the explainer's own draws."""

    name: str
    subject: Subject
    seed: int


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
    name: str = "twins"

    def members(self, base: Source) -> list[Member]:
        """The base, then each twin."""
        if not isinstance(base, Train):
            raise SpecError(
                f"family '{self.name}': expected a base that can be trained again, found weights; leave it out"
            )
        if not self.values or any(len(set(values)) < max(2, len(values)) for values in self.values.values()):
            raise SpecError(
                f"family '{self.name}': expected two or more different values of each factor, found {self.values}; "
                "the first is the base's, each further one makes a twin"
            )
        for factor, values in self.values.items():
            base = varied(base, factor, values[0])
        twins = [varied(base, factor, value) for factor, values in self.values.items() for value in values[1:]]
        names = [f"{factor} {value}" for factor, values in self.values.items() for value in values[1:]]
        return [
            Member(name, Subject(source=train), seed)
            for seed, (name, train) in enumerate(zip(["base", *names], [base, *twins], strict=True))
        ]

    def pairs(self, members: list[Member]) -> list[Pair]:
        """Every two members, with the factors in which their specs differ."""
        return [
            Pair(a, b, differences(members[a].subject, members[b].subject))
            for a, b in combinations(range(len(members)), 2)
        ]


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


Family = Retrain | Redraw | Randomised
"""What an experiment file can name."""

AnyFamily = Family | SideBySide


def with_layers(family: Family, build: Callable[[], nn.Module]) -> Family:
    """The family, a cascade with the model's layers named in it."""
    if isinstance(family, Randomised) and not family.layers:
        return msgspec.structs.replace(family, layers=tuple(blocks_of(build())))
    return family


def varied(base: Train, factor: str, value: Any) -> Train:
    """The training with another value of one factor.

    Raises:
        SpecError: The value is none that the factor takes.
    """
    if factor in CHANCES:
        if not isinstance(value, int) or value < 0:
            raise SpecError(f"factor '{factor}': expected seeds, whole numbers from 0 on, found {value}; give others")
        return msgspec.structs.replace(base, **{factor: value})
    options = {**base.model.options, "dropout": float(value)}
    return msgspec.structs.replace(base, model=architecture.choose({"use": base.model.use, **options}, "dropout_rate"))


def differences(a: Subject, b: Subject) -> tuple[str, ...]:
    """In what two specs differ: names of factors, or of fields where no factor is named after them."""
    if a.source == b.source:
        return tuple(name for name in ("epoch", "edit", "edit_seed") if getattr(a, name) != getattr(b, name))
    if not isinstance(a.source, Train) or not isinstance(b.source, Train):
        return ("source",)
    found = []
    for field in msgspec.structs.fields(Train):
        one, two = getattr(a.source, field.name), getattr(b.source, field.name)
        if one != two:
            found += _inside(one, two) if field.name == "model" else [field.name]
    return tuple(found)


def _inside(one: Any, two: Any) -> list[str]:
    """In which options two architectures differ; the rate of dropout is a factor of its own."""
    if one.use != two.use:
        return ["model"]
    names = [name for name in {*one.options, *two.options} if one.option(name) != two.option(name)]
    return sorted("dropout_rate" if name == "dropout" else f"model.{name}" for name in names)
