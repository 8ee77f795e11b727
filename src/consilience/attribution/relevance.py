"""What each pixel did for the score, divided layer by layer from the logits down: layer-wise relevance propagation."""

import functools
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.dividing import Division, First
from consilience.attribution.division import by_alpha_beta, by_epsilon, by_gamma, by_plus
from consilience.attribution.gradient import scored, slope_of
from consilience.attribution.scores import logit
from consilience.component import attribution, backward
from consilience.errors import SpecError
from consilience.tensors import Backward, Score, check_batch, in_halves


@backward(version=1, paper="bach2015pixel")
def epsilon_rule(model: nn.Module, *, epsilon: Annotated[float, Meta(ge=0)] = 1e-6) -> Division:
    """Each layer divides relevance in proportion to contributions, ``x w``, of which it absorbs what is weak.

    Signal is relevance over value, so at the pixels it is relevance once it is multiplied by them. With an epsilon
    of 0 and rectifiers only it is the plain gradient.

    Args:
        epsilon: Added to the absolute value of what a layer answered before relevance is divided by it.
    """
    divide = functools.partial(by_epsilon, epsilon=epsilon)
    return Division("epsilon_rule", model, divide, divide)


@backward(version=1, paper="montavon2017explaining")
def z_plus_rule(model: nn.Module) -> Division:
    """Each layer divides relevance in proportion to positive contributions alone, as deep Taylor decomposition does.

    What a positive bias contributes is lost to the pixels.
    """
    return Division("z_plus_rule", model, by_plus, by_plus)


@backward(version=1, paper="bach2015pixel")
def alpha_beta_rule(model: nn.Module, *, alpha: Annotated[float, Meta(ge=1)] = 2.0) -> Division:
    """Each layer gives ``alpha`` times its relevance to positive contributions, and takes the rest from negative ones.

    Args:
        alpha: Weight of positive contributions; that of negative ones, beta, is ``alpha - 1``.
    """
    divide = functools.partial(by_alpha_beta, alpha=alpha, beta=alpha - 1)
    return Division("alpha_beta_rule", model, divide, divide)


@backward(version=1, paper="montavon2019layerwise")
def gamma_rule(model: nn.Module, *, gamma: Annotated[float, Meta(ge=0)] = 0.25) -> Division:
    """Each layer divides relevance in proportion to contributions, of which those of the output's sign count for more.

    Args:
        gamma: How much more they count: 0 for as much as others.
    """
    divide = functools.partial(by_gamma, gamma=gamma)
    return Division("gamma_rule", model, divide, divide)


@backward(version=1, paper="montavon2019layerwise")
def epsilon_plus_rule(model: nn.Module, *, epsilon: Annotated[float, Meta(ge=0)] = 1e-6) -> Division:
    """Dense layers divide relevance as by ``epsilon_rule``, convolutions as by ``z_plus_rule``.

    Args:
        epsilon: Added to the absolute value of what a dense layer answered before relevance is divided by it.
    """
    dense = functools.partial(by_epsilon, epsilon=epsilon)
    return Division("epsilon_plus_rule", model, dense, by_plus)


@backward(version=1, paper="montavon2019layerwise")
def epsilon_alpha_beta_rule(
    model: nn.Module, *, epsilon: Annotated[float, Meta(ge=0)] = 1e-6, alpha: Annotated[float, Meta(ge=1)] = 2.0
) -> Division:
    """Dense layers divide relevance as by ``epsilon_rule``, convolutions as by ``alpha_beta_rule``.

    Args:
        epsilon: Added to the absolute value of what a dense layer answered before relevance is divided by it.
        alpha: Weight of positive contributions; that of negative ones, beta, is ``alpha - 1``.
    """
    dense = functools.partial(by_epsilon, epsilon=epsilon)
    convolution = functools.partial(by_alpha_beta, alpha=alpha, beta=alpha - 1)
    return Division("epsilon_alpha_beta_rule", model, dense, convolution)


@backward(version=1, paper="montavon2019layerwise")
def epsilon_gamma_rule(
    model: nn.Module, *, epsilon: Annotated[float, Meta(ge=0)] = 1e-6, gamma: Annotated[float, Meta(ge=0)] = 0.25
) -> Division:
    """Dense layers divide relevance as by ``epsilon_rule``, convolutions as by ``gamma_rule``.

    Args:
        epsilon: Added to the absolute value of what a dense layer answered before relevance is divided by it.
        gamma: How much more contributions of the output's sign count: 0 for as much as others.
    """
    dense, convolution = functools.partial(by_epsilon, epsilon=epsilon), functools.partial(by_gamma, gamma=gamma)
    return Division("epsilon_gamma_rule", model, dense, convolution)


@attribution(version=1, paper="bach2015pixel")
def lrp(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    score: Score = logit,
    rule: Backward = epsilon_plus_rule,
    first: First = "as_others",
) -> Float[Tensor, "n c h w"]:
    """Relevance of each pixel: the score, divided layer by layer among what contributed. NaN where it is not finite.

    Relevance is what the logits hold of the score, logit times slope. Without biases the maps sum to it, less what an
    epsilon absorbs and what a layer has for inputs of a sign of which it is given none. Biases keep a part. Between
    layers:

    - A batch norm, and anything else that scales or shifts channels, belongs to the layer before it. Where there is
      none it leaves relevance with each number, and so does an activation; a number that is exactly 0 loses it.
    - Sums, average and max pools and rectifiers divide in proportion to values.
    - ``(x - mean) / sd`` in front of the layers leaves relevance with each pixel, black or not.
    - A product of two things that depend on the pixels, such as a gate, is divided evenly between them.
    - Attention, softmax (other than at the very end), layer norm and whatever else is unknown are refused.

    There is no ``create_graph``: the rules hold fixed what they divide by, so a derivative of the maps would be
    wrong.

    Args:
        score: What is explained.
        rule: How layers divide; one of ``epsilon_rule``, ``epsilon_plus_rule`` and their like.
        first: How the layers that take the pixels divide: ``as_others``, or by ``box`` (z^B, for pixels from 0 to 1),
            ``w_square`` or ``flat``.
    """
    check_batch(model, x, target)

    def relevance(rows: slice) -> Tensor:
        division, ones = division_of(rule, model), torch.ones_like(x[rows]).requires_grad_()
        division.first = first
        pixels = division.front.begin(x[rows].detach(), ones)
        with division as rules:
            logits = model(pixels)
        rules.audit(logits)
        answer = scored(logits, target[rows], score)
        return finite(slope_of(answer, ones), answer)

    with torch.enable_grad():
        return in_halves(relevance, len(x))


def division_of(rule: Backward, model: nn.Module) -> Division:
    """The context of a rule that divides relevance.

    Raises:
        SpecError: The rule is of another kind.
    """
    division: Any = rule(model)
    if not isinstance(division, Division):
        name = getattr(getattr(rule, "func", rule), "__name__", "another")
        raise SpecError(
            f"lrp.rule: expected a rule that divides relevance, such as epsilon_plus_rule, found {name}; "
            "signal that flows back by another rule is no relevance: take gradient(rule=...) for it"
        )
    return division


def finite(maps: Tensor, answer: Tensor) -> Tensor:
    """The maps, NaN wherever the score is not finite, also where relevance did not come."""
    known = torch.where(answer.detach().isfinite(), 1.0, torch.nan).to(maps)
    return maps * known.view(-1, *[1] * (maps.ndim - 1))
