"""Checkpoints: where a training stands after an epoch, so that an interrupted one goes on as if it had not been.

A checkpoint is one safetensors file whose header holds the rest as JSON, so that replacing it is one
step and no mixture of two epochs can be read. Weights of kept epochs lie beside it, each written once
and before the checkpoint that counts on it. Nothing in the files is code.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from consilience.errors import ArtifactError

FILE = "checkpoint.safetensors"


class Epoch(TypedDict):
    """What is remembered of one epoch."""

    loss: float
    """Mean over the examples, each as the model was when it saw it."""
    rate: float


@dataclass
class Standing:
    """All that changes while a model is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    kept: dict[int, dict[str, Tensor]]
    history: list[Epoch]
    mean: dict[str, Tensor] = field(default_factory=dict)
    """Of the weights after the epochs that are averaged."""


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the processor, independent of the model."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """A digest of names and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(folder: Path, recipe: Mapping[str, Any], standing: Standing) -> None:
    """Write where the training stands; whenever this is interrupted, the checkpoint before it is still there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = len(standing.history)
    if done in standing.kept:
        _write(folder / _kept(done), standing.kept[done], {})
    tensors: dict[str, Tensor] = {}
    state = {
        "model": standing.model.state_dict(), "optimizer": standing.optimizer.state_dict(), "mean": standing.mean,
    }  # fmt: skip
    note = {"recipe": recipe, "history": standing.history, "state": _packed(state, "", tensors)}
    _write(folder / FILE, tensors, note)


def resume(folder: Path, recipe: Mapping[str, Any], standing: Standing) -> None:
    """Bring a freshly built model and optimizer to where the checkpoint stands, if there is one.

    Raises:
        ArtifactError: The checkpoint is damaged, or of another training.
    """
    path = folder / FILE
    if not path.exists():
        return
    tensors, note = _read(path)
    for part in recipe:
        if note["recipe"].get(part) != json.loads(json.dumps(recipe[part])):
            raise ArtifactError(
                f"{path}: expected a checkpoint of this training, found one that differs in '{part}'; "
                "name another folder, or delete this one to begin again"
            )
    state = _unpacked(note["state"], tensors)
    standing.model.load_state_dict(state["model"])
    standing.optimizer.load_state_dict(state["optimizer"])
    standing.mean = state["mean"]
    standing.history.extend(note["history"])
    for epoch in recipe["keep"]:
        if 0 < epoch <= len(standing.history):
            found = _read(folder / _kept(epoch))[0]
            standing.kept[epoch] = {name: found[name] for name in state["model"]}  # the file has another order


def _kept(epoch: int) -> str:
    return f"epoch-{epoch}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor], note: Mapping[str, Any]) -> None:
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, draft, {"note": json.dumps(note)})
        with draft.open("rb+") as file:  # else a power failure could leave the name without the content
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        for left in path.parent.glob("*.part"):  # also by a process that was killed here
            left.unlink()


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            # Cloned, because what was read is a view of the file, which is about to be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return tensors, json.loads((file.metadata() or {})["note"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{path}: expected a complete checkpoint, found a damaged one ({error}); delete its folder to begin again"
        ) from None


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, which keeps whole numbers, floats and keys exactly; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _packed(inside, f"{name}.{key}", tensors)] for key, inside in value.items()]}
    if isinstance(value, list | tuple):
        return {
            type(value).__name__: [_packed(inside, f"{name}.{place}", tensors) for place, inside in enumerate(value)]
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactError(
        f"checkpoint{name}: expected a tensor, number or text in the state of the model and the optimizer, "
        f"found {type(value).__name__}; train without a checkpoint"
    )


def _unpacked(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((form, value),) = packed.items()
    if form == "tensor":
        return tensors[value]
    if form == "items":
        return {key: _unpacked(inside, tensors) for key, inside in value}
    inside = [_unpacked(each, tensors) for each in value]
    return tuple(inside) if form == "tuple" else inside
