"""The affine layers in front of a model: found by watching it once, replayed with their output in their place."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from consilience.attribution.channels_last import Prepared
from consilience.attribution.operations import (
    AVERAGE_POOL,
    LAYER,
    PRODUCT,
    READ,
    RESHAPE,
    TURN,
    named,
    opaque,
    tensors_in,
)

ANY_OPERAND = PRODUCT | named("add sub mul rsub __rsub__")
FIRST_OPERAND = (
    (RESHAPE | TURN | LAYER)
    | named("neg div true_divide contiguous clone to float double pad interpolate")
    | AVERAGE_POOL
)
UNLESS_TRAINING = frozenset({F.batch_norm, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout})


class Step(NamedTuple):
    """One affine call of the model, with a hole where the line goes through."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    slot: int
    shape: tuple[int, ...]
    same: bool
    """Whether the call handed back the very tensor that it got."""

    def __call__(self, y: Tensor) -> Tensor:
        """The call for another batch; reshapes name the batch's length, so they are said anew."""
        if self.same:
            return y
        if self.function in RESHAPE:
            return y.reshape(len(y), *self.shape)
        args = (*self.args[: self.slot], y, *self.args[self.slot + 1 :])
        out: Tensor = self.function(*args, **self.options)
        return out


class Prefix(NamedTuple):
    """The affine layers that every path through a model begins with."""

    steps: tuple[Step, ...]
    layout: torch.memory_format
    """How the layers' output lies in memory when the rest of the model gets it."""
    prepared: Prepared
    """What is made once of the rest's weights, where channels lie last."""

    def before(self, x: Tensor) -> Tensor:
        """What the layers make of pixels."""
        for step in self.steps:
            x = step(x)
        return x.contiguous(memory_format=self.layout)

    def after(self, model: nn.Module, x: Tensor, z: Tensor) -> Any:
        """What the model makes of the layers' output; of ``x`` only the kind is used.

        Raises:
            Diverged: The model did something else with its input than when it was watched.
        """
        replay = _Replay(self, x, z)
        pixels = replay.blank(tuple(x.shape[1:]), 0)
        with replay:
            logits = model(pixels)
        if replay.lost or replay.reached < len(self.steps):
            raise Diverged
        return logits


class Diverged(Exception):
    """The model took another way through its first layers; never leaves this package."""


def watched(model: nn.Module, points: Tensor) -> tuple[list[Prefix], Any]:
    """The affine layers that the model begins with, once for each layout to try, and its answer; none where calls hide.

    Whether the layers are what they seem is for the caller to prove: on these points they may have been so by chance.
    """
    if any(opaque(module) for module in model.modules()):
        return [], None
    with torch.enable_grad(), _Record(points) as record:
        logits = model(points)
    return record.prefixes(Prepared(model)), logits


class _Follow(TorchFunctionMode):
    """Knows the tensors of the line's beginning, whichever torch function is given them."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.place: dict[int, int] = {}
        self.held: list[Tensor] = []  # so that no other tensor gets their id

    def hold(self, tensor: Tensor, place: int) -> None:
        self.place[id(tensor)] = place
        self.held.append(tensor)

    def where(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[list[int], int | None]:
        """Places on the line of the tensors that a call uses, and which positional argument is the first of them."""
        if function in READ:
            return [], None
        places = [self.place[id(t)] for t in tensors_in((args, options)) if id(t) in self.place]
        slot = next((i for i, value in enumerate(args) if id(value) in self.place), None)
        return places, slot


class _Record(_Follow):
    """Notes the chain of affine calls that begins at ``x``, and where the chain must end at the latest."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.x, self.steps, self.last = x, list[Step](), 1 << 30
        self.hold(x, 0)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        places, slot = self.where(function, args, options)
        out = function(*args, **options)
        if not places:
            return out
        here = len(self.steps)
        if (
            slot is None
            or places != [here]
            or self.last <= here
            or not self._affine(function, args, options, slot, out)
        ):
            self.last = min(self.last, *places)  # what is needed otherwise too must be the real thing
            return out
        hole = (*args[:slot], None, *args[slot + 1 :])
        self.steps.append(Step(function, hole, options, slot, tuple(out.shape[1:]), out is args[slot]))
        self.hold(out, here + 1)
        return out

    def _affine(self, function: Any, args: tuple[Any, ...], options: dict[str, Any], slot: int, out: Any) -> bool:
        if "out" in options or options.get("rounding_mode") is not None:
            return False
        if function in UNLESS_TRAINING:
            bound = inspect.signature(function).bind(*args, **options)
            bound.apply_defaults()
            known = slot == 0 and not bound.arguments["training"]
        else:
            known = function in ANY_OPERAND or (function in FIRST_OPERAND and slot == 0)
        if function in TURN and out.stride(0) != args[0].stride(0):  # examples are no longer the first axis
            return False
        return (
            known
            and isinstance(out, Tensor)
            and out.shape[:1] == self.x.shape[:1]
            and (out.dtype, out.device, out.requires_grad) == (self.x.dtype, self.x.device, True)
        )

    def prefixes(self, prepared: Prepared) -> list[Prefix]:
        """The chain, if it holds a layer that is worth sharing and no backward pass of the user's own.

        Once for each layout to try, the quickest first: with channels last, oneDNN's convolutions and
        pooling take three quarters of the time.
        """
        steps = self.steps[: self.last]
        while steps and steps[-1].same:
            steps.pop()
        end = self.held[len(steps)]
        if not any(step.function in LAYER | PRODUCT for step in steps) or _has_own_backward(end):
            return []
        onednn: Any = torch.backends.mkldnn
        quicker = end.device.type == "cpu" and end.dtype == torch.float32 and onednn.is_available() and onednn.enabled
        layouts = [torch.channels_last] if quicker and end.ndim == 4 else []
        return [Prefix(tuple(steps), layout, prepared) for layout in (*layouts, torch.contiguous_format)]


class _Replay(_Follow):
    """Answers the chain's calls with blanks and its last call with the line, so that only the rest is computed."""

    def __init__(self, prefix: Prefix, x: Tensor, z: Tensor) -> None:
        super().__init__(x)
        self.steps, self.z, self.reached, self.lost = prefix.steps, z, 0, False
        self.last = prefix.prepared if prefix.layout is torch.channels_last else None
        self.nothing = torch.full((), torch.nan, dtype=x.dtype, device=x.device)  # a leak would be seen

    def blank(self, shape: tuple[int, ...], place: int) -> Tensor:
        tensor = self.nothing.expand(len(self.z), *shape)
        self.hold(tensor, place)
        return tensor

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        places, slot = self.where(function, args, options)
        if not places:
            return self._rest(function, args, options)
        step = self.steps[self.reached] if self.reached < len(self.steps) else None
        if step is None or places != [self.reached] or (function, slot) != (step.function, step.slot):
            self.lost = True  # also if the model catches what is raised
            raise Diverged
        self.reached += 1
        if self.reached == len(self.steps):
            return self.z
        if step.same:
            self.hold(args[step.slot], self.reached)
            return args[step.slot]
        return self.blank(step.shape, self.reached)

    def _rest(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What a call of the rest gives; its slope will lie in memory as it does itself.

        A pooling's backward pass takes five times as long where the two differ.
        """
        if self.last is None:
            return function(*args, **options)
        out = self.last.call(function, args, options)
        if _lies_channels_last(out):
            out.register_hook(_channels_last)
        return out


def _lies_channels_last(out: Any) -> bool:
    plane = isinstance(out, Tensor) and out.ndim == 4 and out.requires_grad
    return plane and out.is_contiguous(memory_format=torch.channels_last)


def _channels_last(slope: Tensor) -> Tensor:
    return slope.contiguous(memory_format=torch.channels_last)


def _has_own_backward(tensor: Tensor) -> bool:
    waiting, seen = [tensor.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, BackwardCFunction):
            return True
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return False
