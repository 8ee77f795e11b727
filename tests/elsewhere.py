"""A device that is not the processor, on machines that have no other.

Its tensors compute on the processor, say that they are elsewhere, and meet no tensor that is not: what moves a tensor
too late, or makes one in the wrong place, raises as it would on a graphics card. What a card rounds otherwise, and how
fast it is, is not seen here.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.library import Library
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
BY_INDEX = ("aten::index", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_")
CHANCE = torch.Generator()
"""What is drawn elsewhere is drawn from this, as a card has a generator of its own."""


class Module(SimpleNamespace):
    """What torch asks of ``torch.<device>``."""

    def __init__(self) -> None:
        super().__init__(
            is_available=lambda: True, is_initialized=lambda: True, _is_in_bad_fork=lambda: False,
            device_count=lambda: 1, current_device=lambda: 0, device=lambda _: contextlib.nullcontext(),
            manual_seed=CHANCE.manual_seed, manual_seed_all=CHANCE.manual_seed, get_amp_supported_dtype=list,
            get_rng_state=lambda _=None: CHANCE.get_state(),
            set_rng_state=lambda state, _=None: CHANCE.set_state(state),
        )  # fmt: skip


_setup_privateuseone_for_python_backend(NAME, Module())
PLACE = torch.device(f"{NAME}:0")


class There(torch.Tensor):
    """A tensor that is elsewhere, around one that is not."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=PLACE
        )
        made.here = here
        return made

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory behind it, by which torch's own tensors are told apart."""
        return self.here.untyped_storage()

    def tolist(self) -> Any:
        """Numbers, as of any tensor; torch refuses them to a class of one's own."""
        return self.here.tolist()

    def __repr__(self) -> str:
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(call, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Calls that are given no tensor yet, or one that is about to move."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(call, args, kwargs or {})


def carried_out(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call on the tensors behind its arguments; what comes out is where a device would have it."""
    given = [one for one in trees.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    there = [one for one in given if isinstance(one, There)]
    name, device = call._schema.name, kwargs.get("device")
    if there and len(there) < len(given):
        allowed = name == "aten::copy_" or (name in BY_INDEX and isinstance(args[0], There))
        strangers = [one for one in given if not isinstance(one, There) and one.ndim > 0]
        if strangers and not allowed:
            raise RuntimeError(f"{name}: expected all tensors on one device, found {PLACE} and cpu")
    goes = isinstance(args[0], There) if name == "aten::copy_" else bool(there)
    if device is not None:
        goes, kwargs = torch.device(device).type == NAME, {**kwargs, "device": torch.device("cpu")}
    bare, options = trees.tree_map(lambda one: one.here if isinstance(one, There) else one, (args, kwargs))
    with _own_chance(goes and torch.Tag.nondeterministic_seeded in call.tags):
        out, around = call(*bare, **options), {id(one.here): one for one in there}

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or isinstance(one, There) or not goes:
            return one
        return around[id(one)] if id(one) in around else There(one)

    return trees.tree_map(placed, out)


@contextlib.contextmanager
def _own_chance(draws: bool) -> Iterator[None]:
    """Inside, the processor's generator goes on where the device's stood; afterwards each has its own again."""
    if not draws:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(CHANCE.get_state())
    try:
        yield
    finally:
        CHANCE.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


MADE_OF_NUMBERS = Library("aten", "IMPL")  # torch.tensor([...], device=...) passes modes by
MADE_OF_NUMBERS.impl("empty_strided", lambda size, stride, **how: There(
    torch.empty_strided(size, stride, **{**how, "device": "cpu"})), "PrivateUse1")  # fmt: skip
MADE_OF_NUMBERS.impl("_copy_from", lambda source, to, _=False: (to.here.copy_(source), to)[1], "PrivateUse1")


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """Inside, the device exists; its name."""
    with _Factories():
        yield NAME


def moved(value: Any, device: str) -> Any:
    """Tensors and modules, also inside a tuple, on a device; anything else as it is."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(part, device) for part in value))
    return value.to(device) if isinstance(value, torch.Tensor | torch.nn.Module) else value
