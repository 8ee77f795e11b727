"""Whether a p of 0.05 comes up one time in twenty where there is nothing to find: twins that are exchangeable.

``python -m benchmarks.null_calibration``: 2,000 families of two twins. Each image's two maps share a signal and
have noise of the same law besides.
"""

import argparse
import time

import torch
from scipy.stats import binomtest

from benchmarks.side_by_side import Line, show
from consilience.measures.separability import separability
from consilience.rng import Rng

IMAGES, SIDE = 60, 8


def p_of(seed: int, permutations: int) -> float:
    chance = torch.Generator().manual_seed(seed)
    signal, one, other = torch.randn(3, IMAGES, SIDE, SIDE, generator=chance)
    label, groups = torch.zeros(IMAGES, dtype=torch.long), torch.arange(IMAGES)
    return float(
        separability(signal + one, signal + other, label, groups, Rng(seed, range(IMAGES)), permutations=permutations).p
    )


def main(arguments: list[str] | None = None) -> int:
    """Print rate and interval; 1 where ``--strict`` and the interval does not hold the level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", type=int, default=2000)
    parser.add_argument("--permutations", type=int, default=19)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begun = time.process_time()
    found = [p_of(seed, chosen.permutations) for seed in range(chosen.families)]
    spent = time.process_time() - begun
    outside = 0
    for level in (0.05, 0.1, 0.5):
        hits = sum(p <= level + 1e-9 for p in found)
        low, high = binomtest(hits, len(found)).proportion_ci(0.95, method="exact")
        held = low <= level <= high
        outside += not held
        lines = [Line("rate", hits / len(found), unit=""), Line("exact 95 % interval from", low, unit="")]
        show(
            f"p <= {level} in {len(found)} families: {'as promised' if held else 'NOT as promised'}",
            [*lines, Line("to", high, unit="")],
        )
    show("cost", [Line("a family", 1000 * spent / len(found), unit="ms")])
    return int(chosen.strict and outside > 0)


if __name__ == "__main__":
    raise SystemExit(main())
