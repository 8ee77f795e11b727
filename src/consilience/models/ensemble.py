"""Ensembles: models whose probabilities are averaged, whether they were trained as one or each by itself."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from consilience.component import architecture
from consilience.errors import ModelError, SpecError
from consilience.models.cnn import small_cnn

Architecture = Callable[..., nn.Module]
"""An architecture, configured: ``(shape, classes) -> module``."""


@architecture(version=1, paper="watson2022agree")
def mean_of(
    shape: tuple[int, int, int],
    classes: int,
    *,
    of: Architecture = small_cnn,
    members: Annotated[int, Meta(ge=1)] = 3,
    weights: tuple[Annotated[float, Meta(gt=0)], ...] = (),
) -> nn.Module:
    """Several networks of one architecture; the logits are the log of the weighted mean of their probabilities.

    The members begin with weights of their own, drawn one after another. As the probabilities of these logits are the
    mean itself, ``cross_entropy`` trains the mean; ``member_cross_entropy`` trains each member as if it were alone.

    Args:
        of: The architecture of every member.
        members: How many there are.
        weights: Share of each member in the mean, up to a common factor; alike where none is given.
    """
    return MeanOf([of(shape, classes) for _ in range(members)], weights)


def mean_of_models(models: Sequence[nn.Module], weights: Sequence[float] = ()) -> nn.Module:
    """The ensemble of models that there are already: the log of the weighted mean of their probabilities.

    The models are held, not copied. Where they take pixels, each with its own mean and deviation, so does the ensemble;
    of bare ones, put ``normalised`` around the ensemble.

    Raises:
        SpecError: There is no model, other many weights than models, or a weight that is not positive.
    """
    return MeanOf(models, weights)


class MeanOf(nn.Module):
    """Models that answer together; made by ``mean_of`` and ``mean_of_models``."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] = ()) -> None:
        super().__init__()
        given = tuple(weights) or (1.0,) * len(members)
        if not members or len(given) != len(members):
            raise SpecError(
                f"weights: expected one for each of the {len(members)} members of an ensemble, found {len(given)}; "
                "give as many, or none for the plain mean"
            )
        if not all(0 < weight < math.inf for weight in given):
            raise SpecError(
                f"weights: expected numbers above 0, found {given}; leave a member out that is not to count"
            )
        self.members = nn.ModuleList(members)
        self.shares = tuple(weight / sum(given) for weight in given)
        self.training = self.members.training = any(member.training for member in members)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Log of the mean probability of each class.

        Raises:
            ModelError: The members know other many classes, or have a single logit each.
        """
        answers = [member(x) for member in self.members]
        sizes = {answer.shape[1] for answer in answers}
        if len(sizes) > 1 or min(sizes) < 2:
            raise ModelError(
                f"ensemble: expected members with the same classes, two or more, found {sorted(sizes)} logits; "
                "average models of one task, with a logit for each class"
            )
        parts = [functional.log_softmax(each, 1) + math.log(w) for each, w in zip(answers, self.shares, strict=True)]
        # Five axes, because methods that look for a layer with a plane would take [n, members, classes] for tokens.
        return torch.stack([part[..., None, None] for part in parts], 1).logsumexp(1).flatten(1)


def select_greedily(probabilities: Float[Tensor, "m n k"], label: Int[Tensor, " n"], size: int) -> list[int]:
    """Positions of ``size`` models, picked one by one so that the mean probability's log loss is least.

    A model may be picked again and counts as often in the mean. Of equal picks the first model is taken. A probability
    of zero counts as the smallest positive number of its type; a model with one that is NaN is never picked. Hyper-deep
    ensembles choose so on validation data, but go on until ``size`` *different* models were picked or nothing gets
    better; here the number of picks is given, so that the choice always ends.

    Raises:
        SpecError: No model, no example or no pick was asked for.
        ModelError: Every model has a probability that is NaN.
    """
    if size < 1 or 0 in probabilities.shape:
        raise SpecError(
            f"select_greedily: expected at least one pick, model and example, found size {size} and probabilities "
            f"{list(probabilities.shape)}; give more"
        )
    tiny = torch.finfo(probabilities.dtype).tiny
    # The loss asks for the true class alone, whose mean is the mean of the members'.
    true = probabilities.gather(2, label.expand(len(probabilities), -1)[..., None])[..., 0].clamp(min=tiny).double()
    true[probabilities.isnan().flatten(1).any(1)] = torch.nan
    if true.isnan().any(1).all():
        raise ModelError(
            f"select_greedily: expected a model without NaN, found none among {len(true)}; look at their training"
        )
    picked: list[int] = []
    total = torch.zeros_like(true[0])
    for _ in range(size):
        loss = -((total + true) / (len(picked) + 1)).log().mean(1)
        best = int(loss.nan_to_num(nan=math.inf).argmin())
        picked.append(best)
        total = total + true[best]
    return picked
