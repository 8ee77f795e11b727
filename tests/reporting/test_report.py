"""The page and its twin: the same numbers, self-contained, true about what is missing, safe with any text."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from consilience import Store, load, report, run
from consilience.reporting.figures import signed
from consilience.reporting.html import number, reference
from consilience.reporting.tables import Line, answer

EXPERIMENT = """
name = "Twins <script>alert(1)</script> & co"
explain = ["gradient", {use = "integrated_gradients", steps = 4}]
controls = ["random_map"]
compare = ["cosine", "spearman"]
judge = ["accuracy", "completeness_gap"]
train = {data = {use = "subset", count = 100}, model = {use = "mlp", hidden = [8]}, epochs = 1}
examples = {data = {use = "mnist10k", split = "test"}, count = 20}
family = [{type = "retrain", values = {init = [0, 1], order = [0, 1]}}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment, its store and its page."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment, store = load(folder / "experiment.toml"), Store(folder / "store")
    assert not run(experiment, store).failures
    page = report(experiment, store, folder / "page.html")
    return experiment, store, page.read_text("utf-8"), json.loads(page.with_suffix(".json").read_bytes())


def test_the_page_and_its_twin_hold_the_same_numbers(made):
    _, _, page, twin = made
    rows = re.findall(r"<tr class=\"[^\"]*\">(.*?)</tr>", page, re.DOTALL)
    assert len(rows) == len(twin["lines"]) == 3 * 2 * 4
    for row, line in zip(rows, twin["lines"], strict=True):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        interval = f"{number(line['low'])} to {number(line['high'])}" if line["estimate"] is not None else "no scale"
        assert cells[:3] == [line["column"], number(line["estimate"]), interval]
        assert cells[4:7] == [number(line[key]) for key in ("wrong_image", "agreement", "floor")]
        assert cells[7:] == [str(line[key]) for key in ("pairs", "examples", "undefined")]


def test_agreement_in_the_table_is_the_mean_of_the_stored_values(made):
    experiment, store, _, twin = made
    pairs = [
        goal for goal in experiment.goals()
        if goal.b and goal.family == "twins" and goal.method.label == "gradient" and goal.measure.label == "spearman"
    ]  # fmt: skip
    single = [goal for goal in pairs if "base" in (goal.a, goal.b)]
    values = torch.stack([store.tensors(goal.spec)["value"] for goal in single])
    (line,) = [
        one for one in twin["lines"]
        if (one["method"], one["measure"], one["column"]) == ("gradient", "spearman", "overall")
    ]  # fmt: skip
    assert line["pairs"] == len(single) == 2
    assert line["agreement"] == pytest.approx(float(values.nanmean()))
    assert line["undefined"] == int(values.isnan().sum())
    assert line["floor"] == pytest.approx(1)


def test_a_method_without_draws_explained_twice_agrees_with_itself_and_a_random_map_has_no_scale(made):
    _, _, _, twin = made
    for line in twin["lines"]:
        if line["control"]:
            assert line["method"] == "random_map"
            assert line["estimate"] is None
        else:
            assert line["floor"] == pytest.approx(1)
            assert line["low"] <= line["estimate"] <= line["high"]


def test_the_page_needs_nothing_else(made):
    page = made[2]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "@import" not in page


def test_text_that_users_bring_is_escaped(made):
    assert "<script>" not in made[2]
    assert "Twins &lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in made[2]


def test_five_digits_are_shown_under_each_twin(made):
    page = made[2]
    for twin in ("example", "base", "init 1", "order 1"):
        assert len(re.findall(rf'<img alt="{twin}, ', page)) == 2 * 5
    assert "3 (example" in page


def test_every_model_is_judged(made):
    judged = made[3]["judged"]
    accuracy = [row for row in judged if row["measure"] == "accuracy"]
    assert [row["member"] for row in accuracy] == ["base", "init 1", "order 1"]
    assert all(0 <= row["mean"] <= 1 for row in accuracy)
    gaps = {row["method"] for row in judged if row["measure"] == "completeness_gap"}
    assert gaps == {"integrated_gradients(steps=4)"}, "completeness is promised by methods with a baseline only"


def test_what_was_not_made_is_said(made, tmp_path):
    experiment = made[0]
    page = report(experiment, tmp_path / "empty", tmp_path / "page.html").read_text("utf-8")
    goals = len(experiment.goals())
    assert f"{goals} of the numbers that belong here were not made" in page
    assert "Nothing was compared" in page


def test_every_paper_behind_the_page_is_cited(made):
    assert {"sundararajan2017axiomatic", "spearman1904proof", "watson2022agree"} <= set(made[3]["references"])
    assert "Axiomatic Attribution for Deep Networks" in made[2]
    assert reference("watson2022agree").endswith("Applications of Computer Vision, 2022.")
    assert reference("of_a_plug_in") == "of_a_plug_in"


def line(estimate, low, high):
    return Line(
        family="twins", method="gradient", control=False, measure="cosine", column="overall", pairs=6, examples=50,
        undefined=0, agreement=0.5, floor=1.0, wrong_image=0.1, estimate=estimate, low=low, high=high, level=0.9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.6, 0.5, 0.7), ["agree only in part", "0.60 (90 % interval 0.50 to 0.70)", "6 pairs", "50 images"]),
        ((0.99, 0.96, 1.01), ["almost as well as one model explained twice"]),
        ((0.01, -0.02, 0.04), ["no better than maps of different images"]),
        ((None, None, None), ["cannot be placed"]),
    ],
)
def test_the_answer_says_what_the_interval_says(values, words):
    assert all(word in answer(line(*values)) for word in words)


def test_the_answer_names_the_factor_that_changes_explanations_most():
    overall, init, order = line(0.6, 0.5, 0.7), line(0.3, 0.2, 0.4), line(0.8, 0.7, 0.9)
    init.column, order.column = "init", "order"
    assert answer(overall, [overall, init, order]).endswith("They are least alike where they differ in init (0.30).")
    assert "least alike" not in answer(overall, [overall, init])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "\u2013"), (0.456, "0.46"), (-0.456, "\u22120.46"), (-0.001, "0.00")]
)
def test_numbers_are_shown_with_a_true_minus_and_no_negative_zero(value, text):
    assert number(value) == text


def test_colours_show_the_sign():
    picture = signed(torch.tensor([[-1.0, 0.0, 1.0, float("nan")]]), 1.0)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1])))).tolist()[0]
    (red_low, _, blue_low), zero, (red_high, _, blue_high), undefined = pixels
    assert blue_low > red_low
    assert red_high > blue_high
    assert min(zero) > 240
    assert undefined == [153, 153, 153]
