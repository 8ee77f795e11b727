"""Which rows stand together in a table, and which are folded away."""

import pytest
from tests.reporting.rows import distance, epoch, line, represented, stage, strained, told

from consilience.reporting.alone import Judged
from consilience.reporting.layout import (
    blocks,
    classified,
    distance_tables,
    matrices,
    pivots,
    represented_tables,
)


def test_a_single_factor_is_not_shown_twice():
    (block,) = blocks([line(), line(column="init"), line(0.3, column="several")])
    assert [row.column for row in block.methods[0]] == ["overall", "several"]
    (block,) = blocks([line(kind="models"), line(kind="models", column="model")])
    assert [row.column for row in block.methods[0]] == ["overall"]


def test_everything_is_shown_beside_factors_and_not_twice():
    (block,) = blocks([line(), line(column="everything"), line(column="nothing")])
    assert [row.column for row in block.methods[0]] == ["overall", "nothing"]
    (block,) = blocks([line(), line(column="init"), line(column="everything")])
    assert [row.column for row in block.methods[0]] == ["overall", "everything"]


def test_consistency_of_everything_is_shown_once_and_that_of_nothing_beside_it():
    columns = ["overall", "nothing", "everything"]
    (table,) = classified([told(column=column) for column in columns], [])
    assert table.factors == ["nothing"]
    (table,) = classified([told(column=column) for column in ("overall", "init", "everything")], [])
    assert table.factors == ["everything"]


def test_without_a_row_of_all_pairs_there_is_no_table_of_consistency():
    assert classified([told(column="several")], []) == []


def test_controls_show_their_overall_row_and_fold_the_rest():
    columns = ["overall", "init", "order"]
    (block,) = blocks(
        [line(method=m, control=m == "edge_map", column=c) for m in ("gradient", "edge_map") for c in columns]
    )
    assert [len(rows) for rows in block.methods] == [3, 1]
    assert [[row.column for row in rows] for rows in block.folded] == [["init", "order"]]


def test_every_stage_of_a_control_stays_with_its_cascade():
    (block,) = blocks([stage(column="a", control=True), stage(column="b", control=True)])
    assert [len(rows) for rows in block.methods] == [2]


def test_consistency_without_a_floor_or_factors_leaves_their_cells_empty():
    (table,) = classified([told(), told(column="init"), told(method="other", column="init")], [])
    assert table.factors == []
    (row,) = table.rows
    assert (row.overall.column, row.several, row.floor) == ("overall", None, None)


def test_a_measure_that_tells_maps_apart_is_shaded_the_other_way_round():
    page, _ = strained()
    groups = matrices(page.matrices, page.told)
    assert [(group.measure, group.apart) for group in groups] == [("cosine", False), ("separability", True)]


def test_rows_of_a_condition_stand_below_those_of_all_images_and_fold_their_factors():
    rows = [line(column=c, condition=k) for k in ("both_right", "all") for c in ("overall", "init", "order")]
    (block,) = blocks(rows)
    assert [[(row.column, row.condition) for row in group] for group in block.methods] == [
        [("overall", "all"), ("init", "all"), ("order", "all"), ("overall", "both_right")]
    ]
    assert [[(row.column, row.condition) for row in group] for group in block.folded] == [
        [("init", "both_right"), ("order", "both_right")]
    ]


def test_the_same_training_run_again_is_shown_though_a_single_factor_was_varied():
    (block,) = blocks([line(), line(column="init"), line(column="nothing")])
    assert [row.column for row in block.methods[0]] == ["overall", "nothing"]


def test_consistency_of_a_condition_has_the_floor_of_that_condition():
    floors = [told(0.9, kind="floor", family="floor"), told(0.8, kind="floor", family="floor", condition="both_right")]
    (table,) = classified([told(0.5), told(0.4, condition="both_right"), *floors], [])
    assert [(row.overall.consistency, row.floor.consistency) for row in table.rows] == [(0.5, 0.9), (0.4, 0.8)]


def test_columns_of_a_measure_of_sets_stand_side_by_side_above_one_model_explained_twice():
    rows = [distance(name, value, **rest) for rest in ({}, {"kind": "floor", "family": "floor"})
            for name, value in (("value", 0.3), ("pooled", 0.2))]  # fmt: skip
    (table,) = distance_tables([*rows, distance("value", 0.1, method="other"), distance("pooled", 0.1, method="other")])
    assert (table.family, table.columns) == ("twins", ["value", "pooled"])
    assert [(row[0].method, row[0].kind, [cell.mean for cell in row]) for row in table.rows] == [
        ("gradient", "twins", [0.3, 0.2]), ("gradient", "floor", [0.3, 0.2]), ("other", "twins", [0.1, 0.1]),
    ]  # fmt: skip


@pytest.mark.parametrize("last", ["end", "chosen"])
def test_epochs_are_columns_in_their_order_and_the_last_is_how_models_are_explained(last):
    rows = [represented("conv1", last, 0.9), represented("conv1", 10, 0.8), represented("fc1", 2, 0.7)]
    (table,) = represented_tables(rows)
    assert table.epochs == [2, 10, last]
    assert table.parts == ["conv1", "fc1"]
    assert [[cell and cell.mean for cell in row] for row in table.cells] == [[None, 0.8, 0.9], [0.7, None, None]]


def test_a_measure_of_several_columns_has_a_row_each_and_one_over_classes_says_so():
    def judged(member="base", **rest):
        row = ["epochs", "epochs", "infidelity", "lower", "", False, member, 9, 0, 0.5, 0.5]
        return Judged(*row, **rest)

    rows = [judged(), judged(column="rescaled"), judged(unit="classes", column="f1"), judged("epoch 1")]
    (pivot,) = pivots(rows)
    assert [row.measure for row in pivot.rows] == [
        "infidelity", "infidelity: rescaled", "infidelity: f1, mean over classes",
    ]  # fmt: skip
    assert pivot.models == ["epoch 1", "base"], "the finished model is the last"


def test_earlier_epochs_are_a_table_of_their_own():
    kinds = [(block.family, block.kind) for block in blocks([line(), epoch(), epoch(column="epoch 2")])]
    assert kinds == [("twins", "twins"), ("epochs", "epochs")]
