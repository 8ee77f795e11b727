"""Explanations of several models, averaged."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.gradient import gradient
from consilience.component import attribution
from consilience.errors import ModelError
from consilience.rng import Rng, keyed
from consilience.tensors import Attribution, check_batch


@attribution(version=1, paper="watson2022agree")
def mean_over_models(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng | None = None,
    *,
    of: Attribution = gradient,
) -> Float[Tensor, "n d h w"]:
    """Mean over an ensemble's members of their explanations by ``of``. NaN where a member's is.

    Where the ensemble weighs its members (``shares``, which sum to 1), so does the mean.

    For methods that are linear in the output (gradients and integrated gradients of the logit, expected gradients)
    it is the explanation of the mean of the members' outputs; for others (class activation maps, a squared slope, a
    score that is not linear) it is not, nor where the ensemble averages something else than what is explained. Of a
    method that draws, each member gets draws of its own, so that chance is averaged out as well.

    Args:
        of: How each member is explained.
    """
    check_batch(model, x, target)
    members = getattr(model, "members", None)
    if not isinstance(members, nn.ModuleList) or not len(members):
        raise ModelError(
            f"mean_over_models: expected an ensemble, whose models are in its ModuleList 'members', found "
            f"{type(model).__name__}; put the models there, or explain this one by itself"
        )

    def explained(place: int) -> Tensor:
        return keyed(of, None if rng is None else rng.at(place))(members[place], x, target)

    shares = getattr(model, "shares", None) or [1 / len(members)] * len(members)
    total: Tensor = explained(0) * shares[0]
    for place in range(1, len(members)):
        total += explained(place) * shares[place]
    return total
