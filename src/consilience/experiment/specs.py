"""Specs: each says completely what one artifact holds; its inputs are the specs nested in it; its digest its name."""

from collections.abc import Container, Iterable
from typing import Any, Literal

import msgspec

from consilience.component import Choice
from consilience.experiment.records import Record, Spec
from consilience.tensors import Channels, Normalisation

Condition = Literal["all", "both_right", "both_agree"]
"""Of which examples a summary is: of all, of those that both models name rightly, or alike."""


class Data(Record, frozen=True, kw_only=True):
    """Examples, and what they contained when the experiment was loaded. Without a choice: handed over in memory."""

    fingerprint: str
    choice: Choice | None = None
    maps: "Explain | None" = None
    """Maps that stand in the place of the images: what explanation accuracy is learnt from."""

    @property
    def label(self) -> str:
        """How a person would write it."""
        if self.maps is not None:
            return f"maps by {self.maps.method.label} of {self.maps.data.label}"
        return "examples in memory" if self.choice is None else self.choice.label


class Weights(Record, frozen=True, kw_only=True):
    """Weights that somebody else trained, and what they were when the experiment was loaded.

    Only their content is identity. The file's name, by which a job finds them, stands beside the fields: it travels
    with the spec and enters no digest.
    """

    fingerprint: str

    @classmethod
    def lying(cls, file: str, fingerprint: str) -> "Weights":
        """Weights in a file below the folder of all weights."""
        weights = cls(fingerprint=fingerprint)
        weights.__dict__["file"] = file
        return weights

    @property
    def file(self) -> str:
        """The file's name; empty where nobody said it."""
        return str(self.__dict__.get("file", ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with the file's name, since a worker has to find it."""
        return Weights.lying, (self.file, self.fingerprint)


class Train(Spec, frozen=True, kw_only=True):
    """Weights of one training. Init, order, noise and augment are its four chances, varied apart."""

    data: Data
    model: Choice
    objective: Choice
    optimizer: Choice
    epochs: int
    batch_size: int
    augmentation: Choice | None = None
    init: int = 0
    order: int = 0
    noise: int = 0
    augment: int = 0
    keep: tuple[int, ...] = ()
    """Epochs whose weights are kept besides the last one's."""
    average_from: int | None = None
    """The weights are their mean after this epoch and every later one (stochastic weight averaging)."""
    shuffle: bool = True
    """Whether every epoch has an order of its own."""
    run: int = 0
    """Which of several trainings that differ in nothing at all."""
    start: Weights | None = None
    """The weights that it starts from; ``init`` then draws only what they leave. None starts from random ones."""


class Given(Spec, frozen=True, kw_only=True):
    """Weights that a user brought: known by their digest, the module's text and its answers on sixteen examples."""

    weights: str
    module: str
    answers: str


class Subject(Record, frozen=True, kw_only=True):
    """A model, as it is explained: of which artifact, after which epoch, and what was then done to its weights."""

    source: "Train | Given | Select | Average | Fit"
    epoch: int | None = None
    edit: Choice | None = None
    edit_seed: int | None = None


class Fit(Spec, frozen=True, kw_only=True):
    """What is estimated rather than trained: patterns of a model, backgrounds, kernel machines."""

    estimator: Choice
    data: Data
    subject: Subject | None = None
    seed: int | None = None


class Select(Spec, frozen=True, kw_only=True):
    """Which candidate is best by a measure of each: the best epoch, the best member."""

    candidates: tuple[Subject, ...]
    by: "tuple[Measure, ...]"


class Average(Spec, frozen=True, kw_only=True):
    """An averaging ensemble: the mean of the members' probabilities, or of as many as are chosen greedily."""

    members: tuple[Subject, ...]
    size: int | None = None
    """How many to choose from the members, one after the other, each where it helps most, repeatedly if it does."""
    by: "tuple[Predict, ...]" = ()
    """The members' answers by which they are chosen."""


class Predict(Spec, frozen=True, kw_only=True):
    """Logits of one model on examples."""

    subject: Subject
    data: Data


class Activate(Spec, frozen=True, kw_only=True):
    """What one layer of a model answers to examples, a row for each example and place."""

    subject: Subject
    data: Data
    layer: str
    places: int | None = None
    """Of each example, how many places are drawn; None takes all."""


class Explain(Spec, frozen=True, kw_only=True):
    """Maps of one model on examples by one method."""

    subject: Subject
    method: Choice
    data: Data
    target: Literal["label"] | int | Predict = "label"
    background: Data | None = None
    patterns: Fit | None = None
    seed: int | None = None
    """Of the method's draws; None where it draws nothing."""


class Spread(Spec, frozen=True, kw_only=True):
    """Of several models' maps of the same examples, at each pixel: their mean, deviation and agreement of sign."""

    of: tuple[Explain, ...]


class Measure(Spec, frozen=True, kw_only=True):
    """Values of one measure: of maps, of two models' maps, of answers, of a model or of two."""

    measure: Choice
    of: Explain | Predict | Activate | Subject
    other: Explain | Predict | Activate | Subject | None = None
    channels: Channels = "sum"
    normalise: Normalisation = "none"
    size: Literal["input"] = "input"
    pool: int | None = None
    """Side of the grid to which maps are averaged; None keeps every pixel."""
    tensor: str | None = None
    """Of two models' weights, which tensor of the state dict is compared."""
    seed: int | None = None


class Prepared(Record, frozen=True, kw_only=True):
    """A measure, and how maps are prepared for it: their channels joined, then scaled, then averaged to a grid."""

    measure: Choice
    channels: Channels = "sum"
    normalise: Normalisation = "none"
    pool: int | None = None

    @property
    def label(self) -> str:
        """How a person would write it; how channels are joined is said elsewhere."""
        scaled = "" if self.normalise == "none" else f" of {SCALED[self.normalise]} maps"
        pooled = "" if self.pool is None else f" on a grid of {self.pool} x {self.pool}"
        return self.measure.label + scaled + pooled


SCALED = {"l1": "L1-scaled", "l2": "L2-scaled", "rank": "ranked", "sign": "sign"}
"""How a person would write a normalisation, before the word 'maps'."""


class Entry(Record, frozen=True, kw_only=True):
    """A pair of a family: who was compared, in what they differ, with what result."""

    a: int
    b: int
    differs: tuple[str, ...]
    measure: Measure
    answers: tuple[Predict, ...] = ()
    """What the two models answered, where a summary is of the examples to which they answer in one way."""


class Summary(Spec, frozen=True, kw_only=True):
    """Rows with intervals, of the values of a family."""

    summary: Choice
    table: tuple[Entry, ...]
    floor: tuple[Entry, ...] = ()
    wrong_image: tuple[Entry, ...] = ()
    where: Condition = "all"
    seed: int | None = None


def explanation(subject: Subject, method: Choice, data: Data, seed: int, background: Data | None = None) -> Explain:
    """The spec of a model's maps; seed and background stay out of it where nothing in the method asks for them."""
    return Explain(
        subject=subject,
        method=method,
        data=data,
        seed=seed if method.draws else None,
        background=background if method.asks("background") else None,
    )


def comparison(how: Prepared, of: Any, other: Any = None, tensor: str | None = None) -> Measure:
    """The spec of a measure's values."""
    return Measure(
        measure=how.measure,
        of=of,
        other=other,
        channels=how.channels,
        normalise=how.normalise,
        pool=how.pool,
        tensor=tensor,
        seed=0 if how.measure.draws else None,
    )


def plan(goals: Iterable[Spec], there: Container[Spec] = ()) -> list[Spec]:
    """All specs that the goals rest on, each once, inputs before what needs them.

    Without what is there, and without what is only needed for what is there.
    """
    ordered: dict[str, Spec] = {}

    def visit(spec: Spec) -> None:
        if spec.digest not in ordered and spec not in there:
            for needed in spec.inputs:
                visit(needed)
            ordered[spec.digest] = spec

    for goal in goals:
        visit(goal)
    return list(ordered.values())


def groups(specs: Iterable[Spec]) -> list[tuple[Spec, ...]]:
    """The specs as units of work: those of one stage that differ along one declared axis stand together."""
    together: dict[object, list[Spec]] = {}
    for spec in specs:
        together.setdefault(_shared(spec), []).append(spec)
    return [tuple(group) for group in together.values()]


def _shared(spec: Spec) -> object:
    """What all specs of a group have in common; the axis along which they differ is what is left out here."""
    if isinstance(spec, Measure) and spec.other is not None:  # the pair
        how = (spec.measure, spec.channels, spec.normalise, spec.size, spec.pool, spec.tensor, spec.seed)
        return msgspec.json.encode((how, _compared(spec.of), _compared(spec.other)), order="deterministic")
    if isinstance(spec, Explain):  # the edit
        unedited = msgspec.structs.replace(spec.subject, edit=None, edit_seed=None)
        return msgspec.structs.replace(spec, subject=unedited).digest
    return spec.digest


def _compared(of: Explain | Predict | Activate | Subject) -> object:
    """What all members of a family that are compared have in common."""
    if isinstance(of, Explain):
        return (of.method, of.data, of.target)
    if isinstance(of, Activate):
        return (of.data, of.layer, of.places)
    return of.data if isinstance(of, Predict) else type(of).__name__
