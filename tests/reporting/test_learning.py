"""The learning curve: true to its rows, over the numbers of images that were really used, and readable."""

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree

import msgspec
import pytest
import torch
from tests.reporting.reading import Reading
from tests.reporting.rows import HOSTILE, sized, strained, told

from consilience import Store, component, load, report, run
from consilience.data.examples import Arrays
from consilience.experiment.desk import Desk, Place
from consilience.experiment.specs import Data, Prepared
from consilience.measures.power import smallest_detectable
from consilience.reporting.curves import COLOURS, GREY, INK
from consilience.reporting.grades import number
from consilience.reporting.html import rendered
from consilience.reporting.layout import classified
from consilience.reporting.learning import learning_charts, of_most_images, sizes
from consilience.reporting.tables import _smallest
from consilience.reporting.verdicts import answer

EXPERIMENT = """
name = "Told apart by how many images"
explain = ["gradient", {use = "integrated_gradients", steps = 4}]
controls = ["edge_map"]
compare = [
  "cosine",
  {use = "separability", count = 3, permutations = 9},
  {use = "separability", count = 4, permutations = 9},
  {use = "separability", permutations = 9},
  {use = "separability", count = 4, permutations = 9, c = 0.1},
]
train = {data = {use = "subset", count = 100}, model = {use = "mlp", hidden = [8]}, epochs = 1}
examples = {data = {use = "mnist10k", split = "test"}, count = 60}
family = [{type = "retrain", values = {init = [0, 1, 2]}}]
"""
COUNTS = [5, 10, 20, None]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page and the twin of a small run that names the measure several times."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment, store = load(folder / "experiment.toml"), Store(folder / "store")
    assert not run(experiment, store).failures
    page = report(experiment, store, folder / "page.html")
    return experiment, page.read_text("utf-8"), json.loads(page.with_suffix(".json").read_bytes())


def drawn(*rows):
    """The only chart, parsed."""
    (chart,) = learning_charts(rows)
    return chart, ElementTree.fromstring(chart.drawing)


def texts(root, kind):
    return [element.text for element in root.iter("text") if element.get("class") == kind]


def dots(root):
    """Title and place of every dot."""
    return [(dot.find("title").text, float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("circle")]


def sizes_of(compare, examples, made):
    """What is found of measures on examples in memory."""
    chosen = tuple(Prepared(measure=component.measure.choose(one)) for one in compare)
    experiment = msgspec.structs.replace(made[0], compare=chosen, examples=Data(fingerprint="handed"))
    return sizes(experiment, Desk(None, Place(handed={"handed": examples} if examples else {})))


def examples_of(labels, groups=None):
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    groups = None if groups is None else torch.tensor(groups)
    return Arrays(images, torch.tensor(labels), ("a", "b", "c"), (0.5,), (0.5,), groups)


def test_every_number_of_images_is_a_tick_and_doubling_it_is_always_as_far():
    _, root = drawn(sized(1.0, 10), sized(0.5, 20), sized(0.0, 40), sized(0.0, None, 80))
    heights, ticks = ["everybody can 0", " 0.5", "nobody can tell 1"], ["10", "20", "40", "all 80"]
    assert texts(root, "tick") == [*heights, *ticks, "images of each class (logarithmic)"]
    _, across, down = zip(*dots(root), strict=True)
    gaps = [b - a for a, b in itertools.pairwise(across)]
    assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)
    assert down[1] - down[0] == pytest.approx(down[2] - down[1], abs=0.2), "C is linear"
    assert down[0] < down[1], "and 1, where nobody can tell, is above"


def test_a_dot_tells_its_method_c_and_interval():
    _, root = drawn(sized(0.6, 5), sized(0.4, None))
    assert [title for title, _, _ in dots(root)] == ["gradient: 0.60 (0.55 to 0.65)", "gradient: 0.40 (0.35 to 0.45)"]
    assert "Where most are used: gradient 0.40." in root.get("aria-label")


def test_nothing_is_drawn_of_a_single_number_of_images():
    assert learning_charts([told(), told(method="other")]) == []
    assert learning_charts([sized(0.5, 10)]) == []
    assert learning_charts([sized(0.5, 60, 50), sized(0.5, None, 50)]) == [], "no class has as many as were asked for"


def test_rows_of_factors_and_of_one_model_explained_twice_are_not_curves():
    rows = [sized(0.5, 5), sized(0.4)]
    others = [
        sized(0.1, count, **place)
        for count in (5, None)
        for place in ({"column": "init"}, {"kind": "floor", "family": "floor"})
    ]
    assert learning_charts([*rows, *others]) == learning_charts(rows)


def test_families_and_measures_have_a_drawing_each():
    rows = [sized(0.5, 5), sized(0.4), sized(0.5, 5, family="others"), sized(0.4, family="others")]
    for row in [sized(0.5, 5), sized(0.4)]:
        row.size.measure = "separability(c=0.1)"
        rows.append(row)
    found = [(one.family, one.measure) for one in learning_charts(rows)]
    assert found == [("twins", "separability"), ("others", "separability"), ("twins", "separability(c=0.1)")]


def test_controls_are_grey_and_the_null_is_a_thin_dashed_line():
    rows = [
        sized(0.5, count, method=method, control=method == "edge_map", null=null)
        for count in (5, None)
        for method, null in (("gradient", 0.9), ("grad_cam", 0.8), ("edge_map", 0.1))
    ]
    _, root = drawn(*rows)
    names = {element.text: element.get("fill") for element in root.iter("text") if element.get("class") == "name"}
    assert names == {
        "gradient": COLOURS[0], "grad_cam": COLOURS[1], "edge_map (control)": GREY, "exchangeable": INK
    }  # fmt: skip
    (reference,) = root.iter("g")
    assert reference.find("title").text == "exchangeable: 0.85, 0.85", "a mean over the methods, not the controls"
    assert reference.get("stroke-dasharray")
    assert len(dots(root)) == 6, "and the null has no dots"


def test_only_controls_have_the_null_of_controls():
    _, root = drawn(*(sized(0.5, count, method="edge_map", control=True, null=0.6) for count in (5, None)))
    assert next(root.iter("g")).find("title").text == "exchangeable: 0.60, 0.60"
    _, root = drawn(*(sized(0.5, count, null=None) for count in (5, None)))
    assert not list(root.iter("g"))


def test_a_number_that_was_not_made_interrupts_the_curve_and_a_method_without_any_is_named():
    missing = {"consistency": None, "low": None, "high": None}
    rows = [
        sized(0.8, 5), sized(0.5, 10), msgspec.structs.replace(sized(0.5, 20), **missing), sized(0.3, None),
        msgspec.structs.replace(sized(0.5, 5, method="flat"), **missing), sized(0.9, 20, method="other"),
    ]  # fmt: skip
    chart, root = drawn(*rows)
    assert chart.without == ["flat"]
    assert "flat" not in chart.drawing
    lines = [one for one in root.findall("polyline") if one.get("class") != "lead"]
    assert [len(one.get("points").split()) for one in lines] == [2, 1, 1]


def test_bars_at_one_tick_stand_beside_each_other_and_next_to_it():
    methods = [f"method {index}" for index in range(5)]
    _, root = drawn(*(sized(0.5, count, method=name) for name in methods for count in COUNTS))
    for at in range(len(COUNTS)):
        across = [x for _, x, _ in dots(root)][at :: len(COUNTS)]
        assert all(b - a >= 3 for a, b in itertools.pairwise(across))
        assert across[-1] - across[0] <= 20


@pytest.mark.parametrize("numbers", [[2, 3, 45, 48, 50], [49, 50], [10, 11, 12, 1000], list(range(1, 40))])
def test_ticks_never_cover_each_other_and_the_largest_has_its_name(numbers):
    _, root = drawn(*(sized(0.5, number) for number in numbers), sized(0.4, None, numbers[-1]))
    ticks = [(float(e.get("x")), e.text) for e in root.iter("text") if e.get("text-anchor") == "middle"][:-1]
    assert ticks[-1][1] == f"all {numbers[-1]}"
    for (left, name), (right, other) in itertools.pairwise(ticks):
        assert right - left > 3.3 * (len(name) + len(other))


def test_hostile_names_are_escaped():
    _, root = drawn(sized(0.5, 5, method=HOSTILE), sized(0.4, method=HOSTILE))
    assert HOSTILE in root.get("aria-label")
    assert not list(root.iter("b"))


def test_of_measures_that_differ_in_count_the_largest_speaks():
    small, large, other = sized(0.9, 5), sized(0.2), told(0.6, measure="separability(c=0.1)")
    assert of_most_images([small, large, other]) == [large, other]
    assert "given the most images: 0.20;" in answer([], [small, large], 3).classifier
    plain = answer([], [told(0.2)], 3).classifier
    assert "which model made a map: 0.20;" in plain
    tables = classified([small, large, other], [])
    assert [(one.measure, one.folded) for one in tables] == [
        ("separability(count=5)", True), ("separability", False), ("separability(c=0.1)", False),
    ]  # fmt: skip


def test_a_class_with_fewer_images_counts_with_those_that_it_has(made):
    labels = [0] * 2 + [1] * 5 + [2] * 8
    found = sizes_of(["separability", {"use": "separability", "count": 4}], examples_of(labels), made)
    assert {name: (one.count, one.used, one.unit) for name, one in found.items()} == {
        "separability": (None, 5.0, "images of each class"),
        "separability(count=4)": (4, pytest.approx(10 / 3), "images of each class"),
    }
    _, root = drawn(sized(0.5, 4, 10 / 3), sized(0.4, None, 5))
    assert texts(root, "tick")[3:5] == ["\u22483", "all 5"]
    _, root = drawn(sized(0.5, 4), sized(0.4, None, 5), sized(0.4, 9, 5))
    assert texts(root, "tick")[3:5] == ["4", "all 5"], "no class has nine"


def test_groups_are_counted_where_images_are_held_out_together(made):
    labels, groups = [0] * 4 + [1] * 4, [0, 0, 1, 1, 1, 2, 3, 3]
    compare = [{"use": "separability", "by": by, "count": count} for by in ("class", "pooled") for count in (2, 9)]
    found = sizes_of(compare, examples_of(labels, groups), made)
    of_each, pooled = "groups of images of each class", "groups of images"
    assert [(one.measure, one.used, one.unit) for one in found.values()] == [
        ("separability", 2.0, of_each), ("separability", 2.5, of_each),
        ("separability(by=pooled)", 2.0, pooled), ("separability(by=pooled)", 4.0, pooled),
    ]  # fmt: skip


def test_measures_that_differ_in_more_are_not_joined_and_no_example_is_read_for_them(made):
    compare = ["cosine", "separability", {"use": "separability", "count": 4, "c": 0.1}, "separability_row_split"]
    assert sizes_of(compare, None, made) == {}


def test_the_numbers_of_the_curves_are_those_of_the_twin(made):
    _, page, twin = made
    rows = [row for row in twin["told"] if row["column"] == "overall" and row["kind"] == "twins" and row["size"]]
    assert [row["size"]["count"] for row in rows] == 3 * [3, 4, None]
    assert {row["size"]["used"] for row in rows if row["size"]["count"] is None} == {6.0}, "60 digits of 10 classes"
    start = page.index("C over the number of images, by separability(permutations=9)")
    svg = page[page.index("<svg", start) : page.index("</svg>", start) + len("</svg>")]
    root = ElementTree.fromstring(svg)
    assert texts(root, "tick")[3:6] == ["3", "4", "all 6"]
    expected = [
        f"{row['method']}: {number(row['consistency'])} ({number(row['low'])} to {number(row['high'])})" for row in rows
    ]
    assert [title for title, _, _ in dots(root)] == expected
    nulls = [
        sum(row["null"] for row in rows if row["size"]["used"] == used and not row["control"]) / 2 for used in (3, 4, 6)
    ]
    assert next(root.iter("g")).find("title").text == f"exchangeable: {', '.join(map(number, nulls))}"
    across = [float(one.get("x")) for one in root.iter("text") if one.get("text-anchor") == "middle"]
    share = (across[1] - across[0]) / (across[2] - across[0])
    assert share == pytest.approx(math.log(4 / 3) / math.log(6 / 3), abs=0.002)


def test_beside_c_stands_what_one_pair_with_as_many_judged_images_can_show(made):
    rows = [row for row in made[2]["told"] if row["column"] == "overall" and row["size"] and not row["control"]]
    judged = {3: 30, 4: 40, None: 60}
    assert {row["kind"] for row in rows} == {"twins", "floor"}
    for row in rows:
        n = judged[row["size"]["count"]]
        assert row["undefined"] == row["pairs"] * (60 - n)
        assert row["smallest"] == smallest_detectable(n)


def test_where_too_few_images_are_judged_none_is_the_smallest_that_they_show():
    assert [_smallest(n) for n in (0, 4)] == [None, None]
    assert _smallest(5) == smallest_detectable(5) == pytest.approx(2 * 0.8 ** (1 / 5) - 1)


def test_a_measure_without_a_companion_has_no_curve_and_smaller_tables_are_folded(made):
    _, page, twin = made
    alone = [row for row in twin["told"] if row["measure"] == "separability(c=0.1, count=4, permutations=9)"]
    assert alone
    assert all(row["size"] is None for row in alone)
    read = Reading(page)
    assert len(read.rows("consistency")) == 4 * 3, "every measure keeps its table"
    shown = [text.strip() for _, text in read.headings if text.strip().startswith("separability")]
    assert shown == ["separability(permutations=9)", "separability(c=0.1, count=4, permutations=9)"]


def test_a_page_without_several_counts_says_nothing_of_numbers_of_images():
    page, _ = strained()
    assert "C over the number of images" in rendered(page, [])
    page.told = [row for row in page.told if row.size is None]
    text = rendered(page, [])
    assert "C over the number of images" not in text
    assert "thin dashed line" not in text
