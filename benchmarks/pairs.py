"""All pairs of a family of ten twins: what an agreement costs, in loops over SciPy's and scikit-image's.

``python -m benchmarks.pairs``; with ``--strict`` a missed goal, or a result that differs, is an exit code.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ks_2samp, spearmanr, wasserstein_distance
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks.side_by_side import Line, ratio, seconds, show
from consilience.experiment.executors import keep_pages
from consilience.measures.agreement import spearman
from consilience.measures.distributions import kolmogorov_smirnov, wasserstein
from consilience.measures.similarity import ssim
from consilience.pairs import over_family

TWINS, SIZE, WINDOW = 10, 28, 7
PAIRS = list(itertools.combinations(range(TWINS), 2))
COUNTS = (20, 100)
IMAGES, PIXELS = 1000, 100  # of the measures that compare two models' values of each pixel
GOALS = {"spearman": 1 / 20, "ssim": 1 / 8, "kolmogorov_smirnov": 1 / 20, "wasserstein": 1 / 50}
SAME = 1e-10  # largest difference between ours and theirs that is called none


def family_of(maps: int, border: int) -> list[Tensor]:
    """Twins' maps: what they share, and noise of their own. A border of zeros gives ties, as black margins do."""
    chance = torch.Generator().manual_seed(0)
    shared, own = (torch.randn(count, maps, SIZE, SIZE, generator=chance) for count in (1, TWINS))
    inside = torch.zeros(SIZE, SIZE)
    inside[border : SIZE - border, border : SIZE - border] = 1
    return list((shared + own) * inside)


def ours(measure: Callable[..., Tensor], family: list[Tensor]) -> list[Tensor]:
    return list(over_family(measure, family, PAIRS))


def theirs(one: Callable[[np.ndarray, np.ndarray], float], family: list[Tensor]) -> list[Tensor]:
    arrays = [maps.double().numpy() for maps in family]
    return [
        torch.tensor([one(x, y) for x, y in zip(arrays[a], arrays[b], strict=True)], dtype=torch.float64)
        for a, b in PAIRS
    ]


def scipy_spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(spearmanr(x.ravel(), y.ravel()).statistic)


def skimage_ssim(x: np.ndarray, y: np.ndarray) -> float:
    span = max(x.max(), y.max()) - min(x.min(), y.min())
    return float(structural_similarity(x, y, win_size=WINDOW, data_range=span))


MEASURES = {
    "spearman": (spearman, scipy_spearman, "scipy.stats.spearmanr"),
    "ssim": (functools.partial(ssim, window=WINDOW), skimage_ssim, "skimage structural_similarity"),
}


def scipy_gap(x: np.ndarray, y: np.ndarray) -> float:
    return float(ks_2samp(x, y).statistic)


SETS = {
    "kolmogorov_smirnov": (kolmogorov_smirnov, scipy_gap, "scipy.stats.ks_2samp"),
    "wasserstein": (wasserstein, wasserstein_distance, "scipy.stats.wasserstein_distance"),
}


def our_sets(measure: Callable[..., NamedTuple], family: list[Tensor]) -> list[Tensor]:
    return [torch.stack(list(found[:2])) for found in over_family(measure, family, PAIRS)]


def their_sets(one: Callable[[np.ndarray, np.ndarray], float], family: list[Tensor]) -> list[Tensor]:
    """Mean over pixels, and of all values together: what ours gives, which tests the gaps besides."""
    arrays = [maps.flatten(1).double().numpy() for maps in family]
    found = []
    for a, b in PAIRS:
        by_pixel = [one(x, y) for x, y in zip(arrays[a].T, arrays[b].T, strict=True)]
        found.append(torch.tensor([np.mean(by_pixel), one(arrays[a].ravel(), arrays[b].ravel())]))
    return found


def sets_side_by_side(rounds: int) -> int:
    """The same for measures of two sets of maps, pixel by pixel and pooled."""
    chance = torch.Generator().manual_seed(0)
    shared, own = (torch.randn(count, IMAGES, PIXELS, generator=chance) for count in (1, TWINS))
    family, lines, differences = list(shared + own), [], {}
    for name, (fast, slow, title) in SETS.items():
        run = {"ours": functools.partial(our_sets, fast, family), title: functools.partial(their_sets, slow, family)}
        spent = seconds(run, rounds)
        lines.append(Line(f"{name}, ours to a loop over {title}", ratio(spent, "ours", title), GOALS[name]))
        differences[name] = max(float((a - b).abs().max()) for a, b in zip(run["ours"](), run[title](), strict=True))
    missed = show(f"{len(PAIRS)} pairs of {TWINS} twins, {PIXELS} pixels of {IMAGES} images: CPU time", lines)
    return missed + unequal(differences)


def unequal(differences: Mapping[str, float], most: float = SAME) -> int:
    """Print the largest differences; how many of them are not none."""
    for name, difference in differences.items():
        same = difference <= most  # also false for NaN
        print(f"  {name}: largest difference between the results {difference:.1e}{'' if same else '   NOT EQUAL'}")
    return sum(not difference <= most for difference in differences.values())


def side_by_side(maps: int, border: int, rounds: int) -> int:
    """Print both measures' ratios for one family; how many goals are missed."""
    family, lines, differences = family_of(maps, border), [], {}
    for name, (fast, slow, title) in MEASURES.items():
        run = {"ours": functools.partial(ours, fast, family), title: functools.partial(theirs, slow, family)}
        spent = seconds(run, rounds)
        lines.append(Line(f"{name}, ours to a loop over {title}", ratio(spent, "ours", title), GOALS[name]))
        found, expected = run["ours"](), run[title]()
        differences[name] = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    ties = f", {border} pixels of border tied" if border else ""
    missed = show(f"{len(PAIRS)} pairs of {TWINS} twins, {maps} maps {SIZE}x{SIZE}{ties}: CPU time", lines)
    return missed + unequal(differences)


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_pages()  # on both sides alike, as in worker processes
    missed = sum(side_by_side(maps, border, chosen.rounds) for maps in COUNTS for border in (0, 4))
    missed += sets_side_by_side(chosen.rounds)
    print(f"\n{missed} goals missed")
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
