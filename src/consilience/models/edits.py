"""Edits of a model's weights, and the layers whose weights they are: what a sanity check takes away, in which order.

Layers are named as the state dict names them, so that mean and deviation in front of a model are
not seen. The model is edited in place; nothing is edited before all is known to be possible.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from consilience.component import edit
from consilience.errors import ModelError, SpecError, unknown
from consilience.models.split import Normalised
from consilience.rng import Rng
from consilience.tensors import Coverage

Order = Literal["top_down", "bottom_up", "independent", "full"]
"""In which order layers lose their weights: from the output down, from the input up, each alone, or all at once."""

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@edit(version=1, paper="adebayo2018sanity")
def randomise(
    model: nn.Module,
    rng: Rng,
    *,
    layers: tuple[str, ...] = (),
    initializer: Literal["own", "shuffle"] = "own",
    batch_norm: Literal["reset", "keep"] = "reset",
) -> Coverage:
    """Which weights now differ, after those of some layers were drawn anew, and which are as they were.

    A draw is keyed by the seed and the layer's own name: a layer gets the same new weights
    whichever others are randomised with it, so that the stages of a cascade share them, and two
    layers of one shape get different ones. A weight that is used in two places changes once and is
    listed under both names. Constants that a layer starts from, as layer norm does, are set again
    by ``own``. Where nothing could change, as in a bias of zeros that is shuffled, it is listed
    as kept.

    Args:
        layers: Names of layers, of what contains them, or of single weights; all where none is given.
        initializer: ``own`` draws as the layer itself does when it is made; ``shuffle`` exchanges the entries of
            each weight at random, so that their distribution stays.
        batch_norm: Whether batch and instance norm among the layers get their first scale, shift and running
            statistics again, or keep what was learnt.

    Raises:
        ModelError: The model has no weights, or some whose distribution is not known.
        SpecError: A name that no layer has, or that of a layer without weights.
    """
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    covered = _covered(model, state, layers)
    drawn: dict[int, Tensor] = {}
    unknowable: list[str] = []
    for layer in _layers(model):
        wanted = {name: tensor for name, tensor in layer.tensors.items() if id(tensor) in covered}
        norm = isinstance(layer.module, _NormBase)
        if not wanted or (norm and batch_norm == "keep"):
            continue
        new = _shuffled(layer, rng) if initializer == "shuffle" and not norm else _own(layer, rng)
        unknowable += [_join(layer.name, name) for name in wanted if name not in new]
        drawn.update({id(tensor): new[name] for name, tensor in wanted.items() if name in new})
    if unknowable:
        raise ModelError(
            f"randomise: expected layers that can draw their own weights, found no initializer that sets "
            f"{', '.join(unknowable)}; choose initializer='shuffle', or name the other layers"
        )
    changed = {id(tensor) for tensor in state.values() if id(tensor) in drawn and _set(tensor, drawn[id(tensor)])}
    return Coverage(
        changed=tuple(name for name, tensor in state.items() if id(tensor) in changed),
        kept=tuple(name for name, tensor in state.items() if id(tensor) not in changed),
    )


def layers_of(model: nn.Module) -> list[str]:
    """Names of the layers that hold weights, in order of definition, as a rule from input to output.

    Attention with its projections is one layer. Weights that lie beside layers rather than in one,
    as a class token does, are listed by their own names. A weight that is used twice belongs to the
    first layer that holds it.
    """
    return [name for block in _blocks(model, joined=False) for name in block]


def blocks_of(model: nn.Module) -> list[tuple[str, ...]]:
    """The stages that a cascade takes: each layer together with the norm layers that directly follow it.

    Which follows which is read from the order of definition. A norm layer alone would be a stage
    that draws nothing; one that comes first of all is a stage of its own nevertheless.
    """
    return _blocks(model, joined=True)


def cascade(names: Sequence[str | tuple[str, ...]], order: Order) -> list[tuple[str, ...]]:
    """The layers that are randomised at each stage, every stage in the order of ``names``.

    ``top_down`` takes the last, the last two, and so on to all; ``bottom_up`` the first, the first
    two; ``independent`` each alone; ``full`` all at once. A name of its own is a stage, and so are
    the names of one tuple together: ``cascade(blocks_of(model), "top_down")``.
    """
    blocks = [(name,) if isinstance(name, str) else name for name in names]
    counts = range(1, len(blocks) + 1)
    if order == "independent":
        return blocks
    if order == "full":
        stages = [blocks] if blocks else []
    elif order == "bottom_up":
        stages = [blocks[:count] for count in counts]
    else:
        stages = [blocks[-count:] for count in counts]
    return [tuple(itertools.chain.from_iterable(stage)) for stage in stages]


class _Layer(NamedTuple):
    """A module with the weights that are its own, by their names in it."""

    name: str
    module: nn.Module
    tensors: Mapping[str, Tensor]


def _walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules in order of definition, with the names that the state dict gives them."""
    yield name, module
    for child, inside in module.named_children():
        yield from _walk(inside, name if isinstance(module, Normalised) else _join(name, child))


def _layers(model: nn.Module) -> list[_Layer]:
    seen: set[int] = set()
    found = []
    for name, module in _walk(model):
        # attention sets weights of its own output projection, so that the two are drawn together
        whole = isinstance(module, nn.MultiheadAttention)
        tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=whole))
        if isinstance(module, _NormBase):
            tensors.update(module.named_buffers(recurse=False))
        own = {local: tensor for local, tensor in tensors.items() if id(tensor) not in seen}
        seen.update(map(id, own.values()))
        if own:
            found.append(_Layer(name, module, own))
    return found


def _blocks(model: nn.Module, *, joined: bool) -> list[tuple[str, ...]]:
    blocks: list[tuple[str, ...]] = []
    for layer in _layers(model):
        inside = [weight for child in layer.module.children() for weight in child.parameters()]
        beside = inside and not isinstance(layer.module, nn.MultiheadAttention)
        names = [_join(layer.name, local) for local in layer.tensors] if beside or not layer.name else [layer.name]
        if joined and blocks and isinstance(layer.module, NORMS):
            blocks[-1] += tuple(names)
        else:
            blocks.append(tuple(names))
    return blocks


def _covered(model: nn.Module, state: Mapping[str, Any], layers: tuple[str, ...]) -> set[int]:
    """The weights that the names stand for."""
    weights = {id(tensor) for layer in _layers(model) for tensor in layer.tensors.values()}
    if not weights:
        raise ModelError(
            f"randomise: expected a model with weights, found none in {type(model).__name__}; edit another"
        )
    if not layers:
        return weights
    covered = set()
    for layer in layers:
        inside = {id(tensor) for name, tensor in state.items() if f"{name}.".startswith(f"{layer}.")} & weights
        known = {name for name, _ in _walk(model) if name}
        if not inside and layer not in known and layer not in state:
            raise SpecError(f"randomise.layers: {unknown('layer', layer, known | set(layers_of(model)))}")
        if not inside:
            raise SpecError(
                f"randomise.layers: expected layers with weights, found '{layer}', which has none; "
                f"choose among {', '.join(layers_of(model))}"
            )
        covered |= inside
    return covered


def _own(layer: _Layer, rng: Rng) -> dict[str, Tensor]:
    """New values from the module's own initializer, without the weights that it does not set."""
    fresh = copy.deepcopy(layer.module).to("cpu")  # the same draws, on whichever device the model is
    weights = {
        name: weight
        for name, weight in fresh.named_parameters()
        if name in layer.tensors and (weight.is_floating_point() or weight.is_complex())
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for weight in weights.values():
            weight.fill_(torch.nan)  # stays where the initializer sets something else, or there is none
        torch.default_generator.manual_seed(rng.common(layer.name).bit_generator.random_raw() >> 1)
        for reset in _initializers(fresh):
            reset()
    known = {name: weight.detach() for name, weight in weights.items() if not weight.isnan().any()}
    return known | {name: value for name, value in fresh.named_buffers() if name in layer.tensors}


def _initializers(module: nn.Module) -> list[Callable[[], None]]:
    if isinstance(module, nn.MultiheadAttention):  # as when it is made: the projection, then what overrules it
        return [module.out_proj.reset_parameters, module._reset_parameters]
    own = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
    return [own] if callable(own) else []


def _shuffled(layer: _Layer, rng: Rng) -> dict[str, Tensor]:
    """Each weight with its entries in another order."""
    new = {}
    for name, tensor in layer.tensors.items():
        raw = rng.common(_join(layer.name, name)).bit_generator.random_raw(tensor.numel())
        order = torch.from_numpy(raw.view(np.int64)).argsort(stable=True)  # three times as fast as NumPy's
        new[name] = tensor.detach().cpu().flatten()[order].view(tensor.shape)
    return new


def _set(tensor: Tensor, new: Tensor) -> bool:
    """Whether that changed anything."""
    differs = not torch.equal(tensor.detach().cpu(), new)
    with torch.no_grad():
        tensor.copy_(new)
    return differs


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
