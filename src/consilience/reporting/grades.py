"""What an interval says, in a word. The thresholds are here and nowhere else."""

from collections.abc import Iterable, Sequence
from typing import Literal

from consilience.measures.resampling import CONTROL, EVERYTHING
from consilience.reporting.tables import Line

ALIKE, UNLIKE = 0.95, 0.05  # an interval that lies wholly above, or wholly below
DEPENDS, HOLDS = 0.2, 0.5  # what is left of a map's likeness when all layers are drawn anew
ENOUGH = 10  # pairs of a factor, which five values of it make; with fewer the intervals are rough

Grade = Literal["alike", "at least in part", "in part", "at most in part", "unlike", "unclear", "no scale"]
Left = Literal["all", "most", "part", "little", "nothing", "unclear", "no scale"]

OPEN_TO: dict[Grade, frozenset[str]] = {
    "alike": frozenset({"alike"}),
    "at least in part": frozenset({"alike", "in part"}),
    "in part": frozenset({"in part"}),
    "at most in part": frozenset({"in part", "unlike"}),
    "unlike": frozenset({"unlike"}),
    "unclear": frozenset({"alike", "in part", "unlike"}),
    "no scale": frozenset({"alike", "in part", "unlike"}),
}
"""What may be the case under each grade: two grades contradict each other where nothing may be under both."""

NO_FACTOR = ("overall", EVERYTHING, "several", CONTROL)
"""Columns that are of no factor: of all of them, of all chances or several factors at once, of a training run again."""

LOST: tuple[Left, ...] = ("little", "nothing")
HELD: tuple[Left, ...] = ("all", "most")


def grade(line: Line) -> Grade:
    """How alike the models explain; an interval that crosses a threshold is never given to one side of it."""
    if line.estimate is None or line.low is None or line.high is None:
        return "no scale"
    if line.low > ALIKE:
        return "alike"
    if line.high < UNLIKE:
        return "unlike"
    if line.low < UNLIKE and line.high > ALIKE:
        return "unclear"
    if line.high > ALIKE:
        return "at least in part"
    return "at most in part" if line.low < UNLIKE else "in part"


def left(line: Line) -> Left:
    """What is left of a map's likeness at a stage of the cascade."""
    if line.estimate is None or line.low is None or line.high is None:
        return "no scale"
    if line.high < DEPENDS:
        return "nothing" if line.low <= 0 else "little"
    if line.low > HOLDS:
        return "all" if line.low > ALIKE else "most"
    return "part" if line.low > UNLIKE and line.high < ALIKE else "unclear"


def last_stage(method: str, measure: str, lines: Sequence[Line]) -> Line | None:
    """The stage of a cascade at which all its layers are drawn anew; None where no stage has them all."""
    stages = [line for line in lines if (line.kind, line.method, line.measure) == ("cascade", method, measure)]
    for line in stages:
        alone = sum(other.family == line.family for other in stages) == 1
        if alone or line.column == "all layers":
            return line
    return None


def columns(line: Line, lines: Iterable[Line]) -> list[Line]:
    """The factors' rows beside an overall row; none where a single factor was varied, since it is the overall row."""
    place = (line.family, line.method, line.measure, line.condition)
    found = [
        other
        for other in lines
        if (other.family, other.method, other.measure, other.condition) == place and other.column not in NO_FACTOR
    ]
    return found if len(found) > 1 else []


def worst(line: Line, lines: Iterable[Line]) -> list[Line]:
    """The factor under which maps are least alike, then those that its interval does not tell from it."""
    ranked = sorted(
        (other for other in columns(line, lines) if other.estimate is not None), key=lambda o: o.estimate or 0
    )
    if len(ranked) < 2:
        return []
    reach = ranked[0].high
    return [ranked[0], *(o for o in ranked[1:] if reach is None or o.low is None or o.low <= reach)]


def number(value: float | None, digits: int = 2) -> str:
    """A number as the page shows it: a true minus, no negative zero, a dash where it is undefined."""
    if value is None:
        return "\u2013"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


def figures(value: float | None) -> str:
    """A number of any size: three digits, or three figures where that would show nothing; a dash where undefined."""
    if value is None or value == 0 or 0.01 <= abs(value) < 1000:
        return number(value, 3)
    return f"{value:.0f}".replace("-", "\u2212") if abs(value) >= 1000 else f"{value:.3g}".replace("-", "\u2212")


def listed(names: Iterable[str], last: str = "and") -> str:
    """Names as a person writes them one after the other."""
    every = list(dict.fromkeys(names))
    return every[0] if len(every) == 1 else f"{', '.join(every[:-1])} {last} {every[-1]}" if every else ""
