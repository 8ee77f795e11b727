"""From rows to the tables as they stand on the page: which rows stand together, and which are folded away."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from consilience.measures.resampling import EVERYTHING
from consilience.reporting.alone import Judged, Performance
from consilience.reporting.grades import NO_FACTOR
from consilience.reporting.learning import of_most_images
from consilience.reporting.pairings import Distance, Matrix, Represented, When
from consilience.reporting.tables import COMPARED, MEETS, FamilyKind, Line, Told


class Block(NamedTuple):
    """Agreement in one family by one measure; rows are grouped by method."""

    family: str
    kind: FamilyKind
    measure: str
    methods: list[list[Line]]
    """Overall, then each factor, then several, then overall of the images that meet a condition; of controls overall
    only."""
    folded: list[list[Line]]
    """The controls, and the rows of images that meet a condition, by factor."""


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
    fine: bool
    """Whether the values are so small, or so large, that two digits would not tell them from each other."""
    each: list[Matrix]


class DistanceTable(NamedTuple):
    """Distances of whole sets of maps in one family by one measure."""

    family: str
    measure: str
    better: str
    columns: list[str]
    rows: list[list[Distance]]


class RepresentedTable(NamedTuple):
    """The models of a family compared by one measure."""

    family: str
    measure: str
    better: str
    what: str
    pairs: int
    epochs: list[When]
    parts: list[str]
    cells: list[list[Represented | None]]
    """A row for each part, a column for each epoch."""


def blocks(lines: Sequence[Line]) -> list[Block]:
    """The tables of agreement, cascades and earlier epochs among them."""
    found = []
    for family, measure in dict.fromkeys((line.family, line.measure) for line in lines):
        mine = [line for line in lines if (line.family, line.measure) == (family, measure)]
        kind, methods, folded = mine[0].kind, [], list[list[Line]]()
        for method in dict.fromkeys(line.method for line in mine):
            shown: list[Line] = []
            for condition in MEETS:
                rows = [line for line in mine if (line.method, line.condition) == (method, condition)]
                if kind in COMPARED or kind == "floor":
                    rows = _without_repeats(rows)
                    if rows[1:] and (condition != "all" or rows[0].control):
                        rows, rest = rows[:1], rows[1:]
                        folded.append(rest)
                shown += rows
            methods.append(shown)
        found.append(Block(family, kind, measure, methods, folded))
    return found


def _without_repeats(rows: Sequence[Line]) -> list[Line]:
    """The rows, without the one that is the overall row under another name."""
    again = _overall_again([row.column for row in rows])
    return [row for row in rows if row.column != again]


def _overall_again(columns: Sequence[str]) -> str | None:
    """The column of the same pairs as the overall one: that of a single factor, or of everything."""
    factors = [name for name in columns if name not in NO_FACTOR] or [EVERYTHING]
    return factors[0] if len({*factors}) == 1 else None


def classified(told: Sequence[Told], performances: Sequence[Performance]) -> list[Classified]:
    """The tables of consistency, one row a method, and one more for the images that meet a condition."""
    found = []
    compared = [row for row in told if row.kind in COMPARED]
    largest = {(row.family, row.measure) for row in of_most_images(compared)}
    for family, measure in dict.fromkeys((row.family, row.measure) for row in compared):
        mine = [row for row in compared if (row.family, row.measure) == (family, measure)]
        names = list(dict.fromkeys(row.column for row in mine))
        factors = [name for name in names if name not in ("overall", "several", _overall_again(names))]
        floors = {
            (row.method, row.condition): row
            for row in told
            if (row.kind, row.measure, row.column) == ("floor", measure, "overall")
        }
        rows = []
        methods = dict.fromkeys(row.method for row in mine)
        for place in itertools.product(methods, MEETS):
            by = {row.column: row for row in mine if (row.method, row.condition) == place}
            if "overall" in by:
                own = [by.get(name) for name in factors]
                rows.append(Row(by["overall"], own, by.get("several"), floors.get(place)))
        worth = [one for one in performances if one.family == family]
        if rows:
            found.append(Classified(family, measure, factors, rows, worth, (family, measure) not in largest))
    return found


def pivots(judged: Sequence[Judged]) -> list[Pivot]:
    """Measures of one model, the models of a family as columns."""
    found = []
    for family in dict.fromkeys(row.family for row in judged):
        mine = [row for row in judged if row.family == family]
        models = list(dict.fromkeys(row.member for row in mine))
        if mine[0].kind == "epochs":
            models = [*models[1:], models[0]]  # the finished model comes first in its family, and last in time
        rows = []
        for label, method in dict.fromkeys((row.label, row.method) for row in mine):
            cells = {row.member: row for row in mine if (row.label, row.method) == (label, method)}
            one = next(iter(cells.values()))
            measure = f"{label}, mean over classes" if one.unit == "classes" else label
            rows.append(PivotRow(measure, one.better, method, one.control, [cells.get(name) for name in models]))
        found.append(Pivot(family, mine[0].kind, models, rows))
    return found


def matrices(found: Sequence[Matrix], told: Sequence[Told]) -> list[Matrices]:
    """The matrices, by measure."""
    tells = {row.measure for row in told}
    groups = []
    for place in dict.fromkeys((one.family, one.measure) for one in found):
        mine = [one for one in found if (one.family, one.measure) == place]
        sizes = [abs(value) for one in mine for row in one.values for value in row if value is not None]
        groups.append(Matrices(*place, place[1] in tells, not 0.1 <= max(sizes, default=1.0) <= 100, mine))
    return groups


def distance_tables(found: Sequence[Distance]) -> list[DistanceTable]:
    """The columns of each measure of whole sets of maps side by side, one model explained twice below them."""
    tables = []
    for family, measure in dict.fromkeys((one.family, one.measure) for one in found if one.kind in COMPARED):
        mine = [one for one in found if one.measure == measure and (one.family == family or one.kind == "floor")]
        columns = list(dict.fromkeys(one.column for one in mine))
        rows = []
        for method in dict.fromkeys(one.method for one in mine):
            for kind in dict.fromkeys(one.kind for one in mine):
                by = {one.column: one for one in mine if (one.method, one.kind) == (method, kind)}
                if by:
                    rows.append([by[column] for column in columns])
        tables.append(DistanceTable(family, measure, mine[0].better, columns, rows))
    return tables


def represented_tables(found: Sequence[Represented]) -> list[RepresentedTable]:
    """Layers and tensors as rows, epochs as columns."""
    tables = []
    for family, measure in dict.fromkeys((one.family, one.measure) for one in found):
        mine = [one for one in found if (one.family, one.measure) == (family, measure)]
        epochs = sorted({one.epoch for one in mine}, key=lambda when: when if isinstance(when, int) else math.inf)
        parts = list(dict.fromkeys(one.part for one in mine))
        by = {(one.part, one.epoch): one for one in mine}
        cells = [[by.get((part, epoch)) for epoch in epochs] for part in parts]
        pairs = max(one.pairs for one in mine)
        tables.append(RepresentedTable(family, measure, mine[0].better, mine[0].what, pairs, epochs, parts, cells))
    return tables
