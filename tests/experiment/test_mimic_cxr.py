"""The experiment file about radiographs, on a planted tree: what it asks for, and that it runs from end to end."""

from pathlib import Path

import pytest
import torch
from tests.data.radiographs import plant

from consilience.data.mimic_cxr import mimic_cxr
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place
from consilience.experiment.run import run
from consilience.experiment.specs import Select, plan
from consilience.experiment.store import Store
from consilience.models.densenet import densenet121

FILE = Path(__file__).parents[2] / "experiments" / "mimic_cxr.toml"
FEW = ("train.data.count=10", "train.select.data.count=3", "examples.count=3")
"""As many as the planted tree has."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    plant(folder / "mimic_cxr", complete=True)
    (folder / "weights").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.save(densenet121((3, 224, 224), 1000).state_dict(), folder / "weights" / "densenet121-a639ec97.pth")
    return folder


@pytest.fixture(scope="module")
def store(data):
    """All that the smoke profile asks for, of a linear model."""
    experiment = load(FILE, data=data, profile="smoke", changes=[*FEW, "train.model=linear"])
    outcome = run(experiment, data / "store", data=data)
    assert not outcome.failures
    return experiment, Store(data / "store")


def test_the_recipe_is_the_papers_without_its_mistakes(data):
    experiment = load(FILE, data=data, profile="paper", changes=["examples.count=3"])
    train = experiment.base
    assert (train.model.use, train.objective.use, train.epochs, train.batch_size) == (
        "densenet121", "cross_entropy", 50, 16,
    )  # fmt: skip
    assert train.optimizer.options == {"lr": 0.0005, "weight_decay": 1e-5}
    assert train.start.file == "densenet121-a639ec97.pth"
    by, held_out = experiment.select
    assert (by.use, held_out.choice.options["split"]) == ("accuracy", "validate")
    assert train.data.choice.option("split") == "train"
    assert experiment.examples.choice.options["of"].options["split"] == "test"
    assert {chosen.choice.option("label") for chosen in (train.data, held_out)} == {"Edema"}


def test_who_is_learnt_from_chooses_and_is_explained_are_different_patients(data):
    patients = [
        {*mimic_cxr(data / "mimic_cxr", split=split).groups.tolist()} for split in ("train", "validate", "test")
    ]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 6


@pytest.mark.parametrize(("profile", "changes"), [("desk", FEW), ("smoke", FEW), (None, ["examples.count=3"])])
def test_every_profile_can_be_asked_for(data, profile, changes):
    experiment = load(FILE, data=data, profile=profile, changes=changes)
    assert experiment.base.model.use == "densenet121"
    assert experiment.base.start is None
    assert experiment.goals()


def test_the_smoke_profile_runs_from_end_to_end(store, data):
    experiment, made = store
    specs = experiment.specs()
    assert all(spec in made for spec in specs)
    desk = Desk(made, Place(data))
    assert desk.examples(experiment.examples).shape == (3, 32, 32)


def test_each_training_has_the_epoch_that_answers_best_on_the_validation_patients(store):
    experiment, made = store
    selects = [spec for spec in plan(experiment.specs()) if isinstance(spec, Select)]
    assert len(selects) == 3  # the base's, and those of two values of init
    for select in selects:
        scores = [made.tensors(by)["value"].mean().item() for by in select.by]
        assert made.table(select)["best"] == scores.index(max(scores))
        assert {by.of.data.choice.options["of"].options["split"] for by in select.by} == {"validate"}
