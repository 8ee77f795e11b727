"""Calls of a model on maps whose channels lie last in memory, with what depends on weights alone made once.

A convolution otherwise lays out its weights anew at every call, and batch norm in evaluation is slower than the
product and the sum that it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Made(NamedTuple):
    """What was made of some tensors of a model, and their state then."""

    of: tuple[tuple[int, int], ...]
    result: Any


class Prepared:
    """What was made of a model's weights; other tensors, whose identity may pass to another one, are left alone."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.made: dict[tuple[Any, int], Made] = {}

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What the function gives, up to rounding."""
        if args and _lies_last(args[0]):
            if function is torch.conv2d and len(args) > 1 and self._owns(args[1]):
                weight = self._once(function, (args[1],), _laid_out)
                return function(args[0], weight, *args[2:], **options)
            if function is F.batch_norm and (given := _batch_norm(args, options)) is not None and self._owns(*given[0]):
                scale, shift = self._once(given[1], given[0], _affine)
                return torch.addcmul(shift, args[0], scale)
        return function(*args, **options)

    def _owns(self, *tensors: Tensor) -> bool:
        return all(id(tensor) in self.own for tensor in tensors)

    def _once(self, key: Any, tensors: tuple[Tensor, ...], make: Callable[..., Any]) -> Any:
        state = tuple((id(tensor), tensor._version) for tensor in tensors)
        found = self.made.get((key, id(tensors[0])))
        if found is None or found.of != state:
            with torch.no_grad():
                found = Made(state, make(key, *tensors))
            self.made[key, id(tensors[0])] = found
        return found.result


def _lies_last(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _laid_out(_: Any, weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _batch_norm(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Tensor, ...], float] | None:
    """Mean, variance, weight and bias of a batch norm in evaluation, and what keeps it from dividing by zero."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, args, strict=False)), **options}
    tensors = tuple(tensor for name in names[1:5] if isinstance(tensor := given.get(name), Tensor))
    if given.get("training", False) or len(tensors) < 4:
        return None
    return tensors, float(given.get("eps", 1e-5))


def _affine(eps: float, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, as planes of one pixel."""
    scale = weight * (variance + eps).rsqrt()
    return scale.view(1, -1, 1, 1), (bias - mean * scale).view(1, -1, 1, 1)
