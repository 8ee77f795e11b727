"""What is explained: one number an example, made of the model's logits."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from consilience.component import score


@score(version=1)
def logit(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The target's logit."""
    return logits.gather(1, target[:, None])[:, 0]


@score(version=1)
def log_probability(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The logarithm of the target's softmax probability."""
    return logit(torch.log_softmax(logits, 1), target)
