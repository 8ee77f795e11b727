"""Maps that explain nothing, for what every measure must be compared with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from consilience.component import attribution
from consilience.rng import Rng
from consilience.tensors import check_batch


@attribution(version=1)
def random_map(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n c h w"]:
    """Standard normal numbers of each example's own, whatever the model, the pixels and the class.

    The value that a measure gives to this control is what it gives to no explanation at all: a
    method that does not stand out from it has shown nothing.
    """
    return rng.normal(*x.shape[1:], device=x.device).to(x.dtype)


@attribution(version=1)
def input_map(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """The pixels themselves, whatever the model and the class.

    Any two models agree on it completely. So does, in part, whatever multiplies by the pixels: agreement alone does
    not show that a map speaks of a model.
    """
    check_batch(model, x, target)
    return x.detach().clone()


@attribution(version=1, paper="adebayo2018sanity")
def edge_map(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Sobel's edge strength of each channel, whatever the model and the class.

    The length of the two derivatives with the kernel (1, 2, 1) x (-1, 0, 1), not scaled; at the border the image is
    reflected, so that its outermost pixels stand twice. Where a map looks like this one, look twice: the eye takes
    edges for an explanation.
    """
    check_batch(model, x, target)
    around = pad(x.detach(), (1, 1, 1, 1), mode="replicate")  # one pixel of reflection is the border's own
    down, right = around[:, :, 2:] - around[:, :, :-2], around[..., 2:] - around[..., :-2]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    right = right[:, :, :-2] + 2 * right[:, :, 1:-1] + right[:, :, 2:]
    return torch.hypot(down, right)
