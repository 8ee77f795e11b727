"""Objectives of ensembles whose members are to agree on why."""

import itertools
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.errors import SpecError
from consilience.training.diversity import members_of, own_losses


@objective(version=1, paper="watson2022using")
def explanation_agreement(
    model: nn.Module, batch: Batch, *, weight: Annotated[float, Meta(ge=0)] = 1.0
) -> Float[Tensor, ""]:
    """The members' cross-entropies, plus the mean over pairs of members of ``1 - cosine`` of their gradients.

    A member's gradient is that of the true class's logit in the pixels, with whatever dropout the step draws. It is
    differentiated again, so that the agreement reaches every member's weights. In the paper a discriminator tells the
    members' maps apart, and those maps carry no slope to the weights; here the maps are compared directly. An image
    for which a member's gradient is zero has no cosine with the others: that pair is left out of the mean, which is
    zero where nothing is left.

    Args:
        weight: Of the disagreement against the sum of the cross-entropies.

    Raises:
        ModelError: The model is no ensemble.
        SpecError: The ensemble has a single member, who has nobody to agree with.
    """
    members = members_of(model)
    if len(members) < 2:
        raise SpecError(
            "explanation_agreement: expected two members or more, found one, who has nobody to agree with; "
            "add members, or choose cross_entropy"
        )
    x = batch.x.detach().requires_grad_()
    logits = [member(x) for member in members]
    scores = [own.gather(1, batch.label[:, None]).sum() for own in logits]
    maps = [torch.autograd.grad(score, x, create_graph=True)[0] for score in scores]
    return own_losses(logits, batch.label) + weight * disagreement(torch.stack(maps))


def disagreement(maps: Float[Tensor, "m n c h w"]) -> Float[Tensor, ""]:
    """Mean of ``1 - cosine`` over the pairs of members and the images where both maps have a direction."""
    flat = maps.flatten(2)
    length = flat.norm(dim=2)
    there = length > 0
    direction = flat / length.where(there, 1)[..., None]
    one, two = torch.tensor(list(itertools.combinations(range(len(maps)), 2)), device=maps.device).T
    cosine, defined = (direction[one] * direction[two]).sum(2), there[one] & there[two]
    mean: Tensor = ((1 - cosine) * defined).sum() / defined.sum().clamp(min=1)
    return mean
