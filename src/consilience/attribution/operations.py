"""Torch's operations by what they do, under every name by which a model may call them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Any]


def named(names: str) -> frozenset[Any]:
    """The functions of these names, wherever torch keeps them: as functions, as methods, in ``nn.functional``."""
    found = (getattr(home, name, None) for home in (torch, Tensor, F) for name in names.split())
    return frozenset(function for function in found if callable(function))  # 'float' is also a type of numbers


READ = named("dim size numel __len__ is_floating_point stride is_contiguous") | {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout")
}  # what may be asked of any tensor: the answer is the same for every example
RESHAPE = named("flatten reshape view unflatten squeeze unsqueeze")
TURN = named("permute transpose")
CONVOLUTION = named("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
LAYER = CONVOLUTION | named("linear")
PRODUCT = named("matmul mm bmm __rmatmul__ baddbmm addmm")
AVERAGE_POOL = named("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
RELU = named("relu relu_")
CLAMP = named("clamp clamp_ clip clip_ clamp_min clamp_min_ hardtanh hardtanh_ relu6 threshold threshold_")
MAXIMUM = named("maximum max")
TIMES = named("mul mul_ multiply einsum")
OVER = named("div div_ true_divide divide __truediv__")
BATCH_NORM = named("batch_norm")
LINEAR = (
    (RESHAPE | TURN | LAYER | AVERAGE_POOL | BATCH_NORM)
    | named("add add_ sub sub_ rsub __rsub__ __radd__ neg mean sum cat view_as reshape_as concat concatenate stack")
    | named("split chunk unbind narrow select index_select gather __getitem__ expand expand_as repeat tile pad")
    | named("contiguous clone detach to float double half bfloat16 type_as interpolate upsample pixel_shuffle")
    | named("dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout copy_ movedim")
    | named("swapaxes swapdims transpose_ t unfold fold roll flip rot90 zero_ requires_grad_")
    | {getattr(Tensor, name).__get__ for name in ("T", "mT", "data")}
)  # signal flows back through them as it must


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of an argument, however they are packed."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ():
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list, dict)):
            found += tensors_in(part)
    return found


def opaque(module: nn.Module) -> bool:
    """Whether calls inside the module cannot be watched: it is scripted, traced or compiled."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def linear(function: Function, args: Any) -> bool:
    """Whether a call is linear in what it is given, apart from a constant: so is a product with one unknown factor."""
    if function in PRODUCT | TIMES:
        return sum(t.requires_grad for t in tensors_in(args)) < 2
    if function in OVER:
        return not any(t.requires_grad for t in tensors_in(args[0][1:]))
    return function in LINEAR


def written(function: Function) -> str:
    """How a person would write the operation: ``conv2d``, ``relu_``."""
    name = str(getattr(function, "__name__", function))
    return name[1:] if name[:1] == "_" != name[1:2] else name
