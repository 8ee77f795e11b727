"""How alike two models represent the same examples in one layer, one number for all of them.

Activations are rows, one for each example and place, so that a convolutional layer's channels are its
neurons; ``arranged`` makes them. The two models may have different numbers of neurons. No measure here
sees an order of the neurons, a rotation of them or a common factor; the canonical correlations do not
see any invertible linear map.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.pairs import Pairs, over_pairs
from consilience.rng import Rng

CONSTANT = 8  # units in the last place: a neuron that spreads no more than that does nothing but round
RANK, LEAST = 32, 1e-10  # in units of the last place, and at least: what of the largest direction is rounding


@measure(version=1, paper="kornblith2019similarity", better="higher")
@over_pairs
def cka(activations: Sequence[Float[Tensor, "..."]], pairs: Pairs) -> Iterator[Float[Tensor, ""]]:
    """Linear centred kernel alignment of the two layers, 0 to 1. NaN where one is constant or not finite.

    It is the cosine between the two tables that say how alike any two rows are within one layer, so that
    directions of large variance lead it. 1 where one layer is the other, rotated and scaled. It is
    defined for any number of rows, but with fewer rows than neurons unrelated layers come out far above
    0, and any two rows are perfectly aligned: compare at an equal number of rows, many times the neurons.
    """
    if not pairs:
        return
    units = {member: _unit(rows) for member, rows in _checked("cka", activations, pairs).items()}
    sides = [side for rows in units.values() for side in rows.shape]
    if sum(sides[::2]) <= sum(sides[1::2]):  # tables of rows by rows are the smaller ones, and made once a model
        place = {member: row for row, member in enumerate(units)}
        tables = torch.stack([_table(rows) for rows in units.values()])
        products = tables @ tables.T
        length = products.diagonal().sqrt()
        for a, b in pairs:
            i, j = place[a], place[b]
            yield (products[i, j] / (length[i] * length[j])).clamp(0, 1)
        return
    own = {member: _square(rows, rows).sqrt() for member, rows in units.items()}
    for a, b in pairs:
        yield (_square(units[a], units[b]) / (own[a] * own[b])).clamp(0, 1)


@measure(version=1, paper="raghu2017svcca", better="higher")
@over_pairs
def cca(activations: Sequence[Float[Tensor, "..."]], pairs: Pairs) -> Iterator[Float[Tensor, ""]]:
    """Mean canonical correlation of the two layers, 0 to 1. NaN with too few rows, or where one is constant or NaN.

    There are as many correlations as the smaller layer has independent neurons; constant neurons, and
    those that are linear in others up to rounding, are none. Each correlation counts alike, also that of
    directions which hardly vary. Of ``n`` rows, two layers of ``p`` and ``q`` independent neurons have
    ``p + q - n + 1`` correlations of exactly 1 by construction. Where that would be all of them, as with
    no more rows than neurons, the mean is undefined; it is near chance only with many times more rows.
    """
    spans = {member: _span(rows, None) for member, rows in _checked("cca", activations, pairs).items()}
    for a, b in pairs:
        yield _mean_correlation(spans[a], spans[b])


@measure(version=1, paper="raghu2017svcca", better="higher")
@over_pairs
def svcca(
    activations: Sequence[Float[Tensor, "..."]],
    pairs: Pairs,
    *,
    variance: Annotated[float, Meta(gt=0, le=1)] = 0.99,
) -> Iterator[Float[Tensor, ""]]:
    """``cca`` of each layer's principal directions, 0 to 1. NaN with too few rows, or where one is constant or NaN.

    Directions that hardly vary are noise as a rule, and would count as much as any other. Which are left
    out depends on the scale of each neuron. What ``cca`` says about rows holds for the directions kept.

    Args:
        variance: Share of each layer's variance, of squared singular values, that its largest directions must hold.
    """
    spans = {member: _span(rows, variance) for member, rows in _checked("svcca", activations, pairs).items()}
    for a, b in pairs:
        yield _mean_correlation(spans[a], spans[b])


@measure(version=1, paper="morcos2018insights", better="higher")
@over_pairs
def pwcca(activations: Sequence[Float[Tensor, "..."]], pairs: Pairs) -> Iterator[Float[Tensor, ""]]:
    """``cca`` weighted by what is used of the first layer, 0 to 1. NaN with too few rows, or one constant or NaN.

    A correlation weighs what its canonical variate in the *first* model says of that model's neurons: the
    sum over neurons of the absolute product of the variate and the centred neuron. So it is not symmetric,
    whichever of the two layers has more neurons. Published code takes the smaller layer's variates instead,
    and where that is the second, mixes them with the first one's activations.
    """
    spans = {member: _span(rows, None) for member, rows in _checked("pwcca", activations, pairs).items()}
    for a, b in pairs:
        overlap = _overlap(spans[a], spans[b])
        if overlap is None:
            yield spans[a].basis.new_tensor(torch.nan)
            continue
        turn, correlations, _ = torch.linalg.svd(overlap, full_matrices=False)
        weights = (turn.T @ spans[a].neurons).abs().sum(1)
        yield (weights @ correlations.clamp(max=1)) / weights.sum()


def arranged(
    activations: Float[Tensor, "n ..."], places: int | None = None, rng: Rng | None = None
) -> Float[Tensor, "rows d"]:
    """A layer's activations as rows, one for each example and place: ``[n * places, d]``, example after example.

    Planes ``[n, d, h, w]`` have a place for each pixel, tokens ``[n, t, d]`` one for each token, ``[n, d]`` a
    single one. ``places`` keeps that many of each example, drawn by ``rng`` alike for every model with as many
    places; all, in order, where there are no more.

    Raises:
        SpecError: The activations have other axes, or places are to be drawn without draws for each example.
    """
    if activations.ndim not in (2, 3, 4) or (places is not None and places < 1):
        raise SpecError(
            "arranged: expected activations [n, d], [n, t, d] or [n, d, h, w] and at least 1 place, "
            f"found {list(activations.shape)} and {places}; name another layer, or reshape its output"
        )
    if activations.ndim == 2:
        return activations
    rows = activations if activations.ndim == 3 else activations.flatten(2).transpose(1, 2)
    if places is not None and places < rows.shape[1]:
        if rng is None or len(rng.ids) != len(rows):
            found = "none" if rng is None else str(len(rng.ids))
            raise SpecError(f"arranged: expected draws for {len(rows)} examples, found {found}; give rng their ids")
        order = rng.at("places").uniform(rows.shape[1], device=rows.device).argsort(dim=1, stable=True)
        rows = rows.gather(1, order[:, :places, None].expand(-1, -1, rows.shape[2]))
    return rows.flatten(0, 1)


class Span(NamedTuple):
    """What the neurons of one layer span; of rank 0 where they are constant or undefined."""

    basis: Float[Tensor, "n r"]
    """Orthonormal directions."""
    neurons: Float[Tensor, "r d"]
    """The centred neurons, in those directions."""


def _checked(name: str, family: Sequence[Tensor], pairs: Pairs) -> dict[int, Tensor]:
    """The activations of each model that is in a pair."""
    rows = {member: family[member] for member in sorted({member for pair in pairs for member in pair})}
    if any(one.ndim != 2 for one in rows.values()) or len({len(one) for one in rows.values()}) > 1:
        raise SpecError(
            f"{name}: expected activations [n, d] with the same n rows of every model, found "
            f"{' and '.join(str(list(one.shape)) for one in rows.values())}; make rows of a layer with arranged"
        )
    return rows


def _centred(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The neurons less their means; exactly zero where a neuron is constant up to rounding."""
    values = rows.double()
    if not rows.numel():
        return values
    values = values - values.mean(0)
    spread = torch.linalg.vector_norm(values, dim=0) / len(rows) ** 0.5
    constant = spread <= CONSTANT * torch.finfo(rows.dtype).eps * rows.abs().amax(0)
    return values.masked_fill_(constant, 0) if constant.any() else values


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Centred activations of length one as a whole; NaN where they have none."""
    values = _centred(rows)
    return values.div_(torch.linalg.vector_norm(values))


def _table(rows: Float[Tensor, "n d"]) -> Float[Tensor, " entries"]:
    """Products of all rows with all, in a row; an off-diagonal block once, for itself and for its mirror image."""
    top, bottom = rows.tensor_split(2)
    blocks = (top @ top.T, 2**0.5 * (top @ bottom.T), bottom @ bottom.T)
    return torch.cat([block.flatten() for block in blocks])


def _square(one: Float[Tensor, "n d"], other: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Sum of the squared products of all neurons of one layer with all of the other."""
    return (one.T @ other).square().sum()


def _span(rows: Float[Tensor, "n d"], variance: float | None) -> Span:
    """A layer's span, up to rounding; with ``variance``, that of the fewest directions that hold this share of it."""
    values = _centred(rows)
    if not rows.numel() or not values.isfinite().all():
        return Span(values[:, :0], values[:0])
    length = torch.linalg.vector_norm(values, dim=0)
    if variance is not None:
        length = torch.ones_like(length)  # where variance counts, a neuron keeps its own
    q, r = torch.linalg.qr(values / length.where(length > 0, 1))
    turn, sizes, axes = torch.linalg.svd(r, full_matrices=False)
    rank = int((sizes > max(LEAST, RANK * torch.finfo(rows.dtype).eps) * sizes[0]).sum())
    if variance is not None:
        held = sizes.square().cumsum(0) / sizes.square().sum()
        rank = min(rank, int((held < variance).sum()) + 1)
    return Span(q @ turn[:, :rank], sizes[:rank, None] * axes[:rank] * length)


def _overlap(one: Span, other: Span) -> Float[Tensor, "r s"] | None:
    """Products of the two layers' directions; its singular values are the canonical correlations.

    None where a layer has no direction, or all that the rows leave: then every correlation is 1 by construction.
    """
    ranks = (one.basis.shape[1], other.basis.shape[1])
    if min(ranks) == 0 or max(ranks) >= len(one.basis) - 1:
        return None
    return one.basis.T @ other.basis


def _mean_correlation(one: Span, other: Span) -> Float[Tensor, ""]:
    overlap = _overlap(one, other)
    if overlap is None:
        return one.basis.new_tensor(torch.nan)
    correlations: Tensor = torch.linalg.svdvals(overlap)
    return correlations.clamp(max=1).mean()
