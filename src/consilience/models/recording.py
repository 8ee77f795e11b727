"""What the layers of a model put out for some examples."""

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.errors import ModelError, unknown
from consilience.models.split import Normalised
from consilience.tensors import rows_per_chunk, slices


class Place(NamedTuple):
    """Where in a pass an output is to be noted."""

    name: str
    module: nn.Module
    call: int | None
    """Which of the module's calls, from 1; None where it must be the only one."""


def record(model: nn.Module, x: Float[Tensor, "n ..."], layers: Sequence[str]) -> dict[str, Float[Tensor, "n ..."]]:
    """The outputs of the named layers, detached, as each came out whatever was written into it later.

    Layers are named as the state dict names them. Of one that the model calls several times ``"relu#2"`` is
    the second call. Of a layer that puts out several things, the first is taken. The model must be in
    evaluation mode; it runs once, in chunks, without a graph, and nothing is left on it.

    Raises:
        ModelError: There is no such layer; the model does not call it, or several times and no call was named; it puts
            out no tensor with the examples first; or the model is in training mode, in which it draws and changes.
    """
    if training := [type(module).__name__ for module in model.modules() if module.training]:
        raise ModelError(
            f"record: expected a model in evaluation mode, found {', '.join(sorted(set(training)))} in training mode; "
            "call model.eval()"
        )
    places = [_place(model, name) for name in layers]
    parts: dict[str, list[Tensor]] = {place.name: [] for place in places}
    for some in list(slices(len(x), rows_per_chunk(model, x))) or [slice(0)]:
        for name, output in _outputs(model, x[some], places).items():
            parts[name].append(output)
    return {name: torch.cat(outputs) for name, outputs in parts.items()}


def _place(model: nn.Module, name: str) -> Place:
    """The layer of that name; a wrapper with the data's mean has no name in it."""
    inside: Any = model
    while isinstance(inside, Normalised):
        inside = inside.model
    modules = {**_named(model), **_named(inside)}
    if name in modules:
        return Place(name, modules[name], None)
    layer, _, call = name.rpartition("#")
    if layer in modules and call.isdecimal():
        return Place(name, modules[layer], int(call))
    near = difflib.get_close_matches(layer or name, modules, n=1)
    raise ModelError(f"record: {unknown('layer', layer or name, near or dict(inside.named_children()))}")


def _named(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if name}


def _outputs(model: nn.Module, x: Tensor, places: Sequence[Place]) -> dict[str, Tensor]:
    """What one pass puts out at each place."""
    seen: dict[str, list[Tensor | None]] = {place.name: [] for place in places}

    def note(place: Place, out: Any) -> None:
        calls = seen[place.name]
        wanted = len(calls) + 1 == (1 if place.call is None else place.call)
        calls.append(_first(place, out, len(x)).clone() if wanted else None)  # the model may go on in place

    with ExitStack() as hooks, torch.no_grad():
        for place in places:
            handle = place.module.register_forward_hook(lambda module, args, out, place=place: note(place, out))
            hooks.callback(handle.remove)
        model(x)
    return {place.name: _chosen(place, seen[place.name]) for place in places}


def _first(place: Place, out: Any, examples: int) -> Tensor:
    """The output itself, or the first of several."""
    first = out[0] if isinstance(out, tuple | list) and out else out
    if not isinstance(first, Tensor) or not first.ndim or len(first) != examples:
        found = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ModelError(
            f"layer '{place.name}': expected an output with the {examples} examples as its first axis, found {found}; "
            "name another layer"
        )
    return first


def _chosen(place: Place, calls: Sequence[Tensor | None]) -> Tensor:
    """The output of the call that was asked for."""
    if not calls:
        raise ModelError(
            f"layer '{place.name}': expected one that the model calls, found that it does not; name another"
        )
    if place.call is None and len(calls) > 1:
        raise ModelError(
            f"layer '{place.name}': expected one that the model calls once, found {len(calls)} calls; "
            f"say which, from '{place.name}#1' to '{place.name}#{len(calls)}'"
        )
    output = next((call for call in calls if call is not None), None)  # the one that was wanted, if it came
    if output is None:
        raise ModelError(
            f"layer '{place.name}': expected that call, found {len(calls)} calls of the layer; count from 1"
        )
    return output
