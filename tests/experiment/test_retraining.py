"""Families of retrained models and what is asked of them, from the file to the numbers in the store."""

import pytest
import torch

from consilience.attribution.gradient import gradient
from consilience.errors import SpecError
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place, labels
from consilience.experiment.run import run
from consilience.experiment.specs import Average, Measure, Select, Summary, Train
from consilience.experiment.store import Store
from consilience.experiment.values import measured
from consilience.measures.representation import arranged, cka
from consilience.models.recording import record

RICH = """
name = "Twins of a tiny network, looked at from all sides"
explain = ["gradient"]
compare = ["cosine", { use = "cosine", normalise = "sign", pool = 4 }, "separability_row_split"]
judge = ["accuracy", "max_sensitivity"]
summarise = [{ use = "calibrated_similarity", draws = 100 }, "consistency_row_split"]
conditions = ["all", "both_right", "both_agree"]

[train]
data = { use = "subset", of = "mnist10k", count = 300 }
model = { use = "mlp", hidden = [16], dropout = 0.1 }
epochs = 3
batch_size = 20
keep = [1, 2]
select = { data = { use = "subset", of = { use = "mnist10k", split = "test" }, count = 50 } }

[examples]
data = { use = "mnist10k", split = "test" }
count = 40

[represent]
measures = ["cka"]
weights = ["weight_distance"]
layers = ["fc1", "fc2"]
tensors = ["fc1.weight"]

[explanation_accuracy]
data = "mnist10k"
count = 60
epochs = 2

[[family]]
type = "retrain"
values = { init = [0, 1], nothing = [0, 1] }

[[family]]
type = "folds"
count = 2

[[family]]
type = "ensembles"
size = 2
count = 2
candidates = 3
search = { dropout = [0.1, 0.4] }
"""


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The experiment, and the desk of a store that holds all of it."""
    file = tmp_path_factory.mktemp("rich") / "rich.toml"
    file.write_text(RICH)
    experiment, store = load(file), file.with_name("store")
    outcome = run(experiment, store)
    assert not outcome.failures, outcome.failures[0].trace
    return experiment, Desk(Store(store), Place())


def goals(experiment, use, **wanted):
    found = [goal for goal in experiment.goals() if goal.measure.use == use]
    return [goal for goal in found if all(getattr(goal, name) == value for name, value in wanted.items())]


def test_the_best_kept_epoch_of_each_training_is_explained(rich):
    experiment, desk = rich
    twins = experiment.members_of(experiment.families[0])
    for member in twins:
        chosen = member.subject.source
        assert isinstance(chosen, Select)
        note = desk.store.table(chosen)
        assert note["best"] == max(range(3), key=lambda i: (note["means"][i], -i))
        best = chosen.candidates[note["best"]]
        assert best.epoch == (1, 2, None)[note["best"]]
        images = desk.examples(experiment.examples).batch(range(4)).x
        assert torch.equal(desk.model(member.subject)(images), desk.model(best)(images))


def test_the_same_training_run_again_explains_alike_to_the_bit(rich):
    experiment, desk = rich
    (goal,) = [g for g in goals(experiment, "cosine", family="twins") if g.b == "nothing 1" and g.how.pool is None]
    value = desk.store.tensors(goal.spec)["value"]
    assert goal.a == "base"
    assert torch.allclose(value[value.isfinite()], torch.ones(1, dtype=torch.float64))


def test_activations_are_compared_layer_by_layer_and_epoch_by_epoch(rich):
    experiment, desk = rich
    found = goals(experiment, "cka", family="twins", b="init 1")
    assert {goal.part for goal in found} == {
        f"{layer}{when}" for layer in ("fc1", "fc2") for when in (", epoch 1", ", epoch 2", "")
    }
    examples = desk.examples(experiment.examples)
    for goal in found:
        rows = [
            arranged(record(desk.model(side.subject), examples.batch(range(40)).x, [side.layer])[side.layer])
            for side in (goal.spec.of, goal.spec.other)
        ]
        torch.testing.assert_close(desk.store.tensors(goal.spec)["value"], cka(*rows))


def test_weights_are_compared_under_their_names(rich):
    experiment, desk = rich
    for goal in goals(experiment, "weight_distance", family="twins", b="init 1", part="fc1.weight"):
        one, two = (desk.model(side).state_dict()["fc1.weight"].double().flatten().sort().values
                    for side in (goal.spec.of, goal.spec.other))  # fmt: skip
        torch.testing.assert_close(desk.store.tensors(goal.spec)["value"], (one - two).abs().mean())


def test_a_tensor_that_a_model_has_not_is_named(rich):
    experiment, desk = rich
    (goal, *_) = goals(experiment, "weight_distance")
    spec = Measure(measure=goal.measure, of=goal.spec.of, other=goal.spec.other, tensor="fc9.weight")
    with pytest.raises(SpecError, match="no tensor is named 'fc9"):
        list(measured([spec], desk))


def test_summaries_under_a_condition_leave_out_the_other_examples(rich):
    experiment, desk = rich
    summaries = {
        goal.spec.where: goal.spec
        for goal in goals(experiment, "cosine", family="twins", method=experiment.methods[0])
        if isinstance(goal.spec, Summary) and goal.how.pool is None
    }
    assert set(summaries) == {"all", "both_right", "both_agree"}
    undefined = {}
    for where, spec in summaries.items():
        (row,) = [row for row in desk.store.table(spec) if row["name"] == "init"]
        undefined[where] = row["undefined"]
    (entry,) = [entry for entry in summaries["both_right"].table if entry.differs == ("init",)]
    one, other = (desk.store.tensors(answer)["logits"].argmax(1) for answer in entry.answers)
    label = labels(desk.examples(experiment.examples))
    assert undefined["both_agree"] - undefined["all"] == int((one != other).sum())
    assert undefined["both_right"] - undefined["all"] == int(((one != label) | (other != label)).sum())


def test_a_measure_that_answers_by_class_has_no_conditions(rich):
    experiment, desk = rich
    found = [g.spec for g in goals(experiment, "separability_row_split", family="twins") if isinstance(g.spec, Summary)]
    assert {spec.where for spec in found} == {"all"}
    values = [
        desk.store.tensors(entry.measure)["value"].nanmean() for entry in found[0].table if len(entry.differs) == 1
    ]
    rows = {row["name"]: row["estimate"] for row in desk.store.table(found[0])}
    assert set(rows) == {"overall", "init", "nothing"}  # what differs in nothing stands apart
    assert rows["init"] == pytest.approx(1 - float(values[0]))
    assert rows["overall"] == rows["init"]


def test_maps_are_prepared_as_the_measure_says(rich):
    experiment, _ = rich
    (other,) = {goal.label for goal in goals(experiment, "cosine") if goal.how.pool}
    assert other == "cosine of sign maps on a grid of 4 x 4"


def test_explanation_accuracy_is_what_a_fresh_network_reads_from_the_maps(rich):
    experiment, desk = rich
    found = goals(experiment, "accuracy", part="read from the map alone", family="twins")
    assert [goal.a for goal in found] == ["base", "init 1", "nothing 1"]
    answers = found[0].spec.of
    reader = answers.subject.source
    assert isinstance(reader, Train)
    assert (reader.epochs, reader.keep, reader.model) == (2, (), experiment.base.model)
    assert len(desk.examples(reader.data)) == 60
    maps = desk.store.tensors(answers.data.maps)["maps"]
    x = desk.examples(answers.data).batch(range(40)).x
    torch.testing.assert_close((x - 0.5) * 2 * maps.abs().amax((1, 2, 3), keepdim=True), maps, atol=1e-6, rtol=1e-5)


def test_an_ensemble_answers_and_explains_as_the_mean_of_those_that_were_chosen(rich):
    experiment, desk = rich
    (family,) = [family for family in experiment.families if family.name == "averaging ensembles"]
    for member in experiment.members_of(family):
        source = member.subject.source
        assert isinstance(source, Average)
        chosen = desk.store.table(source)["members"]
        assert len(chosen) == 2
        assert [answer.data for answer in source.by] == [experiment.select[1]] * 3
        batch = desk.examples(experiment.examples).batch(range(5))
        parts = torch.stack([desk.model(source.members[i])(batch.x).softmax(1) for i in chosen])
        model = desk.model(member.subject)
        torch.testing.assert_close(model(batch.x).softmax(1), parts.mean(0))
        maps = desk.store.tensors(experiment.maps_of(member, experiment.methods[0]))["maps"][:5]
        torch.testing.assert_close(maps, gradient(model, batch.x, batch.label), atol=1e-5, rtol=1e-4)


def test_candidates_without_data_to_choose_on_are_refused(tmp_path):
    file = tmp_path / "file.toml"
    file.write_text("\n".join(line for line in RICH.splitlines() if not line.startswith("select")))
    with pytest.raises(SpecError, match=r"add \[train.select\]"):
        load(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('represent.layers=["fc7"]', "no layer is named 'fc7'"),
        ('represent.tensors=["fc1.bais"]', "did you mean 'fc1.bias'"),
        ('represent.measures=["cosine"]', "expected a measure of activations"),
        ('represent.weights=["cka"]', "expected a measure of weights"),
        ('compare=[{use="cosine", normalise="l3"}]', "how maps are prepared is said by channels, normalise, pool"),
        ('train.select.by="cosine"', "expected a measure of answers"),
        ("train.average_from=9", "expected an epoch from 1 to 3"),
    ],
)
def test_what_cannot_be_is_said_when_the_file_is_read(tmp_path, change, said):
    file = tmp_path / "file.toml"
    file.write_text(RICH)
    with pytest.raises(SpecError, match=said):
        load(file, changes=[change])


def test_a_kernel_machine_is_fitted_explained_and_compared(tmp_path):
    file = tmp_path / "svm.toml"
    file.write_text(
        'name = "A kernel machine"\nexplain = [{ use = "integrated_gradients", steps = 4 }]\ncompare = ["cosine"]\n'
        'judge = ["accuracy"]\nsummarise = []\n[train]\ndata = { use = "subset", of = "mnist10k", count = 200 }\n'
        'model = "rbf_svm"\nepochs = 1\n[examples]\ndata = { use = "mnist10k", split = "test" }\ncount = 60\n'
        '[[family]]\ntype = "retrain"\nvalues = { order = [0, 1], subset = [0, 1] }\n'
    )
    experiment, store = load(file), tmp_path / "store"
    outcome = run(experiment, store)
    assert not outcome.failures, outcome.failures[0].trace
    found = {
        goal.b: Store(store).tensors(goal.spec)["value"]
        for goal in goals(experiment, "cosine", family="twins")
        if goal.a == "base"
    }
    torch.testing.assert_close(found["order 1"], torch.ones(60, dtype=torch.float64), atol=1e-4, rtol=0)
    assert found["subset 1"].mean() < 0.99
    with pytest.raises(SpecError, match="is fitted at once"):
        load(file, changes=["train.epochs=2"])
