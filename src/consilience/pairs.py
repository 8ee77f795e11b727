"""Measures of two models' maps, written once for a family and a list of its pairs."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from torch import Tensor

from consilience.errors import SpecError

P = ParamSpec("P")
R = TypeVar("R")
Pairs = Sequence[tuple[int, int]]


class Maps(Sequence[Tensor]):
    """A family's maps, each fetched when it is asked for and not kept."""

    def __init__(self, size: int, fetch: Callable[[int], Tensor]) -> None:
        self.size, self.fetch = size, fetch

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            chosen = range(self.size)[index]
            return Maps(len(chosen), lambda i: self.fetch(chosen[i]))
        return self.fetch(range(self.size)[index])


def over_pairs(
    family_form: Callable[Concatenate[Sequence[Any], Pairs, P], Iterator[R]],
) -> Callable[..., R]:
    """The plain measure ``(maps, other, ...)`` of one that is written for a family and a list of its pairs.

    The function below takes the family's maps and pairs of positions in it, and yields one result a
    pair; what depends on one model alone it calculates once. Called with two sets of maps, it is the
    plain measure. A family of something else than maps carries its name: ``activations`` makes the
    plain measure one of ``activations`` and ``other_activations``, which need as many rows as each other
    and may differ in width.

    Raises:
        SpecError: The two sets of maps have other shapes, or two of something else other many rows.
    """
    shared: Callable[..., Iterator[R]] = family_form  # with roles and options by name

    def plain(*given: Any, **named: Any) -> R:
        bound = signature.bind(*given, **named).arguments
        maps, other = (bound.pop(name) for name in names)
        if first == "family" and maps.shape != other.shape:
            raise SpecError(
                f"{family_form.__name__}: expected two sets of maps of the same examples, found {list(maps.shape)} and "
                f"{list(other.shape)}; explain the same images in the same order, and join or resize maps alike"
            )
        if maps.shape[:1] != other.shape[:1]:
            raise SpecError(
                f"{family_form.__name__}: expected {first} with equally many rows of both models, found "
                f"{list(maps.shape)} and {list(other.shape)}; give those of the same examples in the same order"
            )
        return next(iter(shared([maps, other], [(0, 1)], **bound)))

    signature = inspect.signature(family_form)
    (first, family), (_, _), *rest = signature.parameters.items()
    names = ("maps", "other") if first == "family" else (first, f"other_{first}")
    hints = typing.get_type_hints(family_form, include_extras=True)
    (one,), (result,) = typing.get_args(hints[first]), typing.get_args(hints["return"])
    renamed = [family.replace(name=name, annotation=one) for name in names]
    plain.__name__, plain.__qualname__ = family_form.__name__, family_form.__qualname__
    plain.__module__, plain.__doc__ = family_form.__module__, family_form.__doc__
    kept = {name: hint for name, hint in hints.items() if name not in (first, "pairs", "return")}
    plain.__annotations__ = {**dict.fromkeys(names, one), **kept, "return": result}
    signature = signature.replace(parameters=[*renamed, *(p for _, p in rest)], return_annotation=result)
    plain.__dict__.update(__signature__=signature, over_pairs=family_form)
    return plain


def over_family(measure: Callable[..., R], family: Sequence[Tensor], pairs: Pairs, **given: Any) -> Iterator[R]:
    """A paired measure of each pair of a family, with shared work where the measure knows how to share it."""
    configured = measure if isinstance(measure, functools.partial) else functools.partial(measure)
    shared = getattr(configured.func, "over_pairs", None)
    if shared is None:
        return (configured(maps=family[a], other=family[b], **given) for a, b in pairs)
    results: Iterator[R] = shared(family, pairs, *configured.args, **configured.keywords, **given)
    return results
