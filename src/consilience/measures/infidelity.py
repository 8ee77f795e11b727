"""Infidelity: what a map foretells of a perturbation, against what the perturbation does to the output."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.faithfulness import check_mode
from consilience.rng import Rng, generator
from consilience.tensors import Baseline, check_batch, rows_of, slices, start_of

BISECTIONS = 64  # halvings of the values' range: more than a double has digits

Perturbation = Literal["noise", "square"]


class Infidelity(NamedTuple):
    """How far the map's forecasts are from what the output did."""

    value: Float[Tensor, " n"]
    """Mean square of the difference, in the output's units squared."""
    rescaled: Float[Tensor, " n"]
    """The same where each map is first multiplied by the number that makes it smallest."""


@measure(version=1, paper="yeh2019fidelity", better="lower")
def infidelity(
    maps: Float[Tensor, "n ..."],
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    output: Callable[[Tensor, Tensor], Tensor],
    rng: Rng,
    *,
    perturbation: Perturbation = "noise",
    attribution: Literal["local", "global"] = "local",
    samples: Annotated[int, Meta(ge=1)] = 10,
    mean: float = 0.0,
    sd: Annotated[float, Meta(gt=0)] = 0.2,
    window: Annotated[int, Meta(ge=1)] = 7,
    baseline: Baseline = 0.0,
    threshold: Annotated[float, Meta(gt=0, lt=1)] | None = None,
) -> Infidelity:
    """Mean square of what the map foretells of a perturbation minus what it does, 0 upwards. NaN where undefined.

    It is ``E[(I . map - (output(x) - output(x - I)))^2]`` over perturbations ``I`` of the pixels. For a *global* map,
    whose pixels say what they contributed in all, ``I`` is divided by ``x - baseline`` before it is multiplied with
    the map: of a window that is removed the map foretells its own sum over it. A pixel that stands at its baseline
    gets no noise then, since such a map cannot say what would happen.

    A map of one plane holds for each channel of the image if it is local, and is divided evenly among them if it is
    global. ``rescaled`` leaves out the map's scale, not the output's; of one sample it is 0, of few it is too small,
    by the one number that was fitted. Undefined where the map or an output is not finite, or, with a threshold,
    where the map has one value only.

    Args:
        perturbation: Normal noise on every pixel, or a square at a random place set to the baseline.
        attribution: What the maps are: slopes (``"local"``: gradients, class-activation maps), or contributions
            that have the pixel's distance from a baseline in them (``"global"``: integrated gradients, SHAP, LRP).
        samples: Perturbations of each image.
        mean: Of the noise, in pixel values.
        sd: Deviation of the noise, in pixel values.
        window: Side of the square in pixels; it lies wholly within the image.
        baseline: What the square is set to, and from where global maps count.
        threshold: Keep only values of the map above the first one, 0 or more, at which the distribution function of
            a Gaussian kernel density of the map's values reaches this share; all without it.
    """
    check_batch(model, x, target)
    check_mode(model, "infidelity")
    _check_sizes(maps, x, window if perturbation == "square" else 1)
    whole = attribution == "global"
    away = x - start_of(x, baseline, model)
    before = output(x, target).detach() if len(x) else x.new_empty(0)
    foretold, done = torch.empty(2, len(x), samples, dtype=torch.float64, device=x.device)
    together = rows_of(x[:1].nbytes, x)
    parts = list(slices(samples, together))
    for some in slices(len(x), max(1, together // samples)):
        phi = maps[some] if threshold is None else above_threshold(maps[some], threshold)
        given = _of_each_channel(phi, x[some], whole), away[some], whole, rng.rows(range(len(x))[some]), parts
        drawn = _noise(*given, mean, sd) if perturbation == "noise" else _squares(*given, window)
        for part, (told, change) in zip(parts, drawn, strict=True):
            moved = (x[some, None] - change).flatten(0, 1)
            after = output(moved, target[some].repeat_interleave(told.shape[1])).detach().view(told.shape)
            foretold[some, part], done[some, part] = told.double(), (before[some, None] - after).double()
    defined = maps.flatten(1).isfinite().all(1)
    return Infidelity(*(value.where(defined & value.isfinite(), torch.nan) for value in _distances(foretold, done)))


def _distances(
    foretold: Float[Tensor, "n s"], done: Float[Tensor, "n s"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Mean square of the difference, as it is and at the best scale; a map that foretells nothing has none."""
    square = foretold.square().sum(1)
    best = torch.where(square == 0, 0, (foretold * done).sum(1) / square)
    return (foretold - done).square().mean(1), (best[:, None] * foretold - done).square().mean(1)


Drawn = Iterator[tuple[Float[Tensor, "n s"], Float[Tensor, "n s c h w"]]]
"""What the map foretells of some perturbations of each image, and the perturbations."""


def _noise(
    phi: Float[Tensor, "n c h w"],
    away: Float[Tensor, "n c h w"],
    whole: bool,
    rng: Rng,
    parts: Sequence[slice],
    mean: float,
    sd: float,
) -> Drawn:
    if whole:
        phi = (phi / away).masked_fill(away == 0, 0)
    own = rng.at("noise")  # one stream an image, read in the order of the samples: chunks cannot change them
    streams = [generator(own.seed, *own.node, id_) for id_ in own.ids]
    for part in parts:
        change = _normal(streams, part.stop - part.start, phi).mul_(sd).add_(mean)
        if whole:
            change.masked_fill_((away == 0)[:, None], 0)
        yield torch.bmm(change.flatten(2), phi.flatten(1)[:, :, None])[:, :, 0], change


def _normal(
    streams: Sequence[np.random.Generator], samples: int, like: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n s c h w"]:
    """Standard normal numbers, after Box and Muller: in half the time of the generators' own, which is a model's."""
    size = like[0].numel()
    drawn = np.empty((len(streams), samples, 2, (size + 1) // 2), dtype=np.float32)
    for stream, rows in zip(streams, drawn, strict=True):
        stream.random(out=rows, dtype=np.float32)
    length, angle = torch.from_numpy(drawn).to(like).unbind(2)
    length, angle = length.neg().log1p_().mul_(-2).sqrt_(), angle * (2 * math.pi)
    normal = torch.stack([length * angle.cos(), length * angle.sin()], 2).flatten(2)
    return normal[..., :size].reshape(*normal.shape[:2], *like.shape[1:])


def _squares(
    phi: Float[Tensor, "n c h w"],
    away: Float[Tensor, "n c h w"],
    whole: bool,
    rng: Rng,
    parts: Sequence[slice],
    window: int,
) -> Drawn:
    plane = (phi if whole else phi * away).sum(1)
    down, right = (side - window + 1 for side in phi.shape[2:])
    corner = rng.at("square").integers(down * right, parts[-1].stop, device=phi.device)[:, :, None]
    inside = []
    for first, side in ((corner // right, phi.shape[2]), (corner % right, phi.shape[3])):
        place = torch.arange(side, device=phi.device)
        inside.append((place >= first) & (place < first + window))
    for part in parts:
        mask = inside[0][:, part, :, None] & inside[1][:, part, None, :]
        told = torch.bmm(mask.flatten(2).to(phi), plane.flatten(1)[:, :, None])[:, :, 0]
        yield told, mask[:, :, None] * away[:, None]


def _of_each_channel(
    maps: Float[Tensor, "n ..."], x: Float[Tensor, "n c h w"], whole: bool
) -> Float[Tensor, "n c h w"]:
    """Maps for each channel of the image: one plane is each channel's slope, or the sum of all channels' parts."""
    if maps.shape == x.shape:
        return maps.to(x)
    plane = maps.to(x).reshape(len(x), 1, *x.shape[2:]).expand_as(x)
    return plane / x.shape[1] if whole else plane


def _check_sizes(maps: Float[Tensor, "n ..."], x: Float[Tensor, "n c h w"], window: int) -> None:
    n, channels, height, width = x.shape
    if maps.shape not in ((n, height, width), (n, 1, height, width), (n, channels, height, width)):
        raise SpecError(
            f"infidelity: expected maps of the images' size, [{n}, {height}, {width}] or [{n}, {channels}, {height}, "
            f"{width}], found {list(maps.shape)}; leave 'pool' out, and take the maps of these images"
        )
    if window > min(height, width):
        raise SpecError(
            f"infidelity: expected a window within images of {height} x {width} pixels, found one of {window}; "
            "choose a smaller one"
        )


def above_threshold(maps: Float[Tensor, "n ..."], share: float) -> Float[Tensor, "n ..."]:
    """Maps with zeros up to a value: the first, 0 or more, below which lies this share of the map's density.

    The density is a Gaussian kernel estimate of each map's own values, with Scott's bandwidth. NaN where a map has
    one value only.
    """
    values = maps.flatten(1).double()
    width = values.std(1, keepdim=True) * values.shape[1] ** -0.2

    def reached(value: Tensor) -> Tensor:
        below: Tensor = torch.special.ndtr((value - values) / width).mean(1, keepdim=True)
        return below >= share

    low = torch.zeros_like(width)
    first = torch.where(reached(low), 0, torch.nan)
    high = values.amax(1, keepdim=True).clamp(min=0) + 10 * width  # the distribution function is 1 there
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        there = reached(middle)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    kept = values > torch.where(first == 0, first, high)
    undefined = ~(width > 0)  # also of a map that holds a NaN
    return maps.masked_fill(~kept.view_as(maps), 0).masked_fill(undefined.view(-1, *[1] * (maps.ndim - 1)), torch.nan)
