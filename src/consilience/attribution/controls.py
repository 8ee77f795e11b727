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
    check_batch(model, x, target)
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


@attribution(version=1)
def uniform_map(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """One at every pixel, whatever the model, the image and the class.

    It marks everything alike: what lies on the object is the object's share of the image, and no peak is anywhere.
    Measures that ask for a spread, such as a correlation, are undefined for it.
    """
    check_batch(model, x, target)
    return torch.ones_like(x.detach())


@attribution(version=1, paper="zhang2018excitation")
def center_map(model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """A bump in the middle of the image, whatever the model, the pixels and the class.

    Its value is ``exp(-(u^2 + v^2) / 2)``, where ``u`` and ``v`` are the distances from row ``h // 2`` and column
    ``w // 2`` in quarters of the height and the width: one at its peak, which is the pointing game's centre baseline,
    and 0.02 at the farthest corner. Objects are mostly in the middle: a method that does not point better has found
    none.
    """
    check_batch(model, x, target)
    height, width = x.shape[2:]
    u, v = (4 * (torch.arange(size, device=x.device, dtype=x.dtype) - size // 2) / size for size in (height, width))
    return torch.exp(-(u[:, None] ** 2 + v**2) / 2).expand_as(x).clone()


@attribution(version=1, paper="adebayo2018sanity")
def input_x_random(
    model: nn.Module, x: Float[Tensor, "n c h w"], target: Int[Tensor, " n"], rng: Rng
) -> Float[Tensor, "n c h w"]:
    """The pixels times standard normal numbers of each example's own, whatever the model and the class.

    What methods that multiply by the pixels come to where the model says nothing. Two such maps of an image with a
    black ground agree nearly completely in the ranks of their absolute values, since their zeros are the same.
    """
    check_batch(model, x, target)
    return x.detach() * rng.normal(*x.shape[1:], device=x.device).to(x.dtype)
