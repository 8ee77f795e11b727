"""Drawings that lie inside the page as SVG: the curves of a cascade, and the colours of a matrix."""

from collections.abc import Sequence
from typing import NamedTuple

from consilience.reporting.curves import LETTER, SPAN, START, Axes, Curve, Kind, Point, drawing, last
from consilience.reporting.grades import number
from consilience.reporting.tables import Line

LOW, HIGH = -0.25, 1.1  # of the scale that is drawn; what lies beyond is a triangle at the edge
HEIGHTS = ((0.0, "other images"), (0.5, ""), (1.0, "explained twice"))
DARK = 0.772  # of a shade: from there on white ink has the higher contrast, and both have 4.5 about it


class Chart(NamedTuple):
    """The curves of one cascade by one measure."""

    family: str
    measure: str
    drawing: str
    stages: list[str]
    """What the numbers under the axis stand for; empty where the names stand there themselves."""
    without: list[str]
    """Methods that have no scale at any stage, and so no curve."""


def cascade_charts(lines: Sequence[Line]) -> list[Chart]:
    """A drawing for each cascade and measure."""
    stages = [line for line in lines if line.kind == "cascade"]
    places = dict.fromkeys((line.family, line.measure) for line in stages)
    return [_chart([line for line in stages if (line.family, line.measure) == place]) for place in places]


def _chart(lines: Sequence[Line]) -> Chart:
    names = list(dict.fromkeys(line.column for line in lines))
    curves = []
    for method in dict.fromkeys(line.method for line in lines):
        rows = {line.column: line for line in lines if line.method == method}
        kind: Kind = "control" if next(iter(rows.values())).control else "method"
        curves.append(Curve(method, kind, [(1.0, 1.0, 1.0), *_points(rows, names)]))
    defined = [curve for curve in curves if any(curve.points[1:])]
    shown = ["untouched", *names]
    fits = max(map(len, shown)) * LETTER < SPAN / max(1, len(names))
    return Chart(
        family=lines[0].family,
        measure=lines[0].measure,
        drawing=drawing(defined, _axes(shown, fits), _label(lines[0].measure, defined)),
        stages=[] if fits else names,
        without=[curve.name for curve in curves if curve not in defined],
    )


def _axes(stages: Sequence[str], fits: bool) -> Axes:
    """The scale with its two ends in words, and the stages side by side, numbered where their names have no room."""
    every = -(-len(stages) // 30)  # of very many stages, not every number has room
    ticks = [str(index) if index % every == 0 else "" for index in range(len(stages))]
    places = [START + SPAN * index / max(1, len(stages) - 1) for index in range(len(stages))]
    return Axes(LOW, HIGH, HEIGHTS, places, list(stages) if fits else ticks, "layers drawn anew")


def _label(measure: str, curves: Sequence[Curve]) -> str:
    said = ", ".join(f"{curve.name} {number(last(curve)[1][0])}" for curve in curves)
    return f"Likeness to the untouched model by {measure}. At the last stage: {said or 'nothing has a scale'}."


def _points(rows: dict[str, Line], names: Sequence[str]) -> list[Point | None]:
    found: list[Point | None] = []
    for name in names:
        line = rows.get(name)
        if line is None or line.estimate is None or line.low is None or line.high is None:
            found.append(None)
        else:
            found.append((line.estimate, line.low, line.high))
    return found


def shade(value: float | None, low: float | None, high: float | None) -> str:
    """The colour of a matrix's cell: from white at ``low`` to blue at ``high``, with ink that can be read on it."""
    if value is None or low is None or high is None or high == low:
        return "background:#fff;color:#000"
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    red, green, blue = (round(255 + (dark - 255) * share) for dark in (8, 81, 156))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > DARK else '#000'}"
