"""The rescale rule, operation by operation: what DeepLIFT makes of each, complete in every one.

Linear operations have their transpose; operations of one number the slope between the two activations; products give
each factor the other's mean, which is exact.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from consilience.attribution.calls import Call, Hole, called, put
from consilience.attribution.multipliers import Pairs, Rule, Unruled, linear, only_first, product
from consilience.attribution.operations import CONVOLUTION, LINEAR, PRODUCT, RESHAPE, Function, named
from consilience.attribution.slopes import RULES_OF_NUMBERS, bend, exponential, softmax_weights


def reshaped(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of what hands on the same numbers in another form."""
    (multiplier,), source = given, call.sources[0]
    if len(call.sources) > 1 and call.args[0] != Hole(0):
        raise Unruled
    if source.shape.numel() != call.shapes[0].numel():
        raise Unruled
    yield 0, multiplier.reshape(len(multiplier), *source.shape[1:]).to(source.kind)


def dropped(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of dropout, where it does nothing."""
    if call.argument(2, "training", call.options.get("train", True)) and call.argument(1, "p", 0.5):
        raise Unruled(" in training mode; call model.eval()")
    yield from reshaped(call, given, pairs)


def normalised(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of batch norm in evaluation mode."""
    mean, variance, weight = (call.argument(i, n) for i, n in ((1, "running_mean"), (2, "running_var"), (3, "weight")))
    if call.argument(5, "training", False) or mean is None:
        raise Unruled(" in training mode, which mixes the images; call model.eval()")
    only_first(call)
    scale = (variance + call.argument(7, "eps", 1e-5)).rsqrt()
    scale = scale if weight is None else scale * weight
    yield 0, given[0] * scale.detach().view(-1, *[1] * (given[0].ndim - 2))


def layer(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of a fully connected layer."""
    only_first(call)
    yield 0, given[0] @ call.argument(1, "weight").detach()


def convolved(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of a convolution: its transpose is one too, and quicker than what torch calls its backward pass."""
    only_first(call)
    multiplier, source, weight = given[0], call.sources[0].shape, call.argument(1, "weight").detach()
    dims, turned = weight.ndim - 2, "transpose" in called(call.function)
    stride, padding = _each(call.argument(3, "stride", 1), dims), call.argument(4, "padding", 0)
    dilation = _each(call.argument(7 if turned else 5, "dilation", 1), dims)
    groups = call.argument(6, "groups", 1)
    if len(source) != weight.ndim or isinstance(padding, str):
        yield from linear(call, given, pairs)
        return
    padding = _each(padding, dims)
    if turned:
        back = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](multiplier, weight, None, stride, padding, dilation, groups)
    else:
        least = [
            (out - 1) * s - 2 * p + d * (k - 1) + 1
            for out, s, p, d, k in zip(multiplier.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
        ]
        rest = [have - at_least for have, at_least in zip(source[2:], least, strict=True)]
        if dims == 2 and groups == 1 and weight.shape[1] < 4:  # few colours: oneDNN takes up to five times as long
            patches = weight.flatten(1).t() @ multiplier.flatten(2)
            yield 0, F.fold(patches, source[2:], weight.shape[2:], (*dilation,), (*padding,), (*stride,))
            return
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        back = transposed(multiplier, weight, None, stride, padding, rest, groups, dilation)
    yield 0, back


def sums(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of a sum or a difference."""
    alpha, backwards = call.options.get("alpha", 1), called(call.function) in ("rsub", "__rsub__")
    sign = -1 if "sub" in called(call.function) else 1
    factors = (sign * alpha, 1) if backwards else (1, sign * alpha)
    for (place, name), factor in zip(((0, "input"), (1, "other")), factors, strict=True):
        part = call.argument(place, name)
        if isinstance(part, Hole):
            yield part.number, _fitted(call, part, given[0] if factor == 1 else given[0] * factor)


def times(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of a product, element by element: each factor gets the other's mean."""
    one, two = call.argument(0, "input"), call.argument(1, "other")
    for part, other in ((one, two), (two, one)):
        if isinstance(part, Hole):
            yield part.number, _fitted(call, part, given[0] * _value(call, other, pairs))


def quotient(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of a quotient: the product with the divisor's inverse, which has a rule of its own."""
    if call.options.get("rounding_mode") is not None:
        raise Unruled(" that rounds")
    above, below = call.argument(0, "input"), call.argument(1, "other")
    if called(call.function) in ("__rdiv__", "__rtruediv__"):
        above, below = below, above
    if called(call.function).startswith("reciprocal"):
        above, below = 1, above
    if not isinstance(below, Hole):
        yield above.number, _fitted(call, above, given[0] / _value(call, below, pairs))
        return
    a, b = (1 / side for side in pairs.sides(call.before[below.number].read()))
    if isinstance(above, Hole):
        yield above.number, _fitted(call, above, given[0] * ((a + b) / 2).flatten(0, 1))
    back = given[0] * (a * b).neg_().flatten(0, 1) * _value(call, above, pairs)
    yield below.number, _fitted(call, below, back)


def greater(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of the larger or the smaller of two: ``max(x, y) = y + max(x - y, 0)``."""
    one, two = call.argument(0, "input"), call.argument(1, "other")
    if not isinstance(two, Hole | Tensor):
        raise Unruled
    (one_a, one_b), (two_a, two_b) = (_sides(call, part, pairs) for part in (one, two))
    above = bend(one_a - two_a, one_b - two_b).flatten(0, 1)
    shares = (above, 1 - above) if "max" in called(call.function) else (1 - above, above)
    for part, share in zip((one, two), shares, strict=True):
        if isinstance(part, Hole):
            yield part.number, _fitted(call, part, given[0] * share)


def pooled(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of max pooling: the difference goes to the place where the larger of the two maxima lies.

    There the input differs by at least as much, so that its multiplier is 0 to 1 times the output's.
    """
    only_first(call)
    top, at, dims = call.memo["top"], call.memo["at"], call.memo["dims"]
    a, b = pairs.sides(call.before[0].read().flatten(-dims))
    (top_a, top_b), (at_a, at_b) = pairs.sides(top.flatten(-dims)), pairs.sides(at.flatten(-dims))
    wide, at = (*pairs.shape, *a.shape[2:]), torch.where(top_a >= top_b, at_a, at_b)
    way = a.expand(wide).gather(-1, at).sub_(b.expand(wide).gather(-1, at)).abs_()
    tiny = torch.finfo(way.dtype).tiny  # equal maxima in one place: all of the multiplier
    share = (top_a - top_b).abs_().add_(tiny).div_(way.add_(tiny)).mul_(pairs.split(given[0]).flatten(-dims))
    back = share.new_zeros(wide).scatter_add_(-1, at, share)
    yield 0, back.view(len(given[0]), *call.sources[0].shape[1:])


def _pooling(function: Function) -> Callable[..., tuple[Any, dict[Any, Any]]]:
    """Max pooling that also says where each maximum lies."""
    name = str(function.__name__).removesuffix("_with_indices")
    dims, indexed = int(name[-2]), getattr(F, f"{name}_with_indices")
    count = 1 if name.startswith("adaptive") else 5

    def perform(input: Tensor, *args: Any, **options: Any) -> tuple[Any, dict[Any, Any]]:
        both = name != function.__name__ or options.pop("return_indices", args[count:] == (True,))
        options.pop("return_indices", None)
        quick = input.ndim == 4 and input.device.type == "cpu"  # channels last, it takes a fifth of the time
        x = input.contiguous(memory_format=torch.channels_last) if quick else input
        top, at = (part.contiguous() if quick else part for part in indexed(x, *args[:count], **options))
        return (top, at) if both else top, {"top": top.detach(), "at": at, "dims": dims}

    return perform


def softmax(call: Call, given: tuple[Tensor, ...], pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Of ``softmax``, ``log_softmax`` and ``logsumexp``, made of exponentials, a sum and a logarithm."""
    only_first(call)
    dim, ndim, name = call.argument(1, "dim"), len(call.sources[0].shape), called(call.function)
    if not isinstance(dim, int) or dim % ndim == 0:
        raise Unruled(" over the images, or over several axes")
    dim = dim % ndim - ndim
    a, b = pairs.sides(call.before[0].read())
    multiplier, weights = pairs.split(given[0]), softmax_weights(a, b, dim)
    if name == "logsumexp":
        kept = call.argument(2, "keepdim", False)
        yield 0, weights.mul_(multiplier if kept else multiplier.unsqueeze(dim)).flatten(0, 1)
        return
    if name == "softmax":
        multiplier = multiplier * exponential(a.log_softmax(dim), b.log_softmax(dim))
    yield 0, (multiplier - weights.mul_(multiplier.sum(dim, keepdim=True))).flatten(0, 1)


def _fitted(call: Call, hole: Hole, multiplier: Tensor) -> Tensor:
    """A multiplier summed over the axes along which its value was broadcast."""
    shape = call.sources[hole.number].shape
    if len(shape) != len(call.shapes[0]):
        raise Unruled(" that broadcasts one image over another")
    return multiplier.sum_to_size(len(multiplier), *shape[1:]).to(call.sources[hole.number].kind)


def _value(call: Call, part: Any, pairs: Pairs) -> Any:
    """The other factor in each pair."""
    if isinstance(part, Hole):
        return pairs.middle(call.before[part.number].read())
    return pairs.constant(part, call.shapes[0])


def _sides(call: Call, part: Any, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """An operand in each pair's first and second row."""
    if isinstance(part, Hole):
        return pairs.sides(call.before[part.number].read())
    constant = pairs.constant(part, call.shapes[0])
    same = constant if constant is part else pairs.split(constant)
    return same, same


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


SAME = named(
    "contiguous clone detach to float double half bfloat16 type_as view_as reshape_as alias requires_grad_ positive"
) | {inspect.getattr_static(Tensor, "data").__get__}
MORE_LINEAR = named(
    "where masked_fill masked_fill_ cumsum pixel_unshuffle channel_shuffle tril triu diagonal take_along_dim "
    "swapaxes hstack vstack dstack hsplit vsplit dsplit tensor_split repeat_interleave upsample_nearest "
    "upsample_bilinear native_channel_shuffle moveaxis column_stack unsafe_chunk unsafe_split neg negative neg_"
)
DROPOUT = named("dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout alpha_dropout_ feature_alpha_dropout")
MAX_POOL = frozenset(
    getattr(F, f"{adaptive}max_pool{dims}d{places}")
    for adaptive in ("", "adaptive_")
    for dims in (1, 2, 3)
    for places in ("", "_with_indices")
) | named("max_pool1d max_pool2d max_pool3d adaptive_max_pool1d")
SUM = named("add add_ sub sub_ subtract rsub __rsub__ __radd__ __add__ __sub__ __iadd__ __isub__")
TIMES = named("mul mul_ multiply __mul__ __rmul__ __imul__")
QUOTIENT = named("div div_ divide true_divide true_divide_ __rdiv__ __rtruediv__ __truediv__ reciprocal reciprocal_")


def _table() -> dict[Function, Rule]:
    """Every function that there is a rule for; later lines replace earlier ones."""
    lines: list[tuple[frozenset[Any], Rule]] = [
        (LINEAR | MORE_LINEAR | {put}, Rule(linear, several="")),
        (RESHAPE | SAME, Rule(reshaped, several="")),
        (PRODUCT | named("einsum addcmul addcmul_ baddbmm_ addmm_"), Rule(product)),
        (DROPOUT, Rule(dropped)),
        (frozenset({F.batch_norm}), Rule(normalised)),
        (frozenset({F.linear}), Rule(layer)),
        (CONVOLUTION, Rule(convolved)),
        (SUM, Rule(sums, several="")),
        (TIMES, Rule(times)),
        (QUOTIENT, Rule(quotient, "x")),
        (named("maximum minimum max min fmax fmin"), Rule(greater, "x")),
        (MAX_POOL, Rule(pooled, "x")),
        (named("softmax log_softmax logsumexp"), Rule(softmax, "x")),
    ]  # fmt: skip
    return {function: rule for functions, rule in lines for function in functions} | RULES_OF_NUMBERS


RULES = _table()


def keeps(function: Function, uses: int) -> str | None:
    """What of a call the walk will need; None where there is no rule."""
    rule = RULES.get(function)
    return None if rule is None else rule.one if uses == 1 else rule.several


PERFORMS = {function: _pooling(function) for function in MAX_POOL}
