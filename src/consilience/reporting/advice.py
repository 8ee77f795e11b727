"""What to do with what was found, the most urgent first."""

from collections.abc import Sequence

from consilience.reporting.grades import ENOUGH, HELD, Grade, grade, last_stage, left, listed, number, worst
from consilience.reporting.tables import Line

OPEN: tuple[Grade, ...] = ("at least in part", "at most in part", "unclear")
PARTLY: tuple[Grade, ...] = ("in part", "at most in part")


def advice(judged: Sequence[Line], lines: Sequence[Line], *, compared: bool = False) -> list[str]:
    """Sentences, from the overall rows of the methods that are judged and all rows beside them.

    ``compared`` says whether a classifier has told maps apart, where no row says how alike they are.
    """
    if not judged and compared:
        return ["Add a measure of agreement image by image to 'compare', such as cosine: the verdict rests on one."]
    if not judged:
        return ["Run the experiment, or name methods and measures that compare maps."]
    stages = {line.method: last_stage(line.method, line.measure, lines) for line in judged}
    blind = [name for name, stage in stages.items() if stage is not None and left(stage) in HELD]
    usable = [line for line in judged if line.method not in blind]
    found = [*_unusable(blind, judged), *_of_grades(usable), *_of_factors(usable, lines)]
    if found:
        return found
    if not any(stages.values()):
        return [
            "Ask next whether the maps depend on what the model learned: add a family of type randomised. Agreement is "
            "necessary and not sufficient."
        ]
    return [
        "Go on to the next question: agreement is necessary and not sufficient. Check whether the maps lie on the "
        "object and whether the model uses what they mark."
    ]


def _unusable(blind: Sequence[str], judged: Sequence[Line]) -> list[str]:
    """Methods that keep their maps when the model has forgotten, and those that do not agree with themselves."""
    said = [f"Do not use {listed(blind)}: most of the map stays when the layers are drawn anew."] if blind else []
    placeless = [line.method for line in judged if grade(line) == "no scale"]
    if placeless:
        said.append(
            f"Give {listed(placeless)} more draws, more images or another measure: one model explained twice is not "
            "shown to be more alike than maps of different images."
        )
    return said


def _of_grades(usable: Sequence[Line]) -> list[str]:
    said = []
    unlike = [line.method for line in usable if grade(line) == "unlike"]
    if unlike:
        said.append(
            f"Do not show maps by {listed(unlike)} as explanations of an image: another model would have given another."
        )
    partly = [line.method for line in usable if grade(line) in PARTLY]
    if partly:
        said.append(
            f"Do not show one model's map by {listed(partly)} as the explanation: show the mean of the models' maps "
            "with their spread, or only what all of them mark."
        )
    undecided = [line for line in usable if grade(line) in OPEN]
    if undecided:
        reach = ", ".join(f"{line.method} {number(line.low)} to {number(line.high)}" for line in undecided)
        said.append(f"Compare more models or images before you decide; the intervals reach far: {reach}.")
    return said


def _of_factors(usable: Sequence[Line], lines: Sequence[Line]) -> list[str]:
    """Which factor to work on, and whether it has been looked at often enough."""
    rows = [row for line in usable if grade(line) not in ("alike", "no scale") for row in worst(line, lines)]
    if not rows:
        return []
    names = listed(sorted({row.column for row in rows}))
    if min(row.pairs for row in rows) >= ENOUGH:
        return [f"Work on {names} first: there the maps differ most."]
    return [f"Work on {names} first, and train five or more values of each factor: with fewer the intervals are rough."]
