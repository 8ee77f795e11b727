"""Components: plain functions, found by folder, chosen by name.

Before the ``*`` of a signature stands what flows in (roles, filled by the engine); after it stands
what one chooses (options). Configuration, checks, identity, help and law tests all come from there.
"""

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

import msgspec

from consilience.errors import SpecError, unknown
from consilience.signature import Component, read

F = TypeVar("F", bound=Callable[..., Any])


class Choice(msgspec.Struct, frozen=True):
    """A component, configured. Options equal to their default are left out; nested choices never are."""

    kind: str
    use: str
    version: int
    options: dict[str, Any] = {}

    @property
    def component(self) -> Component:
        """What was chosen."""
        return KINDS[self.kind].get(self.use)

    @property
    def nest(self) -> "Iterator[Choice]":
        """This choice and all choices inside it."""
        yield self
        for value in self.options.values():
            if isinstance(value, Choice):
                yield from value.nest

    @property
    def draws(self) -> bool:
        """Whether anything in the nest uses randomness."""
        return any(choice.component.draws for choice in self.nest)

    def asks(self, role: str) -> bool:
        """Whether anything in the nest is to be given this role."""
        return any(role in choice.component.roles for choice in self.nest)

    @property
    def better(self) -> str | None:
        """Of a measure, ``higher`` or ``lower``: the other way where it nests one that goes another way than usual."""
        better = self.component.better
        for name, default in self.component.nested.items():
            inside = self.options.get(name)
            if isinstance(inside, Choice) and {inside.better, default.better} == {"higher", "lower"}:
                better = "lower" if better == "higher" else "higher"
        return better

    @property
    def label(self) -> str:
        """How a person would write it: ``integrated_gradients(steps=16)``."""
        changed = {
            name: value.label if isinstance(value, Choice) else value
            for name, value in self.options.items()
            if not (isinstance(value, Choice) and value.label == self.component.nested[name].name)
        }
        inside = ", ".join(f"{name}={value}" for name, value in changed.items())
        return f"{self.use}({inside})" if inside else self.use

    @property
    def complete(self) -> bool:
        """Whether the method promises, with these options, that each map sums to ``score(x) - score(baseline)``."""
        options = self.component.complete
        return options is not None and all(self.is_default(name) for name in options)

    def is_default(self, name: str) -> bool:
        """Whether an option, and whatever but a score is nested in it, is what it is where nobody chooses."""
        value = self.options.get(name)
        if not isinstance(value, Choice):
            return name not in self.options
        inner = [nested for nested, default in value.component.nested.items() if default.kind != "score"]
        return value.use == self.component.nested[name].name and all(value.is_default(nested) for nested in inner)

    def option(self, name: str) -> Any:
        """The value of an option, its default where nothing else was chosen; None where there is no such option."""
        if name in self.options:
            return self.options[name]
        parameter = inspect.signature(self.component.function).parameters.get(name)
        return None if parameter is None else parameter.default

    def build(self, **roles: Any) -> Callable[..., Any]:
        """The function with its options, and with these roles bound wherever in the nest they are asked for."""
        options = {
            name: value.build(**roles) if isinstance(value, Choice) else value for name, value in self.options.items()
        }
        bound = {name: value for name, value in roles.items() if name in self.component.roles}
        return functools.partial(self.component.function, **options, **bound)


class Kind:
    """A sort of component: what it is called with, what it may need besides, and where its files lie."""

    def __init__(self, name: str, home: str, takes: Sequence[str] = (), needs: Sequence[str] = ()) -> None:
        self.name, self.home, self.takes, self.needs = name, home, tuple(takes), tuple(needs)
        self._found: dict[str, Component] = {}

    def __call__(
        self,
        *,
        version: int,
        paper: str | None = None,
        better: str | None = None,
        legacy: bool = False,
        breaks: Mapping[str, str] | None = None,
        complete: Sequence[str] | None = None,
        of: Sequence[str] | None = None,
    ) -> Callable[[F], F]:
        """Register the function below as a component of this kind; the function stays as it is.

        Args:
            version: To be raised whenever the function's numbers change.
            paper: Key into ``references.bib``.
            better: Of a measure, ``higher`` or ``lower``.
            legacy: Published arithmetic, kept with its mistake.
            breaks: Laws that the component breaks, each with the reason; the tests show that it does.
            complete: Of a method whose maps sum to ``score(x) - score(baseline)``: the options that must be at their
                default for that. None where nothing is promised.
            of: Of a summary, the measures whose values it can be made of. None for all that bring what it asks for.
        """

        def register(function: F) -> F:
            component = self.read(function)._replace(
                version=version, paper=paper, better=better, legacy=legacy, breaks=breaks or {},
                complete=None if complete is None else tuple(complete), of=None if of is None else tuple(of),
            )  # fmt: skip
            there = self._found.setdefault(component.name, component)
            if there.function.__module__ != function.__module__:
                raise SpecError(
                    f"{function.__module__}: expected a new name, found a second {self.name} '{component.name}' "
                    f"(the first is in {there.function.__module__}); rename one"
                )
            self._found[component.name] = component
            return function

        return register

    def read(self, function: Callable[..., Any]) -> Component:
        """What the signature of a function says of it as a component of this kind."""
        return read(self.name, function, (*self.takes, *self.needs), _registered)

    def names(self) -> list[str]:
        """All components of this kind, sorted; the first call imports their folder and installed plug-ins."""
        _discover(self.home)
        return sorted(self._found)

    def get(self, name: str) -> Component:
        """The component of that name.

        Raises:
            SpecError: Nothing has that name; near names are suggested.
        """
        if name not in self._found and name not in self.names():
            raise SpecError(unknown(self.name, name, self.names()))
        return self._found[name]

    def choose(self, given: Any, where: str = "") -> Choice:
        """A name, a table ``{use = ..., option = ...}``, a function or a ``functools.partial``, checked.

        Raises:
            SpecError: An unknown component or option, or a value that the option does not take.
        """
        name, options = _spelled(given, where or self.name)
        component = self.get(name)
        place = ".".join(part for part in (where, name) if part)
        known = {*component.nested, *component.schema.__struct_fields__}
        for option in options:
            if option not in known:
                raise SpecError(f"{place}: {unknown('option', option, known)}")
        try:
            values = msgspec.convert(
                {k: v for k, v in options.items() if k not in component.nested}, component.schema, strict=True
            )
        except msgspec.ValidationError as error:
            raise SpecError(f"{place}: {error}") from None
        chosen: dict[str, Any] = {
            option: KINDS[default.kind].choose(options.get(option, default.name), f"{place}.{option}")
            for option, default in component.nested.items()
        }
        for field in msgspec.structs.fields(component.schema):
            value = getattr(values, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise SpecError(f"{place}: expected a finite number, found {value} - at `$.{field.name}`")
            if field.required or value != field.default:
                chosen[field.name] = value
        return Choice(self.name, name, component.version, dict(sorted(chosen.items())))

    def by_function(self, function: Any) -> Component | None:
        """The component that this very function is, if it is one."""
        return next((c for c in self._found.values() if c.function is function), None)


def _registered(default: Any) -> Component | None:
    if not callable(default):
        return None
    return next((found for kind in KINDS.values() if (found := kind.by_function(default))), None)


def _spelled(given: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Choice):
        return given.use, given.options
    if isinstance(given, Mapping):
        if not isinstance(given.get("use"), str):
            raise SpecError(f"{where}: expected 'use' to name a component, found {dict(given)}; add use = '...'")
        return given["use"], {k: v for k, v in given.items() if k != "use"}
    if isinstance(given, functools.partial):
        name, options = _spelled(given.func, where)
        return name, {**options, **given.keywords}
    if component := _registered(given):
        return component.name, {}
    raise SpecError(
        f"{where}: expected a name or a table {{use = ...}} of a registered component, found {given!r}; "
        "decorate the function, or name another"
    )


@functools.cache
def _discover(home: str) -> None:
    package = importlib.import_module(home)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{home}.{module.name}")
    for point in entry_points(group="consilience.components"):
        point.load()


dataset = Kind("dataset", "consilience.data", needs=["root"])
augmentation = Kind("augmentation", "consilience.data", takes=["x", "rng"])
architecture = Kind("architecture", "consilience.models", takes=["shape", "classes"])
edit = Kind("edit", "consilience.models", takes=["model"], needs=["rng", "x", "source"])
objective = Kind("objective", "consilience.training", takes=["model", "batch"], needs=["rng"])
optimizer = Kind("optimizer", "consilience.training", takes=["parameters"])
score = Kind("score", "consilience.attribution", takes=["logits", "target"])
backward = Kind("backward", "consilience.attribution", takes=["model"], needs=["patterns"])
attribution = Kind(
    "attribution", "consilience.attribution", ["model", "x", "target"], ["rng", "background", "patterns"]
)
estimator = Kind("estimator", "consilience.attribution", takes=["model", "x"], needs=["rng", "label"])
measure = Kind(
    "measure", "consilience.measures",
    needs=["maps", "other", "label", "groups", "mask", "logits", "model", "source", "x", "target", "output",
           "baseline", "explain", "rng", "activations", "other_activations", "weights", "other_weights"],
)  # fmt: skip
summary = Kind("summary", "consilience.measures", ["table"], ["floor", "wrong_image", "null", "p", "rng", "better"])

KINDS = {
    kind.name: kind
    for kind in (dataset, augmentation, architecture, edit, objective, optimizer, score, backward,
                 attribution, estimator, measure, summary)
}  # fmt: skip
