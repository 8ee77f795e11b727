"""How a family's maps are read pixel by pixel: each model's values once for all pairs, some pixels at a time."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from consilience.pairs import Maps, Pairs
from consilience.tensors import slices

HELD = 2**23  # values of all twins' maps together, of the pixels that are looked at in one reading of the maps
NEAR = 2**17  # values at a time: what is sorted and compared then stays in the processor's cache

Judge = Callable[[Sequence[Tensor], Pairs], Sequence[Sequence[float]]]
"""The numbers of each pair of a family of finite maps ``[n, d]``, of at least one image."""


def of_pairs(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, judge: Judge, width: int
) -> Iterator[Sequence[Float[Tensor, ""]]]:
    """The numbers of each pair, on the images of which both maps are finite; as many NaN where there are none."""
    finite, device = dict[int, Tensor](), torch.device("cpu")
    for member in _members(pairs):
        maps = family[member]
        finite[member], device = maps.flatten(1).isfinite().all(1).cpu(), maps.device
    alike: dict[bytes, list[int]] = {}  # pairs with the same images share their work
    for position, (a, b) in enumerate(pairs):
        alike.setdefault((finite[a] & finite[b]).numpy().tobytes(), []).append(position)
    numbers: list[Sequence[float]] = [[torch.nan] * width for _ in pairs]
    for positions in alike.values():
        a, b = pairs[positions[0]]
        chosen = finite[a] & finite[b]
        if not bool(chosen.any()):
            continue
        some = Maps(len(family), functools.partial(_finite_rows, family, chosen))
        judged = judge(some, [pairs[position] for position in positions])
        for position, found in zip(positions, judged, strict=True):
            numbers[position] = found
    for found in numbers:
        yield [torch.tensor(number, dtype=torch.float64, device=device) for number in found]


def _finite_rows(family: Sequence[Tensor], chosen: Tensor, member: int) -> Float[Tensor, "m d"]:
    rows = family[member].flatten(1).cpu()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows if bool(chosen.all()) else rows[chosen]


def _members(pairs: Pairs) -> list[int]:
    return sorted(set(itertools.chain(*pairs)))


def by_pixel(
    family: Sequence[Tensor], pairs: Pairs, statistic: Callable[[Float[np.ndarray, "k p n"], Pairs], np.ndarray]
) -> np.ndarray:
    """A statistic ``[..., p]`` of all pairs for some pixels, for all of them; twins are numbered as they are held."""
    members, found = _members(pairs), []
    held = [(members.index(a), members.index(b)) for a, b in pairs]
    n, pixels = family[members[0]].shape
    for some in slices(pixels, max(1, HELD // (n * len(members)))):
        twins = [np.ascontiguousarray(family[member][:, some].numpy().T) for member in members]
        for near in slices(len(twins[0]), max(1, NEAR // (n * len(members)))):
            found.append(statistic(np.stack([values[near] for values in twins]), held))
    return np.concatenate(found, -1)


def pooled_values(family: Sequence[Tensor]) -> Callable[[int], Float[np.ndarray, " m"]]:
    """All values of a model, ascending: of two models at least, and of as many as can be held, they are kept."""

    def ascending(member: int) -> np.ndarray:
        return np.sort(family[member].numpy(), axis=None)

    return functools.lru_cache(max(2, HELD // max(1, family[0].numel())))(ascending)
