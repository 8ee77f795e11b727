"""Logistic regression of many labellings of the same rows at once: all of them share what the rows cost.

``min |w|^2 / 2 + c * sum log(1 + exp(-y f))`` with ``f = Z w + b``: a ridge on the weights, the intercept free.
A rotation of the features changes nothing in it. So the rows are turned, once for all labellings, into the axes in
which they are uncorrelated, no more of them than rows or features. There the Hessian is close to a diagonal one,
and Newton's steps need a few conjugate gradients each, all labellings abreast. In double precision.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STEPS, MOVED = 100, 1e-5  # Newton: what remains after a step of 1e-5 is smaller by INNER_ERROR at least
INNER_STEPS, INNER_ERROR = 500, 1e-2
ROUNDING = 1e-9  # of a gradient, relative to rows; the last digit of one float32 pixel is below it


class Problem(NamedTuple):
    """Standardised rows of some splits in principal axes; the last column, of ones, belongs to the intercept."""

    train: Float[Tensor, "splits m r"]
    """The rows that are learnt from."""
    every: Float[Tensor, "splits n r"]
    """All rows, whose margins are wanted."""
    learnt: Int[Tensor, "splits m"]
    """Where the rows that are learnt from stand among all."""


class Way(NamedTuple):
    """From the present weights along a change of them, where the loss is looked at without touching the rows."""

    f: Tensor
    lift: Tensor
    """The change of ``f``."""
    ridge: tuple[Tensor, Tensor, Tensor]
    """Squared weights, their product with the change, and the squared change."""
    strength: Tensor
    sign: Tensor

    def loss(self, length: Tensor) -> Tensor:
        """What is minimised."""
        constant, linear, square = self.ridge
        fit = torch.nn.functional.softplus(-self.sign * (self.f + length * self.lift))
        return (constant + 2 * length * linear + length**2 * square) / 2 + _dot(self.strength, fit)

    def step(self, length: Tensor) -> Tensor:
        """From a length to a better one, by Newton in this one number."""
        there = self.f + length * self.lift
        slope = self.ridge[1] + length * self.ridge[2] - _dot(_pull(there, self.strength, self.sign), self.lift)
        curve = self.ridge[2] + _dot(_weight(there, self.strength), self.lift**2)
        return length - slope / curve


def standardised(rows: Float[Tensor, "n d"], train: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Rows minus the training rows' mean, divided by their deviation; by 1 where a feature is constant.

    Constant is judged relative to rounding, as scikit-learn does: dividing by 1e-17 would let noise lead the fit.
    """
    mean = train.mean(0)
    variance = (train - mean).square_().mean(0)  # torch.var_mean along rows costs twice as much
    rounding = len(train) * torch.finfo(train.dtype).eps
    constant = variance <= rounding * variance + (rounding * mean) ** 2
    return (rows - mean) / variance.sqrt().masked_fill(constant, 1)


def problem_of(
    rows: list[Float[Tensor, "n d"]], index: Int[Tensor, "splits m"], used: Bool[Tensor, "splits m"]
) -> Problem:
    """Rows as each split standardises them, turned into the principal axes of those that it learns from.

    Where there are more features than rows, products of rows are all that is needed.
    """
    if rows[0].shape[1] <= index.shape[1]:
        z = torch.stack(rows)
        train = z.gather(1, index[..., None].expand(-1, -1, z.shape[2])) * used[..., None]
        every = z @ torch.linalg.eigh(train.mT @ train).eigenvectors
    else:
        mixed = torch.stack([z @ z[mine].mT for z, mine in zip(rows, index, strict=True)]) * used[:, None]
        square = mixed.gather(1, index[..., None].expand(-1, -1, index.shape[1])) * used[..., None]
        length, axes = torch.linalg.eigh(square)
        real = length > 10 * length[:, -1:] * index.shape[1] * torch.finfo(length.dtype).eps
        every = mixed @ (axes * length.rsqrt().where(real, 0)[:, None])
    every = torch.cat([every, torch.ones_like(every[..., :1])], 2)
    return Problem(every.gather(1, index[..., None].expand(-1, -1, every.shape[2])), every, index)


def margins(
    problem: Problem,
    answer: Float[Tensor, "splits labellings m"],
    used: Bool[Tensor, "splits m"],
    c: float | Float[Tensor, "splits labellings 1"],
) -> Float[Tensor, "splits labellings n"]:
    """``f`` of all rows for each labelling, learnt from the used training rows. NaN where no optimum was reached.

    Exactly the intercept of no weights where the rows carry nothing, as those of two identical models.
    """
    rows, sign = problem.train, 2 * answer - 1
    strength = (c * used[:, None]).to(answer.dtype).expand_as(answer)
    share = (answer * used[:, None]).sum(-1, keepdim=True) / used[:, None].sum(-1, keepdim=True)
    prior = torch.log(share) - torch.log1p(-share)
    carries = _carries(rows, strength * (answer - share), strength)
    penalty = torch.ones_like(rows[0, 0])
    penalty[-1] = 0
    w, f = torch.cat([torch.zeros_like(rows[:, None, 0, :-1] * prior), prior], -1), prior.expand_as(answer)
    moved = torch.full_like(prior, torch.inf)
    for _ in range(STEPS):
        change = _newton(rows, _weight(f, strength), _pull(f, strength, sign) @ rows - penalty * w, penalty)
        free = penalty * change
        way = Way(f, change @ rows.mT, (_dot(penalty * w, w), _dot(free, w), _dot(free, change)), strength, sign)
        length = _length(way)
        w, f = w + length * change, f + length * way.lift
        moved = (length * way.lift).abs().amax(-1, keepdim=True) / (1 + f.abs().amax(-1, keepdim=True))
        if not bool((carries & ~(moved <= MOVED)).any()):
            break
    found = torch.where(moved <= MOVED, w @ problem.every.mT, torch.nan)
    return torch.where(carries, found, prior)


def _carries(rows: Tensor, pull: Tensor, strength: Tensor) -> Tensor:
    """Whether the gradient at no weights is more than rounding: where it is not, no weights are the optimum."""
    gain = (pull @ rows[..., :-1]).norm(dim=-1, keepdim=True)
    longest = rows[..., :-1].norm(dim=-1).amax(-1)[:, None, None]
    return torch.gt(gain, ROUNDING * longest * strength.sum(-1, keepdim=True))


def _newton(rows: Tensor, weight: Tensor, slope: Tensor, penalty: Tensor) -> Tensor:
    """The change of the weights that Newton's method asks for, by preconditioned conjugate gradients."""
    mean = weight.sum(-1, keepdim=True) / (weight > 0).sum(-1, keepdim=True).clamp(min=1)
    scale = 1 / (penalty + mean * rows.square().sum(1)[:, None])
    change, left, direction = torch.zeros_like(slope), slope, scale * slope
    size = _dot(left, direction)
    enough = size * INNER_ERROR**2
    for _ in range(INNER_STEPS):
        image = torch.addcmul((weight * (direction @ rows.mT)) @ rows, penalty, direction)
        length = (size / _dot(direction, image)).where(size > enough, 0)  # who is done stands still
        change, left = change + length * direction, left - length * image
        scaled = scale * left
        before, size = size, _dot(left, scaled)
        if not bool((size > enough).any()):
            break
        direction = torch.addcmul(scaled, size / before.clamp(min=1e-300), direction)
    return change


def _length(way: Way) -> Tensor:
    """How far to go: at least not uphill. Where rows are well separated, a step of 1 falls short by up to ten times."""
    length = torch.ones_like(way.ridge[0])
    for _ in range(2):
        length = way.step(length).clamp(0.1, 10).nan_to_num(1.0)  # 0 / 0: there is nothing left to gain
    start = way.loss(torch.zeros_like(length))
    for _ in range(30):
        uphill = way.loss(length) > start + 1e-12 * (1 + start.abs())
        if not bool(uphill.any()):
            break
        length = length.where(~uphill, length / 2)
    return length


def _pull(f: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return strength * sign * torch.sigmoid(-sign * f)


def _weight(f: Tensor, strength: Tensor) -> Tensor:
    return strength * torch.sigmoid(f) * torch.sigmoid(-f)


def _dot(one: Tensor, two: Tensor) -> Tensor:
    return (one * two).sum(-1, keepdim=True)
