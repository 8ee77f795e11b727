"""What stands in front of a model's first layer: pixels moved, scaled and rearranged, where relevance is read.

``(x - mean) / sd`` takes each pixel to one number, so whatever relevance that number has is the pixel's. Pixel times
slope would be another thing: a black pixel would get none. So relevance is read at the end of such a chain. What a
first layer is given is multiplied by ones, and the slope in those ones is the relevance, wherever it is read.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consilience.attribution.backward import Call
from consilience.attribution.operations import RESHAPE, TURN, named

_ARRANGES = (
    RESHAPE
    | TURN
    | named("contiguous clone to float double half bfloat16 type_as __getitem__ index_select flip movedim swapaxes")
)
ARRANGES = frozenset(function for function in _ARRANGES if callable(function))  # torch.float is a type


class Pixels(NamedTuple):
    """What became of the pixels, and of all that is told for each of them."""

    ones: Tensor
    low: Tensor
    high: Tensor


class Front:
    """Follows the pixels of one run to the first layers."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], int, Pixels]] = {}

    def begin(self, x: Tensor, ones: Tensor) -> Tensor:
        """The pixels to give to the model; ``ones`` is where their relevance will be read."""
        return self._note(x * ones, Pixels(ones, torch.zeros_like(x), torch.ones_like(x)))

    def pixels(self, value: Tensor) -> Pixels | None:
        """What a tensor is of the pixels; None where it is something else."""
        found = self._of.get(id(value))
        return found[2] if found is not None and found[0]() is value and found[1] == value._version else None

    def moved(self, pixels: Pixels, move: Callable[[Tensor], Tensor], y: Tensor, into: Tensor | None) -> Tensor:
        """The value ``y`` of a call that takes each pixel to one number, with relevance read there."""
        ends = move(pixels.low), move(pixels.high)
        read = y.detach() * pixels.ones
        out = read if into is None else into.copy_(read)
        return self._note(out, Pixels(pixels.ones, torch.minimum(*ends), torch.maximum(*ends)))

    def arranged(self, call: Call) -> Any:
        """The value of a call that leaves the pixels as they are and puts them elsewhere."""
        pixels = self.pixels(call.args[0]) if call.args else None
        if pixels is None:
            return NotImplemented
        out = call.plain()
        if out is call.args[0]:
            return out
        return self._note(out, Pixels(*(call._replace(args=(each, *call.args[1:])).plain() for each in pixels)))

    def clear(self) -> None:
        """Forget all; a graph hangs on it."""
        self._of.clear()

    def _note(self, value: Tensor, pixels: Pixels) -> Tensor:
        self._of[id(value)] = (weakref.ref(value), value._version, pixels)
        return value
