"""The answer claims what the intervals say, and no more."""

import pytest
from tests.reporting.rows import line, stage, told

from consilience.reporting.grades import columns, grade, last_stage, left, listed, number, worst
from consilience.reporting.verdicts import answer


def said(*lines, models=4, classified=(), partial=()):
    return answer(lines, classified, models, partial)


@pytest.mark.parametrize(
    ("interval", "expected", "words"),
    [
        ((0.96, 1.02), "alike", "alike almost as well as one model explained twice."),
        ((0.95, 1.02), "at least in part", "at least in part, perhaps almost as well as one model explained twice."),
        ((0.05, 0.95), "in part", "only in part."),
        ((-0.1, 0.6), "at most in part", "at most in part, perhaps no better than maps of different images."),
        ((-0.3, 0.04), "unlike", "no better than maps of different images."),
        ((-0.3, 0.05), "at most in part", "at most in part"),
        ((-0.2, 1.1), "unclear", "to a degree that these numbers leave open."),
        ((None, None), "no scale", "to a degree that cannot be placed."),
    ],
)
def test_a_grade_is_what_the_whole_interval_says(interval, expected, words):
    low, high = interval
    row = line(None if low is None else (low + high) / 2, low, high)
    assert grade(row) == expected
    found = said(row)
    assert found.headline.startswith("Twins of this model explain the same image alike ")
    assert words in found.headline
    assert found.methods[0].grade == expected
    assert (found.methods[0].low, found.methods[0].high) == interval


def test_methods_of_different_grades_are_told_apart_in_the_first_sentence():
    rows = [line(0.5, method="a"), line(0.98, method="b"), line(0.4, method="c"), line(None, method="d")]
    assert said(*rows).headline == (
        "Twins of this model explain the same image alike almost as well as one model explained twice by b, only in "
        "part by a and c and to a degree that cannot be placed by d."
    )


def test_the_verdict_rests_on_the_first_measure_and_says_where_another_disagrees():
    found = said(line(0.98), line(0.4, measure="ssim"))
    assert found.headline.endswith("explained twice (by cosine; other measures say otherwise).")
    assert found.methods[0].agreement == "By cosine, with its 95 % interval; 0.40 by ssim."
    assert "otherwise" not in said(line(0.98), line(0.97, measure="ssim")).headline


def test_controls_are_not_judged_but_a_control_that_agrees_is_named():
    perfect = [line(1.0, method=name, control=True) for name in ("input_map", "edge_map")]
    found = said(line(0.6), *perfect, line(None, method="random_map", control=True))
    assert [one.method for one in found.methods] == ["gradient"]
    assert found.controls == "Agreement alone is no merit: the controls input_map and edge_map agree at 1.00."
    assert said(line(0.6), perfect[0]).controls.endswith("the control input_map agrees at 1.00.")
    assert said(line(0.6), line(0.3, method="edge_map", control=True)).controls == ""


def test_without_a_scale_nothing_is_said_of_how_alike_the_maps_are():
    found = said(line(None))
    assert found.methods[0].agreement == (
        "It cannot be placed by cosine: one model explained twice is not shown to be more alike than maps of different "
        "images."
    )
    assert found.next[0].startswith("Give gradient more draws, more images or another measure")


def test_evidence_counts_images_models_pairs_and_what_was_left_out():
    assert said(line(pairs=1, examples=1), models=2).evidence == (
        "1 image and 2 models (a base and 1 twin), compared in 1 pair that differ in one factor."
    )
    found = said(line(undefined=2), line(measure="ssim", undefined=1), models=7)
    assert found.evidence == (
        "50 images and 7 models (a base and 6 twins), compared in 6 pairs that differ in one factor; 3 undefined "
        "values left out."
    )


def test_the_floor_is_said_in_words_for_each_method_and_by_its_ends_for_many():
    two = [line(method="a", floor=1.0, wrong_image=0.22), line(method="b", floor=0.912, wrong_image=0.36)]
    assert said(*two).floor == (
        "Explained twice, one model agrees with itself at 1.00 (a) and 0.91 (b) by cosine; maps of other images agree "
        "at 0.22 and 0.36."
    )
    many = [
        line(method=name, floor=floor, wrong_image=0.1)
        for name, floor in zip("abcd", (0.9, 0.7, 0.8, 1.0), strict=True)
    ]
    assert "at 0.70 (b) to 1.00 (d) by cosine; maps of other images agree at 0.10." in said(*many).floor
    alike = said(line(method="a", floor=1.0), line(method="b", floor=1.0)).floor
    assert alike.startswith("Explained twice, one model agrees with itself at 1.00 by cosine;")
    assert said(line(floor=1.0)).floor.startswith("Explained twice, one model agrees with itself at 1.00 by cosine;")
    assert said(line(measure="l2", better="lower", floor=0.0, wrong_image=1.02)).floor == (
        "Explained twice, one model's maps are 0.00 apart by l2; maps of other images are 1.02."
    )


def test_of_twins_that_differ_in_every_seed_no_factor_is_named():
    found = said(line(), line(column="everything"), line(column="nothing"))
    assert "compared in 6 pairs that differ in every seed." in found.evidence
    assert found.worst == "None to name: every seed was varied at once."
    beside = said(line(), line(column="init"), line(column="everything"))
    assert "that differ in one factor" in beside.evidence
    assert beside.worst == "None to name: a single factor was varied."


def factors(init, order, **rest):
    return [line(0.6, **rest), line(init, column="init", **rest), line(order, column="order", **rest)]


def test_the_worst_factor_is_named_with_its_value_and_how_little_stands_behind_it():
    found = said(*factors(0.3, 0.8, pairs=1))
    assert found.worst == (
        "init (0.30 with gradient) changes explanations most. With 1 pair a factor, other seeds may rank them "
        "otherwise."
    )
    assert found.methods[0].worst == "init"
    assert "other seeds" not in said(*factors(0.3, 0.8, pairs=10)).worst


def test_factors_that_their_intervals_do_not_tell_apart_are_named_together():
    assert said(*factors(0.310, 0.325)).worst.startswith(
        "init or order (0.31 with gradient, intervals overlap) changes"
    )
    assert said(*factors(0.310, 0.335)).worst.startswith("init (0.31 with gradient) changes")


def test_methods_with_another_worst_factor_are_listed_apart():
    rows = [*factors(0.3, 0.8, method="a"), *factors(0.2, 0.8, method="b"), *factors(0.9, 0.4, method="c")]
    assert said(*rows).worst.startswith("init (0.30 with a, 0.20 with b); order (0.40 with c) changes")


def test_one_factor_alone_is_not_called_the_worst():
    found = said(line(), line(column="init"), line(0.2, column="several"))
    assert found.worst == "None to name: a single factor was varied."
    assert found.methods[0].worst is None
    assert columns(line(), [line(), line(column="init")]) == []
    nothing = [line(None), line(None, column="init"), line(None, column="order")]
    assert said(*nothing).worst == "None to name: no factor has a scale."


def test_models_side_by_side_are_no_twins_and_have_no_factor():
    found = said(line(family="side by side", kind="models"), models=3)
    assert found.headline == "These models explain the same image alike only in part."
    assert found.evidence == "50 images and 3 models side by side, compared in 6 pairs."
    assert found.worst.startswith("None to name: the models stand side by side")


@pytest.mark.parametrize(
    ("interval", "expected", "words"),
    [
        (
            (-0.03, 0.0),
            "nothing",
            "nothing of its likeness is left (\u22120.02, \u22120.03 to 0.00): it depends on what was",
        ),
        ((-0.2, -0.1), "nothing", "nothing of its likeness is left"),
        (
            (0.05, 0.15),
            "little",
            "little of its likeness is left (0.10, 0.05 to 0.15): it depends on what was learned.",
        ),
        ((0.25, 0.45), "part", "it depends on what was learned only in part."),
        ((-0.3, 0.9), "unclear", "it is open how much of its likeness is left"),
        ((0.1, 0.97), "unclear", "it is open how much of its likeness is left"),
        ((0.6, 0.8), "most", "more than half of its likeness is left (0.70, 0.60 to 0.80): much of it does not depend"),
        (
            (0.99, 1.0),
            "all",
            "all of its likeness is left (0.99, 0.99 to 1.00): it does not depend on what was learned.",
        ),
    ],
)
def test_what_is_left_of_a_map_is_what_the_whole_interval_says(interval, expected, words):
    low, high = interval
    row = stage((low + high) / 2 - 1e-6, low, high)
    assert left(row) == expected
    found = said(line(), stage(0.9, column="down to fc"), row).methods[0].dependence
    assert found.startswith("With all layers drawn anew, ")
    assert words in found


def test_a_cascade_without_a_scale_says_so():
    assert "there is no scale: one model" in said(line(), stage(None)).methods[0].dependence


def test_a_cascade_that_kept_some_layers_does_not_speak_of_all():
    found = said(line(), stage(0.05), partial=["all layers"]).methods[0].dependence
    assert found.startswith("With the chosen layers drawn anew, ")
    assert found.endswith("it depends on what was learned there.")


def test_stages_drawn_independently_say_nothing_of_the_whole_model():
    only = [stage(0.9, column="only conv"), stage(0.8, column="only fc")]
    assert last_stage("gradient", "cosine", only) is None
    assert said(line(), *only).methods[0].dependence == ""
    assert last_stage("gradient", "cosine", only[:1]) == only[0]


def test_another_measure_that_finds_the_map_still_there_is_named():
    rows = [line(), line(measure="ssim"), stage(0.0), stage(0.9, measure="ssim")]
    found = said(*rows).methods[0].dependence
    assert found.endswith("By ssim more than half of its likeness is left (0.90).")
    assert "By ssim" not in said(*rows[:3], stage(0.1, measure="ssim")).methods[0].dependence


def test_a_method_that_keeps_its_maps_must_not_be_used():
    found = said(line(0.98), stage(0.9)).next
    assert found == ["Do not use gradient: most of the map stays when the layers are drawn anew."]
    weak = said(line(0.5), stage(0.9)).next
    assert not any("show the mean" in one for one in weak), "a map that ignores the model is not saved by a mean"


def test_models_that_agree_lead_to_the_next_question():
    assert said(line(0.98), stage(0.0)).next[0].startswith("Go on to the next question")
    assert said(line(0.98)).next[0].startswith("Ask next whether the maps depend on what the model learned")


def test_weak_agreement_leads_to_means_and_to_the_worst_factor():
    found = said(*factors(0.3, 0.8)).next
    assert found[0].startswith("Do not show one model's map by gradient as the explanation: show the mean")
    assert found[1] == (
        "Work on init first, and train five or more values of each factor: with fewer the intervals are rough."
    )
    assert said(*factors(0.3, 0.8, pairs=10)).next[1] == "Work on init first: there the maps differ most."


def test_maps_without_agreement_are_not_averaged():
    found = said(line(0.0)).next
    assert found[0].startswith("Do not show maps by gradient as explanations of an image")
    assert not any("mean" in one for one in found)


def test_an_interval_that_reaches_far_asks_for_more():
    found = said(line(0.8, 0.2, 0.99)).next
    assert found == ["Compare more models or images before you decide; the intervals reach far: gradient 0.20 to 0.99."]


def test_nothing_made_is_said_as_such():
    found = said()
    assert found.headline == "Nothing was compared, or nothing of it is made yet."
    assert (found.evidence, found.floor, found.worst, found.classifier) == ("", "", "", "")
    assert len(found.next) == 1


def test_where_only_a_classifier_compared_maps_there_is_no_verdict():
    found = answer([], [told(0.11)], 4)
    assert found.headline == "No verdict: how alike the maps of an image are was not measured, or is not made yet."
    assert "such as cosine" in found.next[0]
    assert found.classifier
    floor = answer([], [told(0.9, kind="floor", family="twice")], 4)
    assert floor.headline == said().headline, "that one model was explained twice compares no models"


def test_a_classifier_is_reported_beside_its_null_and_its_floor_and_carries_no_verdict():
    rows = [told(0.11), told(0.74, method="other"), told(0.2, column="init"), told(0.05, method="map", control=True)]
    found = said(line(), classified=[*rows, told(0.9, kind="floor", family="twice")]).classifier
    assert "0.11 to 0.74; 0.97 with the models exchanged at random, 0.90 of one model explained twice." in found
    assert found.endswith("the verdict does not rest on it.")


def test_two_families_are_named_beside_their_methods():
    found = said(line(0.98), line(0.4, family="wider"))
    assert "explained twice by gradient (twins) and only in part by gradient (wider)" in found.headline
    assert "compared in 12 pairs" in found.evidence


def test_the_worst_factor_needs_two_that_have_a_scale():
    assert worst(line(), [line(column="init"), line(None, column="order")]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "\u2013"), (0.456, "0.46"), (-0.456, "\u22120.46"), (-0.001, "0.00"), (1e9, "1000000000.00")],
)
def test_numbers_are_shown_with_a_true_minus_and_no_negative_zero(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b", "a"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_listed_once_each(names, text):
    assert listed(names) == text


def test_rows_of_a_condition_have_no_part_in_the_answer():
    plain, partly = [line(0.5), line(0.98, column="init")], {"condition": "both_right"}
    more = [line(0.99, **partly), line(0.1, column="order", **partly), stage(0.9, **partly)]
    assert said(*plain, *more) == said(*plain)
    assert said(line(0.5), classified=[told(0.3), told(0.9, **partly)]) == said(line(0.5), classified=[told(0.3)])


def test_the_same_training_run_again_is_no_factor():
    rows = [line(0.5), line(0.4, column="init"), line(0.8, column="order"), line(0.1, column="nothing")]
    assert [row.column for row in columns(rows[0], rows)] == ["init", "order"]
    assert said(*rows).methods[0].worst == "init"


def test_folds_and_ensembles_are_not_called_twins_of_a_base():
    found = answer([line(0.5)], [], 4, twins=False)
    assert found.headline.startswith("These models explain")
    assert found.evidence == "50 images and 4 models, compared in 6 pairs that differ in one factor."
