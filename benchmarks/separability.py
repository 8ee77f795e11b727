"""Telling all pairs of a family apart, class by class: CPU time to scikit-learn's, the same folds and one thread each.

``python -m benchmarks.separability``; with ``--strict`` a missed goal is an exit code. The maps are those of
integrated gradients of seven networks, trained here, of 500 digits. Without permutations, which scikit-learn would
pay for once more each. Besides, noise of two models, with 99 permutations: with 800 images a class it is near the
threshold of being told apart, where the optimum is hardest to find.

``--rule`` measures instead, without scikit-learn, the two ways of fitting beside each other: in lockstep, and alone in
principal axes; by pairs, images and pixels. A goal is missed where ``holding_out`` chooses what costs twice the other.
"""

import argparse
import itertools
import math
import random
import statistics
import unittest.mock
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.side_by_side import Line, ratio, seconds, show
from consilience.attribution.path import integrated_gradients
from consilience.data.examples import Batch
from consilience.data.mnist10k import mnist10k
from consilience.data.views import subset
from consilience.measures import holding_out, lockstep
from consilience.measures.separability import Separability, separability
from consilience.measures.splits import plan_of
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.pairs import Pairs, over_family
from consilience.rng import Rng
from consilience.training.loop import Chances, train
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import adam

TWINS, EXAMPLES, FOLDS, SAMPLE = 7, 500, 3, 12
GOAL_PUBLISHED, GOAL_CAREFUL = 1 / 100, 1 / 5
FAMILIES = (2, 3, 4, 7, 10)  # twins whose pairs ``--rule`` looks at
SIZES = ((20, 28), (20, 56), (50, 28), (50, 112), (200, 14), (200, 28))  # images of each of three classes, and width
WRONG = 2  # times the cheaper way
PAIRS = list(itertools.combinations(range(TWINS), 2))


class Fit(NamedTuple):
    """One classifier: which twins, and on which images it learns and is asked."""

    a: int
    b: int
    learn: np.ndarray
    ask: np.ndarray


def family_of(twins: int = TWINS, examples: int = EXAMPLES, alike: bool = False) -> tuple[list[Tensor], Tensor]:
    """Maps of the same digits by twins, and the digits' classes.

    The twins differ in their first weights. Or they are ``alike``: one network, each with ten more small steps of its
    own, so that they are hard to tell apart.
    """
    digits, held_out = subset(count=2000), mnist10k(split="test").batch(range(examples))
    recipe = {"objective": cross_entropy, "optimizer": adam, "epochs": 3, "batch_size": 64}

    def fresh() -> nn.Module:
        return normalised(mlp((1, 28, 28), 10, hidden=(64,)), digits.mean, digits.sd)

    maps = []
    for init in range(twins):
        model = fresh()
        model.load_state_dict(train(fresh, digits, chances=Chances(init=0 if alike else init), **recipe).weights)
        if alike:
            tune(model, digits.batch(range(2000)), init)
        maps.append(integrated_gradients(model.eval().requires_grad_(False), held_out.x, held_out.label)[:, 0])
    return maps, held_out.label


def tune(model: nn.Module, data: Batch, seed: int) -> None:
    """Ten steps at a tenth of the usual rate, of batches drawn at random."""
    optimizer, chance = torch.optim.Adam(model.parameters(), lr=1e-4), torch.Generator().manual_seed(seed)
    for _ in range(10):
        rows = torch.randint(len(data.label), (64,), generator=chance)
        loss = nn.functional.cross_entropy(model.train()(data.x[rows]), data.label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fits_of(label: Tensor, pairs: Pairs = PAIRS) -> list[Fit]:
    """Every classifier that the measure's value needs, with its own folds."""
    groups, rng, splits = torch.arange(len(label)), Rng(0, range(len(label))), []
    for kind in range(10):
        plan = plan_of((label == kind).nonzero()[:, 0], groups, rng, FOLDS, 1, 0, None)
        image, fold = plan.image.numpy(), plan.fold[0].numpy()
        splits += [(image[fold != part], image[fold == part]) for part in range(FOLDS)]
    return [Fit(a, b, *split) for a, b in pairs for split in splits]


def right_by_peer(maps: Sequence[np.ndarray], fits: Sequence[Fit], **how: object) -> Iterator[int]:
    """How many of each classifier's test rows scikit-learn gives to the right model."""
    for fit in fits:
        learnt = np.concatenate([maps[fit.a][fit.learn], maps[fit.b][fit.learn]])
        asked = np.concatenate([maps[fit.a][fit.ask], maps[fit.b][fit.ask]])
        scaler = StandardScaler().fit(learnt)
        peer = LogisticRegression(C=1.0, **how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that saga did not converge
            peer.fit(scaler.transform(learnt), np.repeat([0, 1], len(fit.learn)))
        yield int((peer.predict(scaler.transform(asked)) == np.repeat([0, 1], len(fit.ask))).sum())


def right_by_us(results: Sequence[Separability], fits: Sequence[Fit], pairs: Pairs = PAIRS) -> list[int]:
    each = {pair: result.value.numpy() for pair, result in zip(pairs, results, strict=True)}
    return [round((each[fit.a, fit.b][fit.ask] + 1).sum()) for fit in fits]


def noise(images: int) -> Separability:
    """Two models' maps that have nothing in common, of one class."""
    a, b = torch.randn(2, images, 784, generator=torch.Generator().manual_seed(0))
    return separability(a, b, torch.zeros(images, dtype=torch.long), torch.arange(images), Rng(0, range(images)))


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rule", action="store_true")
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with threadpool_limits(1):  # NumPy's threads wait for each other by spinning, and would be counted as work
        missed = rule(chosen.rounds) if chosen.rule else side_by_side(chosen.rounds)
    return int(chosen.strict and missed > 0)


def rule(rounds: int) -> int:
    """What lockstep costs of fitting alone, and whether the cheaper way of the two was chosen."""
    missed = 0
    for alike in (False, True):
        family, digit = family_of(max(FAMILIES), 2000, alike)
        for images, width in SIZES:
            some = torch.cat([(digit == kind).nonzero()[:images, 0] for kind in range(3)])
            maps = [interpolate(one[some, None], size=(width, width), mode="area")[:, 0] for one in family]
            lines = [lockstep_to_alone(maps[:twins], digit[some], rounds) for twins in FAMILIES]
            kind = "hard" if alike else "easy"
            missed += show(f"{kind} pairs, {images} images a class, {width} x {width} pixels: to fits alone", lines)
    return missed


def lockstep_to_alone(maps: Sequence[Tensor], label: Tensor, rounds: int) -> Line:
    """The ratio, and as goal by how much the way that is chosen may be the slower one."""
    pairs = list(itertools.combinations(range(len(maps)), 2))
    given = {"label": label, "groups": torch.arange(len(label)), "rng": Rng(0, range(len(label))), "permutations": 0}

    def measured() -> list[Separability]:
        return list(over_family(separability, maps, pairs, **given))

    def in_lockstep() -> list[Separability]:
        with unittest.mock.patch.multiple(holding_out, AXES=1, SHARED=1):
            return measured()

    def alone() -> list[Separability]:
        with unittest.mock.patch.multiple(holding_out, AXES=math.inf):
            return measured()

    with unittest.mock.patch.object(lockstep, "held_out", wraps=lockstep.held_out) as watched:
        measured()
    spent = seconds({"lockstep": in_lockstep, "alone": alone}, rounds)
    found = ratio(spent, "lockstep", "alone")
    name = f"{len(pairs)} pairs, {'in lockstep' if watched.called else 'alone'}"
    return Line(name, found, WRONG) if watched.called else Line(f"{name}: the inverse", 1 / found, WRONG)


def side_by_side(rounds: int) -> int:
    """How many goals are missed."""
    maps, label = family_of()
    fits, raw = fits_of(label), [one.flatten(1).double().numpy() for one in maps]
    sample = random.Random(0).sample(fits, SAMPLE)
    given = {"label": label, "groups": torch.arange(EXAMPLES), "rng": Rng(0, range(EXAMPLES))}

    def ours(permutations: int) -> list[Separability]:
        return list(over_family(separability, maps, PAIRS, permutations=permutations, **given))

    careful, published = {"max_iter": 10_000}, {"solver": "saga", "max_iter": 10_000}
    spent = seconds(
        {
            "ours": lambda: ours(0),
            "ours, with 19 permutations": lambda: ours(19),
            "scikit-learn, lbfgs": lambda: list(right_by_peer(raw, fits, **careful)),
            "scikit-learn, saga as published": lambda: list(right_by_peer(raw, sample, **published)),
            "ours, noise, 400 images": lambda: noise(400),
            "ours, noise, 800 images": lambda: noise(800),
            "ours, noise, 1600 images": lambda: noise(1600),
        },
        rounds,
    )
    spent["scikit-learn, saga as published"] = [
        one * len(fits) / SAMPLE for one in spent["scikit-learn, saga as published"]
    ]
    found, mine = list(right_by_peer(raw, fits, tol=1e-8, **careful)), right_by_us(ours(0), fits)
    apart = max(abs(a - b) for a, b in zip(found, mine, strict=True))
    lines = [
        *(Line(name, statistics.median(spent[name]), unit="s") for name in spent),
        Line("ours to lbfgs", ratio(spent, "ours", "scikit-learn, lbfgs"), GOAL_CAREFUL),
        Line("ours to saga", ratio(spent, "ours", "scikit-learn, saga as published"), GOAL_PUBLISHED),
        Line("19 permutations to lbfgs without any", ratio(spent, "ours, with 19 permutations", "scikit-learn, lbfgs")),
        Line("noise, 800 images to 1600", ratio(spent, "ours, noise, 800 images", "ours, noise, 1600 images")),
        Line("most test rows of one fit that differ", apart, 1, "rows"),
        Line("our mean accuracy", sum(mine) / sum(2 * len(fit.ask) for fit in fits), unit=""),
    ]
    title = f"{len(PAIRS)} pairs, 10 classes, {FOLDS} folds: {len(fits)} fits, CPU time; saga from {SAMPLE} of them"
    return show(title, lines)


if __name__ == "__main__":
    raise SystemExit(main())
