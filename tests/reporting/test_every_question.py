"""A page with every sort of family, condition, summary and comparison: each number stands where it belongs."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tests.reporting.conftest import Made
from tests.reporting.reading import Reading

from consilience import Store, load, report, run
from consilience.experiment.desk import Desk, Place
from consilience.reporting.figures import galleries, limit_of, signed, unsigned
from consilience.reporting.grades import figures, number

EXPERIMENT = """
name = "Every question at once"
explain = ["gradient"]
controls = ["edge_map"]
compare = ["cosine", "squared_distance", {use = "kolmogorov_smirnov", normalise = "l2"}]
judge = ["accuracy", "auc", "infidelity"]
conditions = ["all", "both_right"]
summarise = [
  {use = "calibrated_similarity", draws = 100},
  {use = "variance_shares", draws = 100},
  {use = "modes", draws = 100},
]
examples = {data = {use = "mnist10k", split = "test"}, count = 20}
represent = {measures = ["cka"], weights = ["weight_distance"], tensors = ["fc1.weight"]}
explanation_accuracy = {data = {use = "mnist10k"}, count = 20, epochs = 1}
family = [
  {type = "retrain", values = {init = [0, 1], subset = [0, 1], nothing = [0, 1]}},
  {type = "folds", count = 2},
  {type = "epochs"},
  {type = "ensembles", size = 2, count = 2},
]
[train]
data = {use = "subset", count = 60}
model = {use = "mlp", hidden = [8]}
epochs = 4
keep = [1, 2]
average_from = 4
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment, store = load(folder / "experiment.toml"), Store(folder / "store")
    assert not run(experiment, store).failures
    page = report(experiment, store, folder / "page.html")
    return Made(experiment, store, page.read_text("utf-8"), json.loads(page.with_suffix(".json").read_bytes()))


@pytest.fixture(scope="module")
def read(made):
    return Reading(made.page)


def values(made, **place):
    """The stored values of the pairs or models at a place of the report."""
    found = [goal for goal in made.experiment.goals() if goal.a and here(goal, place)]
    assert found
    return {(goal.a, goal.b): made.store.tensors(goal.spec) for goal in found}


def here(goal, place):
    parts = {key: getattr(goal, key) for key in place}
    return place == {key: getattr(part, "label", part) for key, part in parts.items()}


def test_every_family_is_named_for_what_it_is(made):
    kinds = {(row["family"], row["kind"]) for row in made.twin["lines"]}
    assert kinds == {
        ("twins", "twins"), ("folds", "twins"), ("epochs", "epochs"), ("averaging ensembles", "twins"),
    }  # fmt: skip
    assert made.twin["answer"]["evidence"].startswith("20 images and 8 models, compared in")


def test_rows_of_a_condition_are_of_the_images_that_meet_it(made):
    pair = values(made, family="folds", method="gradient", measure="cosine")
    (value,) = (columns["value"] for columns in pair.values())
    answers = [
        made.store.tensors(goal.spec)["value"]
        for goal in made.experiment.goals()
        if (goal.family, goal.label) == ("folds", "accuracy") and not goal.part
    ]
    right = (answers[0] == 1) & (answers[1] == 1)
    rows = {
        row["condition"]: row for row in made.twin["lines"]
        if (row["family"], row["method"], row["measure"], row["column"]) == ("folds", "gradient", "cosine", "overall")
    }  # fmt: skip
    assert 0 < int(right.sum()) < 20, "else the two rows would be of the same images"
    assert rows["all"]["agreement"] == pytest.approx(float(value.nanmean()))
    assert rows["both_right"]["agreement"] == pytest.approx(float(value[right].nanmean()))
    assert rows["both_right"]["undefined"] == 20 - int(right.sum())
    assert made.twin["answer"]["methods"][0]["estimate"] in [
        row["estimate"] for row in made.twin["lines"] if row["condition"] == "all"
    ]


def test_models_themselves_have_tables_and_no_matrices(made, read):
    assert {one["measure"] for one in made.twin["matrices"]} == {
        "cosine", "squared_distance", "kolmogorov_smirnov of L2-scaled maps",
    }  # fmt: skip
    rows = {(row["measure"], row["part"], row["epoch"]): row for row in made.twin["represented"]}
    assert set(rows) == {
        (measure, part, epoch)
        for measure, parts in (("cka", ("fc1", "fc2")), ("weight_distance", ("fc1.weight",)))
        for part in parts for epoch in (1, 2, "end")
    }  # fmt: skip
    first = values(made, measure="cka", part="fc1, epoch 1")
    several = [float(one["value"]) for (_, b), one in first.items() if b != "nothing 1"]
    row = rows["cka", "fc1", 1]
    assert row["pairs"] == len(several) == 3, "the same training run again is no pair of a mean"
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(several), min(several), max(several)))
    tables = [one for one in read.tables if "represented" in one["class"]]
    assert [one["head"] for one in tables] == [
        [["layer", "epoch 1", "epoch 2", "end"]], [["tensor", "epoch 1", "epoch 2", "end"]],
    ]  # fmt: skip
    assert tables[0]["rows"][0][:2] == [
        "fc1",
        f"{figures(row['mean'])} {figures(row['low'])}\u2013{figures(row['high'])}",
    ]
    assert "They say nothing about the function" in read.text


def test_what_is_read_from_maps_is_not_taken_for_how_models_answer(made, read):
    worth = {(one["family"], one["measure"]): one for one in made.twin["performances"]}
    own = values(made, family="twins", measure="accuracy", part="")
    assert worth["twins", "accuracy"]["mean"] == pytest.approx(
        np.mean([float(one["value"].mean()) for one in own.values()])
    )
    rows = [row for row in made.twin["readings"] if row["family"] == "twins"]
    assert [(row["method"], row["control"], len(row["models"])) for row in rows] == [
        ("gradient", False, 4), ("edge_map", True, 4),
    ]  # fmt: skip
    alone = values(made, family="twins", method="gradient", part="read from the map alone")
    shares = [float(one["value"].mean()) for one in alone.values()]
    assert list(rows[0]["models"].values()) == pytest.approx(shares)
    assert rows[0]["mean"] == pytest.approx(np.mean(shares))
    assert rows[0]["answers"] == worth["twins", "accuracy"]["mean"]
    assert rows[0]["chance"] == 0.1
    shown = read.rows("readings")[0]
    assert shown[1:5] == ("twins", shown[2], number(rows[0]["answers"], 3), "0.100")
    assert shown[2].startswith(number(rows[0]["mean"], 3))


def test_every_column_of_a_measure_is_shown_with_what_it_counts(made, read):
    rows = [row for row in made.twin["judged"] if row["family"] == "folds" and row["member"] == "without fold 0"]
    assert [(row["measure"], row["column"], row["examples"], row["unit"]) for row in rows] == [
        ("accuracy", "value", 20, "images"), ("auc", "value", 10, "classes"), ("infidelity", "value", 20, "images"),
        ("infidelity", "rescaled", 20, "images"),
    ]  # fmt: skip
    shown = {row[0]: row[3] for row in read.rows("judged")}
    assert (shown["auc"], shown["infidelity: rescaled"]) == ("10 classes", "20")


def test_columns_of_a_measure_of_sets_are_means_over_pairs(made, read):
    measure = "kolmogorov_smirnov of L2-scaled maps"
    pairs = values(made, family="twins", method="gradient", label=measure)
    pooled = [float(one["pooled"]) for (_, b), one in pairs.items() if b != "nothing 1"]
    (row,) = [
        row for row in made.twin["distances"]
        if (row["family"], row["method"], row["column"]) == ("twins", "gradient", "pooled")
    ]  # fmt: skip
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(pooled), min(pooled), max(pooled)))
    assert {row["column"] for row in made.twin["distances"]} == {"value", "pooled", "rejected"}
    table = next(one for one in read.tables if "distances" in one["class"])
    assert table["head"] == [["method", "value", "pooled", "rejected", "pairs", "un- defined"]]
    assert table["rows"][1][0] == "gradient explained twice"


def test_causes_are_the_rows_of_their_summaries_with_models_by_name(made, read):
    causes = made.twin["causes"]
    assert {(row["summary"].partition("(")[0], row["measure"]) for row in causes} == {
        ("variance_shares", "squared_distance"), ("modes", "cosine"),
    }  # fmt: skip
    assert {row["family"] for row in causes} == {"twins", "folds", "averaging ensembles"}
    (mode,) = [
        row["column"] for row in causes
        if row["family"] == "folds" and row["method"] == "gradient" and row["condition"] == "all"
        and row["summary"].startswith("modes")
    ]  # fmt: skip
    assert re.fullmatch(r"one mode: without fold 0, without fold 1 \(medoid without fold [01]\)", mode)
    assert len(read.rows("causes")) == len(causes)
    assert "What explains the disagreement" in read.text


def test_the_medoid_of_a_mode_is_marked_among_the_pictures(made, read):
    """Of each family that which its row names; twins of which not every two are compared have no modes."""
    marked = {
        (one.family, strip.name.partition(", medoid of ")[0])
        for one in galleries(made.experiment, Desk(made.store, Place()))
        for strip in one.strips if ", medoid of " in strip.name
    }  # fmt: skip
    told = {
        (row["family"], row["column"].rpartition("(medoid ")[2].removesuffix(")"))
        for row in made.twin["causes"]
        if row["condition"] == "all" and row["method"] == "gradient" and "(medoid " in row["column"]
    }
    assert marked == told
    assert len(marked) >= 2
    assert all(f"{name}, medoid of the one mode" in read.text for _, name in marked)
    assert "its maps stand for theirs" in read.text


def test_the_answers_after_every_kept_epoch_are_in_the_store(made):
    judged = [one for one in made.experiment.goals() if (one.family, one.measure.use) == ("epochs", "accuracy")]
    answers = {goal.spec.of.subject.epoch: made.store.tensors(goal.spec.of)["logits"] for goal in judged}
    assert {epoch: list(logits.shape) for epoch, logits in answers.items()} == {
        None: [20, 10], 1: [20, 10], 2: [20, 10]
    }  # fmt: skip
    assert not torch.equal(answers[1], answers[2])


def test_a_distance_is_called_one(made):
    better = {line["measure"]: line["better"] for line in made.twin["lines"]}
    assert better == {"cosine": "higher", "squared_distance": "lower"}
    assert "agree-<br>ment" in made.page
    assert "dis-<br>tance" in made.page
    assert "Of a distance less is more alike" in made.page


def test_the_mean_and_the_deviation_are_those_of_the_maps_above_them(made):
    found = galleries(made.experiment, Desk(made.store, Place()))
    assert [(one.family, [strip.name for strip in one.strips[-2:]]) for one in found if one.kind == "twins"] == [
        (family, ["mean of these maps", "their deviation"]) for family in ("twins", "folds", "averaging ensembles")
    ]
    (gallery,) = [one for one in found if one.family == "folds"]
    folds = made.experiment.families[1]
    method = made.experiment.methods[0]
    maps = torch.stack([
        made.store.tensors(made.experiment.maps_of(member, method))["maps"]
        for member in made.experiment.members_of(folds)
    ]).sum(2)  # fmt: skip
    ids = [int(re.search(r"example (\d+)", caption)[1]) for caption in gallery.captions]
    mean, deviation = maps.mean(0)[ids], maps.std(0)[ids]
    limit = limit_of(torch.cat(list(maps[:, ids])))
    assert gallery.strips[-2].limit == pytest.approx(limit)
    assert gallery.strips[-1].limit == pytest.approx(limit_of(deviation), rel=1e-5)
    for strip, expected in (
        (gallery.strips[-2], [signed(one, limit) for one in mean]),
        (gallery.strips[-1], [unsigned(one, limit_of(deviation)) for one in deviation]),
    ):
        for picture, other in zip(strip.pictures, expected, strict=True):
            assert np.abs(pixels(picture) - pixels(other)).max() <= 12, "at most a step of the colours"
    (epochs,) = [one for one in found if one.kind == "epochs"]
    assert [strip.name for strip in epochs.strips] == ["example", "epoch 1", "epoch 2", "epoch 4"]


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))).convert("RGB")).astype(int)


def test_every_choice_is_named(made):
    chosen = made.twin["chosen"]
    assert chosen["Weights"] == "their mean after epoch 4 and every later one (SWA)"
    assert chosen["Twins"].endswith("nothing 0, 1; a subset is 80 % of the training examples")
    assert chosen["Folds"].startswith("2 trainings")
    assert chosen["Ensembles"] == "2 ensembles, each the mean probability of 2 models"
    assert chosen["Maps compared by"] == "cosine; squared_distance; kolmogorov_smirnov of L2-scaled maps"
    assert chosen["Summaries of"] == "all images; both models right"
    assert chosen["Layers compared by"] == "cka, of fc1, fc2, at all places"
    assert chosen["Weights compared by"] == "weight_distance, of fc1.weight"
    assert "for 1 epochs" in chosen["Explanation accuracy"]
