"""Signal flows back along what the data puts into each filter: PatternNet, PatternAttribution and guided paths.

The weights of a filter also cancel what would disturb it, so they are not what it detects (Kindermans et al. 2018).
A pattern is what it detects. It belongs to a call of the model, not to a weight: a layer that is used twice sees other
data each time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.backward import Call, Rules
from consilience.attribution.gradient import gradient
from consilience.attribution.layers import Swapped, arguments, scaling, through
from consilience.attribution.operations import BATCH_NORM, LAYER, PRODUCT, Function, named, tensors_in, written
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import value
from consilience.component import attribution, backward
from consilience.errors import ModelError, SpecError
from consilience.tensors import Baseline, Patterns, Score

LAYERS = frozenset({"ConvolutionBackward0", "AddmmBackward0"})
NATIVE = LAYERS | {"NativeBatchNormBackward0", "CudnnBatchNormBackward0"}
OPAQUE = named("multi_head_attention_forward bilinear rnn_tanh rnn_relu lstm gru") | named(
    "rnn_tanh_cell rnn_relu_cell lstm_cell gru_cell"
)  # layers inside one call
Swap = Callable[[Tensor, Tensor], Tensor]
"""``(weight, pattern) -> what signal flows back through``, all three of one shape."""


@backward(version=1, paper="kindermans2018learning")
def pattern_net_rule(model: nn.Module, patterns: Patterns) -> AbstractContextManager[Rules]:
    """Through an affine call flows the signal that it detects: its pattern stands for its weight.

    Affine calls are ``linear`` and every convolution. Rectifiers and max-pools pass signal where the model itself
    did, and so does any other operation by its derivative. A batch norm is an affine call that reads one number a
    channel; whatever the data, what that puts in is one over its scale, so no pattern is asked for: it comes to the
    same as folding it into the layer before it, of which the pattern is then that of the folded layer times the
    scale. A channel whose scale is 0 passes nothing. Weights that act in no such call are refused.
    """
    return _swapped("pattern_net_rule", model, patterns, lambda weight, pattern: pattern)


@backward(version=1, paper="kindermans2018learning")
def pattern_attribution_rule(model: nn.Module, patterns: Patterns) -> AbstractContextManager[Rules]:
    """Through an affine call flows what the signal in each input does to it: its weight times its pattern.

    Which calls these are, and what becomes of all others, is said at ``pattern_net_rule``; a batch norm passes
    signal on as it is, since its scale times its pattern is 1. With patterns of ones and no batch norm this is the
    plain gradient.
    """
    return _swapped("pattern_attribution_rule", model, patterns, torch.mul)


@attribution(version=1, paper="kindermans2018learning")
def pattern_net(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    patterns: Patterns,
    *,
    score: Score = value,
) -> Float[Tensor, "n c h w"]:
    """Signal that the model detects in each pixel for the target: the score's slope back through the patterns.

    NaN where the score is not finite. It shows what is there, not what it counts for: ``pattern_attribution`` does.

    Args:
        score: What is explained; of ``value`` the backward pass starts with the logit itself, as published.
    """
    return gradient(model, x, target, score=score, rule=functools.partial(pattern_net_rule, patterns=patterns))


@attribution(version=1, paper="kindermans2018learning")
def pattern_attribution(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    patterns: Patterns,
    *,
    score: Score = value,
) -> Float[Tensor, "n c h w"]:
    """What the signal in each pixel counts for the target: the score's slope back through weights times patterns.

    NaN where the score is not finite. Two models that compute the same may have other patterns and other maps.
    Products of many layers make the maps of different targets alike (Sixt et al. 2020): compare those of a random
    target.

    Args:
        score: What is explained; of ``value`` the backward pass starts with the logit itself, as published.
    """
    return gradient(model, x, target, score=score, rule=functools.partial(pattern_attribution_rule, patterns=patterns))


@attribution(version=1, paper="schwarzenberg2020pattern")
def pattern_guided_integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    patterns: Patterns,
    *,
    baseline: Baseline = 0.0,
    steps: Annotated[int, Meta(ge=1)] = 50,
    score: Score = value,
) -> Float[Tensor, "n c h w"]:
    """Mean of ``pattern_attribution`` on the straight line from a baseline to ``x``, times their difference.

    NaN where the score is not finite on the line. The maps are not complete: patterns stand between them and the
    score.

    Args:
        baseline: Value of every pixel where the line starts, or ``"mean"``.
        steps: Equal parts of the line; ``pattern_attribution`` is taken in the middle of each.
        score: What is explained; of ``value`` each backward pass starts with the logit at its own point.
    """
    of = functools.partial(pattern_attribution, patterns=patterns.to(x), score=score)
    return integrated_gradients(model, x, target, of=of, baseline=baseline, steps=steps)


def patterns_from_weights(
    model: nn.Module, x: Float[Tensor, "n c h w"], make: Callable[[str, Tensor], Tensor]
) -> Patterns:
    """Patterns made by hand: of each affine call of one forward pass, ``make(label, weight)``.

    The label is the weight's name among the model's parameters, or the call's function and place.

    Raises:
        ModelError: The model has no affine call, or one of its weights acts in no such call, or out of sight.
        SpecError: A pattern has another shape than its weight.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made: list[tuple[str, Tensor, str]] = []

    def note(call: Call) -> Any:
        given = arguments("patterns", model, call)
        if given is None:
            return NotImplemented
        x, kind, weight = given.pop("input"), written(call.function), given["weight"]
        label = names.get(id(weight), f"{kind} {len(made)}")
        pattern = make(label, weight.detach())
        if pattern.shape != weight.shape:
            raise SpecError(
                f"{label}: expected a pattern {list(weight.shape)}, as the weight is, found {list(pattern.shape)}; "
                "give one number for each weight"
            )
        made.append((kind, pattern, label))
        return through(call.function, x, weight, given)  # unlike the plain call, it shows that it was seen

    table = dict.fromkeys(LAYER, note) | _refusals("patterns")
    with torch.enable_grad(), Rules("patterns", model, table, native=LAYERS) as rules:
        logits = model(x.detach().requires_grad_())
    rules.audit(logits)
    kinds, values, labels = zip(*made, strict=True)
    return Patterns(kinds, values, labels)


@contextlib.contextmanager
def _swapped(name: str, model: nn.Module, patterns: Patterns, swap: Swap) -> Iterator[Rules]:
    """The rule of that name, and whether the model asked for every pattern."""
    taken = 0

    def layer(call: Call) -> Any:
        nonlocal taken
        given = arguments(name, model, call)
        if given is None:
            return NotImplemented
        x, weight = given.pop("input"), given["weight"]
        pattern = _pattern(name, patterns, taken, written(call.function), weight)
        taken += 1
        return through(call.function, x, swap(weight, pattern).detach(), given)

    def norm(call: Call) -> Any:
        x, scale, run = scaling(name, call)
        if not x.requires_grad:
            return NotImplemented
        other = swap(scale, torch.where(scale == 0, 0, 1 / scale)).detach()  # the one pattern with w * a = 1
        each = other.view(-1, *[1] * (x.ndim - 2))
        return Swapped.apply(x, each, run, torch.mul)

    table = dict.fromkeys(LAYER, layer) | dict.fromkeys(BATCH_NORM, norm) | _refusals(name)
    with Rules(name, model, table, native=NATIVE) as rules:
        yield rules
    if taken < len(patterns.values):
        raise ModelError(
            f"{name}: expected {len(patterns.values)} affine calls, as there are patterns, found {taken}; the first "
            f"that was not called is {patterns.labels[taken]}; make the patterns of this very model"
        )


def _pattern(name: str, patterns: Patterns, place: int, kind: str, weight: Tensor) -> Tensor:
    """The pattern of the affine call at that place, once it is known to be of such a call."""
    found = f"{kind} with a weight {list(weight.shape)}"
    if place >= len(patterns.values):
        raise ModelError(
            f"{name}: expected {len(patterns.values)} affine calls, as there are patterns, found one more, {found}; "
            "make the patterns of this very model"
        )
    pattern = patterns.values[place]
    if (patterns.functions[place], pattern.shape) != (kind, weight.shape):
        raise ModelError(
            f"{name}: expected affine call {place} to be {patterns.labels[place]}, {patterns.functions[place]} with a "
            f"weight {list(pattern.shape)}, as its pattern is, found {found}; make the patterns of this very model"
        )
    return pattern.to(weight)


def _refusals(name: str) -> dict[Function, Callable[[Call], Any]]:
    """What holds weights for which no pattern is made: layers inside one call, and products with a matrix."""

    def refused(call: Call) -> Any:
        factors = tensors_in((call.args, call.options))
        if call.function not in OPAQUE and all(t.requires_grad and t.ndim > 2 for t in factors):
            return NotImplemented  # a product of two activations, as attention has it
        raise ModelError(
            f"{name}: expected weights that act in a linear layer or a convolution, found {written(call.function)}, "
            "for which there is no pattern; write it with torch.nn.functional.linear, or take integrated_gradients"
        )

    return dict.fromkeys(OPAQUE | PRODUCT | named("einsum"), refused)
