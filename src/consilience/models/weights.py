"""Weights that somebody else trained: read from a file, known by their content, and put into a fresh model."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for a file that it refuses; nothing is unpickled here
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consilience.errors import DataError, ModelError

HOLDERS = ("state_dict", "model")
"""Under which a checkpoint holds its state dict among other things."""

OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""How torchvision named DenseNet's layers when it trained them; ``norm.1`` has since become ``norm1``."""

COUNTER = "num_batches_tracked"
"""Of batch norm, which files from before it was counted lack, and which nothing here depends on."""

TOLD = 5  # names in a message


class Started(NamedTuple):
    """The tensors of a model by how they begin; a counter that the file lacks is in none of the three."""

    loaded: tuple[str, ...]
    """As the file has them."""
    summed: tuple[str, ...]
    """The file's filters for three channels, made one for a grey image."""
    fresh: tuple[str, ...]
    """As the model drew them: a last layer for another number of classes."""

    @property
    def label(self) -> str:
        """How a person would write it."""
        counts = [f"{len(self.loaded)} tensors loaded"]
        counts += [f"summed over three channels: {', '.join(self.summed)}"] if self.summed else []
        return "; ".join([*counts, f"fresh: {', '.join(self.fresh) or 'none'}"])


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names: of safetensors, or of a state dict that torch saved.

    The state dict may be held under ``state_dict`` or ``model``. No code in the file is run.

    Raises:
        DataError: The file is missing, cut short, or holds something else.
    """
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except UnpicklingError:  # its text advises to run the code in the file
        raise DataError(_unusable(path, "what only code in the file could read, or no weights at all")) from None
    except Exception as error:  # what torch raises depends on where in the file the damage is
        said = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
        raise DataError(_unusable(path, f"'{said}'")) from None
    if isinstance(found, Mapping):
        held = [found[key] for key in HOLDERS if isinstance(found.get(key), Mapping)]
        found = max(held, key=bool, default=found)  # the first that is not empty
    if not isinstance(found, Mapping) or not found:
        raise DataError(_unusable(path, "no tensor" if isinstance(found, Mapping) else type(found).__name__))
    for name, tensor in found.items():
        kind = _other(tensor)
        if kind or not isinstance(name, str):
            raise DataError(_unusable(path, f"{kind or 'a tensor'} under {name!r}"))
    return {name: tensor.detach().clone() for name, tensor in found.items()}  # else a view of the file


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, types, shapes and values, whichever file held them in whichever order."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name!r} {tensor.dtype} {list(tensor.shape)};".encode())
        # only a copy has no stride in a single place, and no conjugate or sign that is still to be taken
        values = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def start_from(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> Started:
    """Which tensors of a fresh model now hold others' weights; it is changed in place, or not at all.

    Every tensor of the model is found under its own name in its own shape, and none is left over, but
    that a last layer for another number of classes keeps its fresh draws, that filters for three
    channels are summed where the model sees one (the same as to show them the grey image three times),
    and that counters of batch norm may lack. ``module.`` before all names is dropped, but where it
    stands before all of the model's too, and DenseNet's old names are read as today's.

    Args:
        where: What an error names, the file as a rule.

    Raises:
        ModelError: The weights are not all finite, or are another architecture's.
    """
    own: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    given = _respelled(tensors, own, where)
    fresh, summed = _other_classes(own, given), _one_channel(own, given)
    faults = [
        fault
        for name in [*own, *(name for name in given if name not in own)]
        if (fault := _fault(name, own.get(name), given.get(name), reshaped=name in {*fresh, *summed}))
    ]
    if faults:
        more = f" and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        raise ModelError(
            f"{where}: expected a tensor for each of the model's, of its shape, and no other, found "
            f"{', '.join(faults[:TOLD])}{more}; name the architecture whose weights these are, or a file of this one's"
        )
    values = {}
    for name, tensor in given.items():
        values[name] = (tensor.double().sum(1, keepdim=True) if name in summed else tensor).to(own[name].dtype)
        if not values[name].isfinite().all():
            raise ModelError(
                f"{where}: expected finite weights, found NaN or infinity in '{name}'; take those of another epoch, or "
                "another file"
            )
    with torch.no_grad():
        for name in values.keys() - {*fresh}:
            own[name].copy_(values[name])
    loaded = tuple(name for name in own if name in values and name not in {*fresh, *summed})
    return Started(loaded, summed, fresh)


def _other(found: Any) -> str | None:
    """What stands where a tensor with a value in each place should; None where one does."""
    if not isinstance(found, Tensor):
        return type(found).__name__
    if found.is_meta:
        return "a tensor without values, of the meta device,"
    return "a tensor that is sparse or quantised" if found.layout != torch.strided or found.is_quantized else None


def _unusable(path: Path, what: str) -> str:
    return (
        f"{path}: expected weights, complete, as safetensors or as a state dict that torch saved, found {what}; "
        "download the file again, or save the state dict alone"
    )


def _parallel(names: Iterable[str]) -> bool:
    return all(name.startswith("module.") for name in names)


def _respelled(tensors: Mapping[str, Tensor], own: Iterable[str], where: str) -> dict[str, Tensor]:
    """The tensors under the names that a model of today, whose own are these, gives them."""
    wrapped = _parallel(tensors) and not _parallel(own)
    names = {name: OLD_DENSENET.sub(r"\1\2.", name.removeprefix("module.") if wrapped else name) for name in tensors}
    if len({*names.values()}) < len(names):
        raise ModelError(
            f"{where}: expected each tensor once, found some under an old and a new name; keep one of each"
        )
    return {names[name]: tensor for name, tensor in tensors.items()}


def _other_classes(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The tensors of the last layer where the file's differs in the number of classes alone; else none."""
    layer = next(reversed([*own]), "").rpartition(".")[0]
    names = tuple(name for name in own if name.rpartition(".")[0] == layer)
    for name in names:
        one, two = own[name].shape, given[name].shape if name in given else ()
        if not one or not two or one[0] == two[0] or one[1:] != two[1:]:
            return ()
    return names


def _one_channel(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The first convolution where it sees one channel and the file's three; else none."""
    name = next((name for name, tensor in own.items() if tensor.ndim == 4), None)
    if name is None or name not in given or own[name].shape[1] != 1:
        return ()
    filters, _, *size = own[name].shape
    return (name,) if given[name].shape == (filters, 3, *size) else ()


def _fault(name: str, own: Tensor | None, given: Tensor | None, *, reshaped: bool) -> str | None:
    """What is wrong with a tensor of the file or of the model, if anything; ``reshaped`` may be of another shape."""
    if given is None:
        return None if name.rpartition(".")[2] == COUNTER else f"no '{name}'"
    if own is None:
        return f"'{name}', which the model lacks"
    if own.shape != given.shape and not reshaped:
        return f"'{name}' of {list(given.shape)} where the model has {list(own.shape)}"
    if own.is_floating_point() != given.is_floating_point() or given.is_complex():
        return f"'{name}' of {given.dtype} where the model has {own.dtype}"
    return None
