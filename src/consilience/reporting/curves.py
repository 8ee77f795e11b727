"""What every drawing of curves is made of: a frame, lines with intervals, and names at their ends, as SVG."""

from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

from consilience.reporting.grades import number

COLOURS = ("#0067a5", "#b34700", "#00734f", "#a33f7f", "#7a5c00", "#4b4fa6")  # dark enough to be read as text
GREY, INK = "#666e77", "#1b1f24"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
WIDTH, LEFT, RIGHT, TOP, INSIDE = 820, 122, 200, 16, 210
START, SPAN = LEFT + 30, WIDTH - LEFT - RIGHT - 60  # of the ticks, from the first to the last
LETTER, BOLD = 6.6, 7.8  # pixels of a character, about; text is not measured
ROOM = 9  # ticks; of more, values beyond are in the titles only

Point = tuple[float, float, float]
"""Estimate, low and high."""


Kind = Literal["method", "control", "reference"]


class Curve(NamedTuple):
    """One method's values, tick by tick, or a reference that all methods are read against."""

    name: str
    kind: Kind
    points: list[Point | None]
    """None where there is no value."""
    shift: float = 0.0
    """Pixels to the right, by which bars at one tick are told from each other."""


class Axes(NamedTuple):
    """What height and width of a drawing stand for."""

    low: float
    high: float
    """Of the values that are drawn; what lies beyond is a triangle at the edge."""
    heights: tuple[tuple[float, str], ...]
    """Values that have a line across, and what they are in words."""
    places: list[float]
    """Of the ticks, from the left edge."""
    ticks: list[str]
    """A name for each place; empty where there is no room for it."""
    caption: str

    def y(self, value: float) -> float:
        """Where a value lies, at an edge if beyond."""
        return TOP + INSIDE * (self.high - min(self.high, max(self.low, value))) / (self.high - self.low)


def drawing(curves: Sequence[Curve], axes: Axes, label: str) -> str:
    """All curves; controls are grey, and a reference is a thin line. Every curve has a point somewhere."""
    places = _apart([axes.y(last(curve)[1][0]) for curve in curves])
    bottom = max([TOP + INSIDE + 44.0, *(place + 14 for place in places)])
    own = iter(COLOURS * len(curves))
    body = [_frame(axes)]
    for index, (curve, place) in enumerate(zip(curves, places, strict=True)):
        if curve.kind == "reference":
            body.append(_reference(curve, place, axes))
            continue
        colour = GREY if curve.kind == "control" else next(own)
        body.append(_curve(curve, colour, DASHES[index % len(DASHES)], place, axes))
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(body)}</svg>"
    )


def last(curve: Curve) -> tuple[int, Point]:
    """The tick at which a curve ends, and its value there."""
    return [(index, point) for index, point in enumerate(curve.points) if point is not None][-1]


def _frame(axes: Axes) -> str:
    """The values with their ends in words, and the ticks."""
    parts = []
    for value, words in axes.heights:
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{words} {value:g}</text>')
    for x, name in zip(axes.places, axes.ticks, strict=True):
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + INSIDE}"/>')
        if name:
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{TOP + INSIDE + 18}" text-anchor="middle">{escape(name)}</text>'
            )
    middle = axes.places[-1] / 2 + axes.places[0] / 2
    caption = escape(axes.caption)
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{TOP + INSIDE + 37}" text-anchor="middle">{caption}</text>')
    return "".join(parts)


def _curve(curve: Curve, colour: str, dash: str, place: float, axes: Axes) -> str:
    """A line that is interrupted where there is no value, a bar for each interval, and the name at its end."""
    parts = []
    for run in _runs(curve.points):
        parts.append(
            f'<polyline points="{_path(run, curve.shift, axes)}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [_mark(curve.name, point, axes.places[index] + curve.shift, colour, axes) for index, point in run]
    return "".join(parts) + _name(curve, colour, place, axes)


def _reference(curve: Curve, place: float, axes: Axes) -> str:
    """A thin line without bars, its values in its title."""
    values = ", ".join(number(point[0]) for point in curve.points if point is not None)
    lines = "".join(f'<polyline points="{_path(run, curve.shift, axes)}" fill="none"/>' for run in _runs(curve.points))
    title = f"<title>{escape(curve.name)}: {values}</title>"
    return (
        f'<g class="reference" stroke="{INK}" stroke-dasharray="4 3">{title}{lines}</g>{_name(curve, INK, place, axes)}'
    )


def _path(run: Sequence[tuple[int, Point]], shift: float, axes: Axes) -> str:
    return " ".join(f"{axes.places[index] + shift:.1f},{axes.y(point[0]):.1f}" for index, point in run)


def _name(curve: Curve, colour: str, place: float, axes: Axes) -> str:
    """The name beside the drawing, and a line that leads there from where the curve ends."""
    index, point = last(curve)
    x, y = axes.places[index] + curve.shift, axes.y(point[0])
    edge = WIDTH - RIGHT + 8
    return (
        f'<polyline class="lead" points="{x + 7:.1f},{y:.1f} {max(x + 7, edge - 10):.1f},{y:.1f} '
        f'{edge:.1f},{place:.1f}" fill="none" stroke="{colour}"/>'
        f'<text class="name" x="{edge + 4}" y="{place + 4:.1f}" fill="{colour}">{_fitting(curve)}</text>'
    )


def _fitting(curve: Curve) -> str:
    """The name as it fits beside the drawing; in full in its title."""
    whole = f"{curve.name} (control)" if curve.kind == "control" else curve.name
    room = int((RIGHT - 14) / BOLD)
    short = whole if len(whole) <= room else f"{whole[: room - 1]}\u2026"
    return escape(short) if short == whole else f"<title>{escape(whole)}</title>{escape(short)}"


def _mark(name: str, point: Point, x: float, colour: str, axes: Axes) -> str:
    """A dot with its interval; a triangle at the edge where the value lies beyond what is drawn."""
    estimate, low, high = point
    y = axes.y(estimate)
    title = f"<title>{escape(name)}: {number(estimate)} ({number(low)} to {number(high)})</title>"
    bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}" stroke="{colour}"/>'
    if axes.low <= estimate <= axes.high:
        return f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{title}</circle>'
    tip = -7 if estimate > axes.high else 7
    beyond = f'<path class="beyond" d="M{x - 5:.1f} {y:.1f}h10l-5 {tip}z" fill="{colour}">{title}</path>'
    value = f'<text class="tick" x="{x + 8:.1f}" y="{y + 4:.1f}">{number(estimate)}</text>'
    return f"{bar}{beyond}{value if len(axes.ticks) <= ROOM else ''}"


def _runs(points: Sequence[Point | None]) -> list[list[tuple[int, Point]]]:
    """The points that follow each other without a gap."""
    runs: list[list[tuple[int, Point]]] = [[]]
    for index, point in enumerate(points):
        if point is None:
            runs.append([])
        else:
            runs[-1].append((index, point))
    return [run for run in runs if run]


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
