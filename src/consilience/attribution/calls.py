"""Calls of torch's functions, written down with holes where tensors stood that depend on the pixels."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consilience.attribution.operations import Function, tensors_in, written
from consilience.errors import ModelError


class Hole(NamedTuple):
    """Where in a call's arguments a tensor stood that depends on the pixels."""

    number: int


class Source(NamedTuple):
    """What stood in a hole: the number of the value, and its form."""

    node: int
    shape: torch.Size
    kind: torch.dtype


class Kept:
    """A tensor as it was when it was kept, whatever the model does to it later."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version

    def save(self) -> None:
        """Keep a copy instead: the tensor is about to change."""
        self.tensor = self.tensor.clone()
        self.version = self.tensor._version

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            ModelError: Something changed it that torch does not show.
        """
        if self.tensor._version != self.version:
            raise ModelError(
                "model: expected to see every operation, found a tensor that was written into unseen; "
                "calculate out of place"
            )
        return self.tensor


class Call(NamedTuple):
    """One call of the model that uses the pixels."""

    function: Function
    args: tuple[Any, ...]
    options: dict[str, Any]
    sources: tuple[Source, ...]
    nodes: tuple[int, ...]
    """Numbers of the values that came out."""
    shapes: tuple[torch.Size, ...]
    before: tuple[Kept, ...]
    """What stood in the holes, where that was asked for."""
    after: Kept | None
    uses: int
    """In how many places it uses the pixels: a product of a tensor with itself in two."""
    memo: dict[Any, Any]
    """What the rule of this call worked out and will need again."""

    def filled(self, *tensors: Tensor) -> Any:
        """What the call gives for other tensors in its holes."""
        return self.function(*_fill(self.args, tensors), **_fill(self.options, tensors))

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """One argument, by its place or its name."""
        return self.args[place] if len(self.args) > place else self.options.get(name, default)


def in_place(function: Function, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a call writes into the first tensor that it is given."""
    name = str(getattr(function, "__name__", ""))
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return True
    if name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"):
        return True
    place = _place_of_in_place(function)
    return bool(options.get("inplace", place is not None and len(args) > place and args[place]))


@functools.cache
def _place_of_in_place(function: Function) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built-in functions say it in their name
        return None
    return names.index("inplace") if "inplace" in names else None


def called(function: Function) -> str:
    """How a person would write the operation, an attribute by its own name."""
    name = written(function)
    return str(getattr(getattr(function, "__self__", None), "__name__", name)) if name == "__get__" else name


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    """Out of place what assigning to a part does in place."""
    x = x.clone()
    x[index] = value
    return x


def hollow(value: Any, holes: Mapping[int, Hole]) -> Any:
    """An argument with holes for the tensors that depend on the pixels."""
    if isinstance(value, Tensor):
        return holes.get(id(value), value)
    if isinstance(value, dict):
        return {key: hollow(part, holes) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and any(id(t) in holes for t in tensors_in(value)):
        return type(value)(hollow(part, holes) for part in value)
    return value


def _fill(value: Any, tensors: tuple[Tensor, ...]) -> Any:
    if isinstance(value, Hole):
        return tensors[value.number]
    if isinstance(value, dict):
        return {key: _fill(part, tensors) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_fill(part, tensors) for part in value) if not hasattr(value, "_fields") else value
    return value
