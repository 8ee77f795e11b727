"""Explainers of the repository of Pattern-Guided Integrated Gradients, with their arithmetic and its mistakes.

They are what that paper's method was compared with, kept for tables that are to be compared with published ones. All
explain the target's softmax probability, and their zero is that of normalised space: the mean pixel, where the model
holds one, else black. Their slopes are those in pixels, which are the published ones divided by the deviation in front
of the model.

There, guided backpropagation replaces the model's rectifiers and never puts them back, so every method listed after it
runs with its rule; ``rule=guided_rule`` gives those numbers. Nothing is left on the model here.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.backward import plain_rule
from consilience.attribution.gradient import gradient
from consilience.attribution.guided import guided_rule
from consilience.attribution.scores import probability, value
from consilience.component import attribution
from consilience.rng import Rng
from consilience.tensors import Backward, Score, check_batch, rows_per_chunk, slices, start_of

STEPS, SAMPLES, NOISE, STARTS = 25, 25, 0.15, 49
LAWS = "alike_in_any_batch", "undefined_stays_alone"
OF_THE_BATCH = dict.fromkeys(LAWS, "the noise's deviation is that of the whole batch")
FROM_THE_BATCH = dict.fromkeys(LAWS, "lines start at the batch's other images")


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True)
def published_vanilla_grad(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Derivative of the target's softmax probability. NaN where it is not finite.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    return _slope(model, x, target, rule)


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True)
def published_grad_x_input(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Derivative of the target's softmax probability, times the pixel's distance from zero. NaN where not finite.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    return _slope(model, x, target, rule) * (x.detach() - _zero(model, x))


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True)
def published_integrate_grad(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Sum of the slopes at 1/25, 2/25 to 24/25 of the way from zero, over 25, times the way. NaN where not finite.

    As published, 24 points are divided by 25: where the probability is linear, the maps sum to 0.96 of what they
    should. Use ``integrated_gradients``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    check_batch(model, x, target)
    way, rows, maps = x.detach() - _zero(model, x), rows_per_chunk(model, x), torch.zeros_like(x.detach())
    shares = torch.arange(1, STEPS, dtype=torch.float64).to(x).view(1, -1, 1, 1, 1) / STEPS
    for some in slices(len(x), max(1, rows // STEPS)):
        points = _zero(model, x)[some, None] + shares * way[some, None]
        maps[some] = _slopes(model, points, target[some], rule, rows).sum(1) * way[some] / STEPS
    return maps


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True)
def published_guided_backprop(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n c h w"]:
    """Guided backpropagation from the softmax, seeded with the target's probability. NaN where it is not finite.

    As published, what flows back is a mixture of all classes, and less the less likely the target is. Use
    ``guided_backprop``.
    """
    return _slope(model, x, target, guided_rule, functools.partial(value, of=probability))


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True, breaks=OF_THE_BATCH)
def published_smooth_grad(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng, *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Mean over 25 samples of the sum of the slopes so far, on a random walk. NaN where it is not finite.

    As published, noise is added to the image that is noisy already, slopes are never set back to zero, and the noise's
    deviation is 0.15 of the range of all pixels of the batch: where the probability is linear, the map is 13 times its
    slope. Use ``smooth_grad``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    return _moments(model, x, target, rng, rule)[0]


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True, breaks=OF_THE_BATCH)
def published_smooth_grad2(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng, *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Mean over 25 samples of the square of what ``published_smooth_grad`` averages. NaN where it is not finite.

    Where the probability is linear, it is 221 times the squared slope. Use ``square_grad``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    return _moments(model, x, target, rng, rule)[1]


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True, breaks=OF_THE_BATCH)
def published_var_grad(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng, *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Variance over 25 samples of what ``published_smooth_grad`` averages. NaN where it is not finite.

    Where the probability is linear, it is 52 times the squared slope, instead of zero. Use ``var_grad``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    mean, square = _moments(model, x, target, rng, rule)
    return square - mean**2


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True, breaks=OF_THE_BATCH)
def published_sg_ig(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng, *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """``published_integrate_grad`` with ``published_smooth_grad`` at each of its points. NaN where it is not finite.

    Where the probability is linear, the maps sum to 12.48 times what they should. Use ``integrated_gradients`` of
    ``smooth_grad``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    check_batch(model, x, target)
    zero, total = _zero(model, x), torch.zeros_like(x.detach())
    way = x.detach() - zero
    for step in range(1, STEPS):
        total += _moments(model, zero + step / STEPS * way, target, rng.at(step), rule)[0]
    return total * way / STEPS


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True, breaks=FROM_THE_BATCH)
def published_exp_grad(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng, *, rule: Backward = plain_rule
) -> Float[Tensor, "n c h w"]:
    """Mean over the 49 images before in the batch of the way from there times a slope on it. NaN where not finite.

    As published, the point on the line is the same share of the way for all images of the batch, and a map depends on
    which other images are in it. Batches of fewer than 50 were refused; here the images serve again, the image itself
    among them, which adds zero. Use ``expected_gradients``.

    Args:
        rule: How signal flows back; ``guided_rule`` as after guided backpropagation.
    """
    check_batch(model, x, target)
    x, rows, maps = x.detach(), rows_per_chunk(model, x), torch.zeros_like(x.detach())
    along = x.new_tensor([rng.at(shift).common("line").random() for shift in range(STARTS)]).view(1, -1, 1, 1, 1)
    before = torch.arange(len(x), device=x.device)[:, None] - torch.arange(1, STARTS + 1, device=x.device)
    for some in slices(len(x), max(1, rows // STARTS)):
        start = x[before[some] % max(1, len(x))]
        way = x[some, None] - start
        maps[some] = (way * _slopes(model, start + along * way, target[some], rule, rows)).mean(1)
    return maps


@attribution(version=1, paper="schwarzenberg2020pattern", legacy=True)
def published_random(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n c h w"]:
    """Numbers uniform in [0, 1) of each example's own, whatever the model, the pixels and the class.

    All are positive: its mean over a patch is 0.5. ``random_map`` has both signs.
    """
    return rng.uniform(*x.shape[1:], device=x.device).to(x.dtype)


def _moments(
    model: nn.Module, x: Tensor, target: Tensor, rng: Rng, rule: Backward
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """Mean and mean square of the sums of slopes on a random walk that starts at the image."""
    check_batch(model, x, target)
    x, rows = x.detach(), rows_per_chunk(model, x)
    mean, square, deviation = torch.zeros_like(x), torch.zeros_like(x), _deviation(model, x)
    for some in slices(len(x), max(1, rows // SAMPLES)):
        own = rng.rows(range(len(x))[some])
        steps = torch.stack([own.at(sample).normal(*x.shape[1:]) for sample in range(SAMPLES)], 1).to(x)
        walk = x[some, None] + deviation * steps.cumsum(1)
        sums = _slopes(model, walk, target[some], rule, rows).cumsum(1)
        mean[some], square[some] = sums.mean(1), sums.square().mean(1)
    return mean, square


def _slopes(
    model: nn.Module,
    points: Float[Tensor, "n p c h w"],
    target: Int[Tensor, " n"],
    rule: Backward,
    rows: int,
    score: Score = probability,
) -> Float[Tensor, "n p c h w"]:
    """Derivatives of the probability at several points of each example, so many rows a pass."""
    flat, several = points.flatten(0, 1), target.repeat_interleave(points.shape[1])
    maps = torch.empty_like(flat)
    for part in slices(len(flat), rows):
        maps[part] = gradient(model, flat[part], several[part], score=score, rule=rule)
    return maps.view_as(points)


def _slope(
    model: nn.Module, x: Tensor, target: Tensor, rule: Backward, score: Score = probability
) -> Float[Tensor, "n c h w"]:
    """Derivative of the probability at the images themselves."""
    check_batch(model, x, target)
    return _slopes(model, x.detach()[:, None], target, rule, rows_per_chunk(model, x), score)[:, 0]


def _deviation(model: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "1 _ 1 1"]:
    """That of the noise in pixels: a share of the range of the whole batch, as the model behind its mean sees it."""
    sd = getattr(model, "pixel_sd", None)
    sd = sd.to(x) if isinstance(sd, Tensor) else x.new_ones(1, 1, 1, 1)
    if not x.numel():
        return sd
    seen = (x - _zero(model, x)) / sd
    return NOISE * (seen.max() - seen.min()) * sd


def _zero(model: nn.Module, x: Tensor) -> Float[Tensor, "n c h w"]:
    """The zero of normalised space, in pixels."""
    return start_of(x, "mean" if isinstance(getattr(model, "pixel_mean", None), Tensor) else 0.0, model)
