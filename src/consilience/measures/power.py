"""How small a difference between two models' maps so many images can show."""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from consilience.errors import SpecError


def smallest_detectable(n: int, *, level: float = 0.05, power: float = 0.8, decided: float = 1.0) -> float:
    """The least separability S that ``n`` held-out images tell from 0 with this power. NaN where not even 1 is told.

    An image's value is 1 where both of its maps are given to the right model, -1 where both to the wrong one, and
    0 where one is. To exchange its two maps turns the sign. So of the decided images, those that are not 0, half are
    expected to be positive under the null, independently of each other: the one-sided exact sign test. Its power is
    exact, too, the number of decided images being binomial; above ``decided``, S itself is the share of them.

    It takes the classifiers as given. Images of one fold share theirs, so that values of cross-validated images are not
    quite independent; nor does it know what few permutations cost, or the likelihood of tied accuracies gains. With 60
    simulated images, S had to be a third larger to be found as often. Take it as the order of what can be seen.

    Args:
        n: Images that are asked about; with folds, all that are judged.
        level: Of false alarms.
        power: Chance that S is found.
        decided: Share of the images that are not 0: 1 is the worst case, 1/2 where the two answers about an image are
            independent, less where its maps are alike. With one repeat, the mean of ``abs(value)`` measures it.

    Raises:
        SpecError: There is no image, or a share is not a probability.
    """
    _check(n, level, power, decided)
    counts = np.arange(n + 1)  # of decided images
    needed = binom.isf(level, counts, 0.5) + 1  # the fewest positive ones among them that are rare under the null

    def missing(s: float) -> float:
        share = max(decided, s)
        found = binom.sf(needed - 1, counts, (1 + s / share) / 2)
        return power - float(binom.pmf(counts, n, share) @ found)

    if missing(1.0) > 0:
        return math.nan
    return float(brentq(missing, 0.0, 1.0)) if missing(0.0) > 0 else 0.0


def _check(n: int, level: float, power: float, decided: float) -> None:
    if n < 1:
        raise SpecError(f"smallest_detectable: expected 1 image or more, found n = {n}; give how many are asked about")
    for name, share in {"level": level, "power": power}.items():
        if not 0 < share < 1:
            raise SpecError(f"smallest_detectable: expected {name} between 0 and 1, found {share}; 0.05 is a level")
    if not 0 < decided <= 1:
        raise SpecError(f"smallest_detectable: expected decided above 0 and at most 1, found {decided}; 1 is the worst")
