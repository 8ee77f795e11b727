"""What a job fetches: examples from the data folder, models and maps from the store."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from consilience.component import Choice
from consilience.data.examples import Batch, Examples, checked
from consilience.data.images import labels_and_groups
from consilience.data.maps import maps_as_images
from consilience.errors import DataError, ModelError, SpecError, unknown
from consilience.experiment.records import Spec
from consilience.experiment.specs import Average, Data, Explain, Given, Predict, Select, Subject, Train
from consilience.experiment.store import Store
from consilience.models.ensemble import mean_of_models, select_greedily
from consilience.models.split import Normalised, normalised
from consilience.models.weights import fingerprint, read_weights, start_from
from consilience.rng import Rng
from consilience.tensors import Coverage, slices
from consilience.training.loop import begun


class Place(NamedTuple):
    """Where a run finds things on this machine. Nothing of it enters a spec."""

    data: Path | None = None
    models: Mapping[str, nn.Module] = {}
    """What a user handed over, by the digest of its ``Given``."""
    handed: Mapping[str, Examples] = {}
    """Examples that a user handed over, by their fingerprint."""
    device: str = "cpu"
    """Where models are trained, asked and explained, and maps compared."""


class Desk(NamedTuple):
    """A store and a place, and what they hold."""

    store: Store
    place: Place

    def here(self, tensor: Tensor) -> Tensor:
        """The tensor on the device of this place."""
        return tensor.to(self.place.device)

    def examples(self, data: Data) -> Examples:
        """The examples of a spec, on the processor.

        Raises:
            DataError: They are not what they were when the experiment was loaded.
        """
        if data.maps is not None:
            whole = self.examples(data.maps.data)
            return maps_as_images(self.store.tensors(data.maps)["maps"], labels(whole), whole.classes)
        if data.choice is None:
            return self.place.handed[data.fingerprint]
        examples = load_examples(data.choice, self.place)
        if examples.fingerprint != data.fingerprint:
            raise DataError(
                f"{data.choice.label}: expected the content {data.fingerprint[:12]}, found "
                f"{examples.fingerprint[:12]}; the files changed since the experiment was loaded: load it again"
            )
        return examples

    def fresh(self, spec: Train) -> Normalised:
        """The untrained model of a training: its weights are drawn from the global generator, or others' to start from.

        Raises:
            DataError: The weights to start from are not what they were when the experiment was loaded.
            ModelError: They are another architecture's.
        """
        model = untrained(spec.model, self.examples(spec.data))
        if spec.start is not None:
            file = spec.start.file
            tensors, content = load_weights(file, self.place)
            if content != spec.start.fingerprint:
                raise DataError(
                    f"{file}: expected the content {spec.start.fingerprint[:12]}, found {content[:12]}; the file "
                    "changed since the experiment was loaded: load it again"
                )
            start_from(model, tensors, file)
        return model

    def source(self, spec: Train) -> nn.Module:
        """The very model with which a training began."""
        return begun(functools.partial(self.fresh, spec), spec.init).to(self.place.device)

    def model(self, subject: Subject) -> nn.Module:
        """The model that a subject names: weights loaded, edited, frozen, in evaluation mode."""
        return self.edited(subject)[0]

    def edited(self, subject: Subject) -> tuple[nn.Module, Coverage | None]:
        """The model that a subject names, and what its edit changed in it.

        Raises:
            ModelError: Its weights are not all finite, or the edit cannot be made on it.
            SpecError: The epoch was not kept, or the store cannot make the model.
        """
        source = subject.source
        if isinstance(source, Select):
            best = source.candidates[self.store.table(source)["best"]]
            return self.edited(msgspec.structs.replace(best, edit=subject.edit, edit_seed=subject.edit_seed))
        model = self._unedited(source, subject.epoch)
        if subject.edit is None:
            return model, None
        roles: dict[str, Any] = {"rng": Rng(subject.edit_seed or 0, [])}
        if isinstance(source, Train):
            roles["source"] = functools.partial(self.source, source)
        coverage: Coverage = subject.edit.build(**roles)(model)
        return model, coverage

    def _unedited(self, source: Spec, epoch: int | None) -> nn.Module:
        if isinstance(source, Given):
            return copy.deepcopy(self.handed(source)).eval().requires_grad_(False).to(self.place.device)
        if isinstance(source, Average):
            chosen = self.store.table(source)["members"]
            return mean_of_models([self.model(source.members[position]) for position in chosen])
        if not isinstance(source, Train):
            raise SpecError(f"{source.stage} {source.digest[:12]}: expected a trained model; name a Train or a Select")
        weights = self.store.tensors(source, _file_of(source, epoch))
        with torch.random.fork_rng(devices=[]):
            model = untrained(source.model, self.examples(source.data))
        loaded(model, weights, f"{source.stage} {source.digest[:12]}")
        return model.to(self.place.device)

    def greedy(self, spec: Average) -> list[int]:
        """Positions of the members that an ensemble holds: all, or those that are chosen by their answers."""
        if spec.size is None:
            return list(range(len(spec.members)))
        answers = torch.stack([self.store.tensors(answer)["logits"].softmax(1) for answer in spec.by])
        return select_greedily(answers, labels(self.examples(spec.by[0].data)), spec.size)

    def handed(self, given: Given) -> nn.Module:
        """The model that a user handed over.

        Raises:
            SpecError: It is not in memory here.
        """
        if given.digest not in self.place.models:
            raise SpecError(
                f"given {given.digest[:12]}: expected the model in memory, found none; hand it over, in this process"
            )
        return self.place.models[given.digest]

    def target(self, spec: Explain) -> Tensor:
        """What is explained of each example: its label, one class, or what a model answered."""
        if isinstance(spec.target, Predict):
            return self.here(self.store.tensors(spec.target)["logits"].argmax(1))
        examples = self.examples(spec.data)
        if isinstance(spec.target, int):
            return self.here(torch.full((len(examples),), spec.target))
        return self.here(labels(examples))

    def method(self, spec: Explain) -> Callable[..., Tensor]:
        """The configured method, with its background bound wherever the nest asks for one."""
        check_asked(spec.method, spec.method.use)
        roles: dict[str, Any] = {}
        if spec.background is not None:
            examples = self.examples(spec.background)
            roles["background"] = self.here(examples.batch(range(len(examples))).x)
        return spec.method.build(**roles)


def check_asked(method: Choice, where: str) -> None:
    """Refuse a method that asks for what no stage makes.

    Raises:
        SpecError: It needs patterns.
    """
    if method.asks("patterns"):
        raise SpecError(
            f"{where}: expected a method that a run can give all it asks for, found that {method.label} needs "
            "patterns, which no stage fits yet; call it in Python with patterns of your own"
        )


def _file_of(source: Train, epoch: int | None) -> str:
    if epoch in (None, source.epochs):
        return "data"
    if epoch not in source.keep:
        kept = ", ".join(map(str, (*source.keep, source.epochs)))
        raise SpecError(f"epoch {epoch}: expected one that was kept ({kept}); add it to 'keep'")
    return f"epoch-{epoch}"


def untrained(architecture: Choice, examples: Examples) -> Normalised:
    """A model for these examples, their mean and deviation in front; draws from the global generator."""
    module = architecture.build()(examples.shape, len(examples.classes))
    return normalised(module, examples.mean, examples.sd)


def loaded(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights into a model, freeze it and put it into evaluation mode.

    Raises:
        ModelError: The weights are another model's, or not all finite.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ModelError(f"{where}: expected finite weights, found NaN or infinity in '{name}'; train it again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise ModelError(f"{where}: expected the weights of this architecture, found others: {what}") from None
    model.eval().requires_grad_(False)


def load_examples(choice: Choice, place: Place) -> Examples:
    """The examples of a choice; the same ones are read once in a process."""
    return _load(_Loader(choice, place.data))


class _Loader(NamedTuple):
    choice: Choice
    data: Path | None

    def __hash__(self) -> int:
        return hash((str(self.choice), self.data))


@functools.lru_cache(maxsize=8)
def _load(loader: _Loader) -> Examples:
    roots = roots_of(loader.choice, loader.data)
    examples: Examples = loader.choice.build(**({"root": roots[0]} if roots else {}))()
    return examples


def load_weights(file: str, place: Place) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file below the folder ``weights``, and their fingerprint; the same file is read once.

    Raises:
        SpecError: The name leads out of that folder.
        DataError: There is no such folder or file, or the file holds no weights.
    """
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise SpecError(f"{file}: expected the name of a file below 'weights/', found a path out of it; put it there")
    folder = folder_of("weights", place.data)
    if not (folder / file).is_file():
        there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        raise DataError(f"{folder}: {unknown('file', file, there)}")
    stat = (folder / file).stat()
    return _load_weights(folder / file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=2)
def _load_weights(path: Path, _changed: int, _size: int) -> tuple[dict[str, Tensor], str]:
    tensors = read_weights(path)
    return tensors, fingerprint(tensors)


def roots_of(choice: Choice, data: Path | None) -> list[Path]:
    """The folders that a data set reads, below the folder of all data sets.

    Raises:
        DataError: No data folder was named, or it holds no folder of that name.
    """
    return [folder_of(one.use, data) for one in choice.nest if "root" in one.component.roles]


def folder_of(name: str, data: Path | None) -> Path:
    """The folder of a data set.

    Raises:
        DataError: No data folder was named, or it holds no folder of that name.
    """
    if data is None:
        raise DataError(
            f"{name}: expected a folder with data, found none; give --data DIR or set CONSILIENCE_DATA, in Python "
            f"data=DIR, to a folder that holds '{name}/'"
        )
    for spelling in (name, name.replace("_", "-")):
        if (data / spelling).is_dir():
            return data / spelling
    raise DataError(f"{data}: expected a folder '{name}', found none; put the data set's files there")


def labels(examples: Examples) -> Tensor:
    """The true class of every example."""
    return labels_and_groups(examples)[0]


def batches(examples: Examples, size: int, start: int = 0) -> Iterator[Batch]:
    """The examples from ``start`` on, in their order.

    Raises:
        DataError: A pixel is NaN or outside [0, 1].
    """
    for rows in slices(len(examples) - start, size):
        yield checked(examples.batch(range(start + rows.start, start + rows.stop)))
