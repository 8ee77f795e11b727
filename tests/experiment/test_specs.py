"""A spec's digest is its name: it says what the artifact holds and nothing else."""

import pickle

import msgspec
import pytest
import torch
from tests.experiment.fixtures import TINY

from consilience import component
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place
from consilience.experiment.specs import Explain, Measure, Subject, explanation, groups, plan
from consilience.experiment.store import Store
from consilience.experiment.values import measured


def maps(tiny, method, seed=0, **given):
    return explanation(Subject(source=tiny.base), component.attribution.choose(method), tiny.examples, seed, **given)


def changed(tmp_path, before, after):
    """The digest of the tiny experiment's base with something in its file spelled differently."""
    assert before in TINY
    file = tmp_path / "changed.toml"
    file.write_text(TINY.replace(before, after))
    return load(file).base.digest


def test_digests_are_the_same_in_another_process_whatever_its_hash_seed(order, tiny_file, copied):
    """The process behind ``order`` has a hash seed of its own; it finds what this one made."""
    assert "made 0, found 115," in order("run", tiny_file, "--store", copied)["out"]


def test_a_spec_that_travelled_to_a_worker_has_the_same_digest(tiny):
    for spec in plan(tiny.specs()):
        travelled = pickle.loads(pickle.dumps(spec))
        assert travelled == spec
        assert travelled.digest == spec.digest


def test_a_value_that_equals_the_default_is_left_out_even_if_it_is_another_object(tiny):
    spec = next(spec for spec in plan(tiny.specs()) if isinstance(spec, Measure))
    assert msgspec.structs.replace(spec, channels="".join(["su", "m"])).digest == spec.digest
    assert msgspec.structs.replace(spec, channels="sum_abs").digest != spec.digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{ use = "mlp", hidden = [8] }', '{ hidden = [8], use = "mlp" }'),
        ('{ use = "mlp", hidden = [8] }', '{ use = "mlp", hidden = [8], dropout = 0.25 }'),
        ("epochs = 1\nbatch_size = 20", "batch_size = 20\nepochs = 1"),
        ("epochs = 1", 'epochs = 1\noptimizer = "adadelta"'),
        ("epochs = 1", 'epochs = 1\noptimizer = { use = "adadelta", lr = 1 }'),
    ],
)
def test_order_and_options_at_their_default_leave_the_digest_alone(tiny, tmp_path, before, after):
    assert changed(tmp_path, before, after) == tiny.base.digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("hidden = [8]", "hidden = [9]"),
        ("hidden = [8]", "hidden = [8], dropout = 0.5"),
        ("count = 60", "count = 61"),
        ("epochs = 1", "epochs = 2"),
        ("epochs = 1", 'epochs = 1\noptimizer = { use = "adadelta", lr = 0.5 }'),
        ("epochs = 1", 'epochs = 1\naugmentation = "shift"'),
    ],
)
def test_whatever_changes_the_numbers_changes_the_digest(tiny, tmp_path, before, after):
    assert changed(tmp_path, before, after) != tiny.base.digest


def test_nested_components_and_versions_are_in_the_digest(tiny, monkeypatch):
    plain = maps(tiny, "integrated_gradients")
    named = maps(tiny, {"use": "integrated_gradients", "of": {"use": "gradient", "score": "logit"}})
    assert named.digest == plain.digest
    assert b'"use":"gradient"' in plain.canonical
    assert b'"use":"logit"' in plain.canonical
    other = maps(tiny, {"use": "integrated_gradients", "of": {"use": "gradient", "score": "log_probability"}})
    assert other.digest != plain.digest

    logit = component.score.get("logit")
    monkeypatch.setitem(component.score._found, "logit", logit._replace(version=logit.version + 1))
    assert maps(tiny, "integrated_gradients").digest != plain.digest


def test_the_seed_is_in_the_digest_only_where_something_in_the_nest_draws(tiny):
    assert maps(tiny, "integrated_gradients", 0).digest == maps(tiny, "integrated_gradients", 1).digest
    assert maps(tiny, "random_map", 0).digest != maps(tiny, "random_map", 1).digest
    nested = {"use": "integrated_gradients", "of": "random_map"}
    assert maps(tiny, nested, 0).digest != maps(tiny, nested, 1).digest


def test_a_plan_has_each_spec_once_and_its_inputs_before_it(tiny):
    goals = tiny.specs()
    found = plan(goals)
    place = {spec.digest: position for position, spec in enumerate(found)}
    assert len(place) == len(found)
    assert {goal.digest for goal in goals} <= place.keys()
    assert all(place[needed.digest] < position for position, spec in enumerate(found) for needed in spec.inputs)
    assert [spec.digest for spec in plan([*goals, *goals])] == [spec.digest for spec in found]


def test_pairs_of_one_measure_and_method_are_one_group_and_nothing_else_is_with_them(tiny):
    specs = plan(tiny.specs())
    found = groups(specs)
    assert sorted(spec.digest for group in found for spec in group) == sorted(spec.digest for spec in specs)
    paired = [group for group in found if isinstance(group[0], Measure) and group[0].other is not None]
    kinds = [
        {(spec.measure.label, spec.of.method.label, spec.other.method.label) for spec in group} for group in paired
    ]
    assert all(len(kind) == 1 for kind in kinds)
    assert len({next(iter(kind)) for kind in kinds}) == len(paired) == 3 * 2 * 2  # methods, measures, and baselines
    assert all(len(group) == 1 for group in found if group not in paired)


def test_edits_of_one_model_are_explained_together(tiny):
    subjects = [Subject(source=tiny.base, edit_seed=seed) for seed in (None, 0, 1)]
    specs = [Explain(subject=subject, method=tiny.methods[0], data=tiny.examples) for subject in subjects]
    assert groups(specs) == [tuple(specs)]


def test_grouping_changes_no_result(tiny, made):
    desk = Desk(Store(made), Place())
    for group in groups(spec for spec in plan(tiny.specs()) if isinstance(spec, Measure)):
        together = list(measured(group, desk))
        assert [spec for spec, _ in together] == list(group)
        for spec, columns in together:
            ((_, alone),) = measured([spec], desk)
            torch.testing.assert_close(columns, alone, atol=1e-12, rtol=0, equal_nan=True)
            torch.testing.assert_close(desk.store.tensors(spec), alone, atol=1e-12, rtol=0, equal_nan=True)
