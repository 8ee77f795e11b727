"""Multipliers, and the walk back along a tape: the score's difference, shared among what made it, pair by pair.

A multiplier of a value says how much of the score's difference one unit of that value's difference carries. A rule
turns the multipliers of what came out of a call into those of what went in; it is complete if multipliers times
differences add up to the same before and after.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consilience.attribution.calls import Call, Hole, called, in_place
from consilience.attribution.operations import Function, tensors_in
from consilience.attribution.tape import Tape

Back = Callable[[Call, tuple[Tensor, ...], "Pairs"], Iterable[tuple[int, Tensor]]]
"""Multipliers of what came out of a call, for each pair -> (hole, multiplier of what stood in it)."""


class Unruled(Exception):
    """There is no complete rule for this call; never leaves this package."""


class Pairs(NamedTuple):
    """Which rows of the tape are explained against which: each against each, or one against one."""

    first: slice
    second: slice
    matched: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Explained rows, and references of each."""
        return self.first.stop - self.first.start, 1 if self.matched else self.second.stop - self.second.start

    def sides(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The value in each pair's first and second row, to be broadcast to ``[*shape, ...]``."""
        return value[self.first].unsqueeze(1), value[self.second].unsqueeze(1 if self.matched else 0)

    def middle(self, value: Tensor) -> Tensor:
        """The mean of the two, a row for each pair."""
        a, b = self.sides(value)
        return ((a + b) / 2).flatten(0, 1)

    def split(self, multiplier: Tensor) -> Tensor:
        """A row for each pair as ``[*shape, ...]``."""
        return multiplier.view(*self.shape, *multiplier.shape[1:])

    def constant(self, value: Any, shape: torch.Size) -> Any:
        """A constant of a call that gives ``shape``, to be used with a row for each pair; pairs have it in common."""
        if not isinstance(value, Tensor) or value.ndim < len(shape) or len(value) != shape[0]:
            return value
        a, b = self.sides(value)
        if bool(((a != b) & ~a.isnan()).any()):
            raise Unruled(" with another constant for each image")
        return self.middle(value)


class Rule(NamedTuple):
    """How to walk back through a function, and what has to be kept of its call."""

    back: Back
    one: str = ""
    several: str = "x"
    """Where the call uses the pixels in more than one place."""


Rules = Mapping[Function, Rule]


def walk(tape: Tape, rules: Rules, node: int, multiplier: Tensor, pairs: Pairs) -> Tensor | None:
    """The multiplier of the tape's pixels, of that of another value; None where that value does not use them.

    Raises:
        ModelError: On the way lies an operation that no rule is known for.
    """
    held = {node: multiplier}
    for call in reversed(tape.calls):
        given = [held.pop(made, None) for made in call.nodes]
        if all(one is None for one in given):
            continue
        for made, one in zip(call.nodes, given, strict=True):
            if one is not None and made in tape.reasons:
                raise tape.refuse(tape.reasons[made])
        whole = tuple(
            multiplier.new_zeros(len(multiplier), *shape[1:]) if one is None else one
            for one, shape in zip(given, call.shapes, strict=True)
        )
        try:
            for hole, part in rules[call.function].back(call, whole, pairs):
                source = call.sources[hole].node
                held[source] = held[source] + part if source in held else part
        except Unruled as error:
            raise tape.refuse(f"'{called(call.function)}'{error}") from None
    if reason := next((tape.reasons[left] for left in held if left in tape.reasons), None):
        raise tape.refuse(reason)
    return held.get(0)


def linear(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of what is linear in all its holes together: the transpose, as torch differentiates it."""
    at = [given[0].new_zeros((), dtype=source.kind).expand(source.shape) for source in call.sources]
    if "whole" not in call.memo:
        whole = _graph(call, at)
        call.memo["whole"] = whole, _proven(whole)
    whole, alike = call.memo["whole"]
    rows, all_rows = len(given[0]), len(at[0])
    if not alike and not (pairs.matched and 2 * rows == all_rows):
        raise Unruled(" with another constant for each image")
    if rows not in call.memo:
        try:
            call.memo[rows] = _graph(call, [one[:1].expand(rows, *one.shape[1:]) for one in at])
        except Exception:  # the call names its number of rows
            call.memo[rows] = None
    own = call.memo[rows]
    parts = _in_parts(whole, given, all_rows) if own is None else own.back(given)
    yield from ((hole, part) for hole, part in enumerate(parts) if part is not None)


def product(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of what is quadratic: the slope in the middle of the pair, which is exact. So is each factor's mean, of two."""
    if call.uses == 1:
        yield from linear(call, given, pairs)
        return
    if call.function is torch.einsum and call.uses > 2:
        raise Unruled(" of more than two factors that depend on the pixels")
    values = [kept.read() for kept in call.before]
    if "proven" not in call.memo:
        call.memo["proven"] = _proven(_graph(call, values))
    parts = _graph(call, [pairs.middle(value) for value in values]).back(given)
    yield from ((hole, part) for hole, part in enumerate(parts) if part is not None)


class _Graph(NamedTuple):
    """A call's graph, for any multipliers."""

    at: list[Tensor]
    out: list[Tensor]

    def back(self, given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        used = [(o, g) for o, g in zip(self.out, given, strict=True) if o.requires_grad]
        if not used:
            return tuple(None for _ in self.at)
        outs, multipliers = zip(*used, strict=True)
        return torch.autograd.grad(outs, self.at, multipliers, retain_graph=True, allow_unused=True)


def _graph(call: Call, at: list[Tensor]) -> _Graph:
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in at]
        writes = in_place(call.function, call.args, call.options)
        out = tensors_in(call.filled(*(leaf.clone() if writes else leaf for leaf in leaves)))
    if [o.shape for o in out] != [(len(at[0]), *shape[1:]) for shape in call.shapes]:
        raise Unruled
    return _Graph(leaves, out)


def _proven(graph: _Graph) -> bool:
    """Whether all examples are treated alike; that none is mixed with another is a must.

    Where each row of multipliers has a factor of its own, each row that comes back must have the same.
    """
    rows = torch.arange(len(graph.at[0]), device=graph.at[0].device, dtype=torch.float64)
    seeds = [torch.linspace(1, 2, o[0].numel()).to(o).view(1, *o.shape[1:]).expand(o.shape) for o in graph.out]
    factor = 1 + (rows * 0.618) % 1
    plain, scaled = graph.back(seeds), graph.back([_times_rows(seed, factor) for seed in seeds])
    alike = True
    for one, other in zip(plain, scaled, strict=True):
        if one is not None and other is not None:  # what is not finite is a constant's own
            least = 1e-3 * one.abs().nan_to_num(0, 0).amax()
            if bool(((other - _times_rows(one, factor)).abs() > least).any()):
                raise Unruled(", which mixes the images")
            alike &= not bool(((one - one[:1]).abs() > least).any())
    return alike


def _times_rows(value: Tensor, factor: Tensor) -> Tensor:
    return value * factor.to(value).view(-1, *[1] * (value.ndim - 1))


def _in_parts(graph: _Graph, given: tuple[Tensor, ...], size: int) -> list[Tensor | None]:
    rows, parts = len(given[0]), list[tuple[Tensor | None, ...]]()
    for start in range(0, rows, size):
        some = [g[start : start + size] for g in given]
        missing = size - len(some[0])
        parts.append(graph.back([torch.cat([s, s.new_zeros(missing, *s.shape[1:])]) if missing else s for s in some]))
    joined = zip(*parts, strict=True)
    return [None if part[0] is None else torch.cat([p for p in part if p is not None])[:rows] for part in joined]


def only_first(call: Call) -> None:
    """Refuse a call that uses the pixels elsewhere than in its first argument."""
    first = call.args[0] if call.args else call.options.get("input")
    if call.uses != 1 or not isinstance(first, Hole):
        raise Unruled(" of two tensors that depend on the pixels")
