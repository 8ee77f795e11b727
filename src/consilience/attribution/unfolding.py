"""Operations that are made of simpler ones, written out, so that what is known of those is known of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from consilience.attribution.operations import Function, named
from consilience.errors import ModelError


def _over_features(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Mean 0 and variance 1 over some axes of each image."""
    centred = x - x.mean(axes, keepdim=True)
    return centred * ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    return _scaled(_over_features(x, tuple(range(-len(normalized_shape), 0)), eps), weight, bias)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _scaled(x * ((x * x).mean(axes, keepdim=True) + eps).rsqrt(), weight, None)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:  # fmt: skip
    grouped = x.reshape(len(x), num_groups, -1)
    each = (-1, *[1] * (x.ndim - 2))
    return _scaled(
        _over_features(grouped, (-1,), eps).reshape(x.shape),
        None if weight is None else weight.view(each),
        None if bias is None else bias.view(each),
    )


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if use_input_stats:
        return _group_norm(x, x.shape[1], weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half, gate = x.chunk(2, dim)
    return half * gate.sigmoid()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or enable_gqa:
        raise ModelError(
            "scaled_dot_product_attention: expected no dropout and as many keys as queries, found dropout or grouped "
            "queries; call model.eval(), or take a method that needs no rules, such as integrated_gradients"
        )
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


UNFOLDED: Mapping[Function, Function] = {
    **dict.fromkeys(named("layer_norm"), _layer_norm),
    **dict.fromkeys(named("group_norm"), _group_norm),
    F.instance_norm: _instance_norm,
    F.glu: _glu,
    F.scaled_dot_product_attention: _attention,
    **({F.rms_norm: _rms_norm} if hasattr(F, "rms_norm") else {}),
}
