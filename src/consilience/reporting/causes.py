"""What the disagreement comes from: rows of every summary that is neither likeness nor consistency, as they stand."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from consilience.experiment.families import Member
from consilience.experiment.specs import Condition
from consilience.measures.variance import TOGETHER
from consilience.reporting.curves import COLOURS, GREY
from consilience.reporting.tables import COMPARED, MEETS, FamilyKind, Study, finite, place_of, summary_rows

SHOWN_ELSEWHERE = ("calibrated_similarity", "consistency")
OF_MODELS = ("variance_shares", "modes")  # mean nothing of one model's stages, or of one explained twice
*FACTORS, LAST = COLOURS  # dark enough for white letters
ENDS = {"explainer": GREY, "image": LAST}


class Cause(msgspec.Struct):
    """One row of a summary: of variance shares, of modes, of a plug-in's."""

    family: str
    kind: FamilyKind
    method: str
    control: bool
    measure: str
    column: str
    """The row's name: a source of variance, a mode."""
    pairs: int
    examples: int
    undefined: int
    summary: str
    estimate: float | None
    low: float | None
    high: float | None
    level: float | None
    """Of the interval; None where the summary has no such choice."""
    null: float | None
    p: float | None
    condition: Condition = "all"


def causes(study: Study) -> list[Cause]:
    """Every row of the other summaries; what explains how models differ, of families of models only."""
    other = [choice.use for choice in study.experiment.summarise if choice.use not in SHOWN_ELSEWHERE]
    found = []
    for goal, spec, row in summary_rows(study, *other):
        use = spec.summary.use
        if use in OF_MODELS and study.kind(goal) not in COMPARED:
            continue
        place = place_of(study, goal, row)
        if use == "modes":
            place["column"] = _with_names(row["name"], study.experiment.members_of(study.family(goal.family)))
        found.append(
            Cause(
                **place,
                summary=spec.summary.label,
                estimate=finite(row["estimate"]),
                low=finite(row["low"]),
                high=finite(row["high"]),
                level=spec.summary.option("level"),
                null=finite(row["null"]),
                p=finite(row["p"]),
                condition=spec.where,
            )
        )
    return found


def _with_names(mode: str, members: Sequence[Member]) -> str:
    """A mode with the names of its models, of which the summary knows the positions in the family only."""
    kind, colon, twins = mode.partition(": ")
    named = re.sub(r"\d+", lambda position: members[int(position[0])].name, twins)
    return kind + colon + re.sub(r"^twins? ", "", named)


class Share(NamedTuple):
    """A part of a bar."""

    name: str
    value: float
    width: float
    """In percent of the bar; a share below zero has none."""
    colour: str


class Bar(NamedTuple):
    """The shares of one method side by side."""

    method: str
    control: bool
    shares: list[Share]


class CauseTable(NamedTuple):
    """The rows of one summary of one measure in one family, and its shares as bars where it tells shares."""

    family: str
    summary: str
    measure: str
    condition: Condition
    methods: list[list[Cause]]
    bars: list[Bar]


def cause_tables(found: Sequence[Cause]) -> list[CauseTable]:
    """The tables of the other summaries; those of all images come before those that meet a condition."""

    def place(row: Cause) -> tuple[str, str, str, Condition]:
        return row.family, row.summary, row.measure, row.condition

    tables = []
    for one in sorted(dict.fromkeys(map(place, found)), key=lambda one: list(MEETS).index(one[3])):
        mine = [row for row in found if place(row) == one]
        methods = [[row for row in mine if row.method == name] for name in dict.fromkeys(row.method for row in mine)]
        bars = [_bar(rows) for rows in methods] if one[1].startswith("variance_shares") else []
        tables.append(CauseTable(*one, methods, [bar for bar in bars if bar.shares]))
    return tables


def _bar(rows: Sequence[Cause]) -> Bar:
    """The shares of one method; a source has the same colour in every bar."""
    sources = [row for row in rows if row.column != TOGETHER]
    known = [(at, row.column, row.estimate) for at, row in enumerate(sources) if row.estimate is not None]
    whole = sum(max(0.0, value) for _, _, value in known)
    shares = [
        Share(name, value, 100 * max(0.0, value) / whole, ENDS.get(name, FACTORS[(at - 1) % len(FACTORS)]))
        for at, name, value in known
        if whole > 0
    ]
    return Bar(rows[0].method, rows[0].control, shares)
