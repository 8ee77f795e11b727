"""A model that is fitted at once, by the verb that trains one model."""

import json

import pytest
import torch

from consilience.cli.main import call
from consilience.experiment.config import load
from consilience.experiment.files import read_metadata, read_tensors
from consilience.experiment.run import run
from consilience.experiment.store import Store

EXPERIMENT = """
name = "A machine"
explain = ["gradient"]
train = {data = {use = "subset", of = "mnist10k", count = 60}, model = "rbf_svm", epochs = 1}
examples = {data = {use = "mnist10k", split = "test"}, count = 5}
family = [{type = "retrain", values = {order = [3, 4]}}]
"""
WORDS = ["rbf_svm", '{use = "subset", of = "mnist10k", count = 60}']


@pytest.fixture(autouse=True)
def _solver():
    pytest.importorskip("sklearn")


def test_train_fits_a_kernel_machine_as_an_experiment_does(tmp_path, capfd):
    file, out = tmp_path / "svm.toml", tmp_path / "svm.safetensors"
    file.write_text(EXPERIMENT)
    experiment = load(file)
    base = experiment.members_of(experiment.families[0])[0].subject.source
    assert base.order == 3
    assert not run([base], tmp_path / "store").failures
    assert call("train", [*WORDS, "--out", str(out), "--order", "3", "--init", "5"]) == 0
    assert capfd.readouterr().err == ""
    found, expected = read_tensors(out), Store(tmp_path / "store").tensors(base)
    assert len(found["support"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads(read_metadata(out)["classes"]) == [str(digit) for digit in range(10)]


def test_a_fitted_machine_is_explained_from_its_file(tmp_path):
    out, maps = tmp_path / "svm.safetensors", tmp_path / "maps.safetensors"
    assert call("train", [*WORDS, "--out", str(out)]) == 0
    assert call("explain", ["gradient", str(out), "mnist10k", "--count", "3", "--out", str(maps)]) == 0
    assert read_tensors(maps)["maps"].flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--weights", "absent.pth"], "--weights: expected none for a model that is fitted at once"),
        (["--optimizer", "adum"], "did you mean 'adam'?"),
        (["--objective", "cross_entropi"], "did you mean 'cross_entropy'?"),
    ],
)
def test_what_a_fitted_model_cannot_use_is_said(tmp_path, capfd, more, says):
    assert call("train", [*WORDS, "--out", str(tmp_path / "svm.safetensors"), *more]) == 2
    said = capfd.readouterr().err
    assert says in said
    assert said.strip().count("\n") == 0
    assert not (tmp_path / "svm.safetensors").exists()
