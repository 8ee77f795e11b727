"""Objectives of ensembles that look at what the members answer: each for itself, or how they differ."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.errors import ModelError, SpecError

Weight = Annotated[float, Meta(ge=0)]


@objective(version=1)
def member_cross_entropy(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Sum over an ensemble's members of each one's own cross-entropy.

    Members that share no weights train as if each were alone: of the sum, a member's weights have the slope of its own
    loss, and torch's optimizers look at each weight by itself.
    """
    return own_losses([member(batch.x) for member in members_of(model)], batch.label)


@objective(version=1, paper="pang2019improving")
def adaptive_diversity(model: nn.Module, batch: Batch, *, alpha: Weight = 2.0, beta: Weight = 0.5) -> Float[Tensor, ""]:
    """The members' cross-entropies, less their mean's entropy and the log volume of their wrong answers.

    Adaptive diversity promoting (ADP): the volume is spanned by each member's probabilities of the classes that are
    *not* true, scaled to length one, and counts squared. These stand in a space of ``classes - 1`` dimensions, where
    more members than that span none: the log is minus infinity, whatever they answer. ``adaptive_diversity_ridge``
    is what was published for such an ensemble. Minus infinity too where two members answer the very same.

    Args:
        alpha: Of the entropy of the mean probability.
        beta: Of the log of the squared volume.

    Raises:
        ModelError: The model is no ensemble.
        SpecError: There are more members than classes less one.
    """
    logits = torch.stack([member(batch.x) for member in members_of(model)])
    members, _, classes = logits.shape
    if members > classes - 1:
        raise SpecError(
            f"adaptive_diversity: expected at most {classes - 1} members for {classes} classes, found {members}: their "
            f"answers about the wrong classes have {classes - 1} dimensions, in which more directions span no volume; "
            "take fewer members, or adaptive_diversity_ridge for the published numbers"
        )
    # The determinant is the square of the triangle's, which does not square the rounding as M M^T does.
    triangle = torch.linalg.qr(wrong_answers(logits, batch.label).mT).R
    log_volume = 2 * triangle.diagonal(dim1=1, dim2=2).abs().log().sum(1)
    return promoted(logits, batch.label, log_volume, alpha, beta)


def members_of(model: nn.Module) -> list[nn.Module]:
    """The models of an ensemble.

    Raises:
        ModelError: The model is none, or has no member.
    """
    members = getattr(model, "members", None)
    if not isinstance(members, nn.ModuleList) or not len(members):
        raise ModelError(
            f"objective: expected an ensemble, whose models are in its ModuleList 'members', found "
            f"{type(model).__name__}; train mean_of or hyper_batch_ensemble, or choose cross_entropy"
        )
    return list(members)


def own_losses(logits: list[Float[Tensor, "n k"]], label: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Sum of the members' cross-entropies, each a mean over the batch."""
    return torch.stack([functional.cross_entropy(own, label) for own in logits]).sum()


def wrong_answers(logits: Float[Tensor, "m n k"], label: Int[Tensor, " n"]) -> Float[Tensor, "n m k-1"]:
    """Each member's probabilities of the classes that are not true, of length one, in double precision."""
    members, n, classes = logits.shape
    others = torch.arange(classes, device=label.device)[None] != label[:, None]
    wrong = logits.double()[others.expand(members, -1, -1)].view(members, n, classes - 1)
    # A softmax among the others has the same direction, also where a member is so sure that the others' vanish.
    return functional.normalize(wrong.softmax(2), dim=2).transpose(0, 1)


def promoted(
    logits: Float[Tensor, "m n k"],
    label: Int[Tensor, " n"],
    log_volume: Float[Tensor, " n"],
    alpha: float,
    beta: float,
) -> Float[Tensor, ""]:
    """The members' cross-entropies, less ``alpha`` times their mean's entropy and ``beta`` times the log volume."""
    log_mean = functional.log_softmax(logits, 2).logsumexp(0) - math.log(len(logits))
    entropy = -(log_mean.exp() * log_mean).sum(1)
    return own_losses(list(logits), label) - alpha * entropy.mean() - beta * log_volume.mean().to(logits)
