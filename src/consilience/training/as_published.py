"""Objectives with the arithmetic that was published, for rows that are to be compared with published ones."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.training.diversity import Weight, members_of, promoted, wrong_answers

RIDGE = 1e-6


@objective(version=1, paper="pang2019improving", legacy=True)
def adaptive_diversity_ridge(
    model: nn.Module, batch: Batch, *, alpha: Weight = 2.0, beta: Weight = 0.5
) -> Float[Tensor, ""]:
    """``adaptive_diversity`` with 1e-6 added to the diagonal, as in the published code, for any number of members.

    What is wrong with it: more members than classes less one span no volume, and the logarithm then is that of the
    ridge. With ten members and ten classes the one direction that is missing adds the log of 1e-6, about -14, whatever
    the members do, and its slope is divided by 1e-6, so that it drowns what the other directions say. Also with fewer
    members the ridge hides volumes below it. Double precision here, since single precision's rounding is of the
    ridge's size.

    Args:
        alpha: Of the entropy of the mean probability.
        beta: Of the log of the squared volume with its ridge.
    """
    logits = torch.stack([member(batch.x) for member in members_of(model)])
    rows = wrong_answers(logits, batch.label)
    ridge = RIDGE * torch.eye(len(logits), dtype=rows.dtype, device=rows.device)
    return promoted(logits, batch.label, torch.logdet(rows @ rows.mT + ridge), alpha, beta)
