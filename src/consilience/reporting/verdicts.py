"""From rows to words: what the page's first lines say, never more than the intervals say."""

from collections.abc import Collection, Sequence

import msgspec

from consilience.measures.resampling import CONTROL, EVERYTHING
from consilience.reporting.advice import advice
from consilience.reporting.grades import (
    ENOUGH,
    HELD,
    LOST,
    OPEN_TO,
    Grade,
    Left,
    columns,
    grade,
    last_stage,
    left,
    listed,
    number,
    worst,
)
from consilience.reporting.learning import of_most_images
from consilience.reporting.tables import COMPARED, Line, Told

MANY = 3  # methods; of more, a sentence names the two ends

WORDS: dict[Grade, str] = {
    "alike": "almost as well as one model explained twice",
    "at least in part": "at least in part, perhaps almost as well as one model explained twice",
    "in part": "only in part",
    "at most in part": "at most in part, perhaps no better than maps of different images",
    "unlike": "no better than maps of different images",
    "unclear": "to a degree that these numbers leave open",
    "no scale": "to a degree that cannot be placed",
}

SHORT: dict[Grade, str] = {"at least in part": "at least in part", "at most in part": "at most in part"}
"""Where methods differ, each has few words."""

LEFT: dict[Left, tuple[str, str]] = {
    "all": ("all of its likeness is left", "it does not depend on {}"),
    "most": ("more than half of its likeness is left", "much of it does not depend on {}"),
    "part": ("a part of its likeness is left", "it depends on {} only in part"),
    "little": ("little of its likeness is left", "it depends on {}"),
    "nothing": ("nothing of its likeness is left", "it depends on {}"),
    "unclear": ("it is open how much of its likeness is left", "more images or stages drawn again would tell"),
    "no scale": ("there is no scale", "one model explained twice is not shown to be more alike than other images"),
}


class MethodVerdict(msgspec.Struct):
    """What is found of one method, by the first measure that compares image by image."""

    family: str
    method: str
    measure: str
    grade: Grade
    estimate: float | None
    low: float | None
    high: float | None
    agreement: str
    """Of which measure the numbers are, and what the others say, as a sentence."""
    worst: str | None
    """The factor under which maps are least alike."""
    dependence: str
    """Whether the map depends on what the model learned, as a sentence; empty where there was no cascade."""


class Answer(msgspec.Struct):
    """The five things that a reader takes home: verdict, evidence, floor, worst factor, what to do next."""

    headline: str
    methods: list[MethodVerdict]
    evidence: str
    floor: str
    worst: str
    controls: str
    classifier: str
    next: list[str]


def answer(
    lines: Sequence[Line], told: Sequence[Told], models: int, partial: Collection[str] = (), *, twins: bool = True
) -> Answer:
    """The answer that the rows of all examples give; rows of those that meet a condition have no part in it.

    ``models`` is how many were compared; ``partial`` names the stages of cascades that left some weights as they
    were; ``twins`` says whether the models are a base and its twins, and no folds or ensembles.
    """
    lines = [line for line in lines if line.condition == "all"]
    told = [row for row in told if row.condition == "all"]
    overall = [line for line in lines if line.column == "overall" and line.kind in COMPARED]
    first = {(line.family, line.method): line for line in reversed(overall) if not line.control}
    judged = list(reversed(first.values()))
    return Answer(
        headline=_headline(judged, overall, told, twins),
        methods=[_verdict(line, lines, partial) for line in judged],
        evidence=_evidence(overall, lines, models, twins),
        floor=_floor(judged),
        worst=_worst(judged, lines),
        controls=_controls(overall, judged),
        classifier=_classifier(told),
        next=advice(judged, lines, compared=any(row.kind in COMPARED for row in told)),
    )


def _verdict(line: Line, lines: Sequence[Line], partial: Collection[str]) -> MethodVerdict:
    least = worst(line, lines)
    return MethodVerdict(
        family=line.family,
        method=line.method,
        measure=line.measure,
        grade=grade(line),
        estimate=line.estimate,
        low=line.low,
        high=line.high,
        agreement=_agreement(line, lines),
        worst=least[0].column if least else None,
        dependence=_dependence(line, lines, partial),
    )


def _headline(judged: Sequence[Line], overall: Sequence[Line], told: Sequence[Told], twins: bool) -> str:
    if not judged and any(row.kind in COMPARED for row in told):
        return "No verdict: how alike the maps of an image are was not measured, or is not made yet."
    if not judged:
        return "Nothing was compared, or nothing of it is made yet."
    again = twins and all(line.kind == "twins" for line in judged)
    who = "Twins of this model" if again else "These models"
    found = {grade(line) for line in judged}
    if len(found) == 1:
        said = f"{who} explain the same image alike {WORDS[found.pop()]}"
    else:
        parts = [f"{SHORT.get(one, WORDS[one])} by {listed(_methods(judged, one))}" for one in WORDS if one in found]
        said = f"{who} explain the same image alike {listed(parts)}"
    differs = any(
        not OPEN_TO[grade(other)] & OPEN_TO[grade(line)]
        for line in judged
        for other in overall
        if (other.family, other.method) == (line.family, line.method)
    )
    return f"{said} (by {judged[0].measure}; other measures say otherwise)." if differs else f"{said}."


def _methods(judged: Sequence[Line], wanted: Grade) -> list[str]:
    several = len({line.family for line in judged}) > 1
    return [
        f"{line.method} ({line.family})" if several else line.method for line in judged if grade(line) == wanted
    ]  # fmt: skip


def _agreement(line: Line, lines: Sequence[Line]) -> str:
    others = [
        f"{number(other.estimate) if other.estimate is not None else 'no scale'} by {other.measure}"
        for other in lines
        if (other.family, other.method, other.column) == (line.family, line.method, "overall")
        and other.measure != line.measure
    ]
    beside = f"; {', '.join(others)}" if others else ""
    if grade(line) == "no scale":
        return (
            f"It cannot be placed by {line.measure}: one model explained twice is not shown to be more alike than maps "
            f"of different images{beside}."
        )
    return f"By {line.measure}, with its {100 * line.level:.0f} % interval{beside}."


def _dependence(line: Line, lines: Sequence[Line], partial: Collection[str]) -> str:
    """What the last stage of the cascade says of a method; and by which other measure it says something else."""
    last = last_stage(line.method, line.measure, lines)
    if last is None:
        return ""
    kept, means = LEFT[left(last)]
    values = f" ({number(last.estimate)}, {number(last.low)} to {number(last.high)})" if last.low is not None else ""
    which, what = ("the chosen", "what was learned there") if last.column in partial else ("all", "what was learned")
    said = f"With {which} layers drawn anew, {kept}{values}: {means.format(what)}."
    measures = dict.fromkeys(other.measure for other in lines if other.kind == "cascade")
    others = [last_stage(line.method, measure, lines) for measure in measures if measure != line.measure]
    for other in others:
        if other is not None and _group(left(other)) != _group(left(last)):
            said += f" By {other.measure} {LEFT[left(other)][0]} ({number(other.estimate)})."
    return said


def _group(found: Left) -> str:
    return "lost" if found in LOST else "held" if found in HELD else found


def _evidence(overall: Sequence[Line], lines: Sequence[Line], models: int, twins: bool) -> str:
    if not overall:
        return ""
    first = {line.family: line for line in reversed(overall)}
    pairs, examples = sum(line.pairs for line in first.values()), max(line.examples for line in first.values())
    again = all(line.kind == "twins" for line in first.values())
    who = f"{models} models{'' if again else ' side by side'}"
    if again and twins:
        who += f" (a base and {_counted(models - 1, 'twin')})"
    differ = (
        (" that differ in every seed" if _at_once(overall, lines) else " that differ in one factor") if again else ""
    )
    undefined = sum(line.undefined for line in overall)
    left_out = f"; {_counted(undefined, 'undefined value')} left out" if undefined else ""
    return f"{_counted(examples, 'image')} and {who}, compared in {_counted(pairs, 'pair')}{differ}{left_out}."


def _at_once(overall: Sequence[Line], lines: Sequence[Line]) -> bool:
    """Whether all that was varied are all chances at once."""
    families = {line.family for line in overall}
    varied = {line.column for line in lines if line.family in families} - {"overall", "several", CONTROL}
    return varied == {EVERYTHING}


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _controls(overall: Sequence[Line], judged: Sequence[Line]) -> str:
    """That agreement alone is no merit, where a control agrees as well."""
    measures = {line.measure for line in judged}
    found = [line for line in overall if line.control and line.measure in measures and grade(line) == "alike"]
    if not found:
        return ""
    names = list(dict.fromkeys(line.method for line in found))
    agrees = "agrees" if len(names) == 1 else "agree"
    is_control = "the control" if len(names) == 1 else "the controls"
    values = _range([line.estimate for line in found if line.estimate is not None])
    return f"Agreement alone is no merit: {is_control} {listed(names)} {agrees} at {values}."


def _floor(judged: Sequence[Line]) -> str:
    """What one model explained twice agrees with itself, and what maps of other images agree with each other."""
    said = []
    for measure in dict.fromkeys(line.measure for line in judged):
        there = [line for line in judged if line.measure == measure and line.floor is not None]
        if there:
            floors = _each([(line.method, line.floor) for line in there])
            others = _each([(line.method, line.wrong_image) for line in there], named=len(there) > MANY)
            said.append(
                f"Explained twice, one model's maps are {floors} apart by {measure}; maps of other images are {others}."
                if there[0].better == "lower"
                else f"Explained twice, one model agrees with itself at {floors} by {measure}; maps of other images "
                f"agree at {others}."
            )
    return " ".join(said)


def _each(values: Sequence[tuple[str, float | None]], named: bool = True) -> str:
    """Every method's value; of many methods, the two ends."""
    if len({number(value) for _, value in values}) == 1:
        return number(values[0][1])
    if len(values) > MANY:
        ranked = sorted(values, key=lambda pair: pair[1] if pair[1] is not None else -1.0)
        (low, least), (high, most) = ranked[0], ranked[-1]
        return f"{number(least)} ({low}) to {number(most)} ({high})"
    texts = [f"{number(value)} ({name})" if named and len(values) > 1 else number(value) for name, value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _worst(judged: Sequence[Line], lines: Sequence[Line]) -> str:
    if not judged:
        return ""
    if all(line.kind == "models" for line in judged):
        return "None to name: the models stand side by side, and what they differ in is not known here."
    found = {(line.family, line.method): worst(line, lines) for line in judged}
    groups: dict[str, list[str]] = {}
    for (_, method), rows in found.items():
        if rows:
            label = listed((row.column for row in rows), "or")
            groups.setdefault(label, []).append(f"{number(rows[0].estimate)} with {method}")
    if not groups:
        compared = [row.column for line in judged for row in columns(line, lines)]
        if compared:
            return "None to name: no factor has a scale."
        if _at_once(judged, lines):
            return "None to name: every seed was varied at once."
        return "None to name: a single factor was varied."
    said = "; ".join(
        f"{label} ({', '.join(values)}{', intervals overlap' if ' or ' in label else ''})"
        for label, values in groups.items()
    )
    fewest = min(row.pairs for rows in found.values() for row in rows)
    rough = f" With {_counted(fewest, 'pair')} a factor, other seeds may rank them otherwise."
    return f"{said} changes explanations most.{rough if fewest < ENOUGH else ''}"


def _classifier(told: Sequence[Told]) -> str:
    """What a classifier makes of the maps, in one sentence; of several numbers of images, of the largest."""
    told = of_most_images(told)
    rows = [row for row in told if row.column == "overall" and row.kind in COMPARED and not row.control]
    values = [row.consistency for row in rows if row.consistency is not None]
    nulls = [row.null for row in rows if row.null is not None]
    floors = [
        row.consistency for row in told if row.kind == "floor" and not row.control and row.consistency is not None
    ]
    if not values or not nulls:
        return ""
    most = ", given the most images" if any(row.size for row in rows) else ""
    twice = f", {_range(floors)} of one model explained twice" if floors else ""
    return (
        f"Consistency C, by a classifier that has to tell which model made a map{most}: {_range(values)}; "
        f"{_range(nulls)} with the models exchanged at random{twice}. It falls as images are added and does not say "
        "how much maps differ, so the verdict does not rest on it."
    )


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
