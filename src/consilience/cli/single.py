"""Verbs for one model and one set of maps: what the papers' scripts do."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from consilience.cli.experiments import data_folder
from consilience.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from consilience.component import Choice
    from consilience.data.examples import Examples

Name = Annotated[str, tyro.conf.Positional]


def spelled(text: str) -> Any:
    """A component as one writes it on a command line: a name, or a TOML table ``{use = "...", option = ...}``."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return tomllib.loads(f"choice = {text}")["choice"]
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{text}: expected a name or {{use = 'NAME', option = ...}}, found no TOML ({error})") from None


def train_verb(
    architecture: Name,
    examples: Name,
    /,
    out: Path,
    epochs: int = 5,
    batch_size: int = 64,
    optimizer: str = "adadelta",
    objective: str = "cross_entropy",
    init: int = 0,
    order: int = 0,
    noise: int = 0,
    augment: int = 0,
    weights: Path | None = None,
    data: Path | None = None,
    device: str = "cpu",
) -> int:
    """Train one model into a safetensors file. An interrupted training goes on when it is called again.

    A kernel machine is fitted at once, to all examples in the order of that seed; other options of training do nothing.

    Args:
        architecture: A name, or "{use = 'cnn', dropout = 0.5}".
        examples: A data set: mnist10k, "{use = 'mnist', split = 'train'}", ...
        out: The weights' file.
        epochs: How often every example is seen.
        batch_size: Examples a step.
        optimizer: A name, or "{use = 'adam', lr = 0.001}".
        objective: What is minimised.
        init: Seed of the first weights.
        order: Seed of the order of examples.
        noise: Seed of dropout.
        augment: Seed of augmentations.
        weights: A file of trained weights to start from, safetensors or torch's; a last layer for other classes is new.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        device: Where torch computes: cpu, cuda, cuda:1.
    """
    import functools
    import shutil

    from consilience import component
    from consilience.devices import checked_device, steady
    from consilience.experiment.desk import Place, load_examples, untrained
    from consilience.experiment.files import write_tensors
    from consilience.experiment.store import writing
    from consilience.models.weights import fingerprint, read_weights, start_from
    from consilience.training.fitting import fit
    from consilience.training.loop import Chances, Progress, begun, train

    model = component.architecture.choose(spelled(architecture), "architecture")
    chosen = component.dataset.choose(spelled(examples), "examples")
    loaded = load_examples(chosen, Place(data_folder(data)))
    fresh = functools.partial(untrained, model, loaded)
    at_once = getattr(begun(fresh, init).model, "fitted", False)
    if at_once and weights is not None:
        raise SpecError("--weights: expected none for a model that is fitted at once, found some; leave it out")
    given = read_weights(weights) if weights is not None else {}
    loss = component.objective.choose(spelled(objective), "objective").build()
    rule = component.optimizer.choose(spelled(optimizer), "optimizer").build()
    note = {"architecture": architecture, "shape": json.dumps(loaded.shape), "classes": json.dumps(loaded.classes)}

    def build() -> nn.Module:
        begins = fresh()
        if weights is not None:
            started = start_from(begins, given, str(weights))
            note["start"] = f"{weights.name}, content {fingerprint(given)}; {started.label}"
            print(f"{weights}: {started.label}", file=sys.stderr)
        return begins

    def tell(progress: Progress) -> None:
        print(f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.4f}", file=sys.stderr)

    checkpoint = out.with_name(out.name + ".checkpoint")
    with steady(checked_device(device)), writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if at_once:
            learnt = fit(fresh, loaded, order)
        else:
            learnt = train(
                build,
                loaded,
                objective=loss,
                optimizer=rule,
                epochs=epochs,
                batch_size=batch_size,
                chances=Chances(init, order, noise, augment),
                checkpoint=checkpoint,
                on_epoch=tell,
                device=device,
            ).weights
        write_tensors(out, learnt, note)
        shutil.rmtree(checkpoint, ignore_errors=True)
    print(out.resolve())
    return 0


def explain_verb(
    method: Name,
    weights: Name,
    examples: Name,
    /,
    out: Path,
    architecture: str | None = None,
    target: str = "label",
    count: int | None = None,
    background: str | None = None,
    seed: int = 0,
    data: Path | None = None,
    device: str = "cpu",
) -> int:
    """Explain examples with one method into a safetensors file, a map each, and what was explained of each.

    Args:
        method: A name, or "{use = 'integrated_gradients', steps = 100}".
        weights: A safetensors file of weights, as train writes it.
        examples: A data set: "{use = 'mnist10k', split = 'test'}", ...
        out: The maps' file: maps [n, c, h, w], target [n].
        architecture: Of the weights, where their file does not say it.
        target: What is explained: label, predicted, or the number of a class.
        count: Only so many examples, from the first.
        background: Examples for methods that need them: "{use = 'subset', of = 'mnist10k', count = 50}", ...
        seed: Of the method's draws.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        device: Where torch computes: cpu, cuda, cuda:1.
    """
    from consilience.devices import checked_device, steady
    from consilience.experiment.files import read_tensors, write_tensors
    from consilience.experiment.stages import write_maps
    from consilience.experiment.store import writing

    with steady(checked_device(device)), writing(out):
        asked = _asked(method, weights, examples, architecture, target, count, background, data, device)
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = out.with_name(out.name + ".draft")
        draft.unlink(missing_ok=True)
        explain = asked.method.build(**asked.flows)
        for share in write_maps(draft, explain, asked.model, asked.examples, asked.target, seed):
            print(f"\r{share:.0%}", end="", file=sys.stderr)
        print(file=sys.stderr)
        note = {"method": asked.method.label, "examples": asked.label}
        write_tensors(out, {**read_tensors(draft), "target": asked.target.cpu()}, note)
        draft.unlink()
    print(out.resolve())
    return 0


def preflight_verb(
    method: Name,
    weights: Name,
    examples: Name,
    /,
    architecture: str | None = None,
    target: str = "predicted",
    count: int = 8,
    background: str | None = None,
    seed: int = 0,
    data: Path | None = None,
    device: str = "cpu",
) -> int:
    """Check on a few examples that a method means on a model what its name says; 1 where it does not.

    Args:
        method: A name, or "{use = 'integrated_gradients', steps = 100}".
        weights: A safetensors file of weights, as train writes it.
        examples: A data set: "{use = 'mnist10k', split = 'test'}", ...
        architecture: Of the weights, where their file does not say it.
        target: What is explained: label, predicted, or the number of a class.
        count: So many examples, from the first.
        background: Examples for methods that need them: "{use = 'subset', of = 'mnist10k', count = 50}", ...
        seed: Of the method's draws.
        data: Folder of the data sets, one folder each (default: CONSILIENCE_DATA).
        device: Where torch computes: cpu, cuda, cuda:1.
    """
    from rich.console import Console
    from rich.table import Table

    from consilience.attribution.preflight import examine
    from consilience.devices import checked_device, steady

    with steady(checked_device(device)):
        asked = _asked(method, weights, examples, architecture, target, count, background, data, device)
        x = asked.examples.batch(range(len(asked.examples))).x.to(device)
        checks = examine(
            asked.method.build(), asked.model, x, asked.target, seed=seed, background=asked.flows.get("background")
        )
    table = Table("", "check", "found", title=f"{asked.method.label} on {Path(weights).name}, {len(x)} examples")
    for check in checks:
        table.add_row(check.verdict, check.name, check.found)
    Console().print(table)
    return int(any(check.verdict == "wrong" for check in checks))


class _Asked(NamedTuple):
    """What the words of a command line name, loaded."""

    method: Choice
    model: nn.Module
    examples: Examples
    label: str
    target: Tensor
    flows: dict[str, Tensor]


def _asked(
    method: str,
    weights: str,
    examples: str,
    architecture: str | None,
    target: str,
    count: int | None,
    background: str | None,
    data: Path | None,
    device: str,
) -> _Asked:
    from consilience import component
    from consilience.experiment.desk import Place, check_asked, load_examples, loaded, untrained
    from consilience.experiment.files import read_metadata, read_tensors

    chosen = component.dataset.choose(spelled(examples), "examples")
    if count is not None:
        chosen = component.dataset.choose({"use": "subset", "of": chosen, "count": count}, "examples")
    explainer = component.attribution.choose(spelled(method), "method")
    check_asked(explainer, "method")
    place, path = Place(data_folder(data)), Path(weights)
    batch = load_examples(chosen, place)
    flows: dict[str, Tensor] = {}
    if background is None and any(choice.component.roles.get("background") for choice in explainer.nest):
        raise SpecError(f"{explainer.label}: expected a background, found none; add --background DATA")
    if background is not None:
        start = load_examples(component.dataset.choose(spelled(background), "background"), place)
        flows["background"] = start.batch(range(len(start))).x.to(device)
    kind = architecture or read_metadata(path).get("architecture")
    if kind is None:
        raise SpecError(f"{path}: expected a file that names its architecture, found none; add --architecture NAME")
    choice = component.architecture.choose(spelled(kind), "architecture")
    model = untrained(choice, batch)
    loaded(model, read_tensors(path), str(path))
    model.to(device)
    return _Asked(explainer, model, batch, chosen.label, _target(target, model, batch, device).to(device), flows)


def _target(word: str, model: nn.Module, examples: Examples, device: str) -> Tensor:
    import torch

    from consilience.experiment.desk import labels
    from consilience.experiment.stages import answers

    if word == "label":
        return labels(examples)
    if word == "predicted":
        return answers(model, examples, device).argmax(1)
    if word.isdecimal() and int(word) < len(examples.classes):
        return torch.full((len(examples),), int(word))
    raise SpecError(f"--target {word}: expected label, predicted or a class from 0 to {len(examples.classes) - 1}")
