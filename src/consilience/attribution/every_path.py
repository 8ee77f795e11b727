"""The last layer with a plane that a model has: every path from the pixels to the logits goes through its output."""

from collections import Counter
from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from consilience.attribution.operations import AVERAGE_POOL, RESHAPE, named
from consilience.errors import ModelError

LEADING = 5  # tokens that may stand before the image's: of the class, of a teacher, registers


NORM = named("layer_norm rms_norm")


class Layout(NamedTuple):
    """How an output is read as planes ``[n, channels, h, w]``."""

    order: tuple[int, ...]
    """The axes in the order examples, channels, plane or tokens."""
    lead: int = 0
    """Tokens before those of the image."""
    grid: tuple[int, int] | None = None
    """Height and width in tokens; None where the output has a plane."""

    def plane(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the plane."""
        return self.grid or (shape[self.order[2]], shape[self.order[3]])

    def planes(self, output: Tensor) -> Tensor:
        """The output, or the slope in it, as planes."""
        turned = output.permute(self.order)
        return turned if self.grid is None else turned[..., self.lead :].reshape(*turned.shape[:2], *self.grid)


class Candidate(NamedTuple):
    """The result of one call, which may be the layer's output."""

    call: int
    function: Callable[..., Any]
    shape: tuple[int, ...]
    edge: GradientEdge | None
    value: Tensor | None
    version: int

    def is_this(self, call: int, function: Any, shape: tuple[int, ...]) -> bool:
        """Whether another pass, perhaps of other many examples, does the same here."""
        mine = (self.call, self.function, len(self.shape), self.shape[-1:])
        return mine == (call, function, len(shape), shape[-1:])

    @property
    def overwritten(self) -> bool:
        """Whether the model went on in place."""
        return self.value is not None and self.value._version != self.version


def layout_of(shape: tuple[int, ...], images: tuple[int, ...], plane: tuple[int, int] | None = None) -> Layout | None:
    """How an output of that shape has a plane; None where it has none.

    Four axes are [n, channels, h, w], or [n, h, w, channels] if only this has the image's proportion. Three axes are
    [n, tokens, channels] or [tokens, n, channels]: at most five leading tokens, then those of the plane in rows.
    Where no plane is known from before, it is one of square patches of the image.
    """
    n, _, height, width = images
    if len(shape) == 4 and shape[0] == n:
        last = _alike(shape[1:3], images) and not _alike(shape[2:], images)
        layout = Layout((0, 3, 1, 2) if last else (0, 1, 2, 3))
        return layout if max(layout.plane(shape)) > 1 else None
    if len(shape) == 3:
        for batch in (0, 1):
            if shape[batch] == n and (found := _grid(shape[1 - batch], (height, width), plane)) is not None:
                return Layout((batch, 2, 1 - batch), *found)
    return None


def _alike(plane: tuple[int, ...], images: tuple[int, ...]) -> bool:
    """Whether a plane has the images' proportion, up to a border."""
    (h, w), (height, width) = plane, images[2:]
    return h <= height and w <= width and abs(h * width - w * height) <= height + width


def _grid(tokens: int, image: tuple[int, int], plane: tuple[int, int] | None) -> tuple[int, tuple[int, int]] | None:
    """Leading tokens, and the rows and columns of the others."""
    for lead in range(LEADING + 1):
        rest = tokens - lead
        if plane is not None:
            grids = [plane]
        else:
            square = isqrt(max(rest, 0))
            grids = [(square, square)] if image[0] == image[1] else []
            for side in range(1, max(image) + 1):  # a border may be cut off, or filled up
                grids += [(image[0] // side, image[1] // side), (-(-image[0] // side), -(-image[1] // side))]
        for h, w in grids:
            if h * w == rest > 1:
                return lead, (h, w)
    return None


def choose(
    candidates: list[Candidate], logits: Tensor, x: Tensor, probe: Callable[[], tuple[list[Candidate], Tensor]]
) -> tuple[Candidate, Layout]:
    """The last candidate with a plane through which everything goes that the logits know of the pixels.

    What only averages or reshapes a plane is none. Of tokens it is the last on whose image part the logits depend, or
    their norm: behind the last attention, a class token is alone. That cannot be read off the graph, so it is tried
    on an image of no example.

    Raises:
        ModelError: There is none.
    """
    through = on_every_path(logits, x)
    if not through:
        raise ModelError(
            "model: expected logits that depend on the pixels, found that no gradient reaches them; look for 'detach', "
            "'no_grad' or whole numbers inside the model"
        )
    found = list(_with_planes(candidates, through, tuple(x.shape)))
    if not found:
        raise ModelError(
            "model: expected a layer with a plane through which everything goes that the logits know of the image, "
            "found none; name a layer with layer=..., explain the members of an ensemble one by one, or take a method "
            "that explains pixels, such as gradient"
        )
    if found[-1][1].grid is None:
        return found[-1]
    last, layout = _last_that_matters(found, *probe())
    return next((c for c in candidates if _norm_of(last, c)), last), layout


def _with_planes(
    candidates: list[Candidate], through: set[Any], images: tuple[int, ...]
) -> Iterator[tuple[Candidate, Layout]]:
    """The candidates on every path that have a plane of the image's proportion, each with how it is read."""
    plane: tuple[int, int] | None = None
    for candidate in candidates:
        if candidate.edge is None or candidate.edge.node not in through or candidate.function in AVERAGE_POOL:
            continue
        layout = layout_of(candidate.shape, images, plane)
        if layout is None:
            continue
        own, tokens = layout.plane(candidate.shape), layout.grid is not None
        if candidate.function in RESHAPE and (tokens or own != plane):  # rows and columns of another kind
            continue
        if tokens or _alike(own, images):
            plane = own
            yield candidate, layout


def _last_that_matters(
    found: list[tuple[Candidate, Layout]], tried: list[Candidate], logits: Tensor
) -> tuple[Candidate, Layout]:
    same = {candidate.call: candidate for candidate in tried}
    weight = torch.arange(1, logits.shape[-1] + 1).to(logits).cos()  # of no score in particular
    for candidate, layout in reversed(found):
        there = same.get(candidate.call)
        if there is None or there.edge is None:
            continue
        (slope,) = torch.autograd.grad((logits * weight).sum(), there.edge, retain_graph=True, allow_unused=True)
        if slope is not None and layout.planes(slope).count_nonzero():
            return candidate, layout
    return found[-1]


def _norm_of(tokens: Candidate, candidate: Candidate) -> bool:
    """Whether it is the norm through which the next attention sees the tokens.

    What the logits know of the image goes through it too, and the tokens' length, to which they are blind, is gone:
    the slope in the tokens themselves is at right angles to them.
    """
    if candidate.function not in NORM or candidate.shape != tokens.shape:
        return False
    if candidate.edge is None or tokens.edge is None:
        return False
    return candidate.edge.node.next_functions[0][0] is tokens.edge.node


def on_every_path(logits: Tensor, x: Tensor) -> set[Any]:
    """The nodes of the graph that lie on every path from the logits to the pixels."""
    if logits.grad_fn is None:
        return set()
    order, source = _from_inputs(logits.grad_fn), get_gradient_edge(x).node
    alive = set[Any]()  # what depends on the pixels
    for node in order:
        if node is source or any(before in alive for before, _ in node.next_functions):
            alive.add(node)
    through, waiting, total = set[Any](), Counter[Any](), 0
    for node in reversed(order):
        if node not in alive:
            continue
        total -= waiting[node]
        if not total:  # no path goes by it
            through.add(node)
        if node is not source:
            for before, _ in node.next_functions:
                if before in alive:
                    waiting[before] += 1
                    total += 1
    return through


def _from_inputs(last: Any) -> list[Any]:
    """All nodes of a graph, each after those that it was calculated from."""
    order: list[Any] = []
    seen, stack = {last}, [(last, iter(last.next_functions))]
    while stack:
        node, rest = stack[-1]
        before = next((b for b, _ in rest if b is not None and b not in seen), None)
        if before is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(before)
            stack.append((before, iter(before.next_functions)))
    return order
