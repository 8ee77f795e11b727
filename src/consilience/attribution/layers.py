"""A model's layers as a rule meets them: what they were given, and signal back through other weights than theirs."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from consilience.attribution.backward import Call
from consilience.attribution.operations import Function, written
from consilience.errors import ModelError

ARGUMENTS = {
    "linear": ("input", "weight", "bias"),
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}
OF_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
OF_TORCHS_NORM = (
    "input",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "training",
    "momentum",
    "eps",
    "cudnn_enabled",
)

Back = Callable[[Tensor, Tensor], Tensor]
"""``(slope of the output, weight) -> slope of the input``."""


def arguments(name: str, model: nn.Module, call: Call) -> dict[str, Any] | None:
    """What a layer was given, by name; None where its input does not depend on the pixels."""
    names = ARGUMENTS[written(call.function).rstrip("123d")]
    given = dict(zip(names, call.args, strict=False)) | call.options
    if not given["input"].requires_grad:
        return None
    if _depends_on_more(given["weight"], model):
        raise ModelError(
            f"{name}: expected weights that are the same for every image, found {written(call.function)} with weights "
            "that depend on the pixels, for which there is no pattern; take integrated_gradients"
        )
    return given


def _depends_on_more(weight: Tensor, model: nn.Module) -> bool:
    """Whether a weight was calculated from anything but the model's parameters."""
    waiting, seen, own = [weight.grad_fn], set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            own = own or {id(parameter) for parameter in model.parameters()}
            if hasattr(node, "variable") and id(node.variable) not in own:
                return True
    return False


def through(function: Function, x: Tensor, other: Tensor, given: dict[str, Any]) -> Any:
    """A layer whose signal flows back through other weights, shaped as its own."""
    if written(function) == "linear":
        back: Back = torch.matmul
    else:
        x, given = _padded(x, given)
        back = _convolution_back(x.shape, given, transposed="transpose" in written(function))
    run = functools.partial(function, **given)
    return Swapped.apply(x, other, run, back)


def _padded(x: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The same convolution with its border in numbers; what ``same`` has more on one side, the input gets."""
    border, kernel = given.get("padding", 0), given["weight"].shape[2:]
    if border == "valid":
        return x, given | {"padding": 0}
    if border != "same":
        return x, given
    total = [d * (k - 1) for d, k in zip(_each(given, "dilation", 1, len(kernel)), kernel, strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [side for t in reversed(total) for side in (0, t % 2)])
    return x, given | {"padding": [t // 2 for t in total]}


def _convolution_back(shape: torch.Size, given: dict[str, Any], *, transposed: bool) -> Back:
    dims = given["weight"].ndim - 2
    stride, dilation = (_each(given, name, 1, dims) for name in ("stride", "dilation"))
    border, outer = (_each(given, name, 0, dims) for name in ("padding", "output_padding"))
    alone = len(shape) == dims + 1  # an image without a batch

    def back(slope: Tensor, other: Tensor) -> Tensor:
        slope = slope[None] if alone else slope
        like = slope.new_empty(()).expand(1, *shape) if alone else slope.new_empty(()).expand(shape)
        into: Tensor = torch.ops.aten.convolution_backward(
            slope, like, other, None, stride, border, dilation, transposed, outer, given.get("groups", 1),
            [True, False, False],
        )[0]  # fmt: skip
        return into[0] if alone else into

    return back


def _each(given: dict[str, Any], name: str, default: int, dims: int) -> list[int]:
    """A setting of a convolution, for each of its dimensions."""
    setting = given.get(name, default)
    several = [setting] if isinstance(setting, int) else list(setting)
    return several * dims if len(several) == 1 else several


def scaling(name: str, call: Call) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The input of a batch norm, the scale of each of its channels, and how it is run."""
    names = OF_NORM if call.function is F.batch_norm else OF_TORCHS_NORM
    given = dict(zip(names, call.args, strict=False)) | call.options
    x, spread, weight = given.pop("input"), given["running_var"], given.get("weight")
    if given.get("training"):
        raise ModelError(
            f"{name}: expected batch norms with statistics of their own, found one that takes them from the batch; "
            "put the model into evaluation mode"
        )
    scale = torch.rsqrt(spread + given.get("eps", 1e-5))
    return x, scale if weight is None else scale * weight, functools.partial(call.function, **given)


class Swapped(torch.autograd.Function):
    """An operation's values, and signal back through other weights than its own.

    What flows back cannot be differentiated again: of the other weights no derivative is known.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor, run: Callable[[Tensor], Tensor], back: Back) -> Tensor:
        """The operation's values; of input and output nothing is kept."""
        ctx.save_for_backward(other)
        ctx.back = back
        return run(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        """What flows back."""
        (other,) = ctx.saved_tensors
        return ctx.back(slope, other.to(slope.dtype)), None, None, None
