"""The curvature that logistic regressions of a family's pairs nearly share where two models are hard to tell apart."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from consilience.measures.logistic import deviation_of

UNSURE = 0.2  # a mean of ``p * (1 - p)``, as the inverse of as many pixels as rows assumes it

Inverse = Callable[[Tensor, Tensor], Tensor]
"""Of slopes, the last of which is the intercept's, and of each fit's mean of ``p * (1 - p)``."""


def inverse_of(rows: Float[Tensor, "m d"], ridge: float) -> Inverse:
    """Of the ridge and the curvature of two models with such maps; it leads, and need not be exact."""
    mean = rows.double().nan_to_num(0, 0, 0)
    z = mean - mean.mean(0)
    z = z / deviation_of(mean[0], z.square().mean(0), len(z))
    if len(z) < z.shape[1]:
        square, axes = torch.linalg.eigh(z @ z.T)
        real = square > 1e-10 * square[-1]
        along = pad((axes * square.rsqrt().where(real, 0)).T @ z, (0, 1)).float()
        across = along.T.contiguous()
        curve = (2 / ridge * square.where(real, 0)).float()

        def applied(slope: Tensor, share: Tensor) -> Tensor:
            return torch.addmm(slope, (slope @ across).mul_(1 - 1 / (1 + share * curve)), along, alpha=-1) / ridge

        return applied
    square = 2 * UNSURE * z.T @ z
    square.diagonal().add_(ridge + 1e-9 * square.diagonal().max())
    whole = z.new_zeros(len(square) + 1, len(square) + 1, dtype=torch.float32)
    whole[:-1, :-1] = torch.cholesky_inverse(torch.linalg.cholesky(square))
    return lambda slope, _: slope @ whole
