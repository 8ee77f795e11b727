"""A run that finds everything knows so without torch, and only while nothing that it rests on has changed."""

import shutil

import pytest
import torch
from tests.experiment.fixtures import TINY

from consilience.cli import notes
from consilience.cli.main import call


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A store with two artifacts, a package, a data folder, and a note of a run over them."""
    monkeypatch.setattr(notes, "entry_points", lambda group: [])
    package, data, store, file = (tmp_path / name for name in ("package", "data", "store", "experiment.toml"))
    for folder in (package, data, store / "train" / "a", store / "explain" / "b"):
        folder.mkdir(parents=True)
    (package / "code.py").write_text("x = 1")
    (data / "images").write_bytes(b"pixels")
    file.write_text("name = 'one'")
    monkeypatch.setattr(notes, "PACKAGE", package)
    notes.remember(store, file, data, None, (), [data], ["train/a", "explain/b"])
    return tmp_path


def known(folder, profile=None, changes=()):
    return notes.known(folder / "store", folder / "experiment.toml", folder / "data", profile, changes)


def test_a_finished_run_is_known(finished):
    assert known(finished) == 2


def test_another_profile_or_change_or_store_is_another_run(finished):
    assert known(finished, profile="smoke") is None
    assert known(finished, changes=("train.epochs=1",)) is None
    assert notes.known(finished / "elsewhere", finished / "experiment.toml", finished / "data", None, ()) is None


@pytest.mark.parametrize("path", ["experiment.toml", "package/code.py", "data/images"])
def test_what_the_run_read_may_not_have_changed(finished, path):
    (finished / path).write_text("something else")
    assert known(finished) is None


@pytest.mark.parametrize("path", ["package/new.py", "data/new"])
def test_nothing_may_have_come_to_what_the_run_read(finished, path):
    (finished / path).write_text("")
    assert known(finished) is None


def test_every_artifact_must_be_there(finished):
    shutil.rmtree(finished / "store" / "explain" / "b")
    assert known(finished) is None


def test_a_damaged_note_is_no_note(finished):
    (note,) = (finished / "store" / notes.FOLDER).iterdir()
    note.write_text(note.read_text()[:-9])
    assert known(finished) is None


def test_with_plug_ins_nothing_is_noted(finished, monkeypatch):
    monkeypatch.setattr(notes, "entry_points", lambda group: ["a plug-in"])
    notes.remember(finished / "store", finished / "experiment.toml", finished / "data", "smoke", (), [], [])
    assert known(finished, profile="smoke") is None


def test_a_second_run_says_the_same_as_a_look_inside(tiny_file, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(notes, "entry_points", lambda group: [])
    words = [str(tiny_file), "--store", str(tmp_path / "store")]
    assert call("run", words) == 0
    made = capfd.readouterr().out.split(",")[0]
    assert call("run", words) == 0
    assert capfd.readouterr().out.startswith(f"made 0, found {made.removeprefix('made ')}, in 0.0 s")
    shutil.rmtree(tmp_path / "store" / notes.FOLDER)
    assert call("run", words) == 0
    assert capfd.readouterr().out.startswith(f"made 0, found {made.removeprefix('made ')}")


def test_a_folder_that_cannot_be_looked_through_leaves_no_note(finished):
    store, file, data = (finished / name for name in ("store", "experiment.toml", "data"))
    (data / "lost").symlink_to(finished / "nowhere")
    notes.remember(store, file, data, "smoke", (), [data], [])
    assert known(finished, profile="smoke") is None


@pytest.fixture
def started(tmp_path, monkeypatch, capfd):
    """A finished run whose trainings started from a file of weights: that file, and the run's words to what is said."""
    monkeypatch.setattr(notes, "entry_points", lambda group: [])
    file, path = tmp_path / "started.toml", tmp_path / "data" / "weights" / "w.pth"
    file.write_text(TINY.replace("epochs = 1", 'epochs = 1\nweights = "w.pth"'))
    path.parent.mkdir(parents=True)
    first = {"fc1.weight": torch.ones(8, 784), "fc1.bias": torch.zeros(8)}
    torch.save({**first, "fc2.weight": torch.ones(3, 8), "fc2.bias": torch.zeros(3)}, path)

    def again():
        code = call("run", [str(file), "--store", str(tmp_path / "store"), "--data", str(tmp_path / "data")])
        return code, capfd.readouterr()

    code, said = again()
    assert code == 0
    assert said.out.startswith("made ")
    code, same = again()
    assert same.out.startswith(f"made 0, found {said.out.split()[1].rstrip(',')}, in 0.0 s")
    return path, again, said.out


def test_weights_of_another_content_are_started_from_anew(started):
    path, again, first = started
    torch.save({name: tensor / 2 for name, tensor in torch.load(path, weights_only=True).items()}, path)
    code, said = again()
    assert code == 0
    assert said.out.split(", in")[0] == first.split(", in")[0]  # all of it is made once more


def test_weights_that_are_gone_are_said_to_be(started):
    path, again, _ = started
    path.unlink()
    code, said = again()
    assert code == 2
    assert "made" not in said.out
    assert "train.weights: " in said.err
    assert "'w.pth'" in said.err
