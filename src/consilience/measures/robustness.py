"""How much a map changes where the image hardly does."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.component import measure
from consilience.measures.faithfulness import check_mode
from consilience.rng import Rng, keyed
from consilience.tensors import Attribution, check_batch, rows_per_chunk, slices


@measure(version=1, paper="yeh2019fidelity", better="lower")
def max_sensitivity(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    explain: Attribution,
    rng: Rng,
    *,
    radius: Annotated[float, Meta(gt=0)] = 0.02,
    samples: Annotated[int, Meta(ge=1)] = 10,
    clip: bool = False,
) -> Float[Tensor, " n"]:
    """Largest change of the map at images nearby, as a share of the map's length, 0 upwards. NaN where undefined.

    It is ``max |explain(x') - explain(x)| / |explain(x)|`` over images ``x'`` with uniform noise on every pixel, of
    all channels as the method gives them. Undefined where the map is zero everywhere, or a map is not finite.

    A method that draws has the same draws at ``x`` and at every ``x'``, so that what is measured is the image's
    doing and not the explainer's own noise. That is why the map of ``x`` is calculated here as well. With few samples
    the maximum is too small: it is one over the samples, not over the ball.

    Args:
        radius: Largest change of a pixel.
        samples: Images nearby, of each image.
        clip: Keep their pixels in [0, 1]. As published they may leave it, as no image does; with it, about half of
            the pixels that are black do not move.
    """
    check_batch(model, x, target)
    check_mode(model, "max_sensitivity")
    largest = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    rows = rows_per_chunk(model, x)
    for some in slices(len(x), max(1, rows // (samples + 1))):
        own = rng.rows(range(len(x))[some])
        here: Tensor | None = None
        for part in slices(samples + 1, rows):  # the image itself comes first
            points = _nearby(x[some], own, range(samples + 1)[part], radius, clip)
            maps = _maps_at(explain, model, points, target[some], own.at("explain"))
            here = maps[:, :1] if here is None else here
            change = (maps - here).norm(dim=2) / here.norm(dim=2)
            largest[some] = torch.maximum(largest[some], change.amax(1))
    return largest.where(largest.isfinite(), torch.nan)


def _nearby(
    x: Float[Tensor, "n c h w"], rng: Rng, samples: range, radius: float, clip: bool
) -> Float[Tensor, "n s c h w"]:
    """Images near each; sample 0 is the image itself."""
    points = x[:, None].repeat(1, len(samples), 1, 1, 1)
    for place, sample in enumerate(samples):
        if sample:
            points[:, place] += rng.at(sample).uniform(*x.shape[1:]).to(x).mul_(2).sub_(1).mul_(radius)
            if clip:
                points[:, place].clamp_(0, 1)
    return points


def _maps_at(
    explain: Attribution, model: nn.Module, points: Float[Tensor, "n s c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n s _"]:
    """The maps at several points of each example, in float64, with one example's draws at all its points."""
    n, samples = points.shape[:2]
    alike = rng.rows([row for row in range(n) for _ in range(samples)])
    maps = keyed(explain, alike)(model, points.flatten(0, 1), target.repeat_interleave(samples))
    return maps.detach().double().view(n, samples, -1)
