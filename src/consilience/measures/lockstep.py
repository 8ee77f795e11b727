"""Logistic regressions of many pairs of models abreast, from maps that are neither standardised nor copied for a pair.

The same optimum as in ``logistic``, without what that one calculates before its first step, products of all rows and
their axes: it pays where no labellings share those. Weights are of standardised pixels, and standardising is folded
into them. So the maps of a model serve all pairs and splits with it: their margins are one product of matrices, and
their slopes one more. A pixel that is the same in all maps has no part in it. The first slope follows from the means.

Steps are conjugate gradients in rounds. What changes in a round is calculated in single precision, from a slope in
double precision; and only a slope in double precision says that the optimum is reached. Where two models are hard to
tell apart, the curvature is nearly that of all models' mean map, whose inverse then serves all pairs of a split.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from consilience.measures.curvature import Inverse, inverse_of
from consilience.measures.logistic import ROUNDING, Way, deviation_of, dot, length_of, weight_of

ROUNDS, STEPS = 6, 50
ACCURACY, RENEWED = 1e-4, 1e-4  # of margins, relative to the largest; of a slope, to the one that a round began with
HARD, EARLY = 0.04, 4  # a mean of ``p * (1 - p)`` after so many steps: of easy pairs below 0.01, of hard above 0.1
MANY = 0.8  # if no more than this share of fits still go on, or of pixels ever changes, the others are left behind

T = TypeVar("T", bound=tuple[Tensor, ...])


class Maps(NamedTuple):
    """The maps of one class, of the pixels that are not the same in all of them."""

    family: Float[Tensor, "models m d"]
    centre: Float[Tensor, " d"]
    """Taken from all, so that what is alike everywhere costs no digits; a median, as a pixel may have one peak."""
    rows: Float[Tensor, "models m d"]
    """In single precision, from the centre."""

    def double(self, model: int) -> Float[Tensor, "m d"]:
        """Of one model, in double precision, from the centre."""
        return self.family[model].double() - self.centre


class Fits(NamedTuple):
    """What belongs to each fit: ``e`` are the pixels and the intercept, ``n`` the rows of both models."""

    models: Int[Tensor, "fits 2"]
    split: Int[Tensor, " fits"]
    mean: Float[Tensor, "fits e"]
    inverse: Float[Tensor, "fits e"]
    """One over the deviation of the rows that are learnt from."""
    sign: Float[Tensor, "fits n"]
    """-1 and 1 by the model; 0 for who is asked."""
    used: Float[Tensor, "fits n"]
    """1 for who is learnt from."""
    learnt: Float[Tensor, "fits 1"]
    """How many those are."""


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
    models: Sequence[tuple[int, slice]]
    """Where in this order each is."""
    splits: Sequence[tuple[int, slice]]
    """Where among the fits each is."""


def held_out(
    family: Float[Tensor, "models m d"], pairs: Int[Tensor, "pairs 2"], fold: Int[Tensor, " m"], c: float
) -> Float[Tensor, "pairs n"]:
    """The margin of both models' rows by the split that holds them out. NaN where no optimum was reached soon."""
    learnt = fold != torch.arange(int(fold.max()) + 1, device=fold.device)[:, None]
    moving = (family.amax((0, 1)) != family.amin((0, 1))).nonzero()[:, 0]
    if len(moving) <= MANY * family.shape[2]:
        family = family.gather(2, moving.expand(*family.shape[:2], -1))
    family = family.to(torch.promote_types(family.dtype, torch.float32))
    centre = family[0].median(0).values
    maps = Maps(family, centre, (family - centre).float())
    f = _optimum(maps, *_fits(maps, pairs, learnt), Inverses(maps, learnt, 1 / c, {}))
    f = f.view(len(learnt), len(pairs), 2, len(fold))
    return f.gather(0, fold.expand(1, len(pairs), 2, -1)).view(len(pairs), -1)


def _fits(maps: Maps, pairs: Tensor, learnt: Tensor) -> tuple[Fits, Float[Tensor, "fits e"]]:
    """Each pair and split, how it is standardised, and the slope at no weights, which follows from that."""
    used, count = learnt.double(), 2.0 * learnt.sum(1)[:, None, None]
    mean, variance = torch.stack([_moments(maps.double(model), used) for model in range(len(maps.family))], 2)
    one, other = mean[:, pairs[:, 0]], mean[:, pairs[:, 1]]
    half, centre = (one - other) / 2, (one + other) / 2  # of two models with equally many rows
    inverse = 1 / deviation_of(centre + maps.centre, variance[:, pairs].mean(2) + half.square(), count)
    both = torch.cat([used, used], 1).repeat_interleave(len(pairs), 0)
    fits = Fits(
        pairs.repeat(len(used), 1),
        torch.arange(len(used), device=pairs.device).repeat_interleave(len(pairs)),
        pad(centre, (0, 1)).flatten(0, 1),
        pad(inverse, (0, 1), value=1).flatten(0, 1),
        torch.cat([-used, used], 1).repeat_interleave(len(pairs), 0),
        both,
        both.sum(1, keepdim=True),
    )
    return fits, pad(half * inverse * count / 2, (0, 1)).flatten(0, 1)


def _moments(rows: Tensor, used: Tensor) -> Float[Tensor, "2 splits d"]:
    """Mean and variance of each pixel over the rows of each split."""
    share = used / used.sum(1, keepdim=True)
    mean = share @ rows
    variance = [one @ (rows - own).square_() for one, own in zip(share, mean, strict=True)]
    return torch.stack([mean, torch.stack(variance)])


def _optimum(maps: Maps, fits: Fits, slope: Tensor, inverses: "Inverses") -> Float[Tensor, "fits n"]:
    """Margins of all rows, in rounds, each of the fits that are not done yet."""
    w, f = torch.zeros_like(fits.mean), torch.zeros_like(fits.sign)
    found, going = torch.full_like(f, torch.nan), torch.arange(len(w), device=w.device)
    blank = torch.zeros_like(w, dtype=torch.float32)
    state = State(blank, blank, blank, blank[:, :1] + torch.inf, fits.learnt < 0)
    for turn in range(ROUNDS):
        if turn:
            slots = _slots(fits)
            f = _lift(slots, maps.double, fits, w)
        away = -fits.sign * f
        wrong = away.sigmoid()
        if turn:
            slope = inverses.free(w) - _pull(slots, maps.double, fits, fits.sign * wrong)
        weight = _weight(fits, wrong)
        size = _size(slope, weight, inverses.ridge)
        done = size <= _goal(away, weight)
        if not turn:  # no margin is wrong yet: done is whose rows carry nothing, as in ``logistic.carrying``
            done = slope.norm(dim=1, keepdim=True) <= ROUNDING * w.shape[1] ** 0.5 * fits.learnt
        found[going[done[:, 0]]] = f[done[:, 0]]
        here = Here(away, wrong, slope.float(), RENEWED**2 * size.float())
        if bool(done.any()):
            left = (~done[:, 0]).nonzero()[:, 0]
            if not len(left):
                break
            going, w, fits, state, here = going[left], w[left], _some(fits, left), _some(state, left), _some(here, left)
        state = _round(maps, fits, state, here, inverses, early=not turn)
        w, state = w + state.moved, state._replace(moved=torch.zeros_like(state.moved))
    return found


def _round(maps: Maps, fits: Fits, state: State, here: Here, inverses: "Inverses", early: bool) -> State:
    """Conjugate gradients. Who is done is left behind: no fit knows of the others."""
    whole, place = state, torch.arange(len(fits.sign), device=fits.sign.device)
    fits, slots = fits._replace(inverse=fits.inverse.float(), mean=fits.mean.float()), _slots(fits)
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
            slots = _slots(fits)
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
    slope, scaled = here.slope, inverses.applied(here.slope, fits, slots, weight.float(), hard)
    now = dot(slope, scaled)
    kept = ((now - dot(before, scaled)) / size).clamp_(min=0)
    direction = (kept * direction).sub_(scaled)
    downhill = dot(direction, slope)
    if not bool((downhill < 0).all()):
        direction, downhill = direction.where(downhill < 0, -scaled), downhill.where(downhill < 0, -now)
    lift = _lift(slots, maps.rows.__getitem__, fits, direction).double().mul_(fits.sign).neg_()
    free = inverses.free(direction)
    way = Way(here.away, here.wrong, lift, downhill.double(), dot(free, direction).double())
    length, wrong = length_of(way, going)
    single, change = length.float(), (fits.sign * (wrong - here.wrong)).float()
    slope = torch.addcmul(slope, single, free).sub_(_pull(slots, maps.rows.__getitem__, fits, change))
    state = State(torch.addcmul(moved, single, direction), here.slope, direction, now, hard)
    return state, Here(torch.addcmul(here.away, length, lift), wrong, slope, here.floor)


class Inverses(NamedTuple):
    """The inverse of the curvature: for hard fits of the mean map's, found once for each split, else of a diagonal."""

    maps: Maps
    learnt: Bool[Tensor, "splits m"]
    ridge: float
    found: dict[int, Inverse]

    def free(self, w: Float[Tensor, "fits e"]) -> Float[Tensor, "fits e"]:
        """What the ridge adds to the slope; of the intercept, nothing."""
        slope = self.ridge * w
        slope[:, -1] = 0
        return slope

    def applied(self, slope: Tensor, fits: Fits, slots: Slots, weight: Tensor, hard: Tensor) -> Float[Tensor, "fits e"]:
        """The slope, each direction in proportion to how far it is to go."""
        scaled = slope / (weight + self.ridge)
        for split, some in slots.splits if bool(hard.any()) else ():
            if split not in self.found:
                self.found[split] = inverse_of(self.maps.rows.mean(0)[self.learnt[split]], self.ridge)
            found = self.found[split](slope[some], weight[some] / fits.learnt[some].float())
            scaled[some] = found if bool(hard[some].all()) else found.where(hard[some], scaled[some])
        scaled[:, -1:] = slope[:, -1:] / weight
        return scaled


def _slots(fits: Fits) -> Slots:
    order = fits.models.flatten().argsort(stable=True)
    return Slots(order, order.argsort(), _ends(fits.models.flatten()), _ends(fits.split))


def _ends(numbers: Int[Tensor, " many"]) -> list[tuple[int, slice]]:
    """Where each number is once they are in order."""
    counts = numbers.bincount().tolist()
    ends = enumerate(zip(counts, itertools.accumulate(counts), strict=True))
    return [(number, slice(stop - count, stop)) for number, (count, stop) in ends if count]


def _lift(
    slots: Slots, rows: Callable[[int], Tensor], fits: Fits, w: Float[Tensor, "fits e"]
) -> Float[Tensor, "fits n"]:
    """Margins of all rows."""
    v = w * fits.inverse
    given, found = v.index_select(0, slots.order // 2), w.new_empty(len(slots.order), fits.sign.shape[1] // 2)
    for model, some in slots.models:
        torch.mm(given[some, :-1], rows(model).T, out=found[some])
    return found.index_select(0, slots.back).view(len(w), -1).add_(v[:, -1:] - dot(v, fits.mean))


def _pull(
    slots: Slots, rows: Callable[[int], Tensor], fits: Fits, pull: Float[Tensor, "fits n"]
) -> Float[Tensor, "fits e"]:
    """In what direction, and how far, rows draw the weights."""
    given = pull.view(2 * len(pull), -1).index_select(0, slots.order)
    found, total = pull.new_empty(len(given), fits.mean.shape[1]), pull.sum(1, keepdim=True)
    for model, some in slots.models:
        torch.mm(given[some], rows(model), out=found[some, :-1])
    both = found.index_select(0, slots.back[0::2]).add_(found.index_select(0, slots.back[1::2]))
    both = both.addcmul_(total, fits.mean, value=-1).mul_(fits.inverse)
    both[:, -1:] = total
    return both


def _weight(fits: Fits, wrong: Tensor) -> Float[Tensor, "fits 1"]:
    return dot(weight_of(wrong), fits.used)


def _size(slope: Tensor, weight: Tensor, ridge: float) -> Float[Tensor, "fits 1"]:
    """The slope's length, squared, by what each standardised pixel curves."""
    last = slope[:, -1:].square()
    return (dot(slope, slope) - last) / (weight + ridge) + last / weight


def _goal(away: Tensor, weight: Tensor) -> Float[Tensor, "fits 1"]:
    """The ``_size`` that shifts margins by ``ACCURACY`` of the largest, each counted as it curves."""
    return weight * (ACCURACY * away.abs().amax(1, keepdim=True)).square()


def _some(parts: T, chosen: Tensor) -> T:
    return type(parts)(*(part.index_select(0, chosen) for part in parts))


def _placed(whole: State, part: State, place: Tensor) -> State:
    return State(*(one.index_copy(0, place, other) for one, other in zip(whole, part, strict=True)))
