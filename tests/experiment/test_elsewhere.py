"""A whole experiment on a device that is not the processor: the same numbers, and provenance says where."""

import pytest
import torch
from tests.elsewhere import elsewhere

from consilience.component import architecture, dataset, objective, optimizer
from consilience.devices import steady
from consilience.errors import SpecError
from consilience.experiment.config import load
from consilience.experiment.desk import Place, load_examples
from consilience.experiment.run import run
from consilience.experiment.specs import plan
from consilience.experiment.store import Store
from consilience.training.loop import Chances, train

EXPERIMENT = """
name = "Every stage at once"
explain = ["gradient_shap"]
compare = ["cosine", {use = "separability", permutations = 2}]
judge = ["accuracy", "infidelity"]
summarise = [{use = "calibrated_similarity", draws = 100}, {use = "modes", draws = 100}]
examples = {data = {use = "mnist10k", split = "test"}, count = 10}
represent = {measures = ["cka"], weights = ["weight_distance"], tensors = ["fc1.weight"]}
family = [
  {type = "retrain", values = {init = [0, 1]}},
  {type = "ensembles", size = 2, count = 2},
  {type = "randomised", layers = ["fc1"]},
]
[train]
data = {use = "subset", count = 60}
model = {use = "mlp", hidden = [8]}
epochs = 2
keep = [1]
average_from = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment = load(folder / "experiment.toml")
    assert not run(experiment, folder / "here").failures
    with elsewhere() as device:
        outcome = run(experiment, folder / "there", device=device)
    assert not outcome.failures, outcome.failures[0].trace
    return experiment, Store(folder / "here"), Store(folder / "there")


def test_every_artifact_holds_the_same_numbers(made):
    experiment, here, there = made
    stages = set()
    for spec in plan(experiment.specs()):
        stages.add(spec.stage)
        for file in here.folder(spec).glob("*.safetensors"):
            one, other = here.tensors(spec, file.stem), there.tensors(spec, file.stem)
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4, equal_nan=True)
    assert stages >= {"train", "predict", "explain", "measure", "summary", "activate", "average", "spread"}


def test_provenance_says_where(made):
    experiment, here, there = made
    spec = plan(experiment.specs())[0]
    assert here.provenance(spec)["device"] == "cpu"
    assert there.provenance(spec)["device"] == "elsewhere"


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    examples = load_examples(dataset.choose({"use": "subset", "count": 60}), Place())
    build = lambda: architecture.choose({"use": "mlp", "hidden": [8]}).build()(examples.shape, 10)  # noqa: E731
    how = {"objective": objective.choose("cross_entropy").build(), "optimizer": optimizer.choose("adam").build(),
           "epochs": 3, "batch_size": 20, "chances": Chances(1, 2, 3, 4)}  # fmt: skip

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.epoch == 2:
            raise Stop

    with elsewhere() as device:
        whole = train(build, examples, **how, device=device)
        with pytest.raises(Stop):
            train(build, examples, **how, device=device, checkpoint=tmp_path, on_epoch=stop)
        resumed = train(build, examples, **how, device=device, checkpoint=tmp_path)
    torch.testing.assert_close(resumed.weights, whole.weights, atol=0, rtol=0)
    assert all(weight.device.type == "cpu" for weight in whole.weights.values())


@pytest.mark.parametrize("device", ["nowhere", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(device, tmp_path, tiny_file):
    with pytest.raises(SpecError, match=f"--device {device}: expected a device that torch"):
        run(load(tiny_file), tmp_path / "store", device=device)


@pytest.mark.parametrize(("place", "device"), [("cpu", "cuda"), ("elsewhere", "cpu")])
def test_a_device_beside_a_place_on_another_one_is_refused(place, device, tmp_path, tiny_file):
    with pytest.raises(SpecError, match=f"found {device} beside a Place whose device is {place}; give the Place alone"):
        run(load(tiny_file), tmp_path / "store", data=Place(device=place), device=device)
    assert not (tmp_path / "store").exists()


def test_a_place_names_the_device_alone_or_as_the_run_does(made, tmp_path):
    experiment, _, there = made
    with elsewhere() as device:
        for options in ({}, {"device": device}):
            assert run(experiment, there, data=Place(device=device), **options).made == 0


def test_kernels_elsewhere_are_deterministic_where_they_can_be():
    with steady("cuda"):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with steady():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
