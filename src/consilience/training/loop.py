"""The training loop, top to bottom.

A training has four chances: the weights it begins with, the order of the examples, the noise inside
the model (dropout), and the augmentation. Each is drawn from a seed of its own, keyed by the epoch,
so that one can be varied while the others stay, and an interrupted training needs no random state.
An epoch's number is how many are finished: 0 is the model as it was built.
"""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from consilience.data.examples import Batch, Examples, checked
from consilience.devices import forked, seeded, steady
from consilience.errors import DataError, ModelError, SpecError
from consilience.rng import Rng, keyed, number, permutation, takes_rng
from consilience.tensors import slices
from consilience.training.averaging import running_mean, settle
from consilience.training.checkpoint import Epoch, Standing, digest, resume, save, weights
from consilience.training.optimizers import Schedule


class Chances(NamedTuple):
    """The seed of each chance."""

    init: int = 0
    order: int = 0
    noise: int = 0
    augment: int = 0


class Progress(NamedTuple):
    """What is told after an epoch."""

    epoch: int
    epochs: int
    loss: float
    seconds: float
    """That this epoch took."""


class Trained(NamedTuple):
    """What comes out of a training."""

    weights: dict[str, Tensor]
    kept: dict[int, dict[str, Tensor]]
    """Weights after the epochs that were to be kept."""
    history: list[Epoch]
    """Mean loss and learning rate of each epoch."""


M = TypeVar("M", bound=nn.Module)

Objective = Callable[..., Tensor]
"""``(model, batch) -> loss``; may ask for ``rng``."""

Augmentation = Callable[[Tensor, Rng], Tensor]
"""``(x, rng) -> x``."""


def quietly(_: Progress) -> None:
    """Tell nobody."""


def train(
    build: Callable[[], nn.Module],
    examples: Examples,
    *,
    objective: Objective,
    optimizer: Callable[[Iterator[nn.Parameter]], Schedule],
    epochs: int,
    batch_size: int,
    chances: Chances,
    augmentation: Augmentation | None = None,
    keep: Sequence[int] = (),
    average_from: int | None = None,
    shuffle: bool = True,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Progress], None] = quietly,
    device: str = "cpu",
) -> Trained:
    """Weights that the objective made small on the examples: the same ones every time on one machine.

    Torch computes with one thread and deterministic kernels meanwhile; these settings and the
    global random state are afterwards as they were.

    Args:
        objective: Loss of a model on a batch.
        optimizer: Parameters to an optimizer and its rates.
        epochs: How often every example is seen.
        batch_size: Examples a step; the last step of an epoch takes what is left.
        chances: The seed of each chance.
        augmentation: What is done to the pixels of each example, anew in every epoch.
        keep: Epochs whose weights are returned besides the last one's.
        average_from: The weights that come out are the mean of those after this epoch and every later one, and batch
            norm is given the examples once more to learn what these weights make of them; kept epochs are as ever.
        shuffle: Whether every epoch has an order of its own, by the seed of that chance; else it is the examples' own.
        checkpoint: A folder of its own; a training that was interrupted goes on from there, bit for bit.
        on_epoch: Called after every epoch, when its checkpoint is written.
        device: Where the model is trained. Its weights begin alike everywhere.

    Raises:
        SpecError: Epochs or a batch size that cannot be.
        DataError: There is no example, or one holds what is no pixel.
        ModelError: The loss or a weight turned NaN or infinite.
        ArtifactError: The checkpoint is damaged, or of another training.
    """
    _check(examples, epochs, batch_size, keep, average_from)
    with steady(device), torch.enable_grad():
        model = begun(build, chances.init).to(device).train()
        schedule = optimizer(model.parameters())
        start = weights(model) if checkpoint is not None or 0 in keep else {}  # else nobody asks for it
        standing = Standing(model, schedule.optimizer, {0: start} if 0 in keep else {}, [])
        recipe = {
            "data": examples.fingerprint, "start": digest(start), "objective": _spelled(objective),
            "optimizer": _rule(schedule, epochs), "epochs": epochs, "batch_size": batch_size, "chances": [*chances],
            "augmentation": _spelled(augmentation), "keep": sorted({*keep}), "device": torch.device(device).type,
            "torch": torch.__version__, **({} if average_from is None else {"average_from": average_from}),
            **({} if shuffle else {"shuffle": False}),
        }  # fmt: skip
        if checkpoint is not None:
            resume(checkpoint, recipe, standing)
        for epoch in range(len(standing.history), epochs):
            began, rate = time.perf_counter(), schedule.rate(epoch)
            for group in schedule.optimizer.param_groups:
                group["lr"] = rate
            batches = _batches(examples, epoch, batch_size, chances, augmentation, shuffle)
            loss = _epoch(standing, batches, objective, epoch, chances.noise, device)
            standing.history.append(Epoch(loss=loss, rate=rate))
            if epoch + 1 in keep:
                standing.kept[epoch + 1] = weights(model)
            if average_from is not None and epoch + 1 >= average_from:
                standing.mean = running_mean(standing.mean, weights(model), epoch + 2 - average_from)
            if checkpoint is not None:
                save(checkpoint, recipe, standing)
            on_epoch(Progress(epoch + 1, epochs, loss, time.perf_counter() - began))
        if average_from is not None:
            batches = _batches(examples, epochs, batch_size, chances, augmentation, shuffle)
            settle(model, standing.mean, (batch.to(device).x for batch in batches))
        return Trained(weights(model), standing.kept, standing.history)


def _batches(
    examples: Examples, epoch: int, batch_size: int, chances: Chances, augmentation: Augmentation | None, shuffle: bool
) -> Iterator[Batch]:
    """Every example once, in this epoch's order."""
    order = (
        permutation(len(examples), "order", chances.order, epoch).tolist() if shuffle else list(range(len(examples)))
    )
    for rows in slices(len(order), batch_size):
        batch = checked(examples.batch(order[rows]))
        if augmentation is not None:
            batch = batch._replace(x=augmentation(batch.x, Rng(chances.augment, order[rows]).at(epoch)))
        yield batch


def _epoch(
    standing: Standing, batches: Iterable[Batch], objective: Objective, epoch: int, noise: int, device: str
) -> float:
    """A step for each batch; the mean loss of the model as it was when it saw an example."""
    total, seen, last, draws = 0.0, 0, math.nan, takes_rng(objective)  # found out once: a step is short
    with forked(device):
        for step, batch in enumerate(batches):
            seeded(number("noise", noise, epoch, step), device)
            rng = Rng(noise, batch.ids.tolist()).at("objective").at(epoch) if draws else None
            loss = keyed(objective, rng)(standing.model, batch.to(device))
            value = loss.item()
            if not math.isfinite(value):
                raise ModelError(
                    f"training, epoch {epoch + 1}, step {step + 1}: expected a finite loss, found {value} (the last "
                    f"finite loss of this epoch was {last:.4g}); try a smaller learning rate, or look for a division "
                    "by zero in the objective"
                )
            standing.optimizer.zero_grad()
            loss.backward()
            standing.optimizer.step()
            total, seen, last = total + value * len(batch.ids), seen + len(batch.ids), value
    _check_weights(standing.model, epoch)
    return total / seen


def begun(build: Callable[[], M], seed: int) -> M:
    """The model with the weights that a training with this seed of ``init`` begins with."""
    with forked():
        seeded(number("init", seed))
        return build()


def _check(examples: Examples, epochs: int, batch_size: int, keep: Sequence[int], average_from: int | None) -> None:
    if len(examples) == 0:
        raise DataError("training: expected at least one example, found none; look into the data set's folder")
    if epochs < 0 or batch_size < 1:
        raise SpecError(
            f"training: expected epochs >= 0 and a batch size >= 1, found {epochs} and {batch_size}; change them"
        )
    if any(not 0 <= epoch <= epochs for epoch in keep):
        raise SpecError(f"keep: expected epochs from 0 to {epochs}, found {list(keep)}; leave the others out")

    if average_from is not None and not 1 <= average_from <= epochs:
        raise SpecError(f"average_from: expected an epoch from 1 to {epochs}, found {average_from}; change one of them")


def _check_weights(model: nn.Module, epoch: int) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ModelError(
                f"training, epoch {epoch + 1}: expected finite weights, found NaN or infinity in '{name}' although the "
                "loss was finite; try a smaller learning rate, or look for a square root of zero in the objective"
            )


def _rule(schedule: Schedule, epochs: int) -> list[Any]:
    """An optimizer, so that another one, or the same with another option, is spelled differently."""
    groups = [{k: str(v) for k, v in g.items() if k != "params"} for g in schedule.optimizer.param_groups]
    return [type(schedule.optimizer).__name__, groups, [schedule.rate(epoch) for epoch in range(epochs)]]


def _spelled(part: Any) -> Any:
    """A component, configured, as text: its name and its options."""
    if isinstance(part, functools.partial):
        options = {name: _spelled(value) for name, value in sorted(part.keywords.items())}
        return [_spelled(part.func), *map(_spelled, part.args), options]
    return f"{part.__module__}.{part.__qualname__}" if hasattr(part, "__qualname__") else repr(part)
