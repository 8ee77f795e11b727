"""Logistic regression of many labellings of the same rows at once: all of them share what the rows cost.

``min |w|^2 / 2 + c * sum log(1 + exp(-y f))`` with ``f = Z w + b``: a ridge on the weights, the intercept free.
A rotation of the features changes nothing in it. So the rows are turned, once for all labellings, into the axes in
which they are uncorrelated, no more of them than rows or features. There the Hessian is close to a diagonal one,
which leads nonlinear conjugate gradients, all labellings abreast. The result is that of double precision.

Newton's method asks for up to four times as many products with the rows. With one to two times as many rows as
features, models are just told apart, a few hundred rows decide, and the Hessian is least like a diagonal one; and
what conjugate gradients learn inside one of Newton's steps is forgotten at the next.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from consilience.tensors import slices

ROUNDS, STEPS, LENGTHS = 100, 50, 20
ACCURACY, FLOOR = 1e-7, 1e-14  # of margins, relative to the largest; of what rounding lets a gradient reach
ROUNDING = 1e-9  # of a gradient, relative to rows; the last digit of one float32 pixel is below it
RENEWED, MANY = 1e-3, 0.8  # a round ends where a slope has become this much smaller, or that few labellings go on
CHUNK_BYTES = 4 * 2**20  # of rows that are standardised at a time


class Problem(NamedTuple):
    """Standardised rows of some splits in principal axes; the last column, of ones, belongs to the intercept."""

    rows: Float[Tensor, "splits k r"]
    """First those that are learnt from, then the others; zeros where splits are unequal in size."""
    order: Int[Tensor, "splits k"]
    """Where each stands among all ``n``; zeros stand at ``n``."""
    m: int
    """How many are learnt from."""
    n: int


class Scale(NamedTuple):
    """Mean and deviation of the rows that are learnt from."""

    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]

    def of(
        self, rows: Float[Tensor, "n d"], order: Int[Tensor, " k"], features: slice = slice(None)
    ) -> Float[Tensor, "k f"]:
        """Some rows, or some features of them, standardised in double precision; zeros for the row ``n``."""
        part = rows[:, features].index_select(0, order.clamp(max=len(rows) - 1)).double()
        part.sub_(self.mean[features]).div_(self.deviation[features])
        return part.masked_fill_((order == len(rows))[:, None], 0)


class State(NamedTuple):
    """Where each labelling stands on its way."""

    w: Float[Tensor, "splits labellings r"]
    before: Float[Tensor, "splits labellings r"]
    """The slope from which the last step was made."""
    direction: Float[Tensor, "splits labellings r"]
    """Of that step."""
    size: Float[Tensor, "splits labellings 1"]
    """Of that slope."""
    first: Float[Tensor, "splits labellings 1"]
    """Of the first slope; infinite before it is known."""


class Way(NamedTuple):
    """From the present weights in a direction, where the loss's slope is known without touching the rows."""

    away: Float[Tensor, "splits labellings m"]
    """Margins, positive where the answer is wrong."""
    wrong: Float[Tensor, "splits labellings m"]
    """The chance that is given to the wrong answer."""
    lift: Float[Tensor, "splits labellings m"]
    """How the margins change."""
    downhill: Float[Tensor, "splits labellings 1"]
    """The slope here."""
    ridge: Float[Tensor, "splits labellings 1"]
    """How it changes because of the ridge."""

    def there(self, length: Tensor) -> Tensor:
        """The chance that is given to the wrong answer."""
        return torch.addcmul(self.away, length, self.lift).sigmoid_()

    def slope(self, length: Tensor, wrong: Tensor) -> Tensor:
        """Of what is minimised; a sum over changes alone, so that single precision of ``lift`` does no harm."""
        return self.downhill + length * self.ridge + dot(wrong - self.wrong, self.lift)

    def curve(self, wrong: Tensor) -> Tensor:
        """How the slope changes."""
        return self.ridge + dot(weight_of(wrong).mul_(self.lift), self.lift)


def standardised(rows: Float[Tensor, "n d"], train: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Rows minus the training rows' mean, divided by their deviation; by 1 where a feature is constant."""
    mean, deviation = _scale(train)
    return (rows - mean) / deviation


def _scale(train: Float[Tensor, "m d"]) -> Scale:
    """Constant is judged relative to rounding, as scikit-learn does: dividing by 1e-17 would let noise lead the fit."""
    mean = train.mean(0)
    variance = (train - mean).square_().mean(0)  # torch.var_mean along rows costs twice as much
    return Scale(mean, deviation_of(mean, variance, len(train)))


def deviation_of(mean: Tensor, variance: Tensor, count: int | Tensor) -> Tensor:
    """Square root of the variance of so many numbers; 1 where they are constant but for rounding."""
    rounding = count * torch.finfo(variance.dtype).eps
    constant = variance <= rounding * variance + (rounding * mean) ** 2
    return variance.sqrt().masked_fill_(constant, 1)


def problem_of(
    rows: Sequence[Float[Tensor, "n d"]], index: Int[Tensor, "splits m"], used: Bool[Tensor, "splits m"]
) -> Problem:
    """Rows, standardised by those that each split learns from, turned into the principal axes of those.

    Standardised rows exist a chunk at a time; of each split there remain 8 bytes a row and axis. Rows that are
    standardised already stay as they are.
    """
    (n, d), m = rows[0].shape, index.shape[1]
    learnt = index.masked_fill(~used, n)
    other = torch.ones(len(rows), n + 1, dtype=torch.bool, device=index.device).scatter_(1, learnt, False)
    others = pad_sequence([mine[:n].nonzero()[:, 0] for mine in other], batch_first=True, padding_value=n)
    order = torch.cat([learnt, others], 1)
    scales = [scale_of(z, places[mine]) for z, places, mine in zip(rows, index, used, strict=True)]
    turned = torch.ones(*order.shape, min(d, m) + 1, dtype=torch.float64, device=order.device)
    turned[..., -1] = order < n
    (_turn if d <= m else _turn_by_products)(turned[..., :-1], rows, scales, order, m)
    return Problem(turned, order, m, n)


def _turn(turned: Tensor, rows: Sequence[Tensor], scales: Sequence[Scale], order: Tensor, m: int) -> None:
    """Into the principal axes of the features."""
    d = turned.shape[2]
    square = turned.new_zeros(len(rows), d, d)
    for z, scale, places, gram in zip(rows, scales, order, square, strict=True):
        for some in slices(m, at_once(d)):
            part = scale.of(z, places[some])
            gram.addmm_(part.T, part)
    axes = torch.linalg.eigh(square).eigenvectors
    for number, (z, scale) in enumerate(zip(rows, scales, strict=True)):
        for some in slices(order.shape[1], at_once(d)):
            turned[number, some] = scale.of(z, order[number, some]) @ axes[number]


def _turn_by_products(turned: Tensor, rows: Sequence[Tensor], scales: Sequence[Scale], order: Tensor, m: int) -> None:
    """The same where there are more features than rows: then the rows' products are all that is needed."""
    k = order.shape[1]
    turned.zero_()
    for z, scale, places, products in zip(rows, scales, order, turned, strict=True):
        for some in slices(z.shape[1], at_once(k)):
            part = scale.of(z, places, some)
            products.addmm_(part, part[:m].T)
    length, axes = torch.linalg.eigh(turned[:, :m])
    real = length > 10 * length[:, -1:] * m * torch.finfo(length.dtype).eps
    axes *= length.rsqrt().where(real, 0)[:, None]
    for some in slices(k, at_once(len(rows) * m)):
        turned[:, some] = turned[:, some] @ axes


def scale_of(rows: Float[Tensor, "n d"], learnt: Int[Tensor, " m"]) -> Scale:
    """Of the rows that are learnt from, some features at a time."""
    columns = slices(rows.shape[1], at_once(len(learnt)))
    parts = [_scale(rows[:, some].index_select(0, learnt).double()) for some in columns]
    return Scale(*map(torch.cat, zip(*parts, strict=True)))


def at_once(numbers: int) -> int:
    """How many vectors of that many numbers are worked on at a time."""
    return max(1, CHUNK_BYTES // (8 * max(1, numbers)))


def margins(
    problem: Problem,
    answer: Float[Tensor, "splits labellings m"],
    used: Bool[Tensor, "splits m"],
    c: float | Float[Tensor, "splits labellings 1"],
) -> Float[Tensor, "splits labellings n"]:
    """``f`` of all rows for each labelling, learnt from the used training rows. NaN where no optimum was reached.

    Exactly the intercept of no weights where the rows carry nothing, as those of two identical models.
    """
    rows = problem.rows[:, : problem.m]
    if bool((~used & (problem.order[:, : problem.m] < problem.n)).any()):
        rows = rows * used[..., None]
    share = (answer * used[:, None]).sum(-1, keepdim=True) / used[:, None].sum(-1, keepdim=True)
    prior = torch.log(share) - torch.log1p(-share)
    carries = carrying(rows, answer - share)
    w, reached = _optimum(rows, 2 * answer - 1, c, prior, carries)
    return placed(problem, torch.where(carries, (w @ problem.rows.mT).masked_fill_(~reached, torch.nan), prior))


def placed(problem: Problem, f: Float[Tensor, "splits labellings k"]) -> Float[Tensor, "splits labellings n"]:
    """What was found of the problem's rows, where they stand among all."""
    found = f.new_empty(*f.shape[:2], problem.n + 1)
    return found.scatter_(2, problem.order[:, None].expand_as(f), f)[..., : problem.n]


def carrying(rows: Tensor, pull: Tensor) -> Tensor:
    """Whether the gradient at no weights is more than rounding: where it is not, no weights are the optimum."""
    gain = (pull @ rows[..., :-1]).norm(dim=-1, keepdim=True)
    longest, total = rows[..., :-1].norm(dim=-1).amax(-1), rows[..., -1].sum(-1)
    return torch.gt(gain, (ROUNDING * longest * total)[:, None, None])


def _optimum(
    rows: Tensor, sign: Tensor, c: float | Tensor, prior: Tensor, going: Tensor
) -> tuple[Float[Tensor, "splits labellings r"], Bool[Tensor, "splits labellings 1"]]:
    """Weights, and whether they are the optimum: for the labellings that are going; the others get none.

    In rounds, each of those that are not done yet: where many labellings are, none has to wait for the last.
    """
    single, square = rows.float(), torch.linalg.vector_norm(rows, dim=1).square()[:, None] / rows.shape[1]
    none = torch.zeros_like(rows[:, None, 0, :-1] * prior)
    w, inverse = torch.cat([none, prior], -1), torch.ones_like(prior) / c
    state = State(
        w, torch.zeros_like(w), torch.zeros_like(w), torch.ones_like(prior), torch.full_like(prior, torch.inf)
    )
    found, reached, place = w, ~going, torch.arange(w.shape[1], device=w.device)[:, None].expand_as(prior)
    for _ in range(ROUNDS):
        most = int(going.sum(1).max())
        if not most:
            break
        chosen = going.sort(dim=1, descending=True, stable=True).indices[:, :most]
        state = State(*(_rows_of(part, chosen) for part in state))
        sign, inverse, place, going = (_rows_of(part, chosen) for part in (sign, inverse, place, going))
        state, going = _round(rows, single, square, sign, inverse, state, going)
        found = found.scatter(1, place.expand_as(state.w), state.w)
        reached = reached.scatter(1, place, ~going)
    return found, reached


def _round(
    rows: Tensor, single: Tensor, square: Tensor, sign: Tensor, inverse: Tensor, state: State, going: Tensor
) -> tuple[State, Tensor]:
    """Conjugate gradients after Polak and Ribiere. Who is done stands still: no labelling knows of the others.

    What changes in a step is calculated in single precision, from a slope in double precision. The round ends
    before the error can be seen beside the slope that is left.
    """
    w, before, direction, size, first = state
    ridge = inverse * (torch.arange(w.shape[2], device=w.device) < w.shape[2] - 1)
    away = (w @ rows.mT).mul_(sign).neg_()
    wrong = away.sigmoid()
    pull = sign * wrong
    slope = (ridge * w).sub_(pull @ rows)
    large, many = size, 0
    for turn in range(STEPS):
        weight = weight_of(wrong).sum(-1, keepdim=True)
        scaled = slope / torch.addcmul(ridge, weight, square)
        now = dot(slope, scaled)
        first = now.where(first.isinf(), first)
        going = going & (now > torch.maximum(ACCURACY**2 * torch.minimum(first, weight), FLOOR**2 * weight))
        count = int(going.sum())
        large, many = (large, many) if turn else (now, count)
        if count <= MANY * many or bool((going & (now < RENEWED**2 * large)).any()):
            break
        kept = ((now - dot(before, scaled)) / size).clamp_(min=0)
        before, size, direction = slope, now, (kept * direction).sub_(scaled)
        downhill = dot(direction, slope)
        direction, downhill = direction.where(downhill < 0, -scaled), downhill.where(downhill < 0, -now)
        free, lift = ridge * direction, (direction.float() @ single.mT).double().mul_(sign).neg_()
        length, wrong = length_of(Way(away, wrong, lift, downhill, dot(free, direction)), going)
        w, away = torch.addcmul(w, length, direction), torch.addcmul(away, length, lift)
        pull, last = sign * wrong, pull
        slope = torch.addcmul(slope, length, free).sub_((pull - last).float() @ single)
    return State(w, before, direction, size, first), going


def length_of(way: Way, going: Tensor) -> tuple[Tensor, Tensor]:
    """How far to go, to where it is at most half as steep as here, and what is answered there; 0 for who is done."""
    low, high = torch.zeros_like(way.ridge), torch.full_like(way.ridge, torch.inf)
    length = (-way.downhill / way.curve(way.wrong)).where(going, 0)
    for _ in range(LENGTHS):
        wrong = way.there(length)
        slope = way.slope(length, wrong)
        steep = going & (slope.abs() > -way.downhill / 2)
        if not bool(steep.any()):
            return length, wrong
        low, high = length.where(slope < 0, low), length.where(slope > 0, high)
        step = length - slope / way.curve(wrong)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        length = torch.where((step > low) & (step < high), step, middle).where(steep, length)
    return length, way.there(length)


def weight_of(wrong: Tensor) -> Tensor:
    """How much the loss curves in each margin."""
    return torch.addcmul(wrong, wrong, wrong, value=-1)


def _rows_of(part: Shaped[Tensor, "splits labellings r"], chosen: Int[Tensor, "splits some 1"]) -> Tensor:
    return part.gather(1, chosen.expand(-1, -1, part.shape[2]))


def dot(one: Tensor, two: Tensor) -> Tensor:
    """Of each row with its own."""
    return (one * two).sum(-1, keepdim=True)
