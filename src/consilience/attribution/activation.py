"""What a layer puts out, read as planes, and the slope of the score in it.

The layer is named, or found, or it is the seam of a split model. Where no graph is needed below it, none is kept:
the model goes on with a copy of the layer's output that begins a graph of its own. Where it goes on with the original
as well, this is seen, and the pass is made again with the whole graph.
"""

import difflib
from collections.abc import Callable
from contextlib import nullcontext
from threading import get_ident
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from consilience.attribution.every_path import Candidate, Layout, choose, layout_of
from consilience.attribution.gradient import scored
from consilience.attribution.line import even_slices
from consilience.attribution.operations import CONVOLUTION, LAYER, PRODUCT, READ, named, opaque, tensors_in
from consilience.errors import ModelError, SpecError, unknown
from consilience.tensors import Score, Split, in_halves, rows_of

MIXING = LAYER | PRODUCT | named("einsum __matmul__ scaled_dot_product_attention multi_head_attention_forward")


class Seen(NamedTuple):
    """A layer's output as it came out, and the slope of the score in it. The slope of an undefined score is NaN."""

    planes: Float[Tensor, "n k i j"]
    slope: Float[Tensor, "n k i j"]


def at_layer(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    layer: str | None,
    score: Score,
    join: Callable[[Seen], Tensor],
    *,
    create_graph: bool,
) -> Float[Tensor, "n 1 i j"]:
    """What ``join`` makes of a layer's output and the slope in it.

    The first example goes alone: its pass finds the layer, and tells how many examples fit into memory. Where a graph
    is to be kept, all go together.

    Raises:
        SpecError: There is no such layer.
        ModelError: The layer has no plane, or the score does not depend on it.
    """
    at = _Layer(model, layer)

    def maps(some: slice, create_graph: bool = False) -> Tensor:
        return join(at.look(x[some], target[some], score, create_graph=create_graph))

    if not len(x):
        return x.new_zeros(0, 1, *x.shape[2:])
    if create_graph:
        return maps(slice(None), create_graph)

    def chunk(part: slice) -> Tensor:
        first = 1 + part.start
        return in_halves(lambda s: maps(slice(first + s.start, first + s.stop)), part.stop - part.start)

    alone = maps(slice(1))
    return torch.cat([alone, *map(chunk, even_slices(len(x) - 1, rows_of(at.size, x)))])


class _Pass(TorchFunctionMode):
    """Watches one forward pass: catches what the layer puts out, or lists what it could be."""

    def __init__(self, *, cut: bool, at: Candidate | None = None, listed: bool = False) -> None:
        super().__init__()
        self.cut, self.at, self.listed, self.thread = cut, at, listed, get_ident()
        self.value: Tensor | None = None
        self.source: Tensor | GradientEdge | None = None
        self.originals: list[Tensor] = []  # kept, so that nothing else gets their memory
        self.leaked = self.learnt = False
        self.calls, self.held = 0, dict[int, int]()
        self.candidates: list[Candidate] = []
        self.shown: dict[int, Tensor] = {}
        self.hidden = 0
        """The last call that was given a plane which no call before it had put out."""
        self.plane: tuple[int, int] | None = None
        """Of the last convolution before the layer, which made its tokens."""

    @property
    def size(self) -> int:
        """Bytes that the pass held, each place in memory counted once."""
        return sum(self.held.values())

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function in READ:
            return function(*args, **options)
        inputs = tensors_in((args, options))
        if self.cut and self.source is None and inputs:  # without inputs it may be the model's own 'no_grad'
            with torch.no_grad():
                out = function(*args, **options)
        else:
            self.leaked |= any(_memory(t) == _memory(own) for t in inputs for own in self.originals)
            out = function(*args, **options)
        self.calls += 1
        if self.listed:
            if any(t.ndim > 2 and t.grad_fn is not None and id(t) not in self.shown for t in inputs):
                self.hidden = self.calls
            self.shown |= {id(t): t for t in tensors_in(out)}
        self.learnt |= function in MIXING
        if function in CONVOLUTION and self.value is None and isinstance(out, Tensor) and out.ndim == 4:
            self.plane = (out.shape[2], out.shape[3])
        for tensor in tensors_in(out):
            self.held[tensor.data_ptr()] = max(tensor.nbytes, self.held.get(tensor.data_ptr(), 0))
        if self.listed and self.learnt and isinstance(out, Tensor) and out.ndim in (3, 4) and out.requires_grad:
            edge = get_gradient_edge(out)
            self.candidates.append(Candidate(self.calls, function, tuple(out.shape), edge, out, out._version))
        if self.at is not None and isinstance(out, Tensor) and self.at.is_this(self.calls, function, out.shape):
            return self.catch(out)
        return out

    def catch(self, out: Any) -> Any:
        """Note the layer's output; what comes back is what the model goes on with."""
        if isinstance(out, tuple | list) and out:
            again: Callable[[Any], Any] = getattr(out, "_make", type(out))
            return again((self.catch(out[0]), *out[1:]))
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise ModelError(
                f"layer: expected one that puts out a tensor of floats, found {type(out).__name__}; name a layer inside"
            )
        with torch.enable_grad():
            if not self.cut:
                self.value = out.clone()  # the model may go on in place
                self.source = get_gradient_edge(out) if out.requires_grad else None
                return out
            self.value = self.source = out.detach().requires_grad_()
            handed = self.source.clone()
        self.originals.append(out)
        return handed


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Layer:
    """A layer of a model through several passes: what the first found out serves the others."""

    def __init__(self, model: nn.Module, name: str | None) -> None:
        self.model, self.name, self.size = model, name, 0
        self.module = None if name is None else named_module(model, name)
        self.seam = model if name is None and isinstance(model, Split) and model.split else None
        self.layout: Layout | None = None
        self.place: Candidate | None = None
        self.whole = False
        if self.seam is None and any(opaque(module) for module in model.modules()):
            raise ModelError(
                f"model: expected layers that can be watched, found a scripted or compiled {type(model).__name__}; "
                "give the model as it was before"
            )

    def look(self, x: Tensor, target: Tensor, score: Score, *, create_graph: bool) -> Seen:
        """The layer's output for these examples, and the slope in it."""
        known = self.place is not None or self.module is not None or self.seam is not None
        with torch.enable_grad():
            if known and not create_graph and not self.whole:
                if (seen := self._above(x, target, score)) is not None:
                    return seen
                self.whole = True
            with sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext():  # the others differentiate once
                return self._throughout(x, target, score, create_graph)

    def _above(self, x: Tensor, target: Tensor, score: Score) -> Seen | None:
        """With the graph of what lies above the layer alone; None where that is not the whole truth."""
        watch = _Pass(cut=True, at=self.place)
        answer = scored(self._run(x.detach(), watch), target, score)
        if watch.leaked or watch.value is None:
            return None
        try:
            slope = _slope(answer, watch.source, False)
        except CheckpointError:  # what runs again has no copy in it
            return None
        if slope is None:
            return None
        return self._read(watch.value.detach(), slope, x, watch.plane)

    def _throughout(self, x: Tensor, target: Tensor, score: Score, create_graph: bool) -> Seen:
        """With the graph of the whole model."""
        watch = _Pass(cut=False, listed=self.module is None and self.seam is None)
        pixels = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        logits = self._run(pixels, watch)
        answer = scored(logits, target, score)
        if watch.listed:
            self.place, self.layout = self._find(watch.candidates, logits, pixels)
            if watch.hidden > self.place.call:
                raise ModelError(
                    "model: expected every operation to be seen, found a plane behind the last layer that no call "
                    "shows, from scripted code or a function with a derivative of its own; name a layer with layer=..."
                )
            if self.place.overwritten:
                watch = _Pass(cut=False, at=self.place)
                answer = scored(self._run(pixels, watch), target, score)
            else:
                watch.value, watch.source = self.place.value, self.place.edge
            self.place = self.place._replace(value=None, edge=None)
            watch.candidates.clear()
            watch.shown.clear()
        elif watch.value is None:
            raise ModelError(
                f"layer '{self.name}': expected one that the model calls, found that it does not; name another"
            )
        if watch.value is None or (slope := _slope(answer, watch.source, create_graph)) is None:
            raise ModelError(
                f"layer '{self.name}': expected one on which the score depends, found that no gradient reaches its "
                "last output; name another, or look for 'detach' and 'no_grad' inside the model"
            )
        return self._read(watch.value if create_graph else watch.value.detach(), slope, x, watch.plane)

    def _run(self, x: Tensor, watch: _Pass) -> Any:
        """What the model answers, while its layer is watched."""
        handle = None
        if self.module is not None:
            handle = self.module.register_forward_hook(  # another thread's passes are its own
                lambda module, args, out: watch.catch(out) if get_ident() == watch.thread else out
            )
        try:
            with watch:
                return self.model(x) if self.seam is None else self.seam.head(watch.catch(self.seam.features(x)))
        finally:
            self.size = max(self.size, watch.size)
            if handle is not None:
                handle.remove()

    def _find(self, candidates: list[Candidate], logits: Any, x: Tensor) -> tuple[Candidate, Layout]:
        """The layer that an earlier pass found, if this one came by it; else that of this pass."""
        if self.place is not None and self.layout is not None:
            for found in candidates:
                if found.is_this(self.place.call, self.place.function, self.place.shape):
                    return found, self.layout

        def probe() -> tuple[list[Candidate], Any]:
            again, image = _Pass(cut=False, listed=True), x.detach()[:1]
            image = torch.linspace(0, 1, image.numel()).view_as(image).to(image).requires_grad_()
            return again.candidates, self._run(image, again)

        return choose(candidates, logits, x, probe)

    def _read(self, value: Tensor, slope: Tensor, x: Tensor, plane: tuple[int, int] | None) -> Seen:
        """Output and slope as planes.

        Raises:
            ModelError: The output has no plane, or the score depends on a class token alone.
        """
        shape, images = tuple(value.shape), tuple(x.shape)
        layout = self.layout = self.layout or layout_of(shape, images, plane) or layout_of(shape, images)
        if layout is None:
            raise ModelError(
                f"layer {_called(self.name)}: expected an output with a plane, [n, channels, h, w], or with tokens, "
                f"[n, tokens, channels], that form one, found {list(value.shape)}; name a layer with a plane"
            )
        planes = layout.planes(slope)
        if layout.lead and len(slope) and not planes.count_nonzero() and slope.count_nonzero():
            raise ModelError(
                f"layer {_called(self.name)}: expected a score that depends on the image's tokens, found that it "
                "depends on the class token alone; name a layer before the last attention"
            )
        return Seen(layout.planes(value), planes)


def _called(name: str | None) -> str:
    return "between features and head" if name is None else f"'{name}'"


def _slope(answer: Tensor, source: Tensor | GradientEdge | None, create_graph: bool) -> Tensor | None:
    """The slope of each example's score, None where it does not depend on the source."""
    if source is None or not answer.requires_grad:
        return None
    (slope,) = torch.autograd.grad(answer.sum(), source, create_graph=create_graph, allow_unused=True)
    undefined = ~answer.detach().isfinite()
    if slope is None or not bool(undefined.any()):
        return slope
    return slope.masked_fill(undefined.view(-1, *[1] * (slope.ndim - 1)), torch.nan)


def named_module(model: nn.Module, name: str) -> nn.Module:
    """The module of that name, as the state dict says it: a wrapper with the data's mean has no name in it.

    Raises:
        SpecError: Nothing has that name.
    """
    inside: Any = model
    while isinstance(getattr(inside, "pixel_mean", None), Tensor) and isinstance(inside.model, nn.Module):
        inside = inside.model
    modules = dict(inside.named_modules(remove_duplicate=False))
    outside = dict(model.named_modules(remove_duplicate=False))
    found: nn.Module | None = modules.get(name, outside.get(name))
    if found is None or not name:
        near = difflib.get_close_matches(name, modules, n=1)
        raise SpecError(f"layer: {unknown('layer', name, near or [child for child, _ in inside.named_children()])}")
    return found
