"""Attribution at noisy copies of the input, averaged."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.expected import at_points, blocks
from consilience.attribution.gradient import gradient
from consilience.component import attribution
from consilience.rng import Rng
from consilience.tensors import Attribution, check_batch


@attribution(version=1, paper="smilkov2017smoothgrad")
def smooth_grad(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    of: Attribution = gradient,
    samples: Annotated[int, Meta(ge=1)] = 50,
    noise: Annotated[float, Meta(ge=0)] = 0.15,
) -> Float[Tensor, "n d h w"]:
    """Mean of ``of`` at copies of the image, each with independent normal noise on every pixel.

    Each copy starts from the image itself, so noise never adds up from sample to sample, and its deviation is the
    image's own, whatever the batch. An image of one value gets no noise. Noisy pixels may leave [0, 1].

    Args:
        of: What is averaged over the copies.
        samples: Noisy copies of each image.
        noise: Deviation of the noise, as a share of the image's range, its largest minus its smallest pixel.
    """
    check_batch(model, x, target)
    x = x.detach()
    total: Tensor | None = None
    for some, parts in blocks(of, model, x, samples):
        own = rng.rows(range(len(x))[some])
        low, high = x[some].flatten(1).aminmax(dim=1)
        deviation = (noise * (high - low)).view(-1, 1, 1, 1, 1)
        for part in parts:
            points = torch.addcmul(x[some, None], deviation, _normal(own.at("noise"), part, x))
            maps = at_points(of, model, points, target[some], own.at(part.start)).sum(1)
            if total is None:  # of as many channels as the maps have
                total = maps.new_zeros(len(x), *maps.shape[1:])
            total[some] += maps
    return torch.zeros_like(x) if total is None else total.div_(samples)


def _normal(rng: Rng, part: slice, x: Tensor) -> Float[Tensor, "n k c h w"]:
    """Standard normal numbers for some of the samples, each keyed by itself: chunks cannot change them."""
    drawn = [rng.at(sample).normal(*x.shape[1:]) for sample in range(part.start, part.stop)]
    return torch.stack(drawn, 1).to(x)
