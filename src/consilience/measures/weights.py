"""How far apart the values of two models' weights lie, one number a tensor, whichever weight has which value."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.pairs import Pairs, over_pairs


@measure(version=1, paper="watson2022agree", better="lower")
@over_pairs
def weight_distance(
    weights: Sequence[Float[Tensor, "..."]],
    pairs: Pairs,
    *,
    distance: Literal["wasserstein", "jensen_shannon"] = "wasserstein",
    bins: Annotated[int, Meta(ge=2)] = 100,
) -> Iterator[Float[Tensor, ""]]:
    """Distance between the two distributions of values in a tensor, 0 upwards. NaN where it is empty or not finite.

    A distribution of values is the same under any permutation of the weights: 0 does not mean that the two
    models calculate the same, and two models that calculate the same, with their neurons in another order,
    are at distance 0 whatever else they share. It says nothing about the function.

    Args:
        distance: ``wasserstein`` is the mean way that a value has to move, in the weights' own unit.
            ``jensen_shannon`` is the divergence of the two histograms in bits, 0 to 1; of two samples of one
            distribution it is above 0, the more so the fewer weights there are for a bin.
        bins: Of both histograms, equally wide, from the lowest value in either tensor to the highest. Only
            ``jensen_shannon`` has any.
    """
    ordered = {member: _ordered(tensor) for member, tensor in _checked(weights, pairs).items()}
    for a, b in pairs:
        one, other = ordered[a], ordered[b]
        if not len(one) or not len(other):
            yield one.new_tensor(torch.nan)
        elif distance == "wasserstein":
            yield (one - other).abs().mean()
        else:
            yield _divergence(*_shares(one, other, bins))


def _checked(family: Sequence[Tensor], pairs: Pairs) -> dict[int, Tensor]:
    """The tensor of each model that is in a pair."""
    tensors = {member: family[member] for member in sorted({member for pair in pairs for member in pair})}
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) > 1:
        raise SpecError(
            "weight_distance: expected a tensor of the same shape of every model, found "
            f"{' and '.join(str(list(shape)) for shape in sorted(shapes))}; compare models of one architecture"
        )
    return tensors


def _ordered(tensor: Float[Tensor, "..."]) -> Float[Tensor, " m"]:
    """The values in ascending order; none where not all are finite."""
    values = tensor.detach().flatten().double()
    return values.sort().values if values.isfinite().all() else values[:0]


def _shares(one: Float[Tensor, " m"], other: Float[Tensor, " m"], bins: int) -> tuple[Tensor, Tensor]:
    """Of both, the share of values in each bin of their common range; the last bin holds its upper end."""
    low, high = torch.minimum(one[0], other[0]), torch.maximum(one[-1], other[-1])
    steps = torch.arange(1, bins, dtype=torch.float64, device=one.device)
    edges = low + (high - low) * steps / bins
    parts = []
    for values in (one, other):
        below = torch.searchsorted(values, edges).double()
        ends = below.new_tensor([0, len(values)])
        parts.append(torch.cat([ends[:1], below, ends[1:]]).diff() / len(values))
    return parts[0], parts[1]


def _divergence(p: Float[Tensor, " bins"], q: Float[Tensor, " bins"]) -> Float[Tensor, ""]:
    """Of Jensen and Shannon, in bits: entropy of the mixture less the mean entropy."""
    mixture = (p + q) / 2
    entropy, of_p, of_q = (torch.special.entr(share).sum() for share in (mixture, p, q))
    divergence: Tensor = (entropy - (of_p + of_q) / 2) / math.log(2)
    return divergence.clamp(0, 1)
