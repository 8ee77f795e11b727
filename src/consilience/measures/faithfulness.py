"""Whether a map tells what the model does."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.component import measure
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
    rise = (output(x, target) - output(start_of(x, baseline, model), target)).double()
    gap = (maps.flatten(1).double().sum(1) - rise).abs() / rise.abs()
    return gap.masked_fill(rise == 0, torch.nan)
