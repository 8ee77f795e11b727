"""Attribution along lines that start at the images of a background, drawn at random."""

import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.gradient import gradient
from consilience.attribution.line import even_slices
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.rng import Rng, keyed, permutation, takes_rng
from consilience.tensors import Attribution, Score, check_batch, rows_per_chunk, slices, start_of

Start = Callable[[Rng], Int[Tensor, "n draws"]]
"""Draws of examples -> the number of the start of each of their lines."""


@attribution(version=1, paper="erion2021improving")
def expected_gradients(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    background: Float[Tensor, "m _ _ _"],
    *,
    of: Attribution = gradient,
    samples: Annotated[int, Meta(ge=1)] = 64,
) -> Float[Tensor, "n c h w"]:
    """Mean over samples of ``(x - b) * of(b + u (x - b))``, with ``b`` of the background and ``u`` of [0, 1).

    Each ``u`` is drawn by itself, uniformly. The background is covered evenly: each example takes the images in
    a random order of its own, again from the first where the samples outnumber them, so that no image serves
    twice before all have served once. Each draw taken alone is uniform, hence the expectation is that of
    independent draws; the variance is smaller. Of the plain gradient, the maps are complete in expectation:
    each sums to ``f(x)`` minus the mean of ``f`` over the background.

    Args:
        of: What is averaged along the lines.
        samples: Lines of each example, and on each the one point where ``of`` is taken.
    """
    starts = checked(model, x, target, background)
    return mean_from(of, model, x, target, rng, starts, samples, functools.partial(_in_turn, len(starts), samples))


@attribution(version=1, paper="lundberg2017unified")
def gradient_shap(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    background: Float[Tensor, "m _ _ _"],
    *,
    starts: Literal["published", "background"] = "published",
    draws: Annotated[int, Meta(ge=1)] = 5,
    score: Score = logit,
) -> Float[Tensor, "n c h w"]:
    """Mean over draws of ``(x - b) * gradient(b + u (x - b))``, ``b`` and ``u`` drawn independently, as captum does.

    It is captum's GradientShap without noise on the image. With the five draws of the literature, the maps are
    noisy: explain twice with other draws before comparing two models.

    Args:
        starts: Where lines start: at one of two images, the zero of normalised space (the mean pixel, where the
            model holds one; else black) and the first image of the background (``published``, Watson et al. 2022,
            whose scripts call it random), or at any image of the background.
        draws: Lines of each example, and on each the one point where the gradient is taken.
        score: What is differentiated.
    """
    images = checked(model, x, target, background)
    if starts == "published":
        held = isinstance(getattr(model, "pixel_mean", None), Tensor)
        first = images[:1]
        images = torch.cat([start_of(first, "mean" if held else 0.0, model), first])
    of = functools.partial(gradient, score=score)
    return mean_from(of, model, x, target, rng, images, draws, lambda own: own.integers(len(images), draws))


def checked(model: nn.Module, x: Tensor, target: Tensor, background: Tensor) -> Tensor:
    """The background in the type and on the device of the batch, once both are known to be sound.

    Raises:
        SpecError: The background holds no image, or others than the batch.
    """
    check_batch(model, x, target)
    if background.ndim != 4 or background.shape[1:] != x.shape[1:] or not len(background):
        raise SpecError(
            f"background: expected at least one image of {list(x.shape[1:])}, as in the batch, found "
            f"{list(background.shape)}; give examples [m, c, h, w] of the same kind as x"
        )
    return background.detach().to(x)


def mean_from(
    of: Attribution,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    starts: Float[Tensor, "m c h w"],
    draws: int,
    start: Start,
) -> Float[Tensor, "n c h w"]:
    """Mean over the draws of ``(x - b) * of(b + u (x - b))``, where ``start`` says which of the starts is ``b``."""
    x = x.detach()
    total = torch.zeros_like(x)
    for some, parts in blocks(of, model, x, draws):
        own = rng.rows(range(len(x))[some])
        which, along = start(own.at("start")).to(x.device), own.at("line").uniform(draws).to(x)
        for part in parts:
            here = which[:, part]
            begin = starts.index_select(0, here.flatten()).view(*here.shape, *starts.shape[1:])  # brackets take longer
            way = x[some, None] - begin
            points = begin.addcmul_(along[:, part, None, None, None], way)
            maps = at_points(of, model, points, target[some], own.at(part.start))
            total[some] += (maps * way).sum(1)
    return total.div_(draws)


def blocks(
    of: Attribution, model: nn.Module, x: Float[Tensor, "n c h w"], draws: int
) -> Iterator[tuple[slice, list[slice]]]:
    """Examples, and their draws in parts: each part of each block fills one pass of (example, draw) pairs.

    What draws itself gets one draw at a time, so that each (example, draw) has draws of its own in any batch and
    chunk.
    """
    rows, alone = rows_per_chunk(model, x), takes_rng(of)
    parts = list(even_slices(draws, 1 if alone else rows))
    for some in slices(len(x), rows if alone else max(1, rows // draws)):
        yield some, parts


def at_points(
    of: Attribution, model: nn.Module, points: Float[Tensor, "n k c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n k _ h w"]:
    """The maps of ``of`` at several points of each example."""
    several = target.repeat_interleave(points.shape[1])
    maps = keyed(of, rng)(model, points.flatten(0, 1), several)
    return maps.reshape(*points.shape[:2], *maps.shape[1:])


def _in_turn(size: int, draws: int, rng: Rng) -> Int[Tensor, "n draws"]:
    """Numbers below ``size`` in an order of each example's own, over and over."""
    orders = [permutation(size, rng.seed, *rng.node, id_)[:draws] for id_ in rng.ids]
    return torch.from_numpy(np.stack(orders))[:, torch.arange(draws) % size]
