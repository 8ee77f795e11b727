"""Calls of a model as layers: an input, a weight, a bias, with what only scales or shifts their output folded in."""

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from consilience.attribution.backward import Call, depends
from consilience.attribution.division import Layer
from consilience.attribution.layers import ARGUMENTS, OF_NORM, OF_TORCHS_NORM
from consilience.attribution.operations import LAYER, Function, named, tensors_in, written
from consilience.errors import ModelError

SHIFTS = named("add add_ sub sub_")
SCALES = named("mul mul_ multiply div div_ true_divide")
ADDMM = named("addmm")
EINSUM = named("einsum")
FROM_THE_RIGHT = named("__rmatmul__")


def layer_of(name: str, call: Call) -> Layer | None:
    """The layer that a call is; None where it multiplies two things that both depend on the pixels."""
    if call.function not in LAYER:
        return _product(name, call)
    kind = written(call.function).rstrip("123d")
    given = dict(zip(ARGUMENTS[kind], call.args, strict=False)) | call.options
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    if depends(weight) or (bias is not None and depends(bias)):
        return None
    plane = [1] * (weight.ndim - 2)
    channel = None if kind == "conv_transpose" else -1 - len(plane)  # whose rows are no axis where it has groups
    shift = None if bias is None else bias.detach().reshape(-1, *plane)
    apply = functools.partial(_run, call.function, given)
    return Layer(x, weight.detach(), shift, apply, kind == "linear", channel)


def _run(function: Function, given: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = function(x, weight, **given)
    return out


def _product(name: str, call: Call) -> Layer | None:
    """A product of matrices, one of which is the same for every image."""
    equation = call.args[:1] if call.function in EINSUM else ()
    factors, bias = tensors_in((call.args, call.options)), None
    if call.function in ADDMM and set(call.options) <= {"input", "mat1", "mat2"}:
        bias = factors.pop(0)
    unknown = [depends(factor) for factor in factors]
    if sum(unknown) > 1 or (bias is not None and depends(bias)):
        return None
    if len(factors) != 2 or not any(unknown) or not all(isinstance(part, str) for part in equation):
        raise refused(name, written(call.function), "of more than an input, a weight and a bias")
    first = unknown[0]
    run: Any = torch.einsum if equation else torch.matmul
    turned = first == (call.function in FROM_THE_RIGHT)

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = run(*equation, *((weight, x) if turned else (x, weight)))
        return out

    x, weight = factors if first else factors[::-1]
    rows = None if equation or turned or weight.ndim != 2 else -1
    return Layer(x, weight.detach(), None if bias is None else bias.detach(), apply, True, rows, row=-1)


class Outputs:
    """Which tensors a run's layers gave, so that a batch norm that follows can be folded into its layer.

    They are known by themselves for as long as they live; one that was written over since is no layer's output.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], int, Layer]] = {}

    def note(self, y: Tensor, layer: Layer) -> None:
        """The layer gave ``y``."""
        self._of[id(y)] = (weakref.ref(y), y._version, layer)

    def layer(self, y: Tensor) -> Layer | None:
        """Which layer gave ``y``."""
        found = self._of.get(id(y))
        return found[2] if found is not None and found[0]() is y and found[1] == y._version else None

    def clear(self) -> None:
        """Forget all; a graph hangs on it."""
        self._of.clear()


def norm_of(name: str, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The input of a batch norm, and by what it scales and shifts each channel.

    Raises:
        ModelError: It takes its statistics from the batch.
    """
    names = OF_NORM if call.function is F.batch_norm else OF_TORCHS_NORM
    given = dict(zip(names, call.args, strict=False)) | call.options
    if given.get("training"):
        raise ModelError(
            f"{name}: expected batch norms with statistics of their own, found one that takes them from the batch; "
            "put the model into evaluation mode"
        )
    scale = torch.rsqrt(given["running_var"] + given.get("eps", 1e-5))
    scale = scale if given.get("weight") is None else scale * given["weight"].detach()
    shift = -given["running_mean"] * scale
    return given["input"], scale, shift if given.get("bias") is None else shift + given["bias"].detach()


def normed(layer: Layer, y: Tensor, scale: Tensor, shift: Tensor) -> Layer | None:
    """The layer that gave ``y`` with a batch norm behind it; None where the norm's channels are not its rows."""
    if layer.channel is None or y.ndim + layer.channel != 1:
        return None
    return shifted(scaled(layer, scale), shift.reshape(-1, *[1] * (-layer.channel - 1)))


def changed(layer: Layer, y: Tensor, call: Call, other: Any) -> Layer | None:
    """The layer that gave ``y`` with a constant added to it, or multiplied; None where that is no such layer."""
    kind = written(call.function).strip("_")
    other = torch.as_tensor(other, dtype=y.dtype, device=y.device).detach()
    if set(call.options) - {"other"} or (kind == "sub" and call.args[0] is not y) or kind in ("rsub", "radd"):
        return None
    if torch.broadcast_shapes(y.shape, other.shape) != y.shape:
        return None
    if call.function in SHIFTS:
        return shifted(layer, -other if kind == "sub" else other)
    if layer.channel is None:
        return None
    spread = (1,) * (y.ndim - other.ndim) + tuple(other.shape)
    if any(size != 1 for axis, size in enumerate(spread) if axis != y.ndim + layer.channel):
        return None
    return scaled(layer, (1 / other if kind in ("div", "true_divide") else other).reshape(-1))


def scaled(layer: Layer, scale: Tensor) -> Layer:
    """The layer with each of its rows multiplied."""
    weight = layer.weight * scale.reshape([-1 if axis == layer.row % layer.weight.ndim else 1
                                           for axis in range(layer.weight.ndim)])  # fmt: skip
    if layer.bias is None or layer.channel is None:
        return layer._replace(weight=weight)
    return layer._replace(weight=weight, bias=layer.bias * scale.reshape(-1, *[1] * (-layer.channel - 1)))


def shifted(layer: Layer, shift: Tensor) -> Layer:
    """The layer with something added to its output."""
    return layer._replace(bias=shift if layer.bias is None else layer.bias + shift)


def fresh(call: Call) -> Call:
    """The call that gives what an operation in place writes over its input."""
    name = written(call.function)
    if not name.endswith("_") or name.startswith("__"):
        return call
    return call._replace(function=getattr(Tensor, name[:-1]))


def refused(name: str, what: str, why: str) -> ModelError:
    """The error for an operation that the rule has no answer for."""
    return ModelError(
        f"{name}: expected operations that the rule knows, found {what} {why}; "
        "take a method that needs no rule for them, such as integrated_gradients"
    )
