"""Only what speaks for the target flows back through rectifiers: guided backpropagation and the deconvolution."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.backward import Call, Rules
from consilience.attribution.gradient import gradient
from consilience.attribution.operations import CLAMP, MAXIMUM, RELU, written
from consilience.attribution.scores import logit
from consilience.component import attribution, backward
from consilience.tensors import Score

NATIVE = frozenset({"ReluBackward0", "ThresholdBackward0"})
ARGUMENTS = {
    "relu": ("input", "inplace"),
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "threshold": ("input", "threshold", "value", "inplace"),
}


@backward(version=1, paper="springenberg2015striving")
def guided_rule(model: nn.Module) -> Rules:
    """Through a rectifier flows what is positive, where its input was.

    Rectifiers are ``relu``, ``relu6``, ``clamp`` at 0, ``hardtanh`` and ``threshold`` that start at 0 and
    ``maximum`` with zeros, as modules, functions or in place. Other activations keep their derivative.
    """
    return Rules("guided_rule", model, dict.fromkeys(RECTIFIERS, _guided), native=NATIVE)


@backward(version=1, paper="zeiler2014visualizing")
def deconvolution_rule(model: nn.Module) -> Rules:
    """Through a rectifier flows what is positive, whatever its input was. Rectifiers are those of ``guided_rule``."""
    return Rules("deconvolution_rule", model, dict.fromkeys(RECTIFIERS, _deconvolved), native=NATIVE)


@attribution(version=1, paper="springenberg2015striving")
def guided_backprop(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    create_graph: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Derivative of the score in each pixel where rectifiers pass back only what is positive at active units.

    It restores the image more than it explains the model: it changes little when upper layers are randomised
    (Adebayo et al. 2018). A model without rectifiers is refused.

    Args:
        score: What is explained.
        create_graph: Keep the maps differentiable, for a loss that contains them.
    """
    return gradient(model, x, target, score=score, rule=guided_rule, create_graph=create_graph)


@attribution(version=1, paper="zeiler2014visualizing")
def deconvolution(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    create_graph: bool = False,
) -> Float[Tensor, "n c h w"]:
    """Derivative of the score in each pixel where rectifiers pass back only what is positive, active or not.

    It depends on the image only through max-pooling and activations that are no rectifiers. A model without
    rectifiers is refused.

    Args:
        score: What is explained.
        create_graph: Keep the maps differentiable, for a loss that contains them.
    """
    return gradient(model, x, target, score=score, rule=deconvolution_rule, create_graph=create_graph)


def rectifier(call: Call) -> tuple[Tensor, float | None, bool] | None:
    """What a call rectifies, its ceiling, and whether in place; None where it is no rectifier that starts at 0."""
    name = written(call.function)
    if call.function in MAXIMUM:
        both = [t for t in (*call.args, *call.options.values()) if isinstance(t, Tensor)]
        zero = [not t.requires_grad and not bool(t.any()) for t in both]
        return (both[zero.index(False)], None, False) if len(both) == 2 and sum(zero) == 1 else None
    kind = name.removesuffix("_")
    given = dict(zip(ARGUMENTS[kind], call.args, strict=False)) | call.options
    low: Any = {"relu": 0, "relu6": 0, "hardtanh": given.get("min_val", -1)}.get(kind, given.get("min"))
    high: Any = {"relu6": 6, "hardtanh": given.get("max_val", 1)}.get(kind, given.get("max"))
    if kind == "threshold":
        low = given["threshold"] if given["value"] == given["threshold"] else None
    numbers = isinstance(low, int | float) and (high is None or isinstance(high, int | float))
    if not numbers or low != 0 or "out" in given:
        return None
    return given["input"], None if high is None else float(high), name != kind or bool(given.get("inplace"))


RECTIFIERS = RELU | CLAMP | MAXIMUM


def _guided(call: Call) -> Any:
    return _gated(call, shut=True)


def _deconvolved(call: Call) -> Any:
    return _gated(call, shut=False)


def _gated(call: Call, *, shut: bool) -> Any:
    found = rectifier(call)
    if found is None:
        return NotImplemented
    x, high, in_place = found
    y: Tensor = Gate.apply(x, high, shut)
    return x.copy_(y) if in_place else y


class Gate(torch.autograd.Function):
    """A rectifier that passes back what is positive; where it was shut, nothing, if ``shut``.

    What its backward pass needs is a mask of its own: later operations may overwrite input and output.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, high: float | None, shut: bool) -> Tensor:
        """The rectified values."""
        return x.relu() if high is None else x.clamp(0, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Note where the gate is open."""
        _, high, ctx.shut = inputs
        if ctx.shut:
            ctx.save_for_backward(output > 0 if high is None else (output > 0) & (output < high))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """What flows back; differentiable again."""
        positive = slope.relu()
        return (positive * ctx.saved_tensors[0] if ctx.shut else positive), None, None
