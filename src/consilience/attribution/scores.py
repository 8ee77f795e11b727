"""What is explained: one number an example, made of the model's logits."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from consilience.component import score
from consilience.errors import SpecError
from consilience.tensors import Score

Head = Literal["softmax", "sigmoid", "binary"]
"""What the logits mean: one class of several; each class by itself; one logit for class 1 against class 0."""


@score(version=2)
def logit(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The target's logit; of a model with a single logit, that logit for class 1 and its negative for class 0.

    So the score of a single logit is the log odds of the target, whichever of the two classes it is, and what
    speaks for one class speaks against the other.
    """
    both = torch.cat([-logits, logits], 1) if logits.shape[1] == 1 else logits
    return both.gather(1, target[:, None])[:, 0]


@score(version=1)
def probability(
    logits: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, head: Head = "softmax"
) -> Float[Tensor, " n"]:
    """The target's probability.

    Its slope vanishes where the model is sure: there a map shows rounding. ``log_probability`` and ``logit`` have
    a slope wherever the logits have one.

    Args:
        head: What the logits mean: one class of several (``softmax``), each class by itself (``sigmoid``), or a
            single logit for class 1 against class 0 (``binary``; class 0 has the rest).
    """
    _check("probability", logits, head)
    if head == "softmax":
        return logit(torch.softmax(logits, 1), target)
    return torch.sigmoid(logit(logits, target))


@score(version=1)
def log_probability(
    logits: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, head: Head = "softmax"
) -> Float[Tensor, " n"]:
    """The logarithm of the target's probability, finite however sure the model is.

    Args:
        head: What the logits mean: one class of several (``softmax``), each class by itself (``sigmoid``), or a
            single logit for class 1 against class 0 (``binary``; class 0 has the rest).
    """
    _check("log_probability", logits, head)
    if head == "softmax":
        return logit(torch.log_softmax(logits, 1), target)
    return logsigmoid(logit(logits, target))


@score(version=1)
def value(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, of: Score = logit) -> Float[Tensor, " n"]:
    """Half the square of another score, so that its slope is that score times its slope.

    Explaining it seeds the backward pass with the score's own value, where ``of`` alone seeds it with one, as
    methods do that spread a value over the pixels. Where the score is negative, the signs of the map change.

    Args:
        of: The score whose value is sent back.
    """
    return of(logits, target).square() / 2


def _check(name: str, logits: Tensor, head: Head) -> None:
    """Refuse a head that these logits cannot have: a softmax of one logit is 1, and its slope zero everywhere.

    Raises:
        SpecError: A single logit for a head of several, or several for a binary one.
    """
    found = logits.shape[1]
    if (head == "binary") == (found == 1):
        return
    expected, instead = ("one logit", "'softmax' or 'sigmoid'") if head == "binary" else ("several logits", "'binary'")
    raise SpecError(f"{name}: expected {expected} an image for head '{head}', found {found}; choose head = {instead}")
