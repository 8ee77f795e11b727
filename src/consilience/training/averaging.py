"""Stochastic weight averaging: one model in the middle of those that a training came past."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def running_mean(mean: Mapping[str, Tensor], weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The mean of ``count`` sets of weights, of which ``mean`` is that of all before the last; kept in double."""
    if count == 1:
        return {name: weight.double() for name, weight in weights.items()}
    return {name: mean[name] + (weight.double() - mean[name]) / count for name, weight in weights.items()}


def settle(model: nn.Module, mean: Mapping[str, Tensor], batches: Iterable[Tensor]) -> None:
    """Give a model averaged weights. Batch norm learns anew what they make of the pixels, a plain mean over batches."""
    state = model.state_dict()
    model.load_state_dict({name: mean[name].to(state[name]) for name in state})
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()  # dropout rests
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            for x in batches:
                model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train()
