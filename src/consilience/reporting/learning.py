"""The learning curve: how plainly models' maps can be told apart, over the images that a classifier is given."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from consilience.component import Choice
from consilience.data.images import labels_and_groups
from consilience.experiment.desk import Desk
from consilience.experiment.experiment import Experiment
from consilience.experiment.specs import Prepared
from consilience.reporting.curves import LETTER, SPAN, START, Axes, Curve, Point, drawing, last
from consilience.reporting.grades import number
from consilience.reporting.tables import COMPARED, Size, Told

LOW, HIGH = -0.05, 1.05  # of C, with room for a dot at both ends
HEIGHTS = ((0.0, "everybody can"), (0.5, ""), (1.0, "nobody can tell"))
STEP, SPREAD = 4, 20  # pixels between the bars of two methods, and of all of them at one tick at most


class LearningChart(NamedTuple):
    """C over the number of images, in one family by one measure."""

    family: str
    measure: str
    drawing: str
    without: list[str]
    """Methods that have no C at any number, and so no curve."""


def sizes(experiment: Experiment, desk: Desk) -> dict[str, Size]:
    """How many images measures are given that differ in ``count`` only, by their labels; no other measure is there.

    Raises:
        DataError: The examples are not what they were when the experiment was loaded.
    """
    alike: dict[str, list[Prepared]] = {}
    for how in experiment.compare:
        if "null" in how.measure.component.columns and "count" in how.measure.component.schema.__struct_fields__:
            alike.setdefault(_without_count(how), []).append(how)
    several = [
        how for found in alike.values() if len({how.measure.option("count") for how in found}) > 1 for how in found
    ]
    if not several:
        return {}
    examples = desk.examples(experiment.examples)
    there = {*zip(*(part.tolist() for part in labels_and_groups(examples)), strict=True)}
    of_class, groups = list(Counter(label for label, _ in there).values()), len({group for _, group in there})
    what = "images" if groups == len(examples) else "groups of images"
    found = {}
    for how in several:
        pooled, count = how.measure.option("by") == "pooled", how.measure.option("count")
        given = [groups] if pooled else of_class
        used = sum(given if count is None else [min(count, one) for one in given]) / len(given)
        unit = what if pooled else f"{what} of each class"
        found[how.label] = Size(measure=_without_count(how), count=count, used=used, unit=unit)
    return found


def _without_count(how: Prepared) -> str:
    measure = how.measure
    options = {name: value for name, value in measure.options.items() if name != "count"}
    same = Choice(measure.kind, measure.use, measure.version, options)
    return msgspec.structs.replace(how, measure=same).label


def of_most_images(told: Sequence[Told]) -> list[Told]:
    """The rows, but of measures that differ in ``count`` only those that were given most."""
    most: dict[tuple[str, str], float] = {}
    for row in told:
        if row.size is not None:
            place = row.family, row.size.measure
            most[place] = max(row.size.used, most.get(place, 0))
    return [row for row in told if row.size is None or row.size.used == most[row.family, row.size.measure]]


def learning_charts(told: Sequence[Told]) -> list[LearningChart]:
    """A drawing for each family and measure that was given several numbers of images."""
    places: dict[tuple[str, str], list[Told]] = {}
    for row in told:
        if row.size is not None and (row.column, row.condition) == ("overall", "all") and row.kind in COMPARED:
            places.setdefault((row.family, row.size.measure), []).append(row)
    tables = {place: _by_used(rows) for place, rows in places.items()}
    return [_chart(*place, table) for place, table in tables.items() if len(table) > 1]


def _by_used(rows: Sequence[Told]) -> dict[float, dict[str, Told]]:
    """The rows of each number of images, by method; of measures that were given alike many, one, and that of all."""
    found: dict[float, dict[str, Told]] = {}
    for row in sorted(rows, key=lambda row: row.size is not None and row.size.count is None):
        if row.size is not None:
            found.setdefault(row.size.used, {})[row.method] = row
    return dict(sorted(found.items()))


def _chart(family: str, measure: str, table: dict[float, dict[str, Told]]) -> LearningChart:
    rows = [row for by_method in table.values() for row in by_method.values()]
    axes, curves = _axes(rows), []
    for method, control in dict.fromkeys((row.method, row.control) for row in rows):
        points = [_point(by_method.get(method)) for by_method in table.values()]
        curves.append(Curve(method, "control" if control else "method", points))
    defined = [curve for curve in curves if any(curve.points)]
    gaps = [b - a for a, b in itertools.pairwise(axes.places)]
    step = min(STEP, min(SPREAD, *gaps) / (len(curves) + 1))
    shown = [curve._replace(shift=step * (at - (len(defined) - 1) / 2)) for at, curve in enumerate(defined)]
    null = Curve("exchangeable", "reference", [_null(list(by_method.values())) for by_method in table.values()])
    said = ", ".join(f"{curve.name} {number(last(curve)[1][0])}" for curve in shown) or "nothing could be judged"
    label = f"C by {measure} over the number of {axes.caption}. Where most are used: {said}."
    return LearningChart(
        family=family,
        measure=measure,
        drawing=drawing([*shown, null] if any(null.points) else shown, axes, label),
        without=[curve.name for curve in curves if curve not in defined],
    )


def _axes(rows: Sequence[Told]) -> Axes:
    """C from 0 to 1 over the logarithm of the number of images, each number that occurs a tick."""
    found = [row.size for row in rows if row.size is not None]
    every = sorted({size.used for size in found})
    least, most = math.log(every[0]), math.log(every[-1])
    places = [START + SPAN * (math.log(used) - least) / (most - least) for used in every]
    whole = {size.used for size in found if size.count is None}
    ticks = [("all " if used in whole else "") + _counted(used) for used in every]
    return Axes(LOW, HIGH, HEIGHTS, places, _readable(ticks, places), f"{found[0].unit} (logarithmic)")


def _counted(used: float) -> str:
    """A number of images; of classes of unequal size, about their mean."""
    return f"{used:.0f}" if used == round(used) else f"\u2248{used:.0f}"


def _readable(ticks: Sequence[str], places: Sequence[float]) -> list[str]:
    """The ticks without those that would cover another: the largest stands, then whoever comes first."""
    kept: list[int] = []
    for index in [len(ticks) - 1, *range(len(ticks) - 1)]:
        needs = [(len(ticks[index]) + len(ticks[other])) / 2 * LETTER + LETTER for other in kept]
        if all(abs(places[index] - places[other]) > need for other, need in zip(kept, needs, strict=True)):
            kept.append(index)
    return [name if index in kept else "" for index, name in enumerate(ticks)]


def _point(row: Told | None) -> Point | None:
    if row is None or row.consistency is None or row.low is None or row.high is None:
        return None
    return row.consistency, row.low, row.high


def _null(rows: Sequence[Told]) -> Point | None:
    """C with the models exchanged at random, a mean over the methods; over the controls where there is no other."""
    values = [row.null for row in rows if row.null is not None and not row.control]
    values = values or [row.null for row in rows if row.null is not None]
    mean = sum(values) / len(values) if values else None
    return None if mean is None else (mean, mean, mean)
