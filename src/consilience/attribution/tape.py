"""One forward pass, written down: which call of the model made which tensor of which, for whoever walks back.

Torch hands every call to a function mode, whatever the model calls it by. Tensors that depend on the pixels are known
by their identity; what a call changes in place counts from then on as a new value, and what was kept of the old value
is copied first. Nothing is put on the model.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from consilience.attribution.calls import Call, Hole, Kept, Source, called, hollow, in_place, put
from consilience.attribution.operations import READ, Function, named, tensors_in, written
from consilience.errors import ModelError

ASKS = READ | named(
    "element_size get_device is_complex is_signed data_ptr is_same_size __repr__ __hash__ register_hook retain_grad "
    "storage_offset untyped_storage nelement ndimension is_pinned"
)
BLANK = named("zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty")
FORM = named("to type_as expand_as view_as reshape_as")  # of their second tensor only the form counts
ALIASES = "a write into memory that another tensor shares"
HIDDEN = "a tensor made of the pixels by code that hides its calls (scripted, compiled, in another thread)"


class _Known(NamedTuple):
    tensor: Callable[[], Tensor | None]
    node: int
    version: int


Performs = Mapping[Function, Callable[..., tuple[Any, dict[Any, Any]]]]
"""Functions that are called in another way, which gives their result and what their rule needs to remember."""

Keeps = Callable[[Function, int], str | None]
"""A function, and in how many places its call uses the pixels -> what is kept: ``x``, ``y``, ``xy`` or nothing.

None where there is no way back through it.
"""


class Tape(TorchFunctionMode):
    """Writes down the calls of whatever runs inside it, as far as they use ``x``.

    Args:
        name: Of the method, for messages.
        x: What is followed, as examples in rows.
        keeps: What is kept of a call's values.
        performs: How some functions are called.
        unfolded: Functions of which the simpler calls are written down that stand for them.
    """

    def __init__(
        self, name: str, x: Tensor, keeps: Keeps, performs: Performs, unfolded: Mapping[Function, Function]
    ) -> None:
        super().__init__()
        self.name, self.pixels, self.rows = name, x, len(x)
        self.keeps, self.performs, self.unfolded = keeps, performs, unfolded
        self.calls: list[Call] = []
        self.reasons: dict[int, str] = {}
        """Why there is no way back from some values."""
        self.largest = x[:1].nbytes
        """Bytes of one example's largest value."""
        self._count, self._at = 0, dict[int, _Known]()
        self._kept: defaultdict[int, list[Kept]] = defaultdict(list)
        self._sharing: defaultdict[int, list[Callable[[], Tensor | None]]] = defaultdict(list)
        with torch.enable_grad():
            self.start = x.detach().requires_grad_().clone()
        self._origin = _before(self.start.grad_fn)[0]
        self._free: set[Any] = set()  # nodes of the graph that do not hang on the pixels
        self._know(self.start)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function gives for the pixels.

        The graph that torch makes meanwhile holds no values; it tells what depends on the pixels behind our back.
        """
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_nothing, _nothing), self:
            return function(self.start, *args)

    def refuse(self, found: str) -> ModelError:
        """The error for what there is no way back through."""
        return ModelError(
            f"{self.name}: expected operations that a rule is known for, one row for each image, found {found}; "
            "take a method that needs no rules, such as integrated_gradients"
        )

    def node(self, tensor: Tensor) -> int | None:
        """The number of a tensor's value; None where it does not depend on the pixels."""
        known = self._at.get(id(tensor))
        if known is not None and known.tensor() is tensor:
            return known.node if known.version == tensor._version else self._know(tensor, ALIASES)
        near = self._neighbours(tensor)
        for other in near:
            if _same_place(tensor, other):
                known = self._at[id(other)]
                self._at[id(tensor)] = known._replace(tensor=weakref.ref(tensor))
                return self.node(tensor)
        if near:
            return self._know(tensor, ALIASES)
        return self._know(tensor, HIDDEN) if self._hangs(tensor.grad_fn) else None

    def __torch_function__(self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function in ASKS or function in BLANK:
            return function(*args, **options)
        tensors = tensors_in((args, options))
        numbers = [self.node(t) for t in tensors]
        if function in FORM:
            numbers[1:] = [None] * (len(numbers) - 1)
        uses = len(numbers) - numbers.count(None)
        if not uses:
            return function(*args, **options)
        if function in self.unfolded:
            with self:
                return self.unfolded[function](*args, **options)
        return self._written(function, args, options, tensors, numbers, uses)

    def _written(
        self,
        function: Function,
        args: tuple[Any, ...],
        options: dict[str, Any],
        tensors: list[Tensor],
        numbers: list[int | None],
        uses: int,
    ) -> Any:
        """What a call gives that uses the pixels, and a line on the tape."""
        used = {id(t): (t, n) for t, n in zip(tensors, numbers, strict=True) if n is not None}
        sources = tuple(Source(n, t.shape, t.dtype) for t, n in used.values())
        holes = {key: Hole(number) for number, key in enumerate(used)}
        keeps = self.keeps(function, uses) or ""
        before = tuple(self._keep(t) for t, _ in used.values()) if "x" in keeps else ()
        writes = in_place(function, args, options)
        first = (tensors[0].clone(), *args[1:]) if writes and numbers[0] is None else args
        hollow_args, hollow_options = hollow(first, holes), hollow(options, holes)
        if writes:
            self._about_to_change(tensors[0])
        others = [t for t in tensors if not (writes and _memory(t) == _memory(tensors[0]))]
        versions = [t._version for t in others]
        perform = self.performs.get(function)
        out, memo = (function(*args, **options), {}) if perform is None else perform(*args, **options)
        if versions != [t._version for t in others]:
            raise self.refuse(f"'{called(function)}', which writes into a tensor")
        if function is Tensor.__setitem__:
            function, out = put, tensors[0]
        made = tensors_in(out)
        if not made and written(function) != "__get__":  # what is an attribute and no tensor says nothing of values
            raise self.refuse(f"'{called(function)}', which reads numbers out of the pixels")
        if not made or (not writes and any(t is one for t in made for one in tensors)):
            return out  # the very tensor that came in
        nodes = tuple(self._know(t, self._reason(function, t, sources)) for t in made)
        after = self._keep(made[0]) if "y" in keeps else None
        shapes = tuple(t.shape for t in made)
        self.calls.append(
            Call(function, hollow_args, hollow_options, sources, nodes, shapes, before, after, uses, memo)
        )
        return out

    def _reason(self, function: Function, out: Tensor, sources: tuple[Source, ...]) -> str:
        """Why there is no way back from a value; nothing where there is one."""
        if self.keeps(function, 1) is None:
            return f"'{called(function)}'"
        for source in sources:
            if source.node in self.reasons:
                return self.reasons[source.node]
        if not out.is_floating_point():
            return f"'{called(function)}', which makes whole numbers or truth values of the pixels"
        if out.shape[:1] != (self.rows,):
            return f"'{called(function)}', which folds the batch: {list(out.shape)} for {self.rows} images"
        return ""

    def _know(self, tensor: Tensor, reason: str = "") -> int:
        """Number what a tensor now holds."""
        number = self._count
        self._count += 1
        self._at[id(tensor)] = _Known(weakref.ref(tensor), number, tensor._version)
        if address := _memory(tensor):
            others = [other for other in self._neighbours(tensor) if other is not tensor]
            self._sharing[address] = [weakref.ref(one) for one in (*others, tensor)]
        if reason:
            self.reasons[number] = reason
        elif self.rows:
            self.largest = max(self.largest, tensor.nbytes // self.rows)
        return number

    def _neighbours(self, tensor: Tensor) -> list[Tensor]:
        """Tensors in use that lie in the same memory and depend on the pixels."""
        address = _memory(tensor)
        if address not in self._sharing:
            return []
        return [other for get in self._sharing[address] if (other := get()) is not None]

    def _keep(self, tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        self._kept[_memory(tensor)].append(kept)
        return kept

    def _about_to_change(self, tensor: Tensor) -> None:
        for kept in self._kept.pop(_memory(tensor), []):
            kept.save()
        for other in self._neighbours(tensor):
            if other is not tensor:  # also where torch counts its versions apart, as of 'x.data'
                self._at[id(other)] = self._at[id(other)]._replace(version=-1)

    def _hangs(self, node: Any) -> bool:
        """Whether a node of torch's graph leads to the pixels."""
        waiting, seen = [node], set[Any]()
        while waiting:
            node = waiting.pop()
            if node is self._origin:
                return True
            if node is not None and node not in seen and node not in self._free:
                seen.add(node)
                waiting += _before(node)
        self._free |= seen
        return False


def _nothing(_: Any) -> Any:
    return None


def _before(node: Any) -> list[Any]:
    return [before for before, _ in node.next_functions] if node is not None else []


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none, nor has one that wraps another
        return 0


def _same_place(one: Tensor, two: Tensor) -> bool:
    return (one.storage_offset(), one.shape, one.stride(), one.dtype) == (
        two.storage_offset(), two.shape, two.stride(), two.dtype
    )  # fmt: skip
