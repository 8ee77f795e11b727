"""Experiment files: from TOML to a checked experiment."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from consilience import component
from consilience.component import Choice
from consilience.errors import DataError, ModelError, SpecError, unknown
from consilience.experiment.checks import check, examples_of, layers_to_record
from consilience.experiment.desk import Place, load_examples, load_weights, untrained
from consilience.experiment.experiment import Experiment, Learnt, Represented
from consilience.experiment.families import Ensembles, Redraw, with_layers
from consilience.experiment.schema import (
    File,
    HowTable,
    LearntTable,
    RepresentTable,
    SelectTable,
    TrainTable,
    explained,
)
from consilience.experiment.specs import Data, Prepared, Train, Weights, plan
from consilience.models.split import Normalised
from consilience.models.weights import start_from
from consilience.tensors import Channels

HOW = HowTable.__struct_fields__  # keys beside a measure's own options
EXTENDED = 8  # files that extend each other
BACKGROUND = 100  # examples, where the file names none


def load(
    path: Path | str, *, data: Path | None = None, profile: str | None = None, changes: Sequence[str] = ()
) -> Experiment:
    """An experiment file, checked: every name, option and value, and the data it names.

    Args:
        path: A TOML file.
        data: The folder of the data sets, one folder each.
        profile: One of the file's ``[profile.NAME]`` tables, laid over the rest.
        changes: ``"train.epochs=1"``: single values laid over all, as TOML.

    Raises:
        SpecError: The file is missing, no TOML, or says something that is not known.
        DataError: The data, or the weights to start from, are missing or damaged.
        ModelError: The weights to start from are another architecture's.
    """
    raw = _read(Path(path))
    try:
        if profile is not None:
            raw = _overlaid(raw, _profile(raw, profile))
        for change in changes:
            raw = _overlaid(raw, _change(change))
        return _resolved(_parsed(raw), Place(data))
    except (SpecError, DataError, ModelError) as error:
        raise type(error)(f"{path}: {error}") from None


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tables, laid over those of the file that it extends."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: expected an experiment file, found '{error.strerror}'; check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: expected TOML, found something else ({error}); mend that line") from None
    if (base := raw.pop("extends", None)) is None:
        return raw
    if not isinstance(base, str) or (path.parent / base).resolve() in above or len(above) > EXTENDED:
        raise SpecError(
            f"{path}: expected 'extends' to name another experiment file, found {base!r}; name one beside it"
        )
    return _overlaid(_read(path.parent / base, (*above, path.resolve())), raw)


def _profile(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    profiles = raw.get("profile", {})
    if name not in profiles:
        raise SpecError(unknown("profile", name, profiles))
    chosen: Mapping[str, Any] = profiles[name]
    return chosen


def _change(text: str) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; a value that is no TOML is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SpecError(f"--set {text}: expected key=value, as in train.epochs=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables as one; what stands above wins. A component's table replaces, or adds to its own options."""
    result = dict(below)
    for key, value in above.items():
        there = result.get(key)
        if isinstance(there, str) and isinstance(value, Mapping) and "use" not in value:
            there = {"use": there}  # model = "cnn" under model.dropout = 0
        if isinstance(there, Mapping) and isinstance(value, Mapping) and "use" not in value:
            result[key] = _overlaid(there, value)
        else:
            result[key] = value
    return result


def _parsed(raw: Mapping[str, Any]) -> File:
    try:
        return msgspec.convert(raw, File)
    except msgspec.ValidationError as error:
        raise SpecError(explained(error)) from None


def _resolved(file: File, place: Place) -> Experiment:
    """Look up every component and read every data set's fingerprint."""
    train = file.train
    data = _data(train.data, None, "train.data", place)
    examples = _data(file.examples.data, file.examples.count, "examples.data", place)
    if len({*train.keep} & {*range(1, train.epochs)}) < len(train.keep):
        wanted = f"different epochs from 1 to {train.epochs - 1}" if train.epochs > 1 else "none where epochs = 1"
        raise SpecError(
            f"train.keep: expected {wanted}, found {list(train.keep)}; leave the others out, the last is always kept"
        )
    if train.average_from is not None and train.average_from > train.epochs:
        raise SpecError(
            f"train.average_from: expected an epoch from 1 to {train.epochs}, found {train.average_from}; change one"
        )
    model = _built(train, place)
    if getattr(model.model, "fitted", False) and (train.epochs, train.keep) != (1, ()):
        raise SpecError(
            f"train.epochs: expected 1 and no 'keep' for a model that is fitted at once, found {train.epochs} and "
            f"{list(train.keep)}; set epochs = 1 and leave 'keep' out"
        )
    augmentation = train.augmentation and component.augmentation.choose(train.augmentation, "train.augmentation")
    base = Train(
        data=data,
        model=component.architecture.choose(train.model, "train.model"),
        objective=component.objective.choose(train.objective, "train.objective"),
        optimizer=component.optimizer.choose(train.optimizer, "train.optimizer"),
        epochs=train.epochs,
        batch_size=train.batch_size,
        augmentation=augmentation,
        keep=tuple(sorted(train.keep)),
        average_from=train.average_from,
        shuffle=train.shuffle,
    )
    base = msgspec.structs.replace(base, start=_start(file, base, place))
    families = file.family if any(isinstance(f, Redraw) for f in file.family) else [*file.family, Redraw()]
    methods = _all(component.attribution, file.explain, "explain")
    controls = _all(component.attribution, file.controls, "controls")
    background = _background(file, place) if any(m.asks("background") for m in (*methods, *controls)) else None
    experiment = Experiment(
        name=file.name,
        base=base,
        examples=examples,
        methods=methods,
        controls=controls,
        background=background,
        compare=tuple(_prepared(one, f"compare[{i}]", file.channels) for i, one in enumerate(file.compare)),
        judge=_all(component.measure, file.judge, "judge"),
        summarise=_all(component.summary, file.summarise, "summarise"),
        channels=file.channels,
        conditions=file.conditions,
        represent=_represented(file.represent, model, data, place),
        learnt=_learnt(file.explanation_accuracy, place),
        select=_selected(train.select, place),
        families=tuple(with_layers(family, lambda: model) for family in families),
    )
    check(experiment, model, place)
    return experiment


def _prepared(given: Any, where: str, channels: Channels) -> Prepared:
    """A measure, with what its table says of how maps are prepared for it."""
    how = {name: given[name] for name in HOW if name in given} if isinstance(given, Mapping) else {}
    rest = {name: value for name, value in given.items() if name not in HOW} if how else given
    try:
        table = msgspec.convert({"channels": channels, **how}, HowTable)
    except msgspec.ValidationError as error:
        raise SpecError(f"{where}: {explained(error)}; how maps are prepared is said by {', '.join(HOW)}") from None
    return Prepared(measure=component.measure.choose(rest, where), **msgspec.structs.asdict(table))


def _represented(table: RepresentTable, model: Normalised, data: Data, place: Place) -> Represented:
    """The layers and tensors by which models are compared; all that hold weights where none are named."""
    if not (table.measures or table.weights):
        return Represented()
    looked_at = table.measures or table.layers
    tensors = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    for name in table.tensors:
        if name not in tensors:
            raise SpecError(f"represent: {unknown('tensor', name, tensors)}")
    return Represented(
        measures=_all(component.measure, table.measures, "represent.measures"),
        layers=layers_to_record(table.layers, model, examples_of(data, place).shape) if looked_at else (),
        places=table.places,
        weights=_all(component.measure, table.weights, "represent.weights"),
        tensors=table.tensors or tuple(tensors),
    )


def _learnt(table: LearntTable | None, place: Place) -> Learnt | None:
    if table is None:
        return None
    return Learnt(epochs=table.epochs, data=_data(table.data, table.count, "explanation_accuracy.data", place))


def _selected(table: SelectTable | None, place: Place) -> tuple[Choice, Data] | None:
    if table is None:
        return None
    by = component.measure.choose(table.by, "train.select.by")
    if by.component.roles.keys() - {"logits", "label"}:
        raise SpecError(
            f"train.select.by: expected a measure of answers, found {by.label}; choose one such as accuracy"
        )
    return by, _data(table.data, None, "train.select.data", place)


def _all(kind: component.Kind, given: Sequence[Any], where: str) -> tuple[Choice, ...]:
    return tuple(kind.choose(one, f"{where}[{index}]") for index, one in enumerate(given))


def _built(train: TrainTable, place: Place) -> Normalised:
    """The untrained model, for the names of its layers."""
    examples = load_examples(component.dataset.choose(train.data, "train.data"), place)
    with torch.random.fork_rng(devices=[]):
        return untrained(component.architecture.choose(train.model, "train.model"), examples)


def _start(file: File, base: Train, place: Place) -> Weights | None:
    """The weights from which every training starts, tried on the untrained model of each."""
    if file.train.weights is None:
        return None
    model = _built(file.train, place)
    if getattr(model.model, "fitted", False):
        raise SpecError("train.weights: expected none for a model that is fitted at once, found some; leave it out")
    try:
        tensors, content = load_weights(file.train.weights, place)
        start_from(model, tensors, file.train.weights)
    except (SpecError, DataError, ModelError) as error:
        raise type(error)(f"train.weights: {error}") from None
    for family in file.family:
        members = family.members(base) if isinstance(family, Ensembles) and family.search else []
        parts = [spec for spec in plan([one.subject.source for one in members]) if isinstance(spec, Train)]
        for searched in {spec.model.label: spec.model for spec in parts}.values():
            model = _built(msgspec.structs.replace(file.train, model=searched), place)
            start_from(model, tensors, f"family '{family.name}', {searched.label}: {file.train.weights}")
    return Weights.lying(file.train.weights, content)


def _background(file: File, place: Place) -> Data:
    """What the file names, or the first hundred training examples."""
    if file.background is not None:
        return _data(file.background.data, file.background.count, "background.data", place)
    choice = component.dataset.choose(file.train.data, "train.data")
    return _data(choice, min(BACKGROUND, len(load_examples(choice, place))), "background", place)


def _data(given: Any, count: int | None, where: str, place: Place) -> Data:
    choice = component.dataset.choose(given, where)
    if count is not None:
        choice = component.dataset.choose({"use": "subset", "of": choice, "count": count}, where)
    try:
        return Data(choice=choice, fingerprint=load_examples(choice, place).fingerprint)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
