"""Whether a map tells what the model does."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.component import measure
from consilience.errors import ModelError
from consilience.tensors import Baseline, start_of


@measure(version=1, better="lower", paper="sundararajan2017axiomatic")
def completeness_gap(
    maps: Float[Tensor, "n ..."],
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    output: Callable[[Tensor, Tensor], Tensor],
    baseline: Baseline,
) -> Float[Tensor, " n"]:
    """What the map's sum misses of ``output(x) - output(baseline)``, as a share of it, 0 upwards.

    Defined for methods that start from a baseline. NaN where the two outputs are equal.
    """
    check_mode(model, "completeness_gap")
    rise = (output(x, target) - output(start_of(x, baseline, model), target)).double()
    gap = (maps.flatten(1).double().sum(1) - rise).abs() / rise.abs()
    return gap.masked_fill(rise == 0, torch.nan)


def check_mode(model: nn.Module, where: str) -> None:
    """Refuse a model whose answers depend on chance or on the batch.

    Raises:
        ModelError: Dropout, or a norm that takes the batch's own statistics, is in train mode.
    """
    training = sorted({type(module).__name__ for module in model.modules() if module.training and _has_modes(module)})
    if training:
        raise ModelError(
            f"{where}: expected a model in evaluation mode, found {', '.join(training)} in train mode; "
            "call model.eval()"
        )


def _has_modes(module: nn.Module) -> bool:
    name = type(module).__name__
    if "Norm" in name:
        return getattr(module, "running_mean", None) is not None
    return "Drop" in name or float(getattr(module, "dropout", 0) or 0) > 0
