"""The slope of a score in the pixels, where every other method of the family begins."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import ModelError
from consilience.tensors import Score, check_batch


@attribution(version=1, paper="simonyan2014deep")
def gradient(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    create_graph: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Derivative of the score in each pixel, with its sign.

    Args:
        score: What is differentiated.
        create_graph: Keep the maps differentiable, for a loss that contains them.
    """
    check_batch(model, x, target)
    with torch.enable_grad():
        pixels = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        answer = scored(model(pixels), target, score)
        (slope,) = torch.autograd.grad(answer.sum(), pixels, create_graph=create_graph)
    return slope


@attribution(version=1, paper="shrikumar2016black")
def gradient_x_input(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], *, score: Score = logit
) -> Float[Tensor, "n c h w"]:
    """Derivative of the score in each pixel, times the pixel.

    For a model that is linear without a bias the maps are complete. In pixels of [0, 1] black explains nothing,
    whatever the model makes of it; most of what such a map shows may be the image.

    Args:
        score: What is differentiated.
    """
    return gradient(model, x, target, score=score).mul_(x.detach())


def scored(logits: object, target: Int[Tensor, " n"], score: Score) -> Float[Tensor, " n"]:
    """The score of what a model returned.

    Raises:
        ModelError: The model did not return logits ``[n, k]`` that hold every target.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(target):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"model: expected logits [{len(target)}, classes], found {found}; wrap the model so that it returns them"
        )
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise ModelError(
            f"target: expected classes from 0 to {logits.shape[1] - 1}, found {int(target.min())} to "
            f"{int(target.max())}; the model does not know them"
        )
    return score(logits, target)
