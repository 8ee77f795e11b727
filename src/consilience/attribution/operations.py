"""Torch's operations by what they do, under every name by which a model may call them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[..., Any]


def named(names: str) -> frozenset[Any]:
    """The functions of these names, wherever torch keeps them: as functions, as methods, in ``nn.functional``."""
    homes = (torch, Tensor, F)
    return frozenset(getattr(home, name) for home in homes for name in names.split() if hasattr(home, name))


READ = named("dim size numel __len__ is_floating_point stride is_contiguous") | {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout")
}  # what may be asked of any tensor: the answer is the same for every example
RESHAPE = named("flatten reshape view unflatten squeeze unsqueeze")
TURN = named("permute transpose")
CONVOLUTION = named("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
LAYER = CONVOLUTION | named("linear")
PRODUCT = named("matmul mm bmm")
AVERAGE_POOL = named("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
RELU = named("relu relu_")
CLAMP = named("clamp clamp_ clip clip_ clamp_min clamp_min_ hardtanh hardtanh_ relu6 threshold threshold_")
MAXIMUM = named("maximum max")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of an argument, however they are packed."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def opaque(module: nn.Module) -> bool:
    """Whether calls inside the module cannot be watched: it is scripted, traced or compiled."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return scripted or hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def written(function: Function) -> str:
    """How a person would write the operation: ``conv2d``, ``relu_``."""
    return str(getattr(function, "__name__", function))
