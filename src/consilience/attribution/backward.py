"""How signal flows back: rules for operations, wherever and however a model calls them.

A rule is a context. Inside it torch hands every call of the model to a function mode; the calls that the rule is about
are answered with the same value and another derivative. The rule is baked into the graph when the model runs, so the
backward pass may come after the context. Nothing is put on the model, and whatever happens nothing stays.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from consilience.attribution.operations import READ, Function, linear, opaque, tensors_in, written
from consilience.component import backward
from consilience.errors import ModelError

CHECKPOINT = "CheckpointFunctionBackward"
_inside = threading.local()  # modes belong to a thread, and so does the question whether one is on


class Call(NamedTuple):
    """One call of the model that a rule is asked about."""

    function: Function
    args: tuple[Any, ...]
    options: dict[str, Any]
    number: int
    """How many calls the rule has answered before: who a layer is, also where two share one weight."""

    def plain(self) -> Any:
        """What the call gives without the rule."""
        return self.function(*self.args, **self.options)


Handler = Callable[[Call], Any]
"""Gives a call's result with the rule's derivative; ``NotImplemented`` where the rule is not about this call."""


class Rules(TorchFunctionMode):
    """Answers some of a model's calls; knows afterwards which, and which others it let pass.

    Args:
        name: Of the rule, for messages.
        model: The model that will run inside; refused where its calls cannot be seen.
        table: Who answers the calls of a function.
        native: Names of autograd nodes that are left only if a call escaped.
        strict: Whether an operation that is neither answered nor linear is an error.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        table: Mapping[Function, Handler],
        *,
        native: frozenset[str] = frozenset(),
        strict: bool = False,
    ) -> None:
        super().__init__()
        for path, module in model.named_modules():
            if opaque(module):
                raise ModelError(
                    f"{name}: expected a model whose calls can be seen, found that '{path or type(module).__name__}' "
                    "is scripted, traced or compiled; give the original module"
                )
        self.name, self.table, self.native, self.strict = name, table, native, strict
        self.bound: Counter[str] = Counter()
        """The calls that the rule answered, by operation."""
        self.passed: Counter[str] = Counter()
        """Operations that are not linear and that no rule answered; the plain derivative stands there."""

    def __enter__(self) -> "Rules":
        if getattr(_inside, "rule", None) is not None:
            raise ModelError(
                f"{self.name}: expected no other rule to be on, found {_inside.rule}; leave it first, or nest methods"
            )
        super().__enter__()
        _inside.rule = self.name
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        _inside.rule = None
        getattr(_inside, "witness", []).append(self)
        super().__exit__(kind, error, trace)
        if kind is None and not self.bound:
            among = f" among {sorted(self.passed)}" if self.passed else ""
            raise ModelError(
                f"{self.name}: expected operations that the rule is about, found none{among}; this method "
                "would be the plain gradient under another name"
            )

    def __torch_function__(self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function in READ or not torch.is_grad_enabled():
            return function(*args, **options)
        handler = self.table.get(function)
        if handler is not None and any(t.requires_grad for t in tensors_in((args, options))):
            out = handler(Call(function, args, options, self.bound.total()))
            if out is not NotImplemented:
                self.bound[written(function)] += 1
                return out
        out = function(*args, **options)
        if not linear(function, (args, options)) and any(depends(t) for t in tensors_in(out)):
            self.passed[written(function)] += 1
        return out

    def audit(self, logits: Any) -> None:
        """Refuse what the rule did not see, once the model has run.

        Raises:
            ModelError: An operation escaped (a checkpoint, another thread), or a strict rule knows none for it.
        """
        if self.strict and self.passed:
            raise ModelError(
                f"{self.name}: expected operations that the rule knows, found {', '.join(sorted(self.passed))}; "
                "take a method that needs no rule for them, such as integrated_gradients"
            )
        left = nodes(logits)
        if CHECKPOINT in left:
            raise ModelError(
                f"{self.name}: expected every operation to run once, found a checkpoint, which runs the model again "
                "without the rule; switch checkpointing off"
            )
        if escaped := sorted(left & self.native):
            raise ModelError(
                f"{self.name}: expected to see every operation, found {', '.join(escaped)} that no call of the model "
                "shows; it ran in another thread or in compiled code, so run it here"
            )


@contextlib.contextmanager
def witnessed() -> Iterator[list[Rules]]:
    """The rules that were on inside, in the order in which they were left; of this thread."""
    before, _inside.witness = getattr(_inside, "witness", []), list[Rules]()
    try:
        yield _inside.witness
    finally:
        _inside.witness = before


def depends(tensor: Tensor) -> bool:
    """Whether a tensor was calculated from something else than a model's parameters."""
    if not tensor.requires_grad or tensor.grad_fn is None:
        return tensor.requires_grad and not isinstance(tensor, nn.Parameter)
    waiting, seen = [tensor.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable") and not isinstance(node.variable, nn.Parameter):
            return True
        if node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None]
    return False


def nodes(value: Any) -> set[str]:
    """Names of all nodes of the graph that a result hangs on."""
    waiting, seen = [t.grad_fn for t in tensors_in(value)], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


@backward(version=1)
def plain_rule(model: nn.Module) -> AbstractContextManager[None]:
    """Signal flows back as calculus says."""
    return contextlib.nullcontext()
