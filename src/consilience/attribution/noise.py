"""Attribution at noisy copies of the input: its mean, its mean square, its variance."""

from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.expected import at_points, blocks
from consilience.attribution.gradient import gradient
from consilience.component import attribution
from consilience.rng import Rng, generator
from consilience.tensors import Attribution, check_batch

Samples = Annotated[int, Meta(ge=1)]
Noise = Annotated[float, Meta(ge=0)]

Parts = Iterator[Float[Tensor, "n _ d h w"]]
"""The maps of all copies of some examples, some copies at a time."""


@attribution(version=2, paper="smilkov2017smoothgrad")
def smooth_grad(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    of: Attribution = gradient,
    samples: Samples = 50,
    noise: Noise = 0.15,
) -> Float[Tensor, "n d h w"]:
    """Mean of ``of`` at copies of the image, each with independent normal noise on every pixel. NaN where ``of`` is.

    Each copy starts from the image itself, so noise never adds up from sample to sample, and its deviation is the
    image's own, whatever the batch. An image of one value gets no noise. Noisy pixels may leave [0, 1].

    Args:
        of: What is averaged over the copies.
        samples: Noisy copies of each image.
        noise: Deviation of the noise, as a share of the image's range, its largest minus its smallest pixel.
    """
    return _of_copies(_mean, of, model, x, target, rng, samples, noise)


@attribution(version=1, paper="hooker2019benchmark")
def square_grad(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    of: Attribution = gradient,
    samples: Samples = 50,
    noise: Noise = 0.15,
) -> Float[Tensor, "n d h w"]:
    """Mean of the square of ``of`` at noisy copies of the image, 0 upwards. NaN where ``of`` is.

    The copies are those of ``smooth_grad`` for the same seed. The map has lost its sign: it is large where the
    slope is, on either side. It is ``var_grad`` plus the square of ``smooth_grad``.

    Args:
        of: What is squared, then averaged over the copies.
        samples: Noisy copies of each image.
        noise: Deviation of the noise, as a share of the image's range, its largest minus its smallest pixel.
    """
    return _of_copies(_mean_square, of, model, x, target, rng, samples, noise)


@attribution(version=1, paper="adebayo2018sanity")
def var_grad(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    of: Attribution = gradient,
    samples: Samples = 50,
    noise: Noise = 0.15,
) -> Float[Tensor, "n d h w"]:
    """Variance of ``of`` over noisy copies of the image, 0 upwards. NaN where ``of`` is.

    The copies are those of ``smooth_grad`` for the same seed. As published, it is the mean square distance from the
    mean, divided by ``samples`` and not by one less. It tells where the slope changes near the image, not how large
    it is: of a linear model, or of one copy, the map is 0.

    Args:
        of: What varies over the copies.
        samples: Noisy copies of each image.
        noise: Deviation of the noise, as a share of the image's range, its largest minus its smallest pixel.
    """
    return _of_copies(_variance, of, model, x, target, rng, samples, noise)


def _of_copies(
    folded: Callable[[Parts, int], Tensor],
    of: Attribution,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    samples: int,
    noise: float,
) -> Float[Tensor, "n d h w"]:
    """The examples' maps, each made of the maps of its copies, block by block."""
    check_batch(model, x, target)
    x = x.detach()
    result: Tensor | None = None
    for some, parts in blocks(of, model, x, samples):
        own = rng.rows(range(len(x))[some])
        maps = folded(_copies(of, model, x[some], target[some], own, parts, noise), samples)
        if result is None:  # of as many channels as the maps have
            result = maps.new_empty(len(x), *maps.shape[1:])
        result[some] = maps
    return torch.zeros_like(x) if result is None else result


def _copies(
    of: Attribution, model: nn.Module, x: Tensor, target: Tensor, rng: Rng, parts: list[slice], noise: float
) -> Parts:
    low, high = x.flatten(1).aminmax(dim=1)
    deviation = (noise * (high - low)).view(-1, 1, 1, 1, 1)
    own = rng.at("noise")  # one stream an example, read in the order of the samples: chunks cannot change them
    streams = [generator(own.seed, *own.node, id_) for id_ in own.ids]
    for part in parts:
        shape = (part.stop - part.start, *x.shape[1:])
        drawn = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
        points = torch.addcmul(x[:, None], deviation, torch.from_numpy(drawn).to(x))
        yield at_points(of, model, points, target, rng.at(part.start))


def _mean(parts: Parts, samples: int) -> Tensor:
    total = next(parts).sum(1)
    for maps in parts:
        total += maps.sum(1)
    return total.div_(samples)


def _mean_square(parts: Parts, samples: int) -> Tensor:
    return _mean((maps.square() for maps in parts), samples)


def _variance(parts: Parts, samples: int) -> Tensor:
    maps = next(parts)
    first = maps[:, :1]  # within sqrt(samples) deviations of the mean: little is lost below, and equal maps give 0
    away = maps - first
    total, squares = away.sum(1), away.square().sum(1)
    for maps in parts:
        away = maps - first
        total += away.sum(1)
        squares += away.square().sum(1)
    return squares.div_(samples).sub_(total.div_(samples).square_())
