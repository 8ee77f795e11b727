"""Which inputs make a winner win: excitation backprop passes its share down excitatory connections alone."""

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from consilience.attribution.activation import named_module
from consilience.attribution.dividing import Division
from consilience.attribution.division import against_inhibition, without_bias
from consilience.attribution.gradient import scored, slope_of
from consilience.attribution.relevance import finite
from consilience.attribution.scores import logit
from consilience.component import attribution, backward
from consilience.errors import ModelError
from consilience.tensors import Score, check_batch, in_halves


@backward(version=1, paper="zhang2018excitation")
def excitation_rule(model: nn.Module) -> Division:
    """Each layer divides a winner's share in proportion to positive contributions, none of which is a bias.

    Signal is share over value, as relevance is for ``epsilon_rule``. Nothing is lost, except where nothing excites a
    unit. Products of two things that depend on the pixels, softmax and all that ``lrp`` refuses are refused.
    """
    return Division("excitation_rule", model, without_bias, without_bias, beyond=False)


@attribution(version=1, paper="zhang2018excitation")
def excitation_backprop(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    layer: str | None = None,
) -> Float[Tensor, "n d h w"]:
    """Share of each pixel in the target's winning. NaN where the score is not finite or a logit is exactly 0.

    Each logit gets as many shares as the score has slope in it: of ``logit`` the target gets one. A share stays with
    a unit that nothing excites, so a target without evidence for it has a map of zeros. Each layer divides shares by
    its positive weights; where it is given a negative number, a negative weight excites. Average pools and sums
    divide in proportion to values, as published for activations that are not negative: of numbers of both signs
    some get a negative share and others more than all. A maximum gives all to the winner. A batch norm is folded
    into the layer before it, and where there is none passes shares on.

    Args:
        score: What is explained.
        layer: Where shares are read: the output of the layer of this name, as in the state dict, summed over its
            channels and resized to the image (bilinear, corners not aligned); None for the pixels.
    """
    return _shares(model, x, target, score, layer, contrast=False)


@attribution(version=1, paper="zhang2018excitation")
def contrastive_excitation_backprop(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    layer: str | None = None,
) -> Float[Tensor, "n 1 h w"]:
    """How much larger a pixel's share in the target's winning is than in its opposite's; 0 where smaller, NaN likewise.

    The opposite is the same logit with the signs of its weights turned, in the last layer of every path to the
    logits. Below it both are divided alike, so it does not matter at which layer they are subtracted. Channels are
    summed before what is negative becomes 0.

    Args:
        score: What is explained.
        layer: Where shares are read: the output of the layer of this name, as in the state dict, resized to the image
            (bilinear, corners not aligned); None for the pixels.
    """
    return _shares(model, x, target, score, layer, contrast=True)


def _shares(model: nn.Module, x: Tensor, target: Tensor, score: Score, layer: str | None, *, contrast: bool) -> Tensor:
    check_batch(model, x, target)

    def maps(rows: slice) -> Tensor:
        division, ones = excitation_rule(model), torch.ones_like(x[rows]).requires_grad_()
        pixels = division.front.begin(x[rows].detach(), ones)
        logits, at = _run(model, division, pixels, layer)
        answer, signal = _signal(logits, target[rows], score)
        if contrast:
            for node in _last_layers(logits):
                node.back = functools.partial(against_inhibition, node.layer)
        shares = slope_of(signal, ones if at is None else at)
        if at is not None:
            shares = (shares * at.detach()).sum(1, keepdim=True)
        if contrast:
            shares = shares.sum(1, keepdim=True).relu()
        if at is not None:
            shares = interpolate(shares, x.shape[2:], mode="bilinear", align_corners=False)
        return finite(shares, answer)

    with torch.enable_grad():
        return in_halves(maps, len(x))


def _run(model: nn.Module, division: Division, x: Tensor, layer: str | None) -> tuple[Any, Tensor | None]:
    """What the model answers, and the layer's last output."""
    seen: list[Any] = []

    def look(module: nn.Module, args: Any, out: Any) -> Any:
        seen.append(out)
        return out.clone() if isinstance(out, Tensor) else out  # the model may write over what it gets

    hook = None if layer is None else named_module(model, layer).register_forward_hook(look)
    try:
        with division as rules:
            logits = model(x)
    finally:
        if hook is not None:
            hook.remove()
    rules.audit(logits)
    if layer is None:
        return logits, None
    out = seen[-1] if seen else None
    if not isinstance(out, Tensor) or out.ndim != 4 or not out.requires_grad:
        found = "that it is not called" if out is None else type(out).__name__
        found = f"{list(out.shape)}" if isinstance(out, Tensor) else found
        raise ModelError(
            f"layer '{layer}': expected planes [n, channels, h, w] that depend on the pixels, found {found}; "
            "name another"
        )
    return logits, out


def _signal(logits: Any, target: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """The score, and a sum of logits that sends each as many shares back as the score has slope in it."""
    at = logits.detach().requires_grad_() if isinstance(logits, Tensor) else logits
    answer = scored(at, target, score)
    slope = slope_of(answer, at)
    each = torch.where(slope == 0, 0.0, slope / at.detach())
    return answer, (logits * each).sum(1)


def _last_layers(logits: Tensor) -> list[Any]:
    """The nodes of the layers behind which no other layer stands on some way to the logits."""
    waiting, seen, found = [logits.grad_fn], set[Any](), list[Any]()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "layer"):
            found.append(node)
        else:
            waiting += [before for before, _ in node.next_functions]
    return found
