"""Maps that explain nothing, for what every measure must be compared with."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.component import attribution
from consilience.rng import Rng


@attribution(version=1)
def random_map(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n c h w"]:
    """Standard normal numbers of each example's own, whatever the model, the pixels and the class.

    The value that a measure gives to this control is what it gives to no explanation at all: a
    method that does not stand out from it has shown nothing.
    """
    return rng.normal(*x.shape[1:], device=x.device).to(x.dtype)
