"""Bars of variance shares: what is no share is not drawn, and what is drawn can be read."""

import pytest
from tests.reporting.rows import cause
from tests.reporting.test_charts import contrast, rgb

from consilience.measures.variance import TOGETHER
from consilience.reporting.causes import ENDS, FACTORS, cause_tables


def test_a_bar_is_made_of_the_shares_and_one_below_zero_has_no_width():
    rows = [cause("explainer", 0.2), cause("init", 0.9), cause("order", -0.1), cause("image", 0.0), cause("x", None)]
    (table,) = cause_tables([*rows, cause(TOGETHER, 0.8)])
    (bar,) = table.bars
    assert [(one.name, one.value) for one in bar.shares] == [
        ("explainer", 0.2), ("init", 0.9), ("order", -0.1), ("image", 0.0),
    ]  # fmt: skip
    assert [one.width for one in bar.shares] == pytest.approx([100 * 0.2 / 1.1, 100 * 0.9 / 1.1, 0, 0])
    assert [row.column for row in table.methods[0]][-1] == TOGETHER, "the check stands in the table"


def test_a_source_has_one_colour_whatever_else_was_varied():
    few, many = (
        cause_tables([cause(name) for name in names])[0].bars[0].shares
        for names in (["explainer", "init", "image"], ["explainer", "init", "order", "noise", "image"])
    )
    colours = {one.name: one.colour for one in many}
    assert all(colours[one.name] == one.colour for one in few)
    assert len(set(colours.values())) == 5


def test_methods_conditions_and_summaries_are_kept_apart():
    rows = [cause("init"), cause("init", method="b"), cause("init", condition="both_right"), cause("m", summary="own")]
    tables = cause_tables(rows)
    assert [(one.summary, one.condition, len(one.methods), len(one.bars)) for one in tables] == [
        ("variance_shares", "all", 2, 2), ("own", "all", 1, 0), ("variance_shares", "both_right", 1, 1),
    ]  # fmt: skip


def test_without_any_variance_there_is_no_bar():
    assert cause_tables([cause("explainer", 0.0), cause("image", None)])[0].bars == []


@pytest.mark.parametrize("colour", [*FACTORS, *ENDS.values()])
def test_white_letters_can_be_read_on_every_share(colour):
    assert contrast(rgb(colour), (255, 255, 255)) >= 4.5
