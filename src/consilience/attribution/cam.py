"""Class activation maps: where a layer's channels speak for the class."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from consilience.attribution.activation import Seen, at_layer
from consilience.attribution.guided import guided_backprop
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.tensors import Score, check_batch

Resize = Literal["bilinear", "nearest", "none"]
"""How a map comes from the layer's size to that of the image."""


@attribution(version=1, paper="selvaraju2017gradcam")
def grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    layer: str | None = None,
    score: Score = logit,
    resize: Resize = "bilinear",
    relu: bool = True,
    create_graph: bool = False,
) -> Float[Tensor, "n 1 i j"]:
    """Sum of the layer's channels, each times its mean slope, where positive. NaN where the score is not finite.

    One channel, from 0 upwards, not scaled; 0 everywhere where nothing in the layer speaks for the target. The layer
    found is the last with a plane, ``h w > 1``, through which everything goes that the logits know of the pixels: of
    a split model its features, of a vision transformer the last tokens of which more than the class token matters.
    Tokens are read in rows, after at most five leading ones. Of a layer that is called several times, the last call
    counts.

    Args:
        layer: Name of the layer, as in the state dict; None finds it.
        score: What is explained.
        resize: From the layer's size to the image's: ``bilinear`` (corners not aligned), ``nearest``, or ``none``.
        relu: Keep only what is positive, before the resize; otherwise what speaks against the target is negative.
        create_graph: Keep the maps differentiable, for a loss that contains them; then the batch goes as a whole.
    """
    return _maps(_averaged, model, x, target, layer, score, resize, relu, create_graph)


@attribution(version=1, paper="pillai2021consistent")
def element_grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    layer: str | None = None,
    score: Score = logit,
    resize: Resize = "bilinear",
    relu: bool = True,
    create_graph: bool = False,
) -> Float[Tensor, "n 1 i j"]:
    """Sum of the layer's channels, each times its slope there, where positive. NaN where the score is not finite.

    The slope is not averaged over the plane: it is what the Grad-CAM consistency loss trains on, and before its ReLU
    it is HiResCAM (Draelos and Carin 2020). Where a mean over the plane and one linear layer follow, it is
    ``grad_cam`` and, up to a factor, the class activation map; behind a maximum over the plane it is sparse, and
    ``grad_cam`` is not. If what follows is linear, maps without ReLU and resize sum to the score less its constant.

    Args:
        layer: Name of the layer, as in the state dict; None finds it, as for ``grad_cam``.
        score: What is explained.
        resize: From the layer's size to the image's: ``bilinear`` (corners not aligned), ``nearest``, or ``none``.
        relu: Keep only what is positive, before the resize; otherwise what speaks against the target is negative.
        create_graph: Keep the maps differentiable, for a loss that contains them; then the batch goes as a whole.
    """
    return _maps(_product, model, x, target, layer, score, resize, relu, create_graph)


@attribution(version=1, paper="selvaraju2017gradcam")
def guided_grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    layer: str | None = None,
    score: Score = logit,
    resize: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "n c h w"]:
    """Guided backpropagation times ``grad_cam`` at the image's size. NaN where the score is not finite.

    Its detail is that of guided backpropagation, which changes little when upper layers are randomised (Adebayo et
    al. 2018). A model without rectifiers is refused.

    Args:
        layer: Name of the layer, as in the state dict; None finds it, as for ``grad_cam``.
        score: What is explained.
        resize: From the layer's size to the image's: ``bilinear`` (corners not aligned) or ``nearest``.
    """
    coarse = grad_cam(model, x, target, layer=layer, score=score, resize=resize)
    return guided_backprop(model, x, target, score=score) * coarse


def _averaged(seen: Seen) -> Float[Tensor, "n 1 i j"]:
    weight = seen.slope.mean((2, 3))
    return torch.einsum("nk,nkij->nij", weight, seen.planes)[:, None]


def _product(seen: Seen) -> Float[Tensor, "n 1 i j"]:
    return (seen.slope * seen.planes).sum(1, keepdim=True)


def _maps(
    join: Callable[[Seen], Tensor],
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    layer: str | None,
    score: Score,
    resize: Resize,
    relu: bool,
    create_graph: bool,
) -> Float[Tensor, "n 1 i j"]:
    check_batch(model, x, target)
    with torch.enable_grad():
        maps = at_layer(model, x, target, layer, score, join, create_graph=create_graph).to(x.dtype)
        return _resized(maps.relu() if relu else maps, x, resize)


def _resized(maps: Tensor, x: Tensor, resize: Resize) -> Tensor:
    if resize == "none" or not len(x):
        return maps
    if resize == "nearest":
        return interpolate(maps, x.shape[2:], mode="nearest")
    return interpolate(maps, x.shape[2:], mode="bilinear", align_corners=False)
