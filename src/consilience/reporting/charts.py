"""Drawings that lie inside the page as SVG: the curves of a cascade or of epochs, and the colours of a matrix."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from consilience.experiment.specs import Condition
from consilience.reporting.curves import LETTER, SPAN, START, Axes, Curve, Kind, Point, drawing, last
from consilience.reporting.grades import number
from consilience.reporting.tables import MEETS, Line

LOW, HIGH = -0.25, 1.1  # of the scale that is drawn; what lies beyond is a triangle at the edge
HEIGHTS = ((0.0, "other images"), (0.5, ""), (1.0, "explained twice"))
DARK = 0.772  # of a shade: from there on white ink has the higher contrast, and both have 4.5 about it


class Chart(NamedTuple):
    """The curves of one cascade, or of one model's earlier epochs, by one measure."""

    family: str
    measure: str
    condition: Condition
    drawing: str
    stages: list[str]
    """What the numbers under the axis stand for; empty where the names stand there themselves."""
    without: list[str]
    """Methods that have no scale at any stage, and so no curve."""


def cascade_charts(lines: Sequence[Line]) -> list[Chart]:
    """A drawing for each cascade and measure; those of all images come before those that meet a condition."""
    return _charts([line for line in lines if line.kind == "cascade"])


def epoch_charts(lines: Sequence[Line]) -> list[Chart]:
    """A drawing of how alike each earlier epoch's maps are to those of the finished model, for each measure."""
    return _charts([line for line in lines if line.kind == "epochs"])


def _charts(stages: Sequence[Line]) -> list[Chart]:
    def place(line: Line) -> tuple[str, str, Condition]:
        return line.family, line.measure, line.condition

    places = sorted(dict.fromkeys(map(place, stages)), key=lambda place: list(MEETS).index(place[2]))
    return [_chart([line for line in stages if place(line) == one]) for one in places]


def _chart(lines: Sequence[Line]) -> Chart:
    """A cascade starts at the untouched model; epochs lead to the finished one, with which they are compared."""
    names, cascade = list(dict.fromkeys(line.column for line in lines)), lines[0].kind == "cascade"
    curves = []
    for method in dict.fromkeys(line.method for line in lines):
        rows = {line.column: line for line in lines if line.method == method}
        kind: Kind = "control" if next(iter(rows.values())).control else "method"
        points = _points(rows, names)
        curves.append(Curve(method, kind, [(1.0, 1.0, 1.0), *points] if cascade else [*points, None]))
    defined = [curve for curve in curves if any(curve.points[1:] if cascade else curve.points)]
    axes, numbered = _stages(names) if cascade else (_epochs(names), False)
    return Chart(
        family=lines[0].family,
        measure=lines[0].measure,
        condition=lines[0].condition,
        drawing=drawing(defined, axes, _label(lines[0].measure, defined, cascade)),
        stages=names if numbered else [],
        without=[curve.name for curve in curves if curve not in defined],
    )


def _stages(names: Sequence[str]) -> tuple[Axes, bool]:
    """The stages side by side, and whether they are numbered, since their names have no room."""
    shown = ["untouched", *names]
    fits = max(map(len, shown)) * LETTER < SPAN / max(1, len(names))
    every = -(-len(shown) // 30)  # of very many stages, not every number has room
    ticks = [str(index) if index % every == 0 else "" for index in range(len(shown))]
    return _axes(shown if fits else ticks, "layers drawn anew"), not fits


def _epochs(names: Sequence[str]) -> Axes:
    """The epochs side by side, as many of them named as have room, and the end."""
    shown = [*(name.removeprefix("epoch ") for name in names), "end"]
    every = math.ceil((max(map(len, shown)) + 1) * LETTER * len(names) / SPAN)
    return _axes([name if (len(names) - at) % every == 0 else "" for at, name in enumerate(shown)], "epoch of training")


def _axes(ticks: Sequence[str], caption: str) -> Axes:
    """The scale with its two ends in words, and the ticks side by side."""
    places = [START + SPAN * index / max(1, len(ticks) - 1) for index in range(len(ticks))]
    return Axes(LOW, HIGH, HEIGHTS, places, list(ticks), caption)


def _label(measure: str, curves: Sequence[Curve], cascade: bool) -> str:
    said = ", ".join(f"{curve.name} {number(last(curve)[1][0])}" for curve in curves)
    whom, when = ("untouched", "At the last stage") if cascade else ("finished", "At the last epoch before the end")
    return f"Likeness to the {whom} model by {measure}. {when}: {said or 'nothing has a scale'}."


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
