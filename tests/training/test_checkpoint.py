"""Checkpoints: an interruption at any moment changes nothing, and nothing damaged is ever used."""

import functools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.errors import ArtifactError
from consilience.training import checkpoint
from consilience.training.loop import Chances
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import Schedule, adadelta, adam, sgd

OPTIMIZERS = [adadelta, adam, functools.partial(sgd, lr=0.02), functools.partial(sgd, lr=0.02, momentum=0.0)]


class Interrupt:
    """Stops the program when it has been called so many times."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *_):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt


def darker(x, rng):
    return x * (1 - 0.1 * rng.uniform(1, 1, 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_interrupted_after_an_epoch_goes_on_bit_for_bit(run, same, tmp_path, optimizer):
    given = {"epochs": 4, "optimizer": optimizer, "keep": [0, 1, 3, 4], "augmentation": darker}
    with pytest.raises(KeyboardInterrupt):
        run(**given, checkpoint=tmp_path, on_epoch=Interrupt(2))
    told = []
    resumed = run(**given, checkpoint=tmp_path, on_epoch=told.append)
    assert [progress.epoch for progress in told] == [3, 4]
    assert same(resumed, run(**given))


@pytest.mark.parametrize("step", [1, 5, 9])
def test_a_training_interrupted_within_an_epoch_goes_on_bit_for_bit(run, same, tmp_path, step):
    def interrupted(interrupt, model, batch):
        interrupt()
        return cross_entropy(model, batch)

    endless = functools.partial(interrupted, lambda: None)
    with pytest.raises(KeyboardInterrupt):
        run(objective=_named(interrupted, Interrupt(step)), epochs=4, keep=[2], checkpoint=tmp_path)
    resumed = run(objective=_named(interrupted, lambda: None), epochs=4, keep=[2], checkpoint=tmp_path)
    assert same(resumed, run(objective=endless, epochs=4, keep=[2]))


def _named(objective, interrupt):
    """An objective whose name does not say when it stops."""

    def stopping(model, batch):
        return objective(interrupt, model, batch)

    return stopping


@pytest.mark.parametrize("write", range(1, 7))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interruption_while_a_checkpoint_is_written_changes_nothing(run, same, tmp_path, monkeypatch, write, moment):
    interrupt, rename = Interrupt(write), Path.replace

    def replace(self, target):
        if moment == "after":
            rename(self, target)
        interrupt()
        return self if moment == "after" else rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run(epochs=4, keep=[1, 3], checkpoint=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    assert same(run(epochs=4, keep=[1, 3], checkpoint=tmp_path), run(epochs=4, keep=[1, 3]))


def test_what_a_killed_process_left_half_written_is_ignored_and_removed(run, same, tmp_path):
    run(epochs=1, checkpoint=tmp_path / "other")
    run(epochs=1, checkpoint=tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    left = tmp_path / "checkpoint.safetensors.123.part"
    left.write_bytes((tmp_path / "other" / "checkpoint.safetensors").read_bytes()[:500])
    assert same(run(checkpoint=tmp_path), run())
    assert not left.exists()


def test_a_finished_training_is_not_trained_again(run, same, tmp_path):
    first = run(keep=[1], checkpoint=tmp_path)
    told = []
    assert same(run(keep=[1], checkpoint=tmp_path, on_epoch=told.append), first)
    assert told == []


@pytest.mark.parametrize("size", [0, 4, 300, -1])
@pytest.mark.parametrize("name", ["checkpoint", "epoch-1"])
def test_a_truncated_file_is_refused(run, tmp_path, name, size):
    run(keep=[1], checkpoint=tmp_path)
    file = tmp_path / f"{name}.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(ArtifactError, match=rf"{name}\.safetensors: expected a complete checkpoint, found a damaged"):
        run(keep=[1], checkpoint=tmp_path)


def test_a_missing_file_of_a_kept_epoch_is_refused(run, tmp_path):
    run(keep=[1], checkpoint=tmp_path)
    (tmp_path / "epoch-1.safetensors").unlink()
    with pytest.raises(ArtifactError, match="epoch-1"):
        run(keep=[1], checkpoint=tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(run, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(ArtifactError, match="expected a complete checkpoint"):
        run(checkpoint=tmp_path)


def halved(model, batch):
    return cross_entropy(model, batch) / 2


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("chances", {"chances": Chances(order=1)}),
        ("start", {"chances": Chances(init=1)}),
        ("optimizer", {"optimizer": functools.partial(adadelta, lr=0.5)}),
        ("optimizer", {"optimizer": adam}),
        ("objective", {"objective": halved}),
        ("augmentation", {"augmentation": darker}),
        ("batch_size", {"batch_size": 5}),
        ("keep", {"keep": [1]}),
        ("epochs", {"epochs": 3}),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_difference(run, tmp_path, part, changed):
    run(checkpoint=tmp_path)
    with pytest.raises(ArtifactError, match=rf"differs in '({part}|optimizer)'; name another folder"):
        run(**changed, checkpoint=tmp_path)


def test_a_checkpoint_of_other_examples_is_refused(run, tmp_path, examples):
    run(checkpoint=tmp_path)
    examples.fingerprint = "other"
    with pytest.raises(ArtifactError, match="differs in 'data'"):
        run(checkpoint=tmp_path)


def test_a_checkpoint_holds_numbers_and_no_code(run, tmp_path):
    run(optimizer=adam, keep=[1], checkpoint=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.safetensors", "epoch-1.safetensors"]
    names = load_file(tmp_path / "checkpoint.safetensors")
    assert {".model.conv1.weight", ".optimizer.state.0.exp_avg", ".optimizer.state.0.step"} <= set(names)


def test_numbers_and_nests_of_an_optimizer_s_state_are_kept_exactly(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    state = {
        "rate": 0.1 + 0.2,
        "pair": (1, 2.0),
        "list": [None, True, {"x": torch.tensor(3.0)}],
        7: True,
        "not": 1e-320,
    }
    optimizer.state[optimizer.param_groups[0]["params"][0]] = state
    recipe = {"keep": []}
    checkpoint.save(tmp_path, recipe, checkpoint.Standing(torch.nn.Linear(1, 1), optimizer, {}, []))
    twin = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    checkpoint.resume(tmp_path, recipe, checkpoint.Standing(torch.nn.Linear(1, 1), twin, {}, []))
    (found,) = twin.state.values()
    assert found == state
    assert list(map(type, found["pair"])) == [int, float]


def test_a_state_that_would_need_code_is_refused(run, tmp_path):
    def odd(parameters):
        schedule = adadelta(parameters)
        schedule.optimizer.param_groups[0]["rule"] = object
        return Schedule(*schedule)

    with pytest.raises(ArtifactError, match=r"param_groups\.0\.rule: .*found type; train without a checkpoint"):
        run(optimizer=odd, checkpoint=tmp_path)
