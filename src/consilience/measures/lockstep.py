"""Logistic regressions of many pairs of models abreast, from maps that are neither standardised nor copied for a pair.

The same optimum as in ``logistic``, without what that one calculates before its first step, products of all rows and
their axes: it pays where no labellings share those. Weights are of standardised pixels, and standardising is folded
into them. So the maps of a model serve all pairs and splits with it: their margins are one product of matrices, and
their slopes one more.

Steps are conjugate gradients in rounds. What changes in a round is calculated in single precision, from a slope in
double precision; and only a slope in double precision says that the optimum is reached. Where two models are hard to
tell apart, the curvature is nearly that of all models' mean map, whose inverse then serves all pairs of a split.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from consilience.measures.logistic import ROUNDING, Way, deviation_of, dot, length_of, weight_of

ROUNDS, STEPS = 6, 50
ACCURACY, RENEWED = 1e-4, 1e-4  # of margins, relative to the largest; of a slope, to the one that a round began with
HARD, EARLY = 0.04, 4  # a mean of ``p * (1 - p)`` after so many steps: of easy pairs below 0.01, of hard above 0.1
UNSURE = 0.2  # that mean, as the inverse of as many pixels as rows assumes it
MANY = 0.8  # if no more than this share of fits still go on, the others are left behind

Inverse = Callable[[Tensor, Tensor], Tensor]
T = TypeVar("T", bound=tuple[Tensor, ...])


class Maps(NamedTuple):
    """The maps of one class; a column of ones, which belongs to the intercept, is added to them."""

    family: Float[Tensor, "models m d"]
    centre: Float[Tensor, " d"]
    """Taken from all, so that what is alike everywhere costs no digits; a median, as a pixel may have one peak."""
    single: Float[Tensor, "models m e"]

    def double(self, model: int) -> Float[Tensor, "m e"]:
        """Of one model, in double precision."""
        return _centred(self.family[model], self.centre)


class Fits(NamedTuple):
    """What belongs to each fit: ``e`` are the pixels and the intercept, ``n`` the rows of both models."""

    models: Int[Tensor, "fits 2"]
    split: Int[Tensor, " fits"]
    mean: Float[Tensor, "fits e"]
    inverse: Float[Tensor, "fits e"]
    """One over the deviation of the rows that are learnt from."""
    sign: Float[Tensor, "fits n"]
    """-1 and 1 by the model; 0 for who is asked."""
    learnt: Float[Tensor, "fits 1"]
    """How many rows are learnt from."""


class State(NamedTuple):
    """Where each fit stands on its way."""

    moved: Float[Tensor, "fits e"]
    """By how much the weights have changed in this round."""
    before: Float[Tensor, "fits e"]
    """The slope from which the last step was made."""
    direction: Float[Tensor, "fits e"]
    """Of that step."""
    size: Float[Tensor, "fits 1"]
    """Of that slope; infinite where the next step shall know of no other."""
    hard: Bool[Tensor, "fits 1"]


class Here(NamedTuple):
    """What follows from the weights."""

    away: Float[Tensor, "fits n"]
    """Margins, positive where the answer is wrong."""
    wrong: Float[Tensor, "fits n"]
    """The chance that is given to the wrong answer."""
    slope: Float[Tensor, "fits e"]
    floor: Float[Tensor, "fits 1"]
    """The ``_size`` at which single precision has done what it can."""


class Slots(NamedTuple):
    """Both sides of all fits, in the order of models."""

    order: Int[Tensor, " slots"]
    back: Int[Tensor, " slots"]
    ends: Sequence[tuple[int, slice]]
    """Of each model."""


def held_out(
    family: Float[Tensor, "models m d"], pairs: Int[Tensor, "pairs 2"], fold: Int[Tensor, " m"], c: float
) -> Float[Tensor, "pairs n"]:
    """The margin of both models' rows by the split that holds them out. NaN where no optimum was reached soon."""
    learnt = fold != torch.arange(int(fold.max()) + 1, device=fold.device)[:, None]
    centre = family[0].median(0).values.double()
    single = torch.empty(*family.shape[:2], family.shape[2] + 1, device=family.device)
    for own, rows in zip(single, family, strict=True):
        own.copy_(_centred(rows, centre))
    maps = Maps(family, centre, single)
    f = _optimum(maps, _fits(maps, pairs, learnt), Inverses(maps, learnt, 1 / c, {}))
    f = f.view(len(pairs), len(learnt), 2, len(fold))
    return f.gather(1, fold.expand(len(pairs), 1, 2, -1)).flatten(1)


def _centred(rows: Float[Tensor, "m d"], centre: Float[Tensor, " d"]) -> Float[Tensor, "m e"]:
    """In double precision, with the ones."""
    centred = torch.ones(len(rows), len(centre) + 1, dtype=torch.float64, device=rows.device)
    torch.sub(rows, centre, out=centred[:, :-1])
    return centred


def _fits(maps: Maps, pairs: Tensor, learnt: Tensor) -> Fits:
    """Each pair and split, and how it is standardised."""
    used, count = learnt.double(), 2.0 * learnt.sum(1, keepdim=True)
    mean, variance = torch.stack([_moments(maps.double(model)[:, :-1], used) for model in range(len(maps.family))], 1)
    one, other = mean[pairs.T]
    between = ((one - other) / 2).square()  # of two models with equally many rows
    centre = (one + other) / 2
    deviation = deviation_of(centre + maps.centre, variance[pairs].mean(1) + between, count)
    return Fits(
        pairs.repeat_interleave(len(used), 0),
        torch.arange(len(used), device=pairs.device).repeat(len(pairs)),
        _beside(centre, 0).flatten(0, 1),
        _beside(deviation, 1).flatten(0, 1).reciprocal_(),
        torch.cat([-used, used], 1).repeat(len(pairs), 1),
        count.double().repeat(len(pairs), 1),
    )


def _moments(rows: Tensor, used: Tensor) -> Float[Tensor, "2 splits d"]:
    """Mean and variance of each pixel over the rows of each split."""
    share = used / used.sum(1, keepdim=True)
    mean = share @ rows
    return torch.stack(
        [mean, torch.stack([one @ (rows - own).square_() for one, own in zip(share, mean, strict=True)])]
    )


def _optimum(maps: Maps, fits: Fits, inverses: "Inverses") -> Float[Tensor, "fits n"]:
    """Margins of all rows, in rounds, each of the fits that are not done yet."""
    found, w = torch.full_like(fits.sign, torch.nan), torch.zeros_like(fits.mean)
    blank, going = torch.zeros_like(w, dtype=torch.float32), torch.arange(len(w), device=w.device)
    state = State(blank, blank, blank, blank[:, :1] + torch.inf, fits.learnt < 0)
    for turn in range(ROUNDS):
        slots = _slots(fits.models)
        f = _lift(slots, maps.double, fits, w)
        away = -fits.sign * f
        wrong = away.sigmoid()
        slope = inverses.ridge * _beside(w[:, :-1], 0) - _pull(slots, maps.double, fits, fits.sign * wrong)
        weight = _weight(fits, wrong)
        size = _size(slope, weight, inverses.ridge)
        done = size <= _goal(away, weight)
        if not turn:  # no margin is wrong yet: done is whose rows carry nothing, as in ``logistic.carrying``
            done = slope[:, :-1].norm(dim=1, keepdim=True) <= ROUNDING * w.shape[1] ** 0.5 * fits.learnt
        found[going[done[:, 0]]] = f[done[:, 0]]
        left = (~done[:, 0]).nonzero()[:, 0]
        if not len(left):
            break
        here = Here(away, wrong, slope.float(), RENEWED**2 * size.float())
        going, w, fits, state, here = going[left], w[left], _some(fits, left), _some(state, left), _some(here, left)
        state = _round(maps, fits, state, here, inverses, early=not turn)
        w, state = w + state.moved, state._replace(moved=torch.zeros_like(state.moved))
    return found


def _round(maps: Maps, fits: Fits, state: State, here: Here, inverses: "Inverses", early: bool) -> State:
    """Conjugate gradients. Who is done is left behind: no fit knows of the others."""
    whole, place = state, torch.arange(len(fits.sign), device=fits.sign.device)
    fits, slots = fits._replace(inverse=fits.inverse.float(), mean=fits.mean.float()), _slots(fits.models)
    for turn in range(STEPS):
        weight = _weight(fits, here.wrong)
        going = _size(here.slope, weight, inverses.ridge) > torch.maximum(_goal(here.away, weight) / 2, here.floor)
        if (count := int(going.sum())) <= MANY * len(going):
            whole = _placed(whole, state, place)
            if not count:
                return whole
            left = going[:, 0].nonzero()[:, 0]
            place, weight, going = place[left], weight[left], going[left]
            fits, state, here = _some(fits, left), _some(state, left), _some(here, left)
            slots = _slots(fits.models)
        if early and turn == EARLY:
            hard = weight > HARD * fits.learnt
            state = state._replace(hard=hard, size=state.size.masked_fill(hard, torch.inf))
        state, here = _step(maps, fits, slots, state, here, inverses, weight, going)
    return _placed(whole, state, place)


def _step(
    maps: Maps, fits: Fits, slots: Slots, state: State, here: Here, inverses: "Inverses", weight: Tensor, going: Tensor
) -> tuple[State, Here]:
    """In a direction after Polak and Ribiere, to where the loss is at most half as steep in it."""
    moved, before, direction, size, hard = state
    slope, rows = here.slope, maps.single.__getitem__
    scaled = inverses.applied(slope, fits, weight, hard)
    now = dot(slope, scaled)
    kept = ((now - dot(before, scaled)) / size).clamp_(min=0)
    direction = (kept * direction).sub_(scaled)
    downhill = dot(direction, slope)
    direction, downhill = direction.where(downhill < 0, -scaled), downhill.where(downhill < 0, -now)
    lift = _lift(slots, rows, fits, direction).double().mul_(fits.sign).neg_()
    free = _beside(inverses.ridge * direction[:, :-1], 0)
    way = Way(here.away, here.wrong, lift, downhill.double(), dot(free, direction).double())
    length, wrong = length_of(way, going)
    single, change = length.float(), (fits.sign * (wrong - here.wrong)).float()
    slope = torch.addcmul(slope, single, free).sub_(_pull(slots, rows, fits, change))
    state = State(torch.addcmul(moved, single, direction), here.slope, direction, now, hard)
    return state, Here(torch.addcmul(here.away, length, lift), wrong, slope, here.floor)


class Inverses(NamedTuple):
    """The inverse of the curvature: for hard fits of the mean map's, found once for each split, else of a diagonal."""

    maps: Maps
    learnt: Bool[Tensor, "splits m"]
    ridge: float
    found: dict[int, Inverse]

    def applied(self, slope: Tensor, fits: Fits, weight: Tensor, hard: Tensor) -> Float[Tensor, "fits e"]:
        """The slope, each direction in proportion to how far it is to go."""
        weight = weight.float()
        scaled = slope / (weight + self.ridge)
        for split in sorted(set(fits.split[hard[:, 0]].tolist())):
            chosen = (hard[:, 0] & (fits.split == split)).nonzero()[:, 0]
            if split not in self.found:
                self.found[split] = _inverse(self.maps.single[:, self.learnt[split], :-1], self.ridge)
            scaled[chosen] = self.found[split](slope[chosen], weight[chosen] / fits.learnt[chosen].float())
        scaled[:, -1:] = slope[:, -1:] / weight
        return scaled


def _inverse(rows: Float[Tensor, "models m d"], ridge: float) -> Inverse:
    """Of the ridge and the curvature of two such models; it leads, and need not be exact."""
    z = rows.mean(0).double().nan_to_num(0, 0, 0)
    z = z - z.mean(0)
    z = z / deviation_of(rows[0, 0].double(), z.square().mean(0), len(z))
    if len(z) < z.shape[1]:
        square, axes = torch.linalg.eigh(z @ z.T)
        real = square > 1e-10 * square[-1]
        along = _beside((axes * square.rsqrt().where(real, 0)).T @ z, 0).float()
        curve = (2 / ridge * square.where(real, 0)).float()

        def applied(slope: Tensor, share: Tensor) -> Tensor:
            return torch.addmm(slope, (slope @ along.T).mul_(1 - 1 / (1 + share * curve)), along, alpha=-1) / ridge

        return applied
    square = 2 * UNSURE * z.T @ z
    square.diagonal().add_(ridge + 1e-9 * square.diagonal().max())
    whole = z.new_zeros(len(square) + 1, len(square) + 1, dtype=torch.float32)
    whole[:-1, :-1] = torch.cholesky_inverse(torch.linalg.cholesky(square))
    return lambda slope, _: slope @ whole


def _slots(models: Int[Tensor, "fits 2"]) -> Slots:
    order, ends, start = models.flatten().argsort(stable=True), [], 0
    for model, count in enumerate(models.flatten().bincount().tolist()):
        ends += [(model, slice(start, start + count))] if count else []
        start += count
    return Slots(order, order.argsort(), ends)


def _lift(
    slots: Slots, rows: Callable[[int], Tensor], fits: Fits, w: Float[Tensor, "fits e"]
) -> Float[Tensor, "fits n"]:
    """Margins of all rows."""
    v = w * fits.inverse
    given, found = v.index_select(0, slots.order // 2), w.new_empty(len(slots.order), fits.sign.shape[1] // 2)
    for model, some in slots.ends:
        torch.mm(given[some], rows(model).T, out=found[some])
    return found.index_select(0, slots.back).view(len(w), -1).sub_(dot(v, fits.mean))


def _pull(
    slots: Slots, rows: Callable[[int], Tensor], fits: Fits, pull: Float[Tensor, "fits n"]
) -> Float[Tensor, "fits e"]:
    """In what direction, and how far, rows draw the weights."""
    given = pull.view(2 * len(pull), -1).index_select(0, slots.order)
    found = pull.new_empty(len(given), fits.mean.shape[1])
    for model, some in slots.ends:
        torch.mm(given[some], rows(model), out=found[some])
    both = found.index_select(0, slots.back[0::2]).add_(found.index_select(0, slots.back[1::2]))
    return torch.addcmul(both, pull.sum(1, keepdim=True), fits.mean, value=-1).mul_(fits.inverse)


def _weight(fits: Fits, wrong: Tensor) -> Float[Tensor, "fits 1"]:
    return dot(weight_of(wrong), fits.sign.square())


def _size(slope: Tensor, weight: Tensor, ridge: float) -> Float[Tensor, "fits 1"]:
    """The slope's length, squared, by what each standardised pixel curves."""
    last = slope[:, -1:].square()
    return (dot(slope, slope) - last) / (weight + ridge) + last / weight


def _goal(away: Tensor, weight: Tensor) -> Float[Tensor, "fits 1"]:
    """The ``_size`` that shifts margins by ``ACCURACY`` of the largest, each counted as it curves."""
    return weight * (ACCURACY * away.abs().amax(1, keepdim=True)).square()


def _beside(rows: Float[Tensor, "*shape d"], last: int) -> Float[Tensor, "*shape e"]:
    return torch.cat([rows, torch.full_like(rows[..., :1], last)], -1)


def _some(parts: T, chosen: Tensor) -> T:
    return type(parts)(*(part.index_select(0, chosen) for part in parts))


def _placed(whole: State, part: State, place: Tensor) -> State:
    return State(*(one.index_copy(0, place, other) for one, other in zip(whole, part, strict=True)))
