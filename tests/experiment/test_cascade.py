"""A cascade and a background, through the whole engine on a tiny network."""

import pytest
import torch

from consilience.errors import DataError
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place
from consilience.experiment.run import run
from consilience.experiment.store import Store

MORE = """
[[family]]
type = "randomised"
"""


@pytest.fixture(scope="module")
def cascade(tmp_path_factory, _tiny):
    """The tiny experiment with a cascade and a method that asks for a background, made."""
    folder = tmp_path_factory.mktemp("cascade")
    text = (_tiny[1].parent / "tiny.toml").read_text().replace('"gradient", ', '"gradient", "expected_gradients", ')
    (folder / "cascade.toml").write_text(text + MORE)
    experiment, store = load(folder / "cascade.toml"), Store(folder / "store")
    assert not run(experiment, store).failures
    return experiment, store


def entries(cascade, method, measure="cosine"):
    experiment, store = cascade
    return {
        goal.b: store.tensors(goal.spec)["value"]
        for goal in experiment.goals()
        if goal.family == "randomised" and goal.b and (goal.method.label, goal.measure.label) == (method, measure)
    }


def test_maps_of_a_model_that_forgot_all_are_unlike_its_own(cascade):
    found = entries(cascade, "gradient")
    assert list(found) == ["down to fc2", "all layers"]
    assert found["all layers"].mean() < 0.5


def test_what_was_drawn_anew_is_kept_beside_the_maps(cascade):
    experiment, store = cascade
    family = experiment.families[1]
    members = family.members(experiment.base)
    notes = [store.table(experiment.maps_of(m, experiment.methods[0]), "coverage") for m in members[1:]]
    assert notes[0] == {"changed": ["fc2.weight", "fc2.bias"], "kept": ["fc1.weight", "fc1.bias"]}
    assert notes[1]["kept"] == []


def test_later_stages_hold_the_earlier_ones_weights(cascade):
    experiment, store = cascade
    desk = Desk(store, Place())
    base, last, both = (
        desk.model(member.subject).state_dict() for member in experiment.families[1].members(experiment.base)
    )
    assert torch.equal(last["fc2.weight"], both["fc2.weight"])
    assert torch.equal(last["fc1.weight"], base["fc1.weight"])
    assert not torch.equal(both["fc1.weight"], base["fc1.weight"])


def test_the_background_is_in_the_spec_of_what_asks_for_it_only(cascade):
    experiment, _ = cascade
    member = experiment.families[0].members(experiment.base)[0]
    asked = {m.use: experiment.maps_of(member, m).background for m in (*experiment.methods, *experiment.controls)}
    assert asked.pop("expected_gradients") == experiment.background
    assert set(asked.values()) == {None}


def test_the_background_is_the_first_training_examples_unless_the_file_names_others(tiny_file):
    text = tiny_file.read_text().replace('"gradient"', '"expected_gradients"', 1)
    tiny_file.write_text(text)
    assert load(tiny_file).background.choice.options["count"] == 60  # there are no hundred
    tiny_file.write_text(text + '[background]\ndata = "mnist10k"\ncount = 7\n')
    assert load(tiny_file).background.choice.label == "subset(count=7)"
    tiny_file.write_text(text + '[background]\ndata = "mnist10k"\ncount = 9000\n')
    with pytest.raises(DataError, match=r"background\.data: subset: expected a count from 1 to 8000"):
        load(tiny_file)


def test_no_background_is_read_where_nothing_asks_for_it(tiny):
    assert tiny.background is None
