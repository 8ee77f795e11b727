"""From rows to the tables as they stand on the page: which rows stand together, and which are folded away."""

from collections.abc import Sequence
from typing import NamedTuple

from consilience.reporting.grades import columns
from consilience.reporting.learning import of_most_images
from consilience.reporting.tables import FamilyKind, Judged, Line, Matrix, Performance, Told


class Block(NamedTuple):
    """Agreement in one family by one measure; rows are grouped by method."""

    family: str
    kind: FamilyKind
    measure: str
    methods: list[list[Line]]
    """Overall, then each factor, then several; controls overall only."""
    controls: list[list[Line]]
    """The controls by factor."""


class Row(NamedTuple):
    """A method's consistency as one row of the published table."""

    overall: Told
    factors: list[Told | None]
    several: Told | None
    floor: Told | None


class Classified(NamedTuple):
    """Consistency in one family by one measure."""

    family: str
    measure: str
    factors: list[str]
    rows: list[Row]
    performances: list[Performance]
    folded: bool
    """Whether another table has the same measure of more images."""


class PivotRow(NamedTuple):
    """One measure of one model, of one method where it judges maps; a cell for each model."""

    measure: str
    better: str
    method: str
    control: bool
    cells: list[Judged | None]


class Pivot(NamedTuple):
    """The models of a family side by side, each by itself."""

    family: str
    kind: FamilyKind
    models: list[str]
    rows: list[PivotRow]


class Matrices(NamedTuple):
    """Every pair of a family by one measure."""

    family: str
    measure: str
    apart: bool
    """Whether the measure says how well maps are told apart, so that less is more alike."""
    each: list[Matrix]


def blocks(lines: Sequence[Line]) -> list[Block]:
    """The tables of agreement, cascades among them."""
    found = []
    for family, measure in dict.fromkeys((line.family, line.measure) for line in lines):
        mine = [line for line in lines if (line.family, line.measure) == (family, measure)]
        methods, controls = [], []
        for method in dict.fromkeys(line.method for line in mine):
            rows = [line for line in mine if line.method == method]
            if mine[0].kind != "cascade":
                rows = _without_repeats(rows)
            if rows[0].control and mine[0].kind != "cascade":
                methods.append(rows[:1])
                controls += [rows[1:]] if rows[1:] else []
            else:
                methods.append(rows)
        found.append(Block(family, mine[0].kind, measure, methods, controls))
    return found


def _without_repeats(rows: Sequence[Line]) -> list[Line]:
    """The rows, without that of a single factor: it is the overall row under another name."""
    if columns(rows[0], rows):
        return list(rows)
    return [row for row in rows if row.column in ("overall", "several")]


def classified(told: Sequence[Told], performances: Sequence[Performance]) -> list[Classified]:
    """The tables of consistency, one row a method."""
    found = []
    compared = [row for row in told if row.kind in ("twins", "models")]
    largest = {(row.family, row.measure) for row in of_most_images(compared)}
    for family, measure in dict.fromkeys((row.family, row.measure) for row in compared):
        mine = [row for row in compared if (row.family, row.measure) == (family, measure)]
        names = [name for name in dict.fromkeys(row.column for row in mine) if name not in ("overall", "several")]
        factors = names if len(names) > 1 else []
        floors = {
            row.method: row for row in told if (row.kind, row.measure, row.column) == ("floor", measure, "overall")
        }
        rows = []
        for method in dict.fromkeys(row.method for row in mine):
            by = {row.column: row for row in mine if row.method == method}
            if "overall" in by:
                own = [by.get(name) for name in factors]
                rows.append(Row(by["overall"], own, by.get("several"), floors.get(method)))
        worth = [one for one in performances if one.family == family]
        found.append(Classified(family, measure, factors, rows, worth, (family, measure) not in largest))
    return found


def pivots(judged: Sequence[Judged]) -> list[Pivot]:
    """Measures of one model, the models of a family as columns."""
    found = []
    for family in dict.fromkeys(row.family for row in judged):
        mine = [row for row in judged if row.family == family]
        models = list(dict.fromkeys(row.member for row in mine))
        rows = []
        for measure, method in dict.fromkeys((row.measure, row.method) for row in mine):
            cells = {row.member: row for row in mine if (row.measure, row.method) == (measure, method)}
            one = next(iter(cells.values()))
            rows.append(PivotRow(measure, one.better, method, one.control, [cells.get(name) for name in models]))
        found.append(Pivot(family, mine[0].kind, models, rows))
    return found


def matrices(found: Sequence[Matrix], told: Sequence[Told]) -> list[Matrices]:
    """The matrices, by measure."""
    tells = {row.measure for row in told}
    places = dict.fromkeys((one.family, one.measure) for one in found)
    return [
        Matrices(*place, place[1] in tells, [one for one in found if (one.family, one.measure) == place])
        for place in places
    ]
