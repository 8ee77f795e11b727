"""How often a planted difference of two twins' maps is found, beside how often one is found that is not there.

``python -m benchmarks.power``: of each size of the difference 500 families of two twins. Each image's two maps share
a signal and have noise of the same law besides; a few pixels of the second twin are shifted. The size is in
deviations of the noise; each pixel's own deviation, over the images, is the root of 2 of them.
"""

import argparse
import time
from typing import NamedTuple

import torch
from scipy.stats import binomtest

from benchmarks.side_by_side import Line, show
from consilience.measures.power import smallest_detectable
from consilience.measures.separability import Separability, separability
from consilience.rng import Rng

SIDE, SHIFTED, LEVEL = 8, 6, 0.05  # pixels a side, and shifted; of false alarms
EFFECTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Power(NamedTuple):
    """What one size of the difference comes to."""

    found: int
    families: int
    value: float
    """Mean separability of a family."""
    deviation: float
    """Of that, from family to family."""
    decided: float
    """Share of the images of which both maps are given to the right model, or both to the wrong one."""

    @property
    def share(self) -> float:
        return self.found / self.families

    @property
    def interval(self) -> tuple[float, float]:
        low, high = binomtest(self.found, self.families).proportion_ci(0.95, method="exact")
        return float(low), float(high)


def family(seed: int, effect: float, images: int, classifier: str, permutations: int) -> Separability:
    """Two twins told apart, or not; the noise of a seed is the same whatever the effect."""
    chance = torch.Generator().manual_seed(seed)
    signal, one, other = torch.randn(3, images, SIDE, SIDE, generator=chance)
    other.flatten(1)[:, torch.randperm(SIDE**2, generator=chance)[:SHIFTED]] += effect
    label, groups = torch.zeros(images, dtype=torch.long), torch.arange(images)
    return separability(
        signal + one, signal + other, label, groups, Rng(seed, range(images)),
        classifier=classifier, permutations=permutations,
    )  # fmt: skip


def power_of(effect: float, families: int, images: int, classifier: str = "logistic", permutations: int = 19) -> Power:
    results = [family(seed, effect, images, classifier, permutations) for seed in range(families)]
    values = torch.stack([result.value for result in results])
    found = sum(bool(result.p <= LEVEL + 1e-9) for result in results)
    means = values.mean(1)
    return Power(found, families, float(means.mean()), float(means.std()), float(values.abs().mean()))


def main(arguments: list[str] | None = None) -> int:
    """Print what is found of each size; 1 where ``--strict``, and alarms are too many or the largest is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", type=int, default=500)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--permutations", type=int, default=19)
    parser.add_argument("--classifier", default="logistic", choices=["logistic", "lda", "linear_svm", "rbf_svm"])
    parser.add_argument("--effects", type=float, nargs="+", default=EFFECTS)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    begun, wrong = time.process_time(), False
    for effect in chosen.effects:
        power = power_of(effect, chosen.families, chosen.images, chosen.classifier, chosen.permutations)
        low, high = power.interval
        wrong |= (effect == 0 and low > LEVEL) or (effect >= 1 and power.share < 0.8)
        show(
            f"{chosen.classifier}: a shift of {effect} in {SHIFTED} of {SIDE**2} pixels, {power.families} families of "
            f"{chosen.images} images",
            [
                Line("share of p <= 0.05", power.share, unit=""),
                Line("exact 95 % interval from", low, unit=""),
                Line("to", high, unit=""),
                Line("mean S", power.value, unit=""),
                Line("deviation of S", power.deviation, unit=""),
                Line("share of decided images", power.decided, unit=""),
                Line("smallest S", smallest_detectable(chosen.images, decided=power.decided), unit=""),
            ],
        )
    spent = 1000 * (time.process_time() - begun) / (chosen.families * len(chosen.effects))
    show("cost", [Line("a family", spent, unit="ms")])
    return int(chosen.strict and wrong)


if __name__ == "__main__":
    raise SystemExit(main())
