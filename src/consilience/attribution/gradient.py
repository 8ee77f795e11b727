"""The slope of a score in the pixels, where every other method of the family begins."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from consilience.attribution.backward import Rules, plain_rule
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import ModelError
from consilience.tensors import Backward, Score, check_batch, in_halves


@attribution(version=1, paper="simonyan2014deep")
def gradient(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    rule: Backward = plain_rule,
    create_graph: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Derivative of the score in each pixel, with its sign. NaN where the score is not finite.

    Args:
        score: What is differentiated.
        rule: How signal flows back through the model.
        create_graph: Keep the maps differentiable, for a loss that contains them.
    """
    check_batch(model, x, target)

    def slope(rows: slice) -> Tensor:
        pixels = x[rows] if create_graph and x.requires_grad else x[rows].detach().requires_grad_()
        with rule(model) as rules:
            logits = model(pixels)
        if isinstance(rules, Rules):
            rules.audit(logits)
        return slope_of(scored(logits, target[rows], score), pixels, create_graph=create_graph)

    with torch.enable_grad():
        return in_halves(slope, len(x))


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


def slope_of(answer: Float[Tensor, " n"], at: Tensor, *, create_graph: bool = False) -> Tensor:
    """Derivative of each example's score in what it was calculated from; NaN where the score is not finite.

    Raises:
        ModelError: The score does not depend on it, or the model calculates itself again under a rule.
    """
    slope: Tensor | None = None
    if answer.requires_grad:
        try:
            (slope,) = torch.autograd.grad(answer.sum(), at, create_graph=create_graph, allow_unused=True)
        except CheckpointError as error:
            raise ModelError(
                "model: expected every operation to run once, found a checkpoint that runs it again without the rule; "
                "switch checkpointing off"
            ) from error
    if slope is None:
        raise ModelError(
            "model: expected logits that depend on the pixels, found that no gradient reaches them; look for "
            "'detach', 'no_grad' or whole numbers inside the model"
        )
    undefined = ~answer.detach().isfinite()
    if bool(undefined.any()):
        slope = slope.masked_fill(undefined.view(-1, *[1] * (slope.ndim - 1)), torch.nan)
    return slope if create_graph or min(slope.stride(), default=1) else slope.clone()  # an expanded view is read-only


def scored(logits: object, target: Int[Tensor, " n"], score: Score) -> Float[Tensor, " n"]:
    """The score of what a model returned; where it is not finite it is NaN, and so is its derivative.

    Raises:
        ModelError: The model did not return logits ``[n, k]`` that hold every target.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(target):
        raise ModelError(f"model: expected logits [{len(target)}, classes], found {_outputs(logits)}")
    classes = max(2, logits.shape[1])  # a single logit is that of class 1 against class 0
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ModelError(
            f"target: expected classes from 0 to {classes - 1}, found {int(target.min())} to "
            f"{int(target.max())}; the model does not know them"
        )
    answer = score(logits, target)
    return answer * torch.where(answer.isfinite(), 1.0, torch.nan).to(answer)


def _outputs(logits: object) -> str:
    """What a model returned instead of logits, and what to do."""
    if isinstance(logits, Tensor):
        return f"{list(logits.shape)}; wrap the model so that it returns one row of logits an image"
    if isinstance(logits, dict):
        parts = {repr(key): part for key, part in logits.items()}
    elif isinstance(logits, tuple | list):
        parts = {str(i): part for i, part in enumerate(logits)}
    else:
        return f"{type(logits).__name__}; wrap the model so that it returns a tensor"
    shapes = ", ".join(
        f"{key} {list(part.shape) if isinstance(part, Tensor) else type(part).__name__}" for key, part in parts.items()
    )
    return f"a {type(logits).__name__} of {shapes}; say which: output_of(model, {next(iter(parts), 0)})"
