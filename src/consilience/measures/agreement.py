"""How alike two models' maps of the same examples are, one number an example."""

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from consilience.component import measure
from consilience.pairs import Maps, Pairs, over_family, over_pairs
from consilience.tensors import Paired, slices

BLOCK = 2**22  # pixels of all twins' maps together, of the examples that are measured at a time


@measure(version=1, better="higher")
@over_pairs
def cosine(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Cosine of the angle between the two maps, -1 to 1. NaN where a map is zero everywhere or undefined."""
    yield from _products([_directions(maps.flatten(1).double()) for maps in family], pairs)


@measure(version=1, better="higher", paper="spearman1904proof")
@over_pairs
def spearman(family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    """Correlation of the pixels' ranks, -1 to 1; equal pixels share their mean rank. NaN where a map is constant."""
    ranked = [mean_ranks(maps.flatten(1)) for maps in family]
    yield from _products([_directions(ranks - (ranks.shape[1] + 1) / 2) for ranks in ranked], pairs)


@measure(version=1, better="lower", breaks={"measured_alike_alone": "the other image is a neighbour, by definition"})
@over_pairs
def wrong_image(
    family: Sequence[Float[Tensor, "n ..."]],
    pairs: Pairs,
    label: Int[Tensor, " n"],
    x: Float[Tensor, "n c h w"] | None = None,
    mask: Bool[Tensor, "n h w"] | None = None,
    *,
    of: Paired = cosine,
) -> Iterator[Float[Tensor, " n"]]:
    """``of`` between the first model's map and the second model's map of another image of the same class.

    What two maps share although they explain different images: the baseline of every agreement. The
    other image is the next of that class in the examples' order, the first after the last. NaN where a
    class has one example only. Where ``of`` is of a part of the image, as ``on_part`` is, the part is that of
    the first model's image, in both maps: where it lies in the other image does not matter.

    Args:
        of: The agreement, or distance, whose baseline this is; images and masks are handed on to it if it asks.
    """
    asked = inspect.signature(of).parameters
    first = {role: value for role, value in {"x": x, "mask": mask}.items() if value is not None and role in asked}
    partner = next_of_class(label)
    alone = partner == torch.arange(len(label), device=label.device)
    twins, one = len(family), family[0][:1].numel()
    values = torch.empty(len(pairs), len(label), dtype=torch.float64, device=label.device)
    for rows in slices(len(label), max(1, BLOCK // max(1, one * twins))):

        def fetch(i: int, rows: slice = rows) -> Tensor:
            return family[i % twins][rows if i < twins else partner[rows]]

        here = {role: value[rows] for role, value in first.items()}
        found_of = over_family(of, Maps(2 * twins, fetch), [(a, twins + b) for a, b in pairs], **here)
        for value, found in zip(values, found_of, strict=True):
            value[rows] = found
    yield from values.masked_fill(alone, torch.nan)


def next_of_class(label: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """For each example, the next one of its class, the first after the last; itself where it is the only one."""
    order = torch.argsort(label, stable=True)
    partner = torch.empty_like(order)
    for kind in set(label.tolist()):
        mine = order[label[order] == kind]
        partner[mine] = mine.roll(-1)
    return partner


def _directions(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one; NaN where a row has no direction."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length


def mean_ranks(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Ranks 1 to d within each row, equal values sharing their mean rank; NaN throughout where a row holds NaN."""
    values = rows.cpu().numpy()
    order, ordered = _sorted(values)
    new = np.ones(values.shape, dtype=bool)  # where a run of equal values begins
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begin = np.flatnonzero(new)
    length = np.diff(begin, append=new.size)
    shared = begin % max(1, values.shape[1]) + (length + 1) / 2
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, shared[np.cumsum(new) - 1].reshape(values.shape), 1)
    ranks[np.isnan(values).any(1)] = np.nan
    return torch.from_numpy(ranks).to(rows.device)


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ascending order of each row's values, and what stands there: equal where the values are equal."""
    if values.dtype != np.float32:
        order = values.argsort(1, kind="stable")
        return order, np.take_along_axis(values, order, 1)
    # A float's bits, made to ascend as an integer, with the position behind them: sorting these is several
    # times faster than argsort, which also slows down with ties.
    bits = (values + np.float32(0)).view(np.int32)  # the sum makes -0 into 0
    ascending = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    packed = np.sort((ascending << 32) | np.arange(values.shape[1]), axis=1)
    return packed & 0xFFFFFFFF, packed >> 32


def _products(rows: Sequence[Float[Tensor, "n d"]], pairs: Pairs) -> Iterator[Float[Tensor, " n"]]:
    for a, b in pairs:
        yield torch.linalg.vecdot(rows[a], rows[b]).clamp(-1, 1)
