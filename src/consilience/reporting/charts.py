"""Drawings that lie inside the page as SVG: the curves of a cascade, and the colours of a matrix."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from consilience.reporting.grades import number
from consilience.reporting.tables import Line

COLOURS = ("#0067a5", "#b34700", "#00734f", "#a33f7f", "#7a5c00", "#4b4fa6")  # dark enough to be read as text
GREY = "#666e77"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
WIDTH, LEFT, RIGHT, TOP, INSIDE = 820, 122, 200, 16, 210
LOW, HIGH = -0.25, 1.1  # of the scale that is drawn; what lies beyond is a triangle at the edge
LETTER, BOLD = 6.6, 7.8  # pixels of a character, about; text is not measured
DARK = 0.772  # of a shade: from there on white ink has the higher contrast, and both have 4.5 about it
ROOM = 9  # stages; of more, values beyond are in the titles only

Point = tuple[float, float, float]
"""Estimate, low and high."""


class Curve(NamedTuple):
    """One method's likeness to the untouched model, stage by stage."""

    name: str
    control: bool
    points: list[Point | None]
    """None where there is no scale."""


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
        curves.append(Curve(method, next(iter(rows.values())).control, [(1.0, 1.0, 1.0), *_points(rows, names)]))
    defined = [curve for curve in curves if any(curve.points[1:])]
    shown = ["untouched", *names]
    fits = max(map(len, shown)) * LETTER < _x(1, len(shown)) - _x(0, len(shown))
    ticks = shown if fits else ["0", *(str(index) for index in range(1, len(shown)))]
    return Chart(
        family=lines[0].family,
        measure=lines[0].measure,
        drawing=_drawing(lines[0].measure, defined, ticks),
        stages=[] if fits else names,
        without=[curve.name for curve in curves if curve not in defined],
    )


def _drawing(measure: str, curves: Sequence[Curve], ticks: Sequence[str]) -> str:
    """All curves, the untouched model at the left; controls are grey."""
    ends = [_last(curve) for curve in curves]
    places = _apart([_y(point[0]) for _, point in ends])
    bottom = max([TOP + INSIDE + 44.0, *(place + 14 for place in places)])
    own = iter(COLOURS * len(curves))
    body = [_frame(ticks)]
    for index, (curve, place) in enumerate(zip(curves, places, strict=True)):
        colour = GREY if curve.control else next(own)
        body.append(_curve(curve, colour, DASHES[index % len(DASHES)], place, len(ticks)))
    said = ", ".join(f"{curve.name} {number(point[0])}" for curve, (_, point) in zip(curves, ends, strict=True))
    label = f"Likeness to the untouched model by {measure}. At the last stage: {said or 'nothing has a scale'}."
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def _points(rows: dict[str, Line], names: Sequence[str]) -> list[Point | None]:
    found: list[Point | None] = []
    for name in names:
        line = rows.get(name)
        if line is None or line.estimate is None or line.low is None or line.high is None:
            found.append(None)
        else:
            found.append((line.estimate, line.low, line.high))
    return found


def _frame(ticks: Sequence[str]) -> str:
    """The scale with its two ends in words, and the stages."""
    parts = []
    for value, words in ((0.0, "other images"), (0.5, ""), (1.0, "explained twice")):
        y = _y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{words} {value:g}</text>')
    every = -(-len(ticks) // 30)  # of very many stages, not every number has room
    for index, name in enumerate(ticks):
        x = _x(index, len(ticks))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + INSIDE}"/>')
        if index % every == 0:
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{TOP + INSIDE + 18}" text-anchor="middle">{escape(name)}</text>'
            )
    middle = _x(len(ticks) - 1, len(ticks)) / 2 + _x(0, len(ticks)) / 2
    parts.append(
        f'<text class="tick" x="{middle:.1f}" y="{TOP + INSIDE + 37}" text-anchor="middle">layers drawn anew</text>'
    )
    return "".join(parts)


def _curve(curve: Curve, colour: str, dash: str, place: float, stages: int) -> str:
    """A line that is interrupted where there is no scale, a bar for each interval, and the name at its end."""
    parts = []
    for run in _runs(curve.points):
        path = " ".join(f"{_x(index, stages):.1f},{_y(point[0]):.1f}" for index, point in run)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [_mark(curve.name, point, _x(index, stages), colour, stages <= ROOM) for index, point in run]
    index, last = _last(curve)
    x, y = _x(index, stages), _y(last[0])
    edge = WIDTH - RIGHT + 8
    parts.append(
        f'<polyline class="lead" points="{x + 7:.1f},{y:.1f} {max(x + 7, edge - 10):.1f},{y:.1f} '
        f'{edge:.1f},{place:.1f}" fill="none" stroke="{colour}"/>'
    )
    parts.append(f'<text class="name" x="{edge + 4}" y="{place + 4:.1f}" fill="{colour}">{_named(curve)}</text>')
    return "".join(parts)


def _named(curve: Curve) -> str:
    """The name as it fits beside the drawing; in full in its title."""
    whole = f"{curve.name} (control)" if curve.control else curve.name
    room = int((RIGHT - 14) / BOLD)
    short = whole if len(whole) <= room else f"{whole[: room - 1]}\u2026"
    return escape(short) if short == whole else f"<title>{escape(whole)}</title>{escape(short)}"


def _mark(name: str, point: Point, x: float, colour: str, valued: bool) -> str:
    """A dot with its interval; a triangle at the edge where the value lies beyond what is drawn."""
    estimate, low, high = point
    y = _y(estimate)
    title = f"<title>{escape(name)}: {number(estimate)} ({number(low)} to {number(high)})</title>"
    bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(low):.1f}" y2="{_y(high):.1f}" stroke="{colour}"/>'
    if LOW <= estimate <= HIGH:
        return f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{title}</circle>'
    tip = -7 if estimate > HIGH else 7
    beyond = f'<path class="beyond" d="M{x - 5:.1f} {y:.1f}h10l-5 {tip}z" fill="{colour}">{title}</path>'
    value = f'<text class="tick" x="{x + 8:.1f}" y="{y + 4:.1f}">{number(estimate)}</text>'
    return f"{bar}{beyond}{value if valued else ''}"


def _runs(points: Sequence[Point | None]) -> list[list[tuple[int, Point]]]:
    """The points that follow each other without a gap."""
    runs: list[list[tuple[int, Point]]] = [[]]
    for index, point in enumerate(points):
        if point is None:
            runs.append([])
        else:
            runs[-1].append((index, point))
    return [run for run in runs if run]


def _last(curve: Curve) -> tuple[int, Point]:
    return [(index, point) for index, point in enumerate(curve.points) if point is not None][-1]


def _apart(places: Sequence[float], least: float = 16) -> list[float]:
    """The places, moved so that names do not cover each other, and up again where they left the drawing."""
    moved, floor = list(places), float("-inf")
    order = sorted(range(len(moved)), key=lambda i: moved[i])
    for index in order:
        moved[index] = floor = max(moved[index], floor + least)
    ceiling = float(TOP + INSIDE)
    for index in reversed(order):
        moved[index] = ceiling = min(moved[index], ceiling)
        ceiling -= least
    shift = max(0.0, 8 - min(moved, default=8.0))  # more names than the drawing is high: it grows downwards
    return [place + shift for place in moved]


def _x(stage: int, stages: int) -> float:
    return LEFT + 30 + (WIDTH - LEFT - RIGHT - 60) * stage / max(1, stages - 1)


def _y(value: float) -> float:
    return TOP + INSIDE * (HIGH - min(HIGH, max(LOW, value))) / (HIGH - LOW)


def shade(value: float | None, low: float | None, high: float | None) -> str:
    """The colour of a matrix's cell: from white at ``low`` to blue at ``high``, with ink that can be read on it."""
    if value is None or low is None or high is None or high == low:
        return "background:#fff;color:#000"
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    red, green, blue = (round(255 + (dark - 255) * share) for dark in (8, 81, 156))
    return f"background:rgb({red},{green},{blue});color:{'#fff' if share > DARK else '#000'}"
