"""Shapley values of an image's regions, from the score of images of which some regions are absent."""

import itertools
import math
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor, nn

from consilience.attribution.expected import checked
from consilience.attribution.gradient import scored
from consilience.attribution.line import even_slices
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.errors import SpecError
from consilience.rng import Rng
from consilience.tensors import Baseline, Score, check_batch, rows_per_chunk, slices, start_of

Link = Literal["identity", "logit"]


class Game(NamedTuple):
    """Which regions of one image play, and the coalitions that are asked."""

    players: Int[Tensor, " v"]
    """The regions that differ from the baseline; the others are worth exactly nothing."""
    inside: Bool[Tensor, "p v"]
    """One coalition of each pair; the other one is its complement."""
    weight: Float[Tensor, " p"]


@attribution(version=1, paper="lundberg2017unified", complete=("link", "baseline"))
def kernel_shap(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    *,
    score: Score = logit,
    link: Link = "identity",
    region: Annotated[int, Meta(ge=1)] = 4,
    samples: Annotated[int, Meta(ge=1)] | None = None,
    baseline: Baseline = 0.0,
) -> Float[Tensor, "n c h w"]:
    """Shapley value of each square region, spread evenly over its pixels and channels; NaN where a score is.

    A region that is absent shows the baseline, in all channels at once. The values solve Kernel SHAP's weighted
    least squares under the constraint that they sum to ``link(score(x)) - link(score(baseline))``, and so does each
    map. They are exact where ``samples`` reaches all coalitions, else estimated. Coalitions come in pairs with their
    complements; those of one region first (with them the equations have one solution), then each larger size as a
    whole while the budget allows, as shap does, then drawn. A region equal to the baseline gets zero and none of the
    budget. Nothing is regularised: shap's default (``l1_reg``) keeps ten features, and the AIC of Watson et al. 2022
    a selection; both then differ from Shapley values.

    Args:
        score: What the regions share out.
        link: What is shared out is the score itself, or the log odds of a score that is a probability
            (``"logit"``; NaN where it is none). Probabilities nearer to 0 or 1 than rounding count as at that distance.
        region: Side of the regions, in pixels; where it does not divide the image's side, the regions are a little
            smaller, and as equal as can be. At 1, each pixel is a region.
        samples: Coalitions asked of each image, at least twice as many as there are regions; by default 2048 more
            than that, as in shap. All coalitions, where they are fewer.
        baseline: What an absent region shows, as in ``integrated_gradients``.
    """
    check_batch(model, x, target)
    starts = start_of(x.detach(), baseline, model)[:, None]
    return _explained(model, x, target, rng, starts, score, link, region, samples)


@attribution(version=1, paper="lundberg2017unified")
def kernel_shap_over_background(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    rng: Rng,
    background: Float[Tensor, "m _ _ _"],
    *,
    score: Score = logit,
    link: Link = "identity",
    region: Annotated[int, Meta(ge=1)] = 4,
    samples: Annotated[int, Meta(ge=1)] | None = None,
) -> Float[Tensor, "n c h w"]:
    """``kernel_shap`` where an absent region shows each image of the background in turn; NaN where a score is.

    The scores of a coalition are averaged over the background before the link, as in shap, and so each map sums to
    ``link(score(x))`` minus the link of the mean score of the background. It costs a pass for each of its images.

    Args:
        score: What the regions share out.
        link: As in ``kernel_shap``.
        region: Side of the regions, in pixels.
        samples: Coalitions asked of each image, as in ``kernel_shap``.
    """
    starts = checked(model, x, target, background).expand(len(x), *background.shape)
    return _explained(model, x, target, rng, starts, score, link, region, samples)


def _explained(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    rng: Rng,
    starts: Float[Tensor, "n m c h w"],
    score: Score,
    link: Link,
    region: int,
    samples: int | None,
) -> Float[Tensor, "n c h w"]:
    x, where = x.detach(), grid(x.shape[2], x.shape[3], region).to(x.device)
    regions = int(where.max()) + 1
    if samples is not None and samples < 2 * regions:
        raise SpecError(
            f"kernel_shap: expected at least {2 * regions} samples for {regions} regions, found {samples}; "
            "raise 'samples', or 'region' for fewer regions"
        )
    budget = 2 * regions + 2048 if samples is None else samples
    most = min(budget, 2**regions) * starts.shape[1]
    maps, rows = torch.zeros_like(x), rows_per_chunk(model, x)
    for some in slices(len(x), max(1, rows // most)):
        games = [
            _game(where, image, begin, samples, rng.rows([row]))
            for row, image, begin in zip(range(len(x))[some], x[some], starts[some], strict=True)
        ]
        worth = _linked(_worth(model, score, x[some], target[some], starts[some], games, where, rows), link)
        each = torch.split(worth, [2 * len(game.inside) + 2 for game in games])
        shared = torch.stack([_shapley(game, regions, one) for game, one in zip(games, each, strict=True)])
        maps[some] = (shared / (where.flatten().bincount() * x.shape[1]))[:, where][:, None].to(x)
    return maps


def grid(height: int, width: int, region: int) -> Int[Tensor, "h w"]:
    """The number of each pixel's region, row by row.

    Raises:
        SpecError: A region larger than the image, or without pixels.
    """
    if not 1 <= region <= max(height, width):
        raise SpecError(
            f"region: expected a side of 1 to {max(height, width)} pixels, found {region}; "
            "take regions that are parts of the image"
        )
    row, column = (torch.arange(side) * -(-side // region) // side for side in (height, width))
    return row[:, None] * (int(column.max()) + 1) + column


def _game(where: Tensor, image: Tensor, starts: Tensor, samples: int | None, rng: Rng) -> Game:
    """The regions of an image that can matter, and the coalitions of its own draws."""
    players = torch.unique(where[(image != starts).any(0).any(0)])
    budget = 2 * len(players) + 2048 if samples is None else samples
    inside, weight = coalitions(len(players), budget // 2, rng)
    return Game(players, inside.to(image.device), weight.to(image.device))


def coalitions(players: int, pairs: int, rng: Rng) -> tuple[Bool[Tensor, "p v"], Float[Tensor, " p"]]:
    """One coalition of each pair, and the Shapley kernel's weight of the pair; all weights together are 1.

    Sizes are listed completely while the budget's share for a size suffices, a size and that of its complements
    together. The rest of the budget is drawn with replacement, and shares the rest of the weight evenly.
    """
    sizes = range(1, players // 2 + 1)
    share = [(1 if 2 * k == players else 2) / (k * (players - k)) for k in sizes]
    share = [one / sum(share) for one in share]
    inside, weight = [torch.zeros(0, players, dtype=torch.bool)], [torch.zeros(0, dtype=torch.float64)]
    listed = 0
    for k in sizes:
        count = math.comb(players, k) // (2 if 2 * k == players else 1)
        if k > 1 and pairs * share[k - 1] / sum(share[k - 1 :]) < count * (1 - 1e-8):
            break
        members = list(itertools.islice(itertools.combinations(range(players), k), count))
        inside.append(torch.zeros(count, players, dtype=torch.bool).scatter_(1, torch.tensor(members), True))
        weight.append(torch.full((count,), share[k - 1] / count, dtype=torch.float64))
        listed, pairs = k, pairs - count
    if listed < len(sizes) and pairs > 0:
        rest = torch.tensor(share[listed:], dtype=torch.float64)
        chance = (rest / rest.sum()).cumsum(0)[:-1]
        size = listed + 1 + torch.bucketize(rng.at("size").uniform(pairs)[0].double(), chance, right=True)
        order = rng.at("members").uniform(pairs, players)[0].argsort(dim=1, stable=True).argsort(dim=1)
        inside.append(order < size[:, None])
        weight.append(torch.full((pairs,), float(rest.sum()) / pairs, dtype=torch.float64))
    return torch.cat(inside), torch.cat(weight)


def _worth(
    model: nn.Module,
    score: Score,
    x: Tensor,
    target: Tensor,
    starts: Tensor,
    games: list[Game],
    where: Tensor,
    rows: int,
) -> Float[Tensor, "q m"]:
    """The score of every coalition of every image before every start: nobody, everybody, then the pairs' two halves."""
    regions, absent = int(where.max()) + 1, starts.shape[1]
    present, owner = [], []
    for row, game in enumerate(games):
        few = game.inside.new_zeros(2, len(game.players))
        few[1] = True
        several = torch.cat([few, game.inside, ~game.inside])
        present.append(several.new_zeros(len(several), regions).index_copy_(1, game.players, several))
        owner += [row] * len(several)
    asked, of = torch.cat(present), torch.tensor(owner, device=x.device)
    found = []
    for part in even_slices(len(asked) * absent, rows):
        at = torch.arange(part.start, part.stop, device=x.device)
        coalition, start = at // absent, at % absent
        own = of[coalition]
        images = torch.where(asked[coalition][:, where][:, None], x[own], starts[own, start])
        with torch.no_grad():
            found.append(scored(model(images), target[own], score))
    return torch.cat(found).view(-1, absent)


def _linked(worth: Float[Tensor, "q m"], link: Link) -> Float[Tensor, " q"]:
    """What is shared out, of the mean over the starts."""
    mean = worth.double().mean(1)
    if link == "identity":
        return mean
    rounding = torch.finfo(worth.dtype).eps
    inside = (mean >= -4 * rounding) & (mean <= 1 + 4 * rounding)
    p = mean.clamp(rounding, 1 - rounding)
    return (p.log() - (-p).log1p()).where(inside, torch.nan)


def _shapley(game: Game, regions: int, worth: Float[Tensor, " q"]) -> Float[Tensor, " r"]:
    """The values that sum to what everybody together adds, nearest to what the coalitions add.

    Under the constraint the complement's equation is the coalition's with its sign turned, so a pair is one equation.
    """
    total = worth[1] - worth[0]
    values = total * worth.new_zeros(regions)  # NaN, where the total is
    if len(game.players):
        half, other = worth[2:].chunk(2)
        gain, inside = (half - other + total) / 2, game.inside.double()
        last = inside[:, -1]
        rows = inside[:, :-1] - last[:, None]
        weighted = rows * game.weight[:, None]
        first = torch.linalg.solve(rows.mT @ weighted, weighted.mT @ (gain - last * total))
        values[game.players] = torch.cat([first, (total - first.sum())[None]])
    return values
