"""The score of many variants of each image, a part of each hidden, within the memory budget."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience.attribution.gradient import scored
from consilience.attribution.line import even_slices
from consilience.tensors import Score, in_halves, rows_per_chunk, slices


def passes(model: nn.Module, x: Float[Tensor, "n c h w"], count: int) -> Iterator[tuple[slice, slice]]:
    """Examples, and some of the ``count`` variants of each: together as many as one pass takes."""
    rows = rows_per_chunk(model, x)
    for some in slices(len(x), max(1, rows // count)):
        for part in even_slices(count, rows):
            yield some, part


def scores_of(
    model: nn.Module, images: Float[Tensor, "n k c h w"], target: Int[Tensor, " n"], score: Score
) -> Float[Tensor, "n k"]:
    """The score of each variant of each example, without a graph; NaN where it is not finite."""
    several, flat = target.repeat_interleave(images.shape[1]), images.flatten(0, 1)
    with torch.no_grad():
        found = in_halves(lambda rows: scored(model(flat[rows]), several[rows], score), len(flat))
    return found.view(images.shape[:2])
