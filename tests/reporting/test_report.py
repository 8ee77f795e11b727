"""The page and its twin: the same numbers, self-contained, true about what is missing, safe with any text."""

import itertools
import json
import re
from collections import Counter

import msgspec
import pytest
import torch
from tests.reporting.reading import Reading
from tests.reporting.rows import HOSTILE, represented
from tests.reporting.test_charts import contrast, rgb

from consilience import report
from consilience.errors import DiskError
from consilience.experiment.desk import Desk, Place
from consilience.experiment.specs import Weights
from consilience.reporting.choices import chosen
from consilience.reporting.grades import number
from consilience.reporting.html import breakable, reference, rendered
from consilience.reporting.page import page_of


@pytest.fixture(scope="module")
def read(written):
    """What stands on the page of the run."""
    return Reading(written.page)


def named(row):
    return f"{row['method']} (control)" if row["control"] else row["method"]


def interval(row):
    return f"{number(row['low'])} to {number(row['high'])}" if row["low"] is not None else "\u2013"


def of(row):
    """What a row says of the images that it is of, where they are not all."""
    return {"all": "", "both_right": ", both models right", "both_agree": ", both models agree"}[row["condition"]]


def agreement_row(row):
    """A row of the twin as its table shows it."""
    shown = interval(row) if row["estimate"] is not None else "no scale"
    ends = [number(row[key]) for key in ("wrong_image", "agreement", "floor")]
    counts = [str(row[key]) for key in ("pairs", "examples", "undefined")]
    return (named(row), row["column"] + of(row), number(row["estimate"]), shown, "", *ends, *counts)


def consistency_cell(row):
    if row is None or row["consistency"] is None:
        return "\u2013"
    return f"{number(row['consistency'])} {number(row['low'])}\u2013{number(row['high'])}"


def judged_row(row):
    values = [number(row["mean"], 4), number(row["median"], 4)]
    return (
        row["measure"],
        row["method"] or "\u2013",
        row["member"],
        str(row["examples"]),
        str(row["undefined"]),
        *values,
    )


def twin_of(page):
    """What the JSON twin of a page made by hand holds."""
    return json.loads(msgspec.json.encode(page))


def test_every_row_of_agreement_is_on_the_page_and_in_the_twin(written, read):
    assert Counter(read.rows("agreement")) == Counter(map(agreement_row, written.twin["lines"]))
    assert len(written.twin["lines"]) == 4 * 2 * (4 + 2)


def test_every_model_is_judged_alike_on_the_page_and_in_the_twin(written, read):
    judged = written.twin["judged"]
    assert read.rows("judged") == [judged_row(row) for row in judged]
    means = {(row["measure"], row["method"] or "\u2013", row["member"]): row["mean"] for row in judged}
    pivots = [table for table in read.tables if table["class"] == "pivot"]
    shown = {
        (row[0], row[1], model): cell
        for table in pivots
        for row in table["rows"]
        for model, cell in zip(table["head"][0][3:], row[3:], strict=True)
    }
    assert shown == {place: number(mean, 4) for place, mean in means.items()}
    accuracy = [row for row in judged if row["measure"] == "accuracy"]
    assert [row["member"] for row in accuracy] == ["base", "init 1", "order 1", "down to fc2", "all layers"]
    assert all(0 <= row["mean"] <= 1 for row in accuracy)
    gaps = {row["method"] for row in judged if row["measure"] == "completeness_gap"}
    assert gaps == {"integrated_gradients(steps=4)"}, "completeness is promised by methods with a baseline only"


def test_every_pair_is_on_the_page_and_in_the_twin(written, read):
    expected = [
        (name, *("" if at == outer else number(value) for at, value in enumerate(values)))
        for one in sorted(written.twin["matrices"], key=lambda one: one["measure"])
        for outer, (name, values) in enumerate(zip(one["names"], one["values"], strict=True))
    ]
    assert read.rows("matrix") == expected
    assert len(expected) == 2 * 2 * 3


def test_consistency_stands_as_one_row_a_method_with_the_numbers_of_the_twin(strained_page):
    page, text = strained_page
    read, twin = Reading(text), twin_of(page)
    table = next(one for one in read.tables if one["class"] == "consistency")
    assert table["head"] == [
        ["method", "of", "C overall", "alpha (pairs)", "init", "order", "noise", "augment", "dropout_rate", "several",
         "exchange- able", "explained twice", "p", "accuracy (models)", "auc (models)", "images", "un- defined"]
    ]  # fmt: skip
    worth = [
        f"{number(one['mean'], 3)} {number(one['lowest'], 3)}\u2013{number(one['highest'], 3)}"
        for one in twin["performances"]
    ]
    words = {"all images": "all", "both right": "both_right", "both agree": "both_agree"}
    assert [row[1] for row in table["rows"]] == ["all images", "both agree"] * 4
    for row in table["rows"]:
        place = ("twins", row[0], words[row[1]])
        rows = [one for one in twin["told"] if (one["family"], one["method"], one["condition"]) == place]
        mine = {one["column"]: one for one in rows}
        if row[1] == "both agree":
            assert row[2:4] == [consistency_cell(mine["overall"]), "6"]
            assert row[-4:-2] == ["", ""], "how the models answer stands beside the row of all images"
            continue
        floor = next(one for one in twin["told"] if one["method"] == row[0] and one["kind"] == "floor")
        overall = mine.pop("overall")
        assert row == [
            row[0], row[1], consistency_cell(overall), str(overall["pairs"]), *map(consistency_cell, mine.values()),
            number(overall["null"]), consistency_cell(floor), number(overall["p"], 3), *worth,
            str(overall["examples"]), str(overall["undefined"]),
        ]  # fmt: skip
    every = [
        (row["method"], row["measure"],
         ("explained twice" if row["kind"] == "floor" else row["column"]) + of(row),
         number(row["consistency"]), interval(row), number(row["smallest"]), number(row["null"]), number(row["p"], 3),
         *(str(row[key]) for key in ("pairs", "examples", "undefined")))
        for row in twin["told"]
    ]  # fmt: skip
    assert read.rows("told") == every


def test_the_strained_page_shows_every_row_of_its_twin(strained_page):
    page, text = strained_page
    read, twin = Reading(text), twin_of(page)
    assert Counter(read.rows("agreement")) == Counter(map(agreement_row, twin["lines"]))
    assert read.rows("judged") == [judged_row(row) for row in twin["judged"]]
    assert len(read.rows("matrix")) == 8 * 12


def test_performance_beside_consistency_is_of_the_compared_models(written):
    judged = written.twin["judged"]
    mine = [row["mean"] for row in judged if row["measure"] == "accuracy" and row["kind"] == "twins"]
    (one,) = written.twin["performances"]
    assert (one["family"], one["measure"]) == ("twins", "accuracy")
    assert (one["lowest"], one["mean"], one["highest"]) == pytest.approx((min(mine), sum(mine) / 3, max(mine)))


def test_agreement_in_the_table_is_the_mean_of_the_stored_values(written):
    pairs = [
        goal for goal in written.experiment.goals()
        if goal.b and goal.family == "twins" and goal.method.label == "gradient" and goal.measure.label == "spearman"
    ]  # fmt: skip
    single = [goal for goal in pairs if "base" in (goal.a, goal.b)]
    values = torch.stack([written.store.tensors(goal.spec)["value"] for goal in single])
    (row,) = [
        one for one in written.twin["lines"]
        if (one["method"], one["measure"], one["column"]) == ("gradient", "spearman", "overall")
    ]  # fmt: skip
    assert row["pairs"] == len(single) == 2
    assert row["agreement"] == pytest.approx(float(values.nanmean()))
    assert row["undefined"] == int(values.isnan().sum())
    assert row["floor"] == pytest.approx(1)


def test_a_method_without_draws_explained_twice_agrees_with_itself_and_a_random_map_has_no_scale(written):
    for row in written.twin["lines"]:
        if row["method"] == "random_map":
            assert row["control"]
            assert row["estimate"] is None
        else:
            assert row["floor"] == pytest.approx(1)
            assert row["low"] <= row["estimate"] <= row["high"]


def test_a_stranger_finds_verdict_evidence_floor_worst_factor_and_advice_in_the_opening(written, read):
    """The five questions, answered by what can be read before the first table."""
    opening = " ".join(read.opening.split())
    assert re.search(r"(Twins of this model|These models) explain the same image alike", opening), "the verdict"
    assert "20 images and 3 models (a base and 2 twins), compared in 2 pairs" in opening, "images and twins"
    floor = r"Explained twice, one model agrees with itself at 1\.00 by cosine; maps of other images agree at \d"
    assert re.search(floor, opening), "the floor"
    assert re.search(r"Worst factor \w+.*(changes explanations most|intervals overlap)", opening), "the worst factor"
    assert re.search(r"What to do next (Do not|Work on|Give|Compare|Go on|Ask next)", opening), "what to do next"
    for one in written.twin["answer"]["methods"]:
        assert f"{one['method']} {one['grade']} {number(one['estimate'])} ({interval(one)})" in opening
    assert re.search(r"With all layers drawn anew, .* of its likeness is left", opening)


def test_the_answer_stands_before_every_table(written):
    assert written.page.index('id="answer"') < written.page.index("<table")


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(written, strained_page):
    for page in (written.page, strained_page[1]):
        read = Reading(page)
        assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
        assert "@import" not in page
        assert "url(" not in page
        assert "<script" not in page
        inside = [link.removeprefix("#") for link in read.links if link.startswith("#")]
        assert set(inside) <= set(read.ids)
        assert len(set(read.ids)) == len(read.ids)


def test_the_outline_has_no_gaps_and_pictures_have_words(written, strained_page):
    for page in (written.page, strained_page[1]):
        read = Reading(page)
        levels = [level for level, _ in read.headings]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert all(text.strip() for _, text in read.headings)
        for one in read.pictures:
            assert one.get("alt") or one.get("aria-label"), one
        assert page.startswith('<!doctype html>\n<html lang="en">')


def test_text_that_users_bring_is_escaped(written, strained_page):
    assert "Twins &lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in written.page
    page = strained_page[1]
    assert "<b onload" not in page
    assert 'alert(1)">' not in page
    assert HOSTILE in Reading(page).text, "and is read as it was written"


def test_text_has_a_contrast_of_four_and_a_half_everywhere(written):
    colours = dict(re.findall(r"--(\w+): (#\w{6})", written.page))
    for ink in ("ink", "soft", "mark"):
        for paper in ("#ffffff", colours["wash"]):
            assert contrast(rgb(colours[ink]), rgb(paper)) >= 4.5
    badges = re.findall(r"\.badge\.\w+ \{ color: (#\w{6})", written.page)
    assert len(badges) == 3
    assert all(contrast(rgb(badge), (255, 255, 255)) >= 4.5 for badge in badges)


def test_five_digits_are_shown_under_each_twin_and_each_stage(read):
    alts = [one["alt"] for one in read.pictures if one["tag"] == "img"]
    for model in ("base", "init 1", "order 1", "down to fc2", "all layers"):
        shown = [alt for alt in alts if alt.endswith(f"explained by gradient, model {model}")]
        assert len(shown) == (10 if model == "base" else 5), "the untouched model stands above its cascade too"
    assert any(alt.startswith("3 (example") for alt in alts)
    assert not [alt for alt in alts if "random_map" in alt]


def test_what_was_not_made_is_said(written, tmp_path):
    page = report(written.experiment, tmp_path / "empty", tmp_path / "page.html").read_text("utf-8")
    goals = len(written.experiment.goals())
    assert f"{goals} of the numbers that belong here were not made" in page
    assert "Nothing was compared" in page
    Reading(page)


def test_what_was_made_in_part_is_shown_and_the_rest_counted(written, tmp_path):
    """Rows of the goals that are there; the others are counted, not invented."""
    page = page_of(written.experiment, Desk(written.store, Place()))
    kept = [row for row in page.lines if row.kind == "cascade"]
    page.lines, page.missing = kept, 7
    page.answer.methods = []
    text = rendered(page, [])
    assert "7 of the numbers that belong here were not made" in text
    assert 'id="agreement"' not in text
    assert 'id="cascade"' in text


def test_a_page_that_cannot_be_written_says_why(written, tmp_path):
    with pytest.raises(DiskError, match="expected a folder to write into, found none"):
        report(written.experiment, written.store, tmp_path / "nowhere" / "page.html")


def test_every_paper_behind_the_page_is_cited(written):
    assert {"sundararajan2017axiomatic", "spearman1904proof"} <= set(written.twin["references"])
    assert "Axiomatic Attribution for Deep Networks" in written.page
    assert reference("watson2022agree").endswith("Applications of Computer Vision, 2022.")
    assert reference("of_a_plug_in") == "of_a_plug_in"


def test_long_names_may_be_broken_between_their_words_and_are_escaped():
    assert breakable("integrated_gradients(of=<b>)") == "integrated_<wbr>gradients(<wbr>of=&lt;b&gt;)"


def test_a_page_names_the_weights_from_which_trainings_started_and_their_content(written):
    assert "Starts from" not in chosen(written.experiment)
    start = Weights.lying("photos.pth", "0123456789abcdef")
    base = msgspec.structs.replace(written.experiment.base, start=start)
    said = chosen(msgspec.structs.replace(written.experiment, base=base))
    assert said["Starts from"] == "photos.pth (content 0123456789ab)"


def test_a_layer_that_is_undefined_for_pairs_is_counted_also_where_it_is_for_all(strained_page):
    page, _ = strained_page
    none = {"mean": None, "low": None, "high": None}
    rows = [represented(), represented("fc1", undefined=2), represented("fc2", undefined=6, **none)]
    read = Reading(rendered(msgspec.structs.replace(page, represented=[*rows, represented(epoch=1)]), []))
    assert [cells[1:] for cells in read.rows("represented")] == [
        ("0.900 0.800\u20131.000", "0.900 0.800\u20131.000"),
        ("\u2013", "0.900 0.800\u20131.000 2 undefined"),
        ("\u2013", "\u2013 6 undefined"),
    ]
