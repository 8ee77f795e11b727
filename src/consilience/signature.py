"""What a function's signature says of it: which roles it is given, which options one chooses, what comes out."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from consilience.errors import SpecError, unknown

ALONE = {"model", "source", "output", "explain", "baseline"}
"""Roles of one model's maps, which a measure of two models' maps cannot be given."""


class Component(NamedTuple):
    """What the engine knows of a function: all of it read from its signature and its decorator."""

    kind: str
    name: str
    function: Callable[..., Any]
    roles: Mapping[str, bool]
    """Role to whether it must be there; a role with a default is only handed on."""
    nested: Mapping[str, "Component"]
    """Option to the component that is its default."""
    schema: type[msgspec.Struct]
    """Of the options that are plain values."""
    version: int = 0
    paper: str | None = None
    better: str | None = None
    legacy: bool = False
    breaks: Mapping[str, str] = {}
    complete: tuple[str, ...] | None = None
    """Of a method that promises maps which sum to ``score(x) - score(baseline)``: the options that could break it."""
    of: tuple[str, ...] | None = None
    """Of a summary that makes sense of some measures only: their names."""

    @property
    def draws(self) -> bool:
        """Whether the function itself uses randomness, rather than handing it on."""
        return self.roles.get("rng", False)

    @property
    def summary(self) -> str:
        """The first sentence of the documentation."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def columns(self) -> dict[str, str]:
        """Each column that comes out, to what a number in it belongs to: ``n``, ``n steps``, ``classes`` or one."""
        returned = typing.get_type_hints(self.function, include_extras=True).get("return")
        fields = getattr(returned, "__annotations__", None) if hasattr(returned, "_fields") else None
        return {name: getattr(hint, "dim_str", "").strip() for name, hint in (fields or {"value": returned}).items()}


def read(
    kind: str, function: Callable[..., Any], allowed: Sequence[str], registered: Callable[[Any], Component | None]
) -> Component:
    """A component as its signature tells it.

    Args:
        kind: What sort of component it is to be.
        function: Before the ``*`` of its signature stand roles, after it options.
        allowed: The roles that this kind can be given.
        registered: The component that a default is, if it is one.

    Raises:
        SpecError: The signature asks for a role that this kind cannot be given, or lacks a type or a docstring.
    """
    where = f"{function.__module__}.{function.__name__}"
    roles: dict[str, bool] = {}
    nested: dict[str, Component] = {}
    plain: list[Any] = []
    hints = typing.get_type_hints(function, include_extras=True)
    if not inspect.getdoc(function):
        raise SpecError(f"{where}: expected a docstring, found none; say what comes out")
    for name, parameter in inspect.signature(function).parameters.items():
        missing = parameter.default is inspect.Parameter.empty
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if name not in allowed:
                raise SpecError(f"{where}: {unknown(f'role of {kind}', name, allowed)}")
            roles[name] = missing
        elif parameter.kind is not parameter.KEYWORD_ONLY or name not in hints:
            raise SpecError(f"{where}: expected typed options after the *, found '{parameter}'; give it a type")
        elif component := registered(parameter.default):
            nested[name] = component
        else:
            plain.append((name, hints[name]) if missing else (name, hints[name], parameter.default))
    if "other" in roles and (alone := roles.keys() & ALONE):
        raise SpecError(
            f"{where}: expected a measure of two models' maps, found it asks for one's {sorted(alone)}; drop it"
        )
    schema = msgspec.defstruct(
        f"{function.__name__}_options", plain, kw_only=True, frozen=True, forbid_unknown_fields=True
    )
    return Component(kind, function.__name__, function, roles, nested, schema)
