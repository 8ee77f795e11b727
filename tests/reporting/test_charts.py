"""Drawings are well-formed, say what they leave out, and can be read."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from tests.reporting.rows import HOSTILE, epoch, line, stage

from consilience.reporting.charts import HIGH, cascade_charts, epoch_charts, shade
from consilience.reporting.curves import COLOURS, GREY, INK, INSIDE, TOP, WIDTH


def drawn(*stages):
    """The first chart, parsed."""
    chart = cascade_charts(stages)[0]
    return chart, ElementTree.fromstring(chart.drawing)


def texts(root, kind):
    return [element.text for element in root.iter("text") if element.get("class") == kind]


def luminance(colour):
    """Relative luminance after WCAG 2.1."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def rgb(text):
    if text.startswith("rgb"):
        return [int(part) for part in re.findall(r"\d+", text)]
    digits = text.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * one for one in digits)
    return [int(digits[at : at + 2], 16) for at in (0, 2, 4)]


def test_a_curve_starts_at_the_untouched_model_and_passes_through_every_stage():
    chart, root = drawn(stage(0.5, column="down to fc"), stage(0.0))
    assert texts(root, "tick")[3:] == ["untouched", "down to fc", "all layers", "layers drawn anew"]
    heights = [float(dot.get("cy")) for dot in root.iter("circle")]
    assert len(heights) == 3
    one, half, none = heights
    assert half - one == pytest.approx(none - half, abs=0.2), "the axis is linear"
    assert [dot.find("title").text for dot in root.iter("circle")][1] == "gradient: 0.50 (0.49 to 0.51)"
    assert (chart.stages, chart.without) == ([], [])


def test_cascades_and_measures_have_a_drawing_each():
    rows = [stage(), stage(measure="ssim"), stage(family="bottom up"), line()]
    assert [(one.family, one.measure) for one in cascade_charts(rows)] == [
        ("randomised", "cosine"), ("randomised", "ssim"), ("bottom up", "cosine"),
    ]  # fmt: skip
    assert cascade_charts([line()]) == []


def test_controls_are_grey_and_methods_are_not():
    _, root = drawn(stage(0.1), stage(1.0, method="edge_map", control=True))
    names = {element.text: element.get("fill") for element in root.iter("text") if element.get("class") == "name"}
    assert names == {"gradient": COLOURS[0], "edge_map (control)": GREY}


def test_a_method_without_a_scale_has_no_curve_and_is_named():
    chart, _ = drawn(stage(0.1), stage(None, method="random_map", control=True))
    assert chart.without == ["random_map"]
    assert "random_map" not in chart.drawing
    alone, _ = drawn(stage(None))
    assert alone.without == ["gradient"]
    assert "nothing has a scale" in alone.drawing


def test_a_curve_is_interrupted_where_there_is_no_scale():
    _, root = drawn(stage(0.8, column="a"), stage(None, column="b"), stage(0.2, column="c"))
    runs = [element.get("points").split() for element in root.iter("polyline") if element.get("class") != "lead"]
    assert [len(run) for run in runs] == [2, 1]


def test_what_lies_beyond_the_drawing_is_a_triangle_with_its_value():
    _, root = drawn(stage(HIGH + 1, column="a"), stage(-3.0, column="b"), stage(0.5, column="c"))
    marks = [element for element in root.iter("path") if element.get("class") == "beyond"]
    assert len(marks) == 2
    assert "2.10" in texts(root, "tick")
    assert "\u22123.00" in texts(root, "tick")
    for element in root.iter("line"):
        assert TOP <= float(element.get("y1")) <= TOP + INSIDE


def test_many_stages_are_numbered_and_their_names_listed():
    chart, root = drawn(*(stage(0.5, column=f"down to layer{i}.0.conv1") for i in range(20)))
    assert texts(root, "tick")[3:6] == ["0", "1", "2"]
    assert chart.stages == [f"down to layer{i}.0.conv1" for i in range(20)]
    places = [
        float(e.get("x")) for e in root.iter("text") if (e.text or "").isdigit() and e.get("text-anchor") == "middle"
    ]
    assert min(b - a for a, b in itertools.pairwise(places)) > 14


@pytest.mark.parametrize("count", [1, 2, 7, 25])
def test_names_at_the_ends_never_cover_each_other_and_stay_inside(count):
    _, root = drawn(*(stage(0.5 + index / 1000, method=f"method {index}") for index in range(count)))
    places = sorted(float(e.get("y")) for e in root.iter("text") if e.get("class") == "name")
    assert len(places) == count
    assert all(b - a >= 15.9 for a, b in itertools.pairwise(places))
    _, _, width, height = map(float, root.get("viewBox").split())
    assert places[0] > 8
    assert places[-1] < height
    assert width == WIDTH


def test_long_and_hostile_names_are_shortened_and_escaped():
    _, root = drawn(stage(0.5, method=HOSTILE, column=HOSTILE), stage(0.4, method="m" * 80))
    names = [element for element in root.iter("text") if element.get("class") == "name"]
    assert names[1].find("title").text == "m" * 80
    assert names[1].find("title").tail.endswith("\u2026")
    assert len(names[1].find("title").tail) < 30
    assert HOSTILE in root.get("aria-label")
    assert not list(root.iter("b"))


@pytest.mark.parametrize("colour", [*COLOURS, GREY, INK])
def test_names_are_dark_enough_to_be_read(colour):
    assert contrast(rgb(colour), (255, 255, 255)) >= 4.5


@pytest.mark.parametrize("share", [index / 50 for index in range(51)])
def test_ink_can_be_read_on_every_shade(share):
    background, ink = re.fullmatch(r"background:(.*);color:(.*)", shade(0.2 + 0.7 * share, 0.2, 0.9)).groups()
    assert contrast(rgb(background), rgb(ink)) >= 4.5


def test_shades_go_from_white_to_dark_and_stop_at_the_ends():
    assert shade(-5.0, 0.0, 1.0) == shade(0.0, 0.0, 1.0) == "background:rgb(255,255,255);color:#000"
    assert shade(7.0, 0.0, 1.0) == shade(1.0, 0.0, 1.0)
    assert shade(0.25, 1.0, 0.0) == shade(0.75, 0.0, 1.0), "a measure that tells maps apart is dark where it is low"
    white = "background:#fff;color:#000"
    assert shade(0.5, None, None) == shade(None, 0.0, 1.0) == shade(0.5, 0.3, 0.3) == white


def test_epochs_lead_to_the_end_where_nothing_was_measured():
    (chart,) = epoch_charts([epoch(0.2, column="epoch 1"), epoch(0.7, column="epoch 4"), stage(), line()])
    root = ElementTree.fromstring(chart.drawing)
    assert texts(root, "tick")[3:] == ["1", "4", "end", "epoch of training"]
    assert [dot.find("title").text for dot in root.iter("circle")] == [
        "gradient: 0.20 (0.19 to 0.21)", "gradient: 0.70 (0.69 to 0.71)",
    ]  # fmt: skip
    assert "Likeness to the finished model" in root.get("aria-label")


def test_of_many_epochs_some_are_named_the_end_among_them():
    (chart,) = epoch_charts([epoch(0.5, column=f"epoch {i}") for i in range(1, 100)])
    named = [text for text in texts(ElementTree.fromstring(chart.drawing), "tick")[3:-1] if text]
    assert named[-1] == "end"
    assert 5 < len(named) < 30
    assert chart.stages == []


def test_a_cascade_of_a_condition_is_drawn_by_itself_after_that_of_all_images():
    charts = cascade_charts([stage(0.5, condition="both_right"), stage(0.1), stage(0.2, measure="ssim")])
    assert [(one.measure, one.condition) for one in charts] == [
        ("cosine", "all"), ("ssim", "all"), ("cosine", "both_right"),
    ]  # fmt: skip
