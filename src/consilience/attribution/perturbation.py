"""Attribution by hiding parts of the image and looking at what becomes of the score."""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.functional import interpolate

from consilience.attribution.masked import passes, scores_of
from consilience.attribution.scores import logit, probability
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.rng import Rng
from consilience.tensors import Baseline, Score, check_batch, start_of


@attribution(version=1, paper="zeiler2014visualizing")
def occlusion(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    window: Annotated[int, Meta(ge=1)] = 4,
    stride: Annotated[int, Meta(ge=1)] = 2,
    baseline: Baseline = 0.0,
) -> Float[Tensor, "n 1 h w"]:
    """Mean drop of the score over the windows that hide a pixel; NaN where one of the image's scores is.

    A square window moves over the image and shows the baseline in all channels; positive where the score falls. The
    last window of a row or column may reach over the border, so that every pixel is covered. This is captum's
    convention. Zeiler and Fergus print the score itself at each place of the window instead. The maps are not
    complete. The default window is for digits; of 224 pixels, 32 at a stride of 16 needs about as many passes.

    Args:
        score: What may drop.
        window: Side of the window, in pixels.
        stride: Pixels from one place of the window to the next.
        baseline: What the window shows: a value, or ``"mean"``.
    """
    check_batch(model, x, target)
    x, (height, width) = x.detach(), x.shape[2:]
    if not 1 <= stride <= window <= min(height, width):
        raise SpecError(
            f"occlusion: expected 1 <= stride <= window <= {min(height, width)}, the image's smaller side, found "
            f"stride {stride} and window {window}; otherwise pixels stay uncovered"
        )
    start, down, right = start_of(x, baseline, model), _windows(height, window, stride), _windows(width, window, stride)
    count = len(down) * len(right)
    drop = x.new_empty(len(x), count + 1)
    for some, part in passes(model, x, count + 1):
        place = torch.arange(part.start, part.stop)
        hides = down[place // len(right) % len(down), :, None] & right[place % len(right), None]
        hides[place == count] = False  # the last variant is the image itself
        images = torch.where(hides[None, :, None].to(x.device), start[some, None], x[some, None])
        drop[some, part] = scores_of(model, images, target[some], score)
    drop = (drop[:, -1:] - drop[:, :-1]).view(-1, len(down), len(right))
    weight = [(side / side.sum(0)).to(x) for side in (down.double(), right.double())]
    return torch.einsum("nij,ih,jw->nhw", drop, *weight)[:, None]


def _windows(size: int, window: int, stride: int) -> Tensor:
    """Which pixels of a row or column each place of the window hides, ``[places, size]``."""
    first = torch.arange(math.ceil((size - window) / stride) + 1)[:, None] * stride
    pixel = torch.arange(size)
    return (pixel >= first) & (pixel < first + window)


@attribution(version=1, paper="petsiuk2018rise")
def rise(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    score: Score = probability,
    masks: Annotated[int, Meta(ge=1)] = 4000,
    cells: Annotated[int, Meta(ge=1)] = 7,
    keep: Annotated[float, Meta(gt=0, le=1)] = 0.5,
    baseline: Baseline = 0.0,
) -> Float[Tensor, "n 1 h w"]:
    """Mean over random masks of the masked image's score times the mask, divided by ``keep``; NaN where a score is.

    A mask is a grid of cells, each kept with chance ``keep``, enlarged bilinearly to one cell more than covers the
    image, from which the image's size is cut at random. So a map is the expected score where the pixel is seen: it
    is positive everywhere for a probability, and what it says lies in its differences. Each image has masks of its
    own. TorchRay's variant differs: sigmoid instead of softmax, reflected borders, and no division.

    Args:
        score: What is averaged; a probability in the paper.
        masks: Drawn for each image: 4000 in the paper for VGG-16, 8000 for ResNet-50.
        cells: Of the grid, down and across.
        keep: Chance that a cell is seen.
        baseline: What is seen where the mask is zero: a value, or ``"mean"``, which is the paper's zero.
    """
    check_batch(model, x, target)
    x, (height, width) = x.detach(), x.shape[2:]
    if not 1 <= cells <= min(height, width) or masks < 1 or not 0 < keep <= 1:
        raise SpecError(
            f"rise: expected at least one mask, 1 to {min(height, width)} cells and 0 < keep <= 1, found "
            f"masks {masks}, cells {cells}, keep {keep}; a cell has at least one pixel"
        )
    start, down, right = start_of(x, baseline, model), _enlarge(height, cells, x), _enlarge(width, cells, x)
    total = x.new_zeros(len(x), height, width)
    for some, part in passes(model, x, masks):
        own = rng.rows(range(len(x))[some])
        seen = (own.at("cells").uniform(masks, cells, cells)[:, part] < keep).to(x)
        top, left = (
            own.at(side).integers(len(m), masks)[:, part].to(x.device) for side, m in (("down", down), ("right", right))
        )
        mask = torch.einsum("nkih,nkij,nkjw->nkhw", down[top], seen, right[left])
        images = torch.lerp(start[some, None], x[some, None], mask[:, :, None])
        total[some] += torch.einsum("nk,nkhw->nhw", scores_of(model, images, target[some], score), mask)
    return total.div_(masks * keep)[:, None]


def _enlarge(size: int, cells: int, like: Tensor) -> Float[Tensor, "shifts cells size"]:
    """What each cell gives to each pixel of a row or column, for each place where the image may be cut."""
    cell = math.ceil(size / cells)
    whole = interpolate(
        torch.eye(cells, dtype=like.dtype, device=like.device)[None], size=(cells + 1) * cell, mode="linear"
    )
    return whole[0].unfold(1, size, 1).movedim(1, 0)[:cell]
