"""How well a model answers."""

from jaxtyping import Float, Int
from torch import Tensor

from consilience.component import measure


@measure(version=1, better="higher")
def accuracy(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the largest logit is the true class's, else 0. NaN where a logit is NaN."""
    right = (logits.argmax(1) == label).to(logits.dtype)
    return right.masked_fill(logits.isnan().any(1), float("nan"))
