"""How what a layer answered is divided among its inputs: the rules of layer-wise relevance propagation.

All in one form. Relevance is not carried itself but as a slope: relevance over value. Then additions, average and
max pools, rectifiers and whatever else is proportional to its input divide relevance as they should by their plain
derivative, and only layers need a rule. Each function here gives, for the slope at a layer's output, that at its input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Layer(NamedTuple):
    """One call of an affine layer."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    """What is added to the output, in a shape that spreads over it."""
    apply: Callable[[Tensor, Tensor], Tensor]
    """``(x, weight) -> output`` without the bias; linear in both."""
    dense: bool
    channel: int | None
    """Which axis of the output, from its end, each row of the weight gives; None where no axis does."""
    row: int = 0
    """Which axis of the weight a row is a part of."""


Divide = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]
"""``(layer, its input, its output, slope at the output) -> slope at the input``."""


class Ruled(torch.autograd.Function):
    """A call's own value, and another way back from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[], tuple[Tensor, ...]], back: Callable[..., Tensor]) -> Tensor:
        """The value; ``run`` gives besides what the way back needs."""
        y, *kept = run()
        ctx.save_for_backward(*kept)
        ctx.back = back
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        """What flows to ``x``; not to be differentiated again, since the rules hold what they divide by fixed."""
        return ctx.back(*ctx.saved_tensors, slope), None, None


def over(relevance: Tensor, total: Tensor) -> Tensor:
    """Relevance for each unit of what it is divided by; nothing where there is nothing to divide by."""
    number = torch.finfo(total.dtype)
    return torch.where(total.abs() <= number.tiny / number.eps, 0.0, relevance / total)


def by_epsilon(layer: Layer, x: Tensor, y: Tensor, slope: Tensor, *, epsilon: float) -> Tensor:
    """In proportion to what each input adds to the output, which is made larger by ``epsilon``."""
    if epsilon:
        slope = slope * y / torch.where(y < 0, y - epsilon, y + epsilon)
    return _back(layer, x, layer.weight, slope)


def by_plus(layer: Layer, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """In proportion to what each input adds to the output, among those that add something positive."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        up = _signed(layer, at, 1)
    (into,) = torch.autograd.grad(up, at, over(slope * y, up.detach()))
    return into


def by_alpha_beta(layer: Layer, x: Tensor, y: Tensor, slope: Tensor, *, alpha: float, beta: float) -> Tensor:
    """``alpha`` times the relevance among positive contributions, minus ``beta`` times it among negative ones."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        up, down = _signed(layer, at, 1), _signed(layer, at, -1)
    relevance = slope * y
    ends = (alpha * over(relevance, up.detach()), -beta * over(relevance, down.detach()))
    (into,) = torch.autograd.grad((up, down), at, ends)
    return into


def by_gamma(layer: Layer, x: Tensor, y: Tensor, slope: Tensor, *, gamma: float) -> Tensor:
    """In proportion to contributions, of which those of the output's own sign count ``1 + gamma`` times."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        plain = layer.apply(at, layer.weight)
        plain = plain if layer.bias is None else plain + layer.bias
        up, down = (plain + gamma * _signed(layer, at, sign) for sign in (1, -1))
    relevance = slope * y
    ends = (over(relevance, up.detach()) * (y > 0), over(relevance, down.detach()) * (y < 0))
    (into,) = torch.autograd.grad((up, down), at, ends)
    return into


def without_bias(layer: Layer, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """As ``by_plus`` with no share for the bias, so that all relevance reaches the inputs: excitation backprop."""
    return by_plus(layer._replace(bias=None), x, y, slope)


def against_inhibition(layer: Layer, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """What excites the output minus what excites its opposite, the same layer with the signs of its weights turned."""
    return by_alpha_beta(layer._replace(bias=None), x, y, slope, alpha=1.0, beta=1.0)


def in_box(layer: Layer, x: Tensor, y: Tensor, slope: Tensor, *, low: Tensor, high: Tensor) -> Tensor:
    """*Relevance* of a first layer's inputs, in proportion to their way from the end of their range that speaks less.

    Each contribution is ``x w``, less ``low w`` where the weight is positive and ``high w`` where it is negative.
    """
    positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    total = layer.apply(x, layer.weight) - layer.apply(low, positive) - layer.apply(high, negative)
    each = over(slope * y, total)
    ends = ((x, layer.weight, 1), (low, positive, -1), (high, negative, -1))
    return sum((sign * at * _back(layer, at, weight, each) for at, weight, sign in ends), torch.zeros_like(x))


def by_square(layer: Layer, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """*Relevance* of a first layer's inputs, in proportion to the squares of their weights."""
    return _whatever_the_input(layer, x, layer.weight.square(), slope * y)


def evenly(layer: Layer, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """*Relevance* of a first layer's inputs, the same for each."""
    return _whatever_the_input(layer, x, torch.ones_like(layer.weight), slope * y)


def _whatever_the_input(layer: Layer, x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    total = layer.apply(torch.ones_like(x), weight)
    return _back(layer, x, weight, over(relevance, total))


def _signed(layer: Layer, x: Tensor, sign: int) -> Tensor:
    """The sum of all contributions of one sign, the bias's among them."""
    high, low = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
    same, other = (high, low) if sign > 0 else (low, high)
    if bool((x < 0).any()):
        total = layer.apply(x.clamp(min=0), same) + layer.apply(x.clamp(max=0), other)
    else:  # behind a rectifier: half the work
        total = layer.apply(x, same)
    if layer.bias is None:
        return total
    return total + (layer.bias.clamp(min=0) if sign > 0 else layer.bias.clamp(max=0))


def _back(layer: Layer, x: Tensor, weight: Tensor, slope: Tensor) -> Tensor:
    """The slope at the input of the layer with other weights."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        y = layer.apply(at, weight)
    (into,) = torch.autograd.grad(y, at, slope.to(y.dtype))
    return into
