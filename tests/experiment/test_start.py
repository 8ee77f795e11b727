"""Trainings that start from weights that somebody else trained: in a file, in the store, on the command line."""

import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.experiment.fixtures import TINY

from consilience.cli import main as command
from consilience.component import architecture
from consilience.data.examples import Arrays
from consilience.data.mnist10k import mnist10k
from consilience.errors import DataError, ModelError, SpecError
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place, load_weights, untrained
from consilience.experiment.files import read_metadata, read_tensors
from consilience.experiment.run import run
from consilience.experiment.specs import Subject, Weights
from consilience.experiment.store import Store
from consilience.training.loop import Chances, train
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import sgd

HEAD = {"fc2.weight", "fc2.bias"}
FILE = TINY.replace("epochs = 1", 'epochs = 1\nweights = "thirds.pth"\noptimizer = { use = "sgd", lr = 0.01 }')
"""The tiny experiment, started from what a network of its kind learnt about three classes of digits."""
DEEP = (
    FILE.replace("batch_size = 20", "batch_size = 20\nselect.data = { use = 'subset', count = 20 }")
    + """
[[family]]
type = "ensembles"
size = 2
count = 2
candidates = 3
search = { hidden = [[8], [9]], dropout = [0.0, 0.5] }
"""
)


@pytest.fixture(scope="module")
def thirds(tmp_path_factory):
    """A folder with trained weights: in two kinds of file, of another content, and of another network."""
    digits = mnist10k()
    batch = digits.batch(range(60))
    examples = Arrays(batch.x, batch.label % 3, ("0", "1", "2"), digits.mean, digits.sd)
    chosen = architecture.choose({"use": "mlp", "hidden": [8]}, "")
    trained = train(
        lambda: untrained(chosen, examples),
        examples,
        objective=cross_entropy,
        optimizer=lambda weights: sgd(weights, lr=0.1),
        epochs=2,
        batch_size=20,
        chances=Chances(5, 5, 5),
    ).weights
    folder = tmp_path_factory.mktemp("data")
    weights = folder / "weights"
    (weights / "deep").mkdir(parents=True)
    torch.save({"state_dict": trained, "epoch": 2}, weights / "thirds.pth")
    save_file(trained, weights / "deep" / "other_name.safetensors")
    torch.save({**trained, "fc1.bias": trained["fc1.bias"] + 1}, weights / "changed.pth")
    torch.save({**trained, "fc3.weight": torch.ones(2)}, weights / "deeper.pth")
    ten = {"fc2.weight": torch.ones(10, 8), "fc2.bias": torch.zeros(10)}
    torch.save({**trained, **ten}, weights / "whole.pth")
    (weights / "half.pth").write_bytes((weights / "thirds.pth").read_bytes()[:-900])
    return SimpleNamespace(folder=folder, weights=trained)


@pytest.fixture
def file(tmp_path):
    """The experiment file."""
    path = tmp_path / "start.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def data(thirds, tmp_path):
    """A copy of the folder that may be changed."""
    return Path(shutil.copytree(thirds.folder, tmp_path / "data"))


@pytest.fixture
def desk(thirds, tmp_path):
    return Desk(Store(tmp_path / "store"), Place(thirds.folder))


def twins(experiment):
    return {member.name: member.subject.source for member in experiment.members_of(experiment.families[0])}


# Identity


def test_weights_that_nobody_named_are_in_no_digest(tiny_file):
    base = load(tiny_file).base
    assert base.start is None
    assert b"start" not in base.canonical


def test_the_content_of_the_weights_is_in_the_digest_and_the_files_name_is_not(file, thirds):
    def digest(name):
        return load(file, data=thirds.folder, changes=[f"train.weights={name}"]).base.digest

    started = load(file, data=thirds.folder).base
    assert started.start.file == "thirds.pth"
    assert b"thirds" not in started.canonical
    assert digest("deep/other_name.safetensors") == started.digest
    assert digest("changed.pth") != started.digest
    assert msgspec.structs.replace(started, start=None).digest not in (started.digest, digest("changed.pth"))


def test_the_files_name_travels_with_the_spec_and_is_no_difference(file, thirds):
    base = load(file, data=thirds.folder).base
    travelled = pickle.loads(pickle.dumps(base))
    assert (travelled, travelled.digest, travelled.start.file) == (base, base.digest, "thirds.pth")
    assert msgspec.structs.replace(base, init=3).start.file == "thirds.pth"
    assert Weights.lying("a", "1") == Weights.lying("b", "1") != Weights.lying("a", "2")
    assert all(train.start.file == "thirds.pth" for train in twins(load(file, data=thirds.folder)).values())


# What a training starts from


def test_twins_of_another_init_start_alike_but_for_the_head(file, thirds, desk):
    found = {name: desk.source(train).state_dict() for name, train in twins(load(file, data=thirds.folder)).items()}
    assert found["base"].keys() == thirds.weights.keys()
    for name in thirds.weights.keys() - HEAD:
        assert all(torch.equal(weights[name], thirds.weights[name]) for weights in found.values())
    for name in HEAD:
        assert not torch.equal(found["base"][name], found["init 1"][name])
        assert torch.equal(found["base"][name], found["order 1"][name])


def test_the_head_is_what_the_init_draws_without_weights_too(file, thirds, desk):
    base = load(file, data=thirds.folder).base
    plain = desk.source(msgspec.structs.replace(base, start=None)).state_dict()
    started = desk.source(base).state_dict()
    assert {name for name in plain if torch.equal(plain[name], started[name])} == HEAD


def test_a_family_is_trained_from_the_weights_and_looked_at_without_their_file(file, data, thirds, tmp_path):
    """Three steps with a rate of 0.01 leave the weights near where they started."""
    experiment = load(file, data=data)
    outcome = run(experiment, tmp_path / "store", data=data)
    assert not outcome.failures
    shutil.rmtree(data / "weights")
    store = Store(tmp_path / "store")
    assert run(experiment, store).made == 0
    for spec in twins(experiment).values():
        learnt = store.tensors(spec)
        for name in thirds.weights.keys() - HEAD:
            moved = (learnt[name] - thirds.weights[name]).abs().max()
            assert 0 < moved < 0.05
        model = Desk(store, Place(data)).model(Subject(source=spec))
        assert torch.equal(model.state_dict()["fc1.weight"], learnt["fc1.weight"])


# What is refused


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("third.pth", DataError, ["train.weights: ", "no file is named 'third.pth'; did you mean 'thirds.pth'?"]),
        ("zzz", DataError, ["no file is named 'zzz'; there are: ", "deep/other_name.safetensors, ", "whole.pth"]),
        ("deep", DataError, ["no file is named 'deep'"]),
        ("half.pth", DataError, ["train.weights: ", "half.pth: expected weights, complete", "download the file again"]),
        ("../weights/thirds.pth", SpecError, ["train.weights: ", "below 'weights/', found a path out of it"]),
        ("/etc/passwd", SpecError, ["train.weights: ", "below 'weights/', found a path out of it"]),
        ("deeper.pth", ModelError, ["train.weights: deeper.pth: expected a tensor", "'fc3.weight', which the model"]),
        (
            "whole.pth",
            SpecError,
            ["family 'twins': expected what makes another model, found 'init'", "whole.pth holds every tensor"],
        ),
    ],
)
def test_weights_that_cannot_be_started_from_are_one_error_that_names_the_file(file, thirds, name, kind, words):
    with pytest.raises(kind) as caught:
        load(file, data=thirds.folder, changes=[f'train.weights="{name}"'])
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_weights_that_do_not_fit_a_candidate_of_a_search_are_refused_when_the_file_is_read(file, thirds):
    file.write_text(DEEP)
    with pytest.raises(ModelError) as caught:
        load(file, data=thirds.folder)
    message = str(caught.value)
    assert message.startswith(f"{file}: family 'averaging ensembles', mlp(")
    assert "hidden=(9,)): thirds.pth: expected a tensor for each of the model's" in message
    assert "'fc1.weight' of [9, 784]" not in message
    assert "'fc1.weight' of [8, 784] where the model has [9, 784]" in message
    assert "\n" not in message


def test_candidates_that_the_weights_fit_start_from_them(file, thirds):
    file.write_text(DEEP.replace("[[8], [9]]", "[[8]]"))
    experiment = load(file, data=thirds.folder)
    members = experiment.members_of(experiment.families[1])
    sources = [one.source for member in members for one in member.subject.source.members]
    assert {source.model.option("dropout") for source in sources} == {0.0, 0.5}
    assert {source.start for source in sources} == {experiment.base.start}


def test_a_network_that_reads_maps_starts_from_no_weights(file, thirds, desk):
    reads = "[explanation_accuracy]\ndata = { use = 'mnist10k' }\ncount = 20\nepochs = 1\n[[family]]"
    file.write_text(FILE.replace("[[family]]", reads))
    experiment = load(file, data=thirds.folder)
    asked = [goal.spec.of for goal in experiment.goals() if goal.part == "read from the map alone"]
    assert asked
    for answers in asked:
        assert answers.subject.source.start is None
        assert answers.data.maps.subject.source.start == experiment.base.start
        assert answers.subject.source.data.maps.subject.source.start == experiment.base.start


def test_weights_for_as_many_classes_are_taken_whole_where_init_is_not_varied(file, thirds, desk):
    file.write_text(FILE.replace("init = [0, 1], ", "").replace("thirds.pth", "whole.pth"))
    source = desk.source(load(file, data=thirds.folder).base)
    assert torch.equal(source.state_dict()["fc2.weight"], torch.ones(10, 8))


def test_weights_need_a_data_folder_with_a_folder_of_them(file, tmp_path):
    with pytest.raises(DataError, match=r"train.weights: weights: expected a folder .* give --data DIR"):
        load(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"train.weights: .*expected a folder 'weights', found none"):
        load(file, data=tmp_path / "empty")


def test_a_model_that_is_fitted_at_once_starts_from_no_weights(file, thirds):
    pytest.importorskip("sklearn")
    with pytest.raises(SpecError, match=r"train.weights: expected none for a model that is fitted at once"):
        load(file, data=thirds.folder, changes=["train.model={use='rbf_svm'}"])


def test_weights_that_changed_since_the_experiment_was_loaded_are_refused(file, data, tmp_path):
    experiment = load(file, data=data)
    desk, path = Desk(Store(tmp_path / "store"), Place(data)), data / "weights" / "thirds.pth"
    desk.source(experiment.base)
    shutil.copy(data / "weights" / "changed.pth", path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"thirds.pth: expected the content .{12}, found .{12}; .*: load it again"):
        desk.source(experiment.base)
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="expected weights, complete"):
        desk.source(experiment.base)
    path.unlink()
    with pytest.raises(DataError, match=r"no file is named 'thirds.pth'"):
        desk.source(experiment.base)
    outcome = run([experiment.base], tmp_path / "store", data=data)
    assert "no file is named 'thirds.pth'" in outcome.failures[0].reason


def test_a_file_is_read_once_while_it_does_not_change(thirds, monkeypatch):
    place = Place(thirds.folder)
    first, content = load_weights("thirds.pth", place)
    monkeypatch.setattr("consilience.experiment.desk.read_weights", None)
    again, same = load_weights("thirds.pth", place)
    assert again is first
    assert content == same


# The command line


def test_train_starts_from_a_file_and_says_what_was_new(thirds, tmp_path, capfd):
    given, out = thirds.folder / "weights" / "thirds.pth", tmp_path / "out.safetensors"
    words = ["{use = 'mlp', hidden = [8]}", '{use = "subset", of = "mnist10k", count = 60}', "--out", str(out)]
    words += ["--epochs", "1", "--optimizer", "{use = 'sgd', lr = 1e-12}", "--weights", str(given)]
    assert command.call("train", words) == 0
    assert f"{given}: 2 tensors loaded; fresh: fc2.weight, fc2.bias" in capfd.readouterr().err
    learnt = read_tensors(out)
    for name in thirds.weights.keys() - HEAD:
        torch.testing.assert_close(learnt[name], thirds.weights[name], atol=1e-9, rtol=0)
    assert learnt["fc2.weight"].shape == (10, 8)
    note = read_metadata(out)
    assert note["start"].startswith("thirds.pth, content ")
    assert note["start"].endswith("; 2 tensors loaded; fresh: fc2.weight, fc2.bias")
    assert note["architecture"] == words[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [("half.pth", "expected weights, complete"), ("deeper.pth", "which the model lacks"), ("no.pth", "No such file")],
)
def test_train_refuses_weights_that_it_cannot_start_from(thirds, tmp_path, capfd, name, says):
    words = ["{use = 'mlp', hidden = [8]}", "mnist10k", "--out", str(tmp_path / "out.safetensors")]
    assert command.call("train", [*words, "--weights", str(thirds.folder / "weights" / name)]) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.safetensors").exists()


# Real weights


@pytest.mark.real_data
def test_imagenets_squeezenet_starts_one_that_learns_digits(file, tmp_path):
    data = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere"))
    path = data / "weights" / "squeezenet1_1.safetensors"
    if not path.is_file():
        pytest.skip("needs CONSILIENCE_DATA, a folder with weights/squeezenet1_1.safetensors")
    changes = ["train.model={use='squeezenet1_1'}", f"train.weights={path.name}"]
    experiment, given = load(file, data=data, changes=changes), load_file(path)
    found = {
        name: Desk(Store(tmp_path / "store"), Place(data)).source(spec).state_dict()
        for name, spec in twins(experiment).items()
    }
    for weights in found.values():
        assert weights["features.0.weight"].shape == (64, 1, 3, 3)
        torch.testing.assert_close(weights["features.0.weight"], given["features.0.weight"].sum(1, keepdim=True))
        assert weights["classifier.1.weight"].shape == (10, 512, 1, 1)
        assert all(
            torch.equal(weights[name], given[name])
            for name in given.keys() - {"features.0.weight", "classifier.1.weight", "classifier.1.bias"}
        )
    assert not torch.equal(found["base"]["classifier.1.weight"], found["init 1"]["classifier.1.weight"])
    assert torch.equal(found["base"]["classifier.1.weight"], found["noise 1"]["classifier.1.weight"])
