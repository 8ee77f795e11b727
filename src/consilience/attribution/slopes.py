"""The rescale rule for operations of one number: the slope between the two activations.

The slope is ``(f(a) - f(b)) / (a - b)``. Where it has a form without the division, that form is taken, since it loses
no digits where ``a`` and ``b`` are close. Else the derivative in the middle stands where they are.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from consilience.attribution.calls import Call, Hole, called
from consilience.attribution.multipliers import Pairs, Rule, Unruled, only_first
from consilience.attribution.operations import Function, named, tensors_in


def bend(a: Tensor, b: Tensor) -> Tensor:
    """The slope of ``max(x, 0)`` from ``b`` to ``a``: 1 above, 0 below, the share that is above between; 0 at 0.

    Every piecewise linear operation is made of it.
    """
    tiny = torch.finfo(a.dtype).tiny
    return torch.maximum(a, b).div_((a - b).abs_().add_(tiny)).clamp_(0, 1)


def clamped(a: Tensor, b: Tensor, low: Any, high: Any) -> Tensor:
    """The slope of what is cut off below ``low`` and above ``high``; None does not cut."""
    slope = bend(a - low, b - low) if low is not None else torch.ones_like(a - b)
    return slope if high is None else slope.sub_(bend(a - high, b - high))


def exponential(a: Tensor, b: Tensor) -> Tensor:
    """The slope of ``exp``, without loss of digits where ``a`` is near ``b``."""
    way = (a - b).abs_()
    same = (way == 0) | (a == b)  # the second of infinities
    return torch.maximum(a, b).exp_().mul_(torch.where(same, 1, way.neg().expm1_().neg_() / way))


def logarithm(a: Tensor, b: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """The slope of ``log`` between positive numbers whose logarithms are known."""
    high = torch.maximum(a, b)
    share = (a - b).abs_().div_(high)
    near = share.neg().log1p_().neg_()
    way = torch.where(share > 0.5, (log_a - log_b).abs_(), near)
    return torch.where(share == 0, 1, way / share).div_(high)


def softmax_weights(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Weights of each logit's difference that add up to the difference of ``logsumexp``.

    They are the slopes of ``exp``, a sum and ``log``, and do not change where all logits are moved.
    """
    top = torch.maximum(a, b).amax(dim, keepdim=True)
    a, b = a - top, b - top
    sums = a.exp().sum(dim, keepdim=True), b.exp().sum(dim, keepdim=True)
    logs = a.logsumexp(dim, keepdim=True), b.logsumexp(dim, keepdim=True)
    return exponential(a, b).mul_(logarithm(*sums, *logs))


def elu(a: Tensor, b: Tensor, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Tensor:
    """The slope of ``scale * (max(x, 0) + alpha * (exp(rate * min(x, 0)) - 1))``."""
    above = bend(a, b)
    below = exponential(a.clamp(max=0) * rate, b.clamp(max=0) * rate).mul_(alpha * rate)
    return below.mul_(1 - above).add_(above).mul_(scale)


def divided(
    f: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, f_a: Tensor, f_b: Tensor, relative: bool = False
) -> Tensor:
    """The slope of a smooth operation: the division, and the derivative in the middle where the points are close.

    Close is the third root of the type's precision (0.005 in single, 6e-6 in double precision), where both are as
    accurate; ``relative`` to the larger of the two for what is steep near 0. What the derivative misses of the
    difference is of the order of that precision.

    Args:
        f: The operation, of numbers in one row.
        relative: How close is measured.
    """
    way = a - b
    close = torch.finfo(way.dtype).eps ** (1 / 3) * (torch.maximum(a.abs(), b.abs()) if relative else 1)
    near = way.abs() <= close
    slope = (f_a - f_b).div_(way)
    if bool(near.any()):
        with torch.enable_grad():
            middle = ((a + b) / 2)[near].requires_grad_()
            answer = f(middle)
            (derivative,) = torch.autograd.grad(answer.sum(), middle)
        steep = ~derivative.isfinite() & answer.detach().isfinite()  # a root at 0, of two zeros
        slope[near] = derivative.masked_fill_(steep, 0)
    return slope


Slope = Callable[[Call, Tensor, Tensor], Tensor]


def elementwise(slope: Slope) -> Rule:
    """The rescale rule for an operation whose slope is known from its input."""

    def back(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
        only_first(call)
        a, b = pairs.sides(call.before[0].read())
        yield 0, slope(call, a, b).mul_(pairs.split(given[0])).flatten(0, 1)

    return Rule(back, "x")


def smooth(relative: bool = False) -> Rule:
    """The rescale rule for an operation that is smooth: the division, from the values that were kept."""

    def back(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
        only_first(call)
        if call.after is None or tensors_in((call.args, call.options)):
            raise Unruled(" with a tensor beside the pixels")
        a, b = pairs.sides(call.before[0].read())
        f_a, f_b = pairs.sides(call.after.read())
        slope = divided(lambda z: call.filled(z.clone()), a, b, f_a, f_b, relative)
        yield 0, slope.mul_(pairs.split(given[0])).flatten(0, 1)

    return Rule(back, "xy")


def _number(call: Call, place: int, name: str, default: Any = None) -> Any:
    """An argument that is one number."""
    value = call.argument(place, name, default)
    if isinstance(value, Tensor) and value.ndim:
        raise Unruled(" with a bound for each place")
    return value


def _leaky(call: Call, a: Tensor, b: Tensor) -> Tensor:
    below = _number(call, 1, "negative_slope", 0.01)
    return bend(a, b).mul_(1 - below).add_(below)


def _prelu(call: Call, a: Tensor, b: Tensor) -> Tensor:
    weight = call.argument(1, "weight").detach()
    below = weight if weight.numel() == 1 else weight.view(-1, *[1] * (a.ndim - 3))
    return bend(a, b).mul_(1 - below).add_(below)


def _clamp(call: Call, a: Tensor, b: Tensor) -> Tensor:
    name = called(call.function)
    if name.startswith("hardtanh"):
        return clamped(a, b, _number(call, 1, "min_val", -1.0), _number(call, 2, "max_val", 1.0))
    if name.startswith("clamp_max"):
        return clamped(a, b, None, _number(call, 1, "max"))
    return clamped(a, b, _number(call, 1, "min"), _number(call, 2, "max"))


def _threshold(call: Call, a: Tensor, b: Tensor) -> Tensor:
    at, value = call.argument(1, "threshold"), call.argument(2, "value")
    if at != value:
        raise Unruled(" that jumps")
    return bend(a - at, b - at)


def _hard_sigmoid(a: Tensor, b: Tensor) -> Tensor:
    return clamped(a, b, -3, 3).div_(6)


def _hard_swish(call: Call, a: Tensor, b: Tensor) -> Tensor:
    means = (F.hardsigmoid(a) + F.hardsigmoid(b)) / 2
    return _hard_sigmoid(a, b).mul_((a + b) / 2).add_(means)


def _elu(call: Call, a: Tensor, b: Tensor) -> Tensor:
    name, alpha = called(call.function), 1.0
    if name.startswith("selu"):
        return elu(a, b, 1.6732632423543772, 1.0507009873554805)
    alpha = _number(call, 1, "alpha", 1.0)
    if name.startswith("celu"):
        return elu(a, b, alpha, 1.0, 1 / alpha)
    return elu(a, b, alpha, _number(call, 2, "scale", 1.0) if call.function is not F.elu else 1.0)


def _power(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterable[tuple[int, Tensor]]:
    exponent = call.argument(1, "exponent")
    if isinstance(exponent, (Hole, Tensor)) or not isinstance(call.args[0], Hole):
        raise Unruled(" whose exponent is a tensor")
    if exponent == 2:
        return elementwise(_square).back(call, given, pairs)
    return smooth(relative=True).back(call, given, pairs)


def _square(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return a + b


SMOOTH = named(
    "gelu silu silu_ mish mish_ sigmoid sigmoid_ tanh tanh_ softplus logsigmoid softsign tanhshrink sin sin_ cos cos_ "
    "erf erf_ log1p log1p_ expm1 expm1_ atan arctan exp2 sinh cosh"
)
STEEP = named("sqrt sqrt_ rsqrt rsqrt_ log log_ log2 log10")


def _table() -> dict[Function, Rule]:
    lines: list[tuple[frozenset[Any], Rule]] = [
        (named("relu relu_"), elementwise(lambda call, a, b: bend(a, b))),
        (named("relu6"), elementwise(lambda call, a, b: clamped(a, b, 0, 6))),
        (named("leaky_relu leaky_relu_"), elementwise(_leaky)),
        (named("prelu"), elementwise(_prelu)),
        (named("clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_ hardtanh hardtanh_"),
         elementwise(_clamp)),
        (named("threshold threshold_"), elementwise(_threshold)),
        (named("hardsigmoid"), elementwise(lambda call, a, b: _hard_sigmoid(a, b))),
        (named("hardswish"), elementwise(_hard_swish)),
        (named("elu elu_ selu selu_ celu celu_"), elementwise(_elu)),
        (named("exp exp_"), elementwise(lambda call, a, b: exponential(a, b))),
        (named("square square_"), elementwise(_square)),
        (named("abs abs_ absolute __abs__"), elementwise(lambda call, a, b: bend(a, b).mul_(2).sub_(1))),
        (named("pow pow_ __pow__ __ipow__"), Rule(_power, "xy")),
        (SMOOTH, smooth()),
        (STEEP, smooth(relative=True)),
    ]  # fmt: skip
    return {function: rule for functions, rule in lines for function in functions}


RULES_OF_NUMBERS = _table()
