"""The stages: how each kind of artifact is made of its inputs. They know the store, and no experiment."""

import functools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consilience.data.examples import Batch, Examples
from consilience.devices import forked, steady
from consilience.errors import ModelError, SpecError
from consilience.experiment.desk import Desk, Place, batches
from consilience.experiment.files import RowWriter, read_tensors, write_bytes, write_tensors
from consilience.experiment.records import Spec
from consilience.experiment.specs import (
    Activate,
    Average,
    Explain,
    Given,
    Measure,
    Predict,
    Select,
    Spread,
    Summary,
    Train,
)
from consilience.experiment.store import Store
from consilience.experiment.values import measured, summarised
from consilience.measures.representation import arranged
from consilience.measures.spread import spread
from consilience.models.recording import record
from consilience.pairs import Maps
from consilience.rng import Rng, takes_rng
from consilience.tensors import rows_per_chunk, slices
from consilience.training.fitting import fit
from consilience.training.loop import Chances, begun, train

Tell = Callable[[float], None]
"""Takes the share of a job that is done, 0 to 1."""

TURN = threading.RLock()
SPREAD_BYTES = 8 * 2**20  # of one model's maps in float64, of the examples that are looked at at a time


def make(group: Sequence[Spec], root: Path, place: Place) -> None:
    """One job: inputs come from the store, results go to the store. Workers run this.

    One torch thread, deterministic kernels and a private random state, so that results are the same in
    every executor. All three belong to the whole process, so an executor's threads take turns.
    """
    store = Store(root)
    with TURN, steady(place.device), forked(place.device), store.draft(group, place.device) as draft:
        if draft is None:
            return
        if type(group[0]) not in STAGES:
            raise SpecError(f"{group[0].stage}: expected an artifact that a run can make; a user has to bring this one")
        STAGES[type(group[0])](group, Desk(store, place), draft, functools.partial(store.tell, group))


def _train(group: Sequence[Train], desk: Desk, draft: Path, tell: Tell) -> None:
    (spec,) = group
    folder = draft / spec.stage / spec.digest
    build, examples = functools.partial(desk.fresh, spec), desk.examples(spec.data)
    if getattr(begun(build, spec.init).model, "fitted", False):
        write_tensors(folder / "data.safetensors", fit(build, examples, spec.order))
        return
    trained = train(
        build,
        examples,
        objective=spec.objective.build(),
        optimizer=spec.optimizer.build(),
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        chances=Chances(spec.init, spec.order, spec.noise, spec.augment),
        augmentation=spec.augmentation.build() if spec.augmentation else None,
        keep=spec.keep,
        average_from=spec.average_from,
        shuffle=spec.shuffle,
        checkpoint=folder / "checkpoint",
        on_epoch=lambda progress: tell(progress.epoch / progress.epochs),
        device=desk.place.device,
    )
    write_tensors(folder / "data.safetensors", trained.weights)
    for epoch, weights in trained.kept.items():
        write_tensors(folder / f"epoch-{epoch}.safetensors", weights)
    write_bytes(folder / "history.json", json.dumps(trained.history).encode())


def _given(group: Sequence[Given], desk: Desk, draft: Path, tell: Tell) -> None:
    """That the model was handed over; its weights stay with whoever has them."""
    for spec in group:
        note = {"module": repr(desk.handed(spec))}
        write_bytes(draft / spec.stage / spec.digest / "handed.json", json.dumps(note).encode())


def _average(group: Sequence[Average], desk: Desk, draft: Path, tell: Tell) -> None:
    """Which models an ensemble holds; their weights stay where they are."""
    for spec in group:
        note = {"members": desk.greedy(spec)}
        write_bytes(draft / spec.stage / spec.digest / "rows.json", json.dumps(note).encode())


def _activate(group: Sequence[Activate], desk: Desk, draft: Path, tell: Tell) -> None:
    for spec in group:
        examples = desk.examples(spec.data)
        batch = examples.batch(range(len(examples)))
        answers = record(desk.model(spec.subject), desk.here(batch.x), [spec.layer])[spec.layer]
        rows = arranged(answers, spec.places, Rng(0, batch.ids.tolist()))
        write_tensors(draft / spec.stage / spec.digest / "data.safetensors", {"activations": rows.contiguous()})


def _select(group: Sequence[Select], desk: Desk, draft: Path, tell: Tell) -> None:
    for spec in group:
        means = torch.stack([desk.store.tensors(measure)["value"].nanmean() for measure in spec.by])
        lower = spec.by[0].measure.better == "lower"
        note = {"best": int((-means if lower else means).argmax()), "means": means.tolist()}
        write_bytes(draft / spec.stage / spec.digest / "rows.json", json.dumps(note).encode())


def _predict(group: Sequence[Predict], desk: Desk, draft: Path, tell: Tell) -> None:
    for spec in group:
        logits = answers(desk.model(spec.subject), desk.examples(spec.data), desk.place.device)
        write_tensors(draft / spec.stage / spec.digest / "data.safetensors", {"logits": logits})


def answers(model: nn.Module, examples: Examples, device: str = "cpu") -> Tensor:
    """Logits of all examples, of a model on a device."""
    size = rows_per_chunk(model, examples.batch([0]).x.to(device))
    with torch.no_grad():
        return torch.cat([model(batch.x.to(device)) for batch in batches(examples, size)])


def _explain(group: Sequence[Explain], desk: Desk, draft: Path, tell: Tell) -> None:
    for position, spec in enumerate(group):
        folder = draft / spec.stage / spec.digest
        model, coverage = desk.edited(spec.subject)
        if coverage is not None:
            write_bytes(folder / "coverage.json", json.dumps(coverage._asdict()).encode())
        made = write_maps(
            folder / "data.safetensors",
            desk.method(spec),
            model,
            desk.examples(spec.data),
            desk.target(spec),
            spec.seed,
        )
        for share in made:
            tell((position + share) / len(group))


def write_maps(
    path: Path,
    method: Callable[..., Tensor],
    model: nn.Module,
    examples: Examples,
    target: Tensor,
    seed: int | None,
) -> Iterator[float]:
    """Explain all examples into a file, batch by batch, where the targets lie; yields the share that is done.

    An interrupted file goes on where it stood. Batches are the same in every run, so the bytes are too.

    Raises:
        ModelError: The method returned other shapes, or no finite map at all.
    """
    size = max(16, min(256, rows_per_chunk(model, examples.batch([0]).x.to(target.device))))
    finite = 0
    with RowWriter(path, "maps", len(examples)) as writer:
        done = writer.done // size * size
        writer.keep(done)
        for some in batches(examples, size, done):
            batch = some.to(target.device)
            maps = explained(method, model, batch, target[batch.ids], seed)
            finite += int(maps.flatten(1).isfinite().all(1).sum())
            writer.append(maps)
            yield (int(batch.ids[-1]) + 1) / len(examples)
    if finite == 0 and not read_tensors(path)["maps"].flatten(1).isfinite().all(1).any():
        path.unlink()
        raise ModelError(
            f"explanation: expected maps of finite numbers, found none in {len(examples)} examples; "
            "check what the model answers for NaN"
        )


def explained(
    method: Callable[..., Tensor], model: nn.Module, batch: Batch, target: Tensor, seed: int | None
) -> Tensor:
    """Maps of one batch, each example's draws keyed by its id. A map with a number that is not finite is all NaN.

    Raises:
        ModelError: The maps have another shape than the images.
    """
    rng = {"rng": Rng(seed or 0, batch.ids.tolist())} if takes_rng(method) else {}
    maps = method(model, batch.x, target, **rng)
    if maps.ndim != 4 or len(maps) != len(batch.x) or maps.shape[2:] != batch.x.shape[2:]:
        raise ModelError(
            f"explanation: expected maps for images {list(batch.x.shape)}, found {list(maps.shape)}; "
            "a method returns one map of the image's size for each image"
        )
    undefined = ~maps.flatten(1).isfinite().all(1)
    return maps.masked_fill(undefined.view(-1, 1, 1, 1), torch.nan)


def _spread(group: Sequence[Spread], desk: Desk, draft: Path, tell: Tell) -> None:
    """A file for each of the three, some examples after the others: memory does not grow with examples or models."""
    (spec,) = group
    total = len(desk.examples(spec.of[0].data))
    one = desk.store.maps(spec.of[0], slice(0, 1)).numel() * torch.finfo(torch.float64).bits // 8
    for rows in slices(total, max(1, SPREAD_BYTES // max(1, one))):
        found = spread(_maps_of(spec.of, desk, rows))
        for name, values in found._asdict().items():
            with RowWriter(draft / spec.stage / spec.digest / f"{name}.safetensors", name, total) as writer:
                writer.keep(rows.start)
                writer.append(values)
        tell(rows.stop / total)


def _maps_of(family: Sequence[Explain], desk: Desk, rows: slice) -> Maps:
    """Some examples' maps of every model, read when they are asked for."""
    return Maps(len(family), lambda position: desk.store.maps(family[position], rows))


def _measure(group: Sequence[Measure], desk: Desk, draft: Path, tell: Tell) -> None:
    for done, (spec, columns) in enumerate(measured(group, desk), 1):
        write_tensors(draft / spec.stage / spec.digest / "data.safetensors", columns)
        tell(done / len(group))


def _summarise(group: Sequence[Summary], desk: Desk, draft: Path, tell: Tell) -> None:
    for spec in group:
        rows = [row._asdict() for row in summarised(spec, desk)]
        write_bytes(draft / spec.stage / spec.digest / "rows.json", json.dumps(rows).encode())


STAGES: dict[type[Spec], Callable[[Any, Desk, Path, Tell], None]] = {
    Train: _train,
    Given: _given,
    Select: _select,
    Average: _average,
    Activate: _activate,
    Predict: _predict,
    Explain: _explain,
    Spread: _spread,
    Measure: _measure,
    Summary: _summarise,
}
