"""Which rows stand together in a table, and which are folded away."""

from tests.reporting.rows import line, stage, strained, told

from consilience.reporting.layout import blocks, classified, matrices


def test_a_single_factor_is_not_shown_twice():
    (block,) = blocks([line(), line(column="init"), line(0.3, column="several")])
    assert [row.column for row in block.methods[0]] == ["overall", "several"]
    (block,) = blocks([line(kind="models"), line(kind="models", column="model")])
    assert [row.column for row in block.methods[0]] == ["overall"]


def test_controls_show_their_overall_row_and_fold_the_rest():
    columns = ["overall", "init", "order"]
    (block,) = blocks(
        [line(method=m, control=m == "edge_map", column=c) for m in ("gradient", "edge_map") for c in columns]
    )
    assert [len(rows) for rows in block.methods] == [3, 1]
    assert [[row.column for row in rows] for rows in block.controls] == [["init", "order"]]


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
