"""A rule that divides relevance among the inputs of each layer of a model, however the model calls it."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from consilience.attribution.backward import Call, Rules, depends, nodes
from consilience.attribution.division import Divide, Layer, Ruled, by_square, evenly, in_box, over
from consilience.attribution.front import ARRANGES, Front, Pixels
from consilience.attribution.merging import (
    EINSUM,
    SCALES,
    SHIFTS,
    Outputs,
    changed,
    fresh,
    layer_of,
    norm_of,
    normed,
    refused,
)
from consilience.attribution.operations import (
    BATCH_NORM,
    CLAMP,
    LAYER,
    MAXIMUM,
    PRODUCT,
    RELU,
    named,
    tensors_in,
    written,
)
from consilience.errors import ModelError

First = Literal["as_others", "box", "w_square", "flat"]
"""How relevance is divided among the pixels by the layers that take them."""

KNOWN = (RELU | MAXIMUM) | named(
    "leaky_relu leaky_relu_ prelu rrelu abs abs_ absolute where minimum min amax amin topk sort masked_fill "
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices view_as reshape_as ravel broadcast_to negative "
    "neg_ squeeze_ unsqueeze_ hstack vstack dstack tensor_split pixel_unshuffle channel_shuffle diagonal cumsum"
)  # proportional to what they are given, piece by piece: their derivative divides as it should
ACTIVATION = CLAMP | named(
    "sigmoid sigmoid_ tanh tanh_ gelu silu elu elu_ selu selu_ celu celu_ mish softplus softsign hardswish "
    "hardsigmoid logsigmoid hardshrink softshrink tanhshrink erf"
)
SOFTMAX = named("softmax log_softmax")
SOFTMAX_NODES = frozenset({"SoftmaxBackward0", "LogSoftmaxBackward0"})
OPAQUE = named(
    "multi_head_attention_forward scaled_dot_product_attention bilinear rnn_tanh rnn_relu lstm gru rnn_tanh_cell "
    "rnn_relu_cell lstm_cell gru_cell layer_norm group_norm instance_norm rms_norm"
)
REVERSED = named("rsub __rsub__")
SUMMED = named("addmm baddbmm")  # a product and something added
NATIVE = frozenset({
    "ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "LinearBackward0", "NativeBatchNormBackward0",
    "CudnnBatchNormBackward0", "SigmoidBackward0", "TanhBackward0", "GeluBackward0", "SiluBackward0",
})  # fmt: skip


class Division:
    """The context of such a rule. One run of the model long, it knows what the layers gave.

    Args:
        name: Of the rule, for messages.
        model: The model that will run inside.
        dense: How dense layers divide.
        convolution: How convolutions divide.
        beyond: Whether products of two things that depend on the pixels are divided evenly, and a softmax that
            nothing follows is differentiated, rather than refused.
    """

    def __init__(self, name: str, model: nn.Module, dense: Divide, convolution: Divide, *, beyond: bool = True) -> None:
        self.name, self.dense, self.convolution, self.beyond = name, dense, convolution, beyond
        self.front, self.outputs = Front(), Outputs()
        self.first: First = "as_others"
        self.layers = self.firsts = 0
        self.softmax = False
        answers: list[tuple[frozenset[Any], Callable[[Call], Any]]] = [
            (KNOWN, Call.plain), (ARRANGES, self.front.arranged), (SHIFTS | SCALES | REVERSED, self._changed),
            (ACTIVATION, self._passed), (BATCH_NORM, self._normed), (SOFTMAX, self._softmax), (OPAQUE, self._opaque),
            (LAYER | PRODUCT | EINSUM, self._layer),
        ]  # fmt: skip
        table = {function: answer for functions, answer in answers for function in functions}
        self.rules = Rules(name, model, table, native=NATIVE, strict=True)

    def __enter__(self) -> Rules:
        return self.rules.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.front.clear()
        self.outputs.clear()
        self.rules.__exit__(kind, error, trace)
        if kind is None and not self.layers:
            raise ModelError(
                f"{self.name}: expected layers whose relevance is divided, found none among "
                f"{sorted(self.rules.bound)}; take a method that needs none, such as integrated_gradients"
            )
        if kind is None and self.first != "as_others" and not self.firsts:
            raise ModelError(
                f"first: expected a layer that takes the pixels, found none to divide by '{self.first}'; "
                "take first = 'as_others'"
            )

    def _layer(self, call: Call) -> Any:
        if not _unknown(call):
            return _constant(call)
        layer = layer_of(self.name, call)
        if layer is None:
            if call.function in LAYER:
                raise refused(self.name, written(call.function), "with weights that depend on the pixels")
            return self._product(call)
        self._check_softmax(layer.x)
        return self._answer(layer, call.plain)

    def _answer(self, layer: Layer, plain: Callable[[], Any]) -> Tensor:
        """The value of a layer, from where relevance is divided among its inputs."""
        divide, origin = (self.dense if layer.dense else self.convolution), layer.x
        pixels = self.front.pixels(layer.x)
        if self.first != "as_others" and pixels is not None:
            box = functools.partial(in_box, low=pixels.low, high=pixels.high)
            own: dict[First, Divide] = {"box": box, "w_square": by_square, "flat": evenly}
            divide, origin, self.firsts = own[self.first], pixels.ones, self.firsts + 1

        def run() -> tuple[Tensor, ...]:
            y = plain()
            return y, layer.x, y.clone()  # the model may write over what it gets

        y = _ruled(origin, run, functools.partial(divide, layer))
        node: Any = y.grad_fn
        node.layer = layer
        self.outputs.note(y, layer)
        self.layers += 1
        return y

    def _normed(self, call: Call) -> Any:
        if not _unknown(call):
            return _constant(call)
        x, scale, shift = norm_of(self.name, call)
        pixels = self.front.pixels(x)
        if pixels is not None:
            like = (-1, *[1] * (x.ndim - 2))
            return self.front.moved(pixels, lambda end: end * scale.view(like) + shift.view(like), call.plain(), None)
        before = self.outputs.layer(x)
        merged = None if before is None else normed(before, x, scale, shift)
        return self._passed(call) if merged is None else self._answer(merged, call.plain)

    def _passed(self, call: Call) -> Any:
        """The value of a call that takes each number to one number, with that number's relevance."""
        unknown = _unknown(call)
        if not unknown:
            return _constant(call)
        x = call.args[0] if call.args else call.options.get("input")
        if len(unknown) > 1 or unknown[0] is not x:
            return NotImplemented
        with torch.no_grad():
            given = x.detach().clone()
            changed = call._replace(args=(given, *call.args[1:])) if call.args else call._replace(
                options=call.options | {"input": given})  # fmt: skip
            out = changed.plain()
            ratio = over(out, x.detach())
        y = _ruled(x, lambda: (out.clone() if out is given else out, ratio), torch.mul)
        return x.copy_(y) if out is given else y

    def _changed(self, call: Call) -> Any:
        """Sums, differences, products and quotients."""
        unknown, kind = _unknown(call), written(call.function).strip("_")
        if not unknown:
            return _constant(call)
        x, operands = unknown[0], (*call.args, *([call.options["other"]] if "other" in call.options else []))
        place = next((i for i, value in enumerate(operands) if value is x), None)
        if kind in ("div", "true_divide") and (len(unknown) > 1 or place != 0 or "rounding_mode" in call.options):
            raise refused(self.name, kind, "by what depends on the pixels, or rounded")
        if len(unknown) > 1:
            return self._product(call) if call.function in SCALES else NotImplemented
        if place is None or len(operands) != 2:
            return NotImplemented
        into, pixels, before = x if fresh(call) is not call else None, self.front.pixels(x), self.outputs.layer(x)
        if pixels is not None:
            return self._moved(call, x, pixels, into)
        merged = None if before is None else changed(before, x, call, operands[1 - place])
        if merged is None:
            return NotImplemented
        y = self._answer(merged, fresh(call).plain)
        if into is not None:
            y = into.copy_(y)
            self.outputs.note(y, merged)
        return y

    def _moved(self, call: Call, x: Tensor, pixels: Pixels, into: Tensor | None) -> Any:
        def move(end: Tensor) -> Tensor:
            args = tuple(end if value is x else value for value in call.args)
            options = {name: end if value is x else value for name, value in call.options.items()}
            out: Tensor = fresh(call._replace(args=args, options=options)).plain()
            return out

        y = move(x.detach())
        return self.front.moved(pixels, move, y, into) if y.shape == x.shape else NotImplemented

    def _product(self, call: Call) -> Any:
        """A product of what depends on the pixels: each factor gets the same part of its relevance."""
        unknown = _unknown(call)
        if not self.beyond or call.function in SUMMED:
            return NotImplemented
        for factor in unknown:
            self._check_softmax(factor)
        less = functools.partial(torch.mul, 1 / len(unknown))
        factors = {id(each): _ruled(each, functools.partial(_copied, each), less) for each in unknown}
        args = tuple(factors.get(id(value), value) for value in call.args)
        options = {name: factors.get(id(value), value) for name, value in call.options.items()}
        y = fresh(call._replace(args=args, options=options)).plain()
        return y if fresh(call) is call else unknown[0].copy_(y)

    def _softmax(self, call: Call) -> Any:
        if not self.beyond:
            return NotImplemented
        self.softmax = True
        return call.plain()

    def _check_softmax(self, x: Tensor) -> None:
        if self.softmax and SOFTMAX_NODES & nodes(x):
            raise refused(self.name, "a softmax", "that the model goes on from")

    def _opaque(self, call: Call) -> Any:
        if not _unknown(call):
            return _constant(call)
        raise refused(self.name, written(call.function), "for which it has no rule")


def _unknown(call: Call) -> list[Tensor]:
    """What a call is given that depends on the pixels."""
    return [tensor for tensor in tensors_in((call.args, call.options)) if depends(tensor)]


def _constant(call: Call) -> Any:
    """The value of a call that has nothing to do with the pixels."""
    with torch.no_grad():
        return call.plain()


def _copied(x: Tensor) -> tuple[Tensor]:
    return (x.detach().clone(),)


def _ruled(x: Tensor, run: Callable[[], tuple[Tensor, ...]], back: Callable[..., Tensor]) -> Tensor:
    y: Tensor = Ruled.apply(x, run, back)
    return y
