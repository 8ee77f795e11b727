"""How alike two models' maps look, one number an example: their local structure, and where they peak."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.pairs import Pairs, over_pairs
from consilience.tensors import slices

LUMINANCE, CONTRAST = 0.01, 0.03  # of the data range: the constants that keep the two quotients from 0 / 0
TOGETHER = 2**19  # pixels of all models' maps at a time
PIXELS = 2**16  # of one model's maps at a time: what a pair needs then stays in the processor's cache


@measure(version=1, paper="wang2004image", better="higher")
@over_pairs
def ssim(
    family: Sequence[Float[Tensor, "n ... h w"]],
    pairs: Pairs,
    *,
    window: Annotated[int, Meta(ge=3)] = 7,
    data_range: Annotated[float, Meta(gt=0)] | None = None,
) -> Iterator[Float[Tensor, " n"]]:
    """Mean structural similarity of the two maps, -1 to 1. NaN where both are constant or one is undefined.

    The mean is over the places where the whole window lies within the map, and over channels, where
    they are kept. All pixels of a window weigh the same; variances are those of samples (n - 1).

    Maps have no natural range of values. The range that the measure needs is therefore that of the two
    maps of an image together, from the lowest value in either to the highest: it is the same for both,
    depends on no other image, and a common factor of the two maps changes nothing.

    It was made for pixels that are not negative. In signed maps a window counts as alike where both its
    mean and its structure are opposite, so that a map may look like its own negative: compare maps whose
    channels were joined by absolute value.

    Args:
        window: Side of the square window, odd, in pixels.
        data_range: One range for all images instead, such as 1 for maps that were scaled to [0, 1].
    """
    yield from _reduced(family, pairs, window, data_range, lambda local, _: local.mean((1, 2, 3)))


@measure(version=1, paper="krishna2022disagreement", better="higher")
@over_pairs
def top_k_agreement(
    family: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, share: Annotated[float, Meta(gt=0, le=1)] = 0.1
) -> Iterator[Float[Tensor, " n"]]:
    """Share of the largest pixels, by absolute value, that are the same in both maps, 0 to 1; NaN where a map has none.

    A map has none where it is zero everywhere or undefined. ``k`` is the share of the pixels, rounded to
    the nearest whole number (a half to the even one), at least 1. Pixels tied at the k-th place are all
    in the set, zeros never are, and the shared pixels are divided by the size of the larger set: so no
    order among equal pixels is made up, and a map agrees with itself. Without ties this is the feature
    agreement of the paper.

    Args:
        share: Of a map's pixels, how many count as the largest.
    """
    tops = [_top(maps.flatten(1), share) for maps in family]
    sizes = [top.sum(1) for top in tops]
    for a, b in pairs:
        shared = (tops[a] & tops[b]).sum(1)
        defined = (sizes[a] > 0) & (sizes[b] > 0)
        yield (shared.double() / torch.maximum(sizes[a], sizes[b])).where(defined, torch.nan)


def ssim_within(
    family: Sequence[Float[Tensor, "n ... h w"]],
    pairs: Pairs,
    chosen: Bool[Tensor, "n h w"],
    *,
    window: int = 7,
    data_range: float | None = None,
) -> Iterator[Float[Tensor, " n"]]:
    """``ssim`` whose mean is over the windows with a chosen pixel in their middle; NaN where these are fewer than 2.

    A window reaches beyond the chosen pixels, and the range of values is that of the whole maps: so the means over
    some pixels and over all others, weighted by their numbers of windows, make up ``ssim``.

    Args:
        chosen: The pixels; those nearer to the edge than half a window are in the middle of none.
        window: As in ``ssim``.
        data_range: As in ``ssim``.
    """
    edge = window // 2
    middle = chosen[:, edge : chosen.shape[1] - edge, edge : chosen.shape[2] - edge].double()
    places = middle.sum((1, 2))

    def over(local: Tensor, rows: slice) -> Tensor:
        mean = (local.mean(1) * middle[rows]).sum((1, 2)) / places[rows]
        return mean.where(places[rows] >= 2, torch.nan)

    yield from _reduced(family, pairs, window, data_range, over)


def _reduced(
    family: Sequence[Float[Tensor, "n ... h w"]],
    pairs: Pairs,
    window: int,
    data_range: float | None,
    reduce: Callable[[Float[Tensor, "m c i j"], slice], Float[Tensor, " m"]],
) -> Iterator[Float[Tensor, " n"]]:
    """One number of the similarities of all windows, of some images at a time; NaN where there is none."""
    if window % 2 == 0:
        raise SpecError(f"ssim.window: expected an odd number of pixels, found {window}; take {window - 1}")
    everybody = list(family)
    side = min(everybody[0].shape[-2:])
    if side < window:
        raise SpecError(
            f"ssim: expected maps of at least {window} by {window} pixels, found {list(everybody[0].shape[-2:])}; "
            "choose a smaller window or larger maps"
        )
    range_, defined = _ranges(everybody, pairs)
    scale = range_ if data_range is None else torch.full_like(range_, data_range)
    values = torch.empty_like(range_)
    at_once = min(PIXELS, TOGETHER // len(everybody)) // max(1, everybody[0][:1].numel())
    for rows in slices(values.shape[1], max(1, at_once)):
        moments = [_moments(maps[rows], window) for maps in everybody]
        for value, one, (a, b) in zip(values, scale, pairs, strict=True):
            value[rows] = reduce(_structure(moments[a], moments[b], one[rows], window), rows)
    yield from values.where(defined, torch.nan)


def _ranges(family: Sequence[Tensor], pairs: Pairs) -> tuple[Float[Tensor, "pairs n"], Bool[Tensor, "pairs n"]]:
    """Of each pair and image, the range of both maps together, and whether there is a structure to compare."""
    extremes = [maps.flatten(1).aminmax(dim=1) for maps in family]
    low, high = (torch.stack([extreme[end] for extreme in extremes]).double() for end in (0, 1))
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    together = torch.maximum(high[first], high[second]) - torch.minimum(low[first], low[second])
    constant = high == low
    return together, together.isfinite() & ~(constant[first] & constant[second])


class Moments(NamedTuple):
    """What depends on one model's maps alone. A window is a place where it lies within the map."""

    centred: Float[Tensor, "n c h w"]
    """The maps less their mean, in which products lose fewer digits."""
    local: Float[Tensor, "n c i j"]
    """Means of the centred maps' windows."""
    mean: Float[Tensor, "n c i j"]
    """Means of the windows of the maps themselves."""
    square: Float[Tensor, "n c i j"]
    variance: Float[Tensor, "n c i j"]


def _moments(maps: Float[Tensor, "n ... h w"], window: int) -> Moments:
    values, pixels = maps.double().reshape(len(maps), -1, *maps.shape[-2:]), window**2
    centre = values.mean((-2, -1), keepdim=True)
    centred = values - centre
    local = _sums(centred, window) / pixels
    mean = local + centre
    variance = (_sums(centred.square(), window) / pixels - local.square()) * (pixels / (pixels - 1))
    return Moments(centred, local, mean, mean.square(), variance)


def _structure(a: Moments, b: Moments, scale: Float[Tensor, " n"], window: int) -> Float[Tensor, "n c i j"]:
    """The paper's equation 13 of each window and channel; few operations, since there are many pairs."""
    c1, c2 = ((part * scale).square()[:, None, None, None] for part in (LUMINANCE, CONTRAST))
    pixels = window**2
    value = torch.addcmul(c1, a.mean, b.mean, value=2)
    covariance = torch.add(c2, _sums(a.centred * b.centred, window), alpha=2 / (pixels - 1))  # twice it, and c2
    value *= covariance.addcmul_(a.local, b.local, value=-2 * pixels / (pixels - 1))
    value /= (a.square + b.square).add_(c1).mul_((a.variance + b.variance).add_(c2))
    return value


def _sums(planes: Float[Tensor, "n c h w"], window: int) -> Float[Tensor, "n c i j"]:
    """Sums of all windows, by running sums: as much work for a large window as for a small one."""
    for axis in (-1, -2):
        total = planes.cumsum(axis)
        places = planes.shape[axis] - window + 1
        planes = total.narrow(axis, window - 1, places).clone()
        planes.narrow(axis, 1, places - 1).sub_(total.narrow(axis, 0, places - 1))
    return planes


def _top(rows: Float[Tensor, "n d"], share: float) -> Bool[Tensor, "n d"]:
    """Which pixels are among the largest; none where a row holds NaN."""
    size = rows.abs()
    least = size.topk(max(1, round(share * rows.shape[1])), dim=1, sorted=False).values.amin(1, keepdim=True)
    return (size >= least) & (size > 0) & ~rows.isnan().any(1, keepdim=True)
