"""Families: who is compared with whom, and in what they differ."""

import msgspec
import pytest

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.experiment.config import load
from consilience.experiment.families import Randomised, Redraw, Retrain, SideBySide, differences, with_layers
from consilience.experiment.specs import Explain, Given, Subject


def family(**values):
    return Retrain(values=values)


def test_twins_differ_from_the_base_in_one_factor_each(tiny):
    members = family(init=[0, 1, 2], noise=[0, 5]).members(tiny.base)
    assert [member.name for member in members] == ["base", "init 1", "init 2", "noise 5"]
    chances = [(m.subject.source.init, m.subject.source.order, m.subject.source.noise) for m in members]
    assert chances == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 0, 5)]


def test_the_first_value_of_each_factor_is_the_bases(tiny):
    base, twin = family(init=[7, 3], order=[2, 0]).members(tiny.base)[:2]
    assert (base.subject.source.init, base.subject.source.order) == (7, 2)
    assert (twin.subject.source.init, twin.subject.source.order) == (3, 2)


def test_every_two_twins_are_a_pair_that_names_its_factors(tiny):
    whole = family(init=[0, 1, 2], order=[0, 1], dropout_rate=[0.25, 0.5])
    members = whole.members(tiny.base)
    pairs = {
        frozenset((members[pair.a].name, members[pair.b].name)): pair.differs for pair in whole.pairs(members)
    }  # fmt: skip
    assert len(pairs) == 5 * 4 / 2
    assert pairs[frozenset(("base", "init 1"))] == ("init",)
    assert pairs[frozenset(("init 1", "init 2"))] == ("init",)
    assert pairs[frozenset(("init 1", "order 1"))] == ("init", "order")
    assert pairs[frozenset(("base", "dropout_rate 0.5"))] == ("dropout_rate",)
    assert set(pairs[frozenset(("order 1", "dropout_rate 0.5"))]) == {"order", "dropout_rate"}


def test_another_rate_of_dropout_changes_the_architecture_and_the_bases_own_changes_nothing(tiny):
    base, twin = family(dropout_rate=[0.25, 0.5]).members(tiny.base)
    assert base.subject.source.digest == tiny.base.digest
    assert twin.subject.source.model == architecture.choose({"use": "mlp", "hidden": [8], "dropout": 0.5})


def test_differences_name_fields_that_are_no_factor(tiny):
    longer = msgspec.structs.replace(tiny.base, epochs=2, batch_size=10)
    assert differences(Subject(source=tiny.base), Subject(source=longer)) == ("epochs", "batch_size")
    wider = msgspec.structs.replace(tiny.base, model=architecture.choose({"use": "mlp", "hidden": [9]}))
    assert differences(Subject(source=tiny.base), Subject(source=wider)) == ("model.hidden",)
    other = msgspec.structs.replace(tiny.base, model=architecture.choose("linear"))
    assert differences(Subject(source=tiny.base), Subject(source=other)) == ("model",)
    assert differences(Subject(source=tiny.base), Subject(source=tiny.base, epoch=1)) == ("epoch",)


def test_a_redrawn_family_is_the_base_with_other_draws(tiny):
    floor = Redraw(seeds=(0, 100, 200))
    members = floor.members(tiny.base)
    assert {member.subject.source.digest for member in members} == {tiny.base.digest}
    assert [member.seed for member in members] == [0, 100, 200]
    assert [pair.differs for pair in floor.pairs(members)] == [("draw",)] * 3


def test_every_twin_is_explained_with_draws_of_its_own(tiny):
    maps = {spec.digest: spec for goal in tiny.goals() if goal.method for spec in goal.spec.inputs}
    drawn = [spec for spec in maps.values() if isinstance(spec, Explain) and spec.method.use == "random_map"]
    twins = [spec for spec in drawn if spec.subject.source.digest != tiny.base.digest]
    assert {spec.seed for spec in twins} == {1, 2, 3}
    assert {spec.seed for spec in drawn if spec not in twins} == {0, 1}  # the base, and again for the floor


def test_a_file_without_a_floor_gets_one_and_one_with_it_keeps_its_own(tiny, tiny_file):
    assert tiny.floor.seeds == (0, 1)
    tiny_file.write_text(tiny_file.read_text() + '[[family]]\ntype = "redraw"\nseeds = [3, 4]\n')
    assert load(tiny_file).floor.seeds == (3, 4)
    assert len(load(tiny_file).families) == 2


@pytest.mark.parametrize(
    "given",
    [
        family(),
        family(init=[0]),
        family(init=[1, 1]),
        family(init=[0, 1], order=[0]),
        family(init=[0, 1, 1]),
        family(init=[0, -1]),
        family(init=[0, 0.5]),
        family(dropout_rate=[0.25, 1.5]),
        Redraw(seeds=()),
        Redraw(seeds=(3,)),
        Redraw(seeds=(3, 3)),
        Redraw(seeds=(0, 1, 1)),
    ],
    ids=str,
)
def test_a_family_of_one_of_equals_or_of_what_is_no_value_is_refused(tiny, given):
    with pytest.raises(SpecError, match=r"expected|Expected"):
        given.members(tiny.base)


def test_dropout_cannot_vary_where_there_is_none(tiny):
    base = msgspec.structs.replace(tiny.base, model=architecture.choose("linear"))
    with pytest.raises(SpecError, match="no option is named 'dropout'"):
        family(dropout_rate=[0.25, 0.5]).members(base)


def layers_drawn(member):
    return member.subject.edit.options["layers"]


def test_a_cascade_compares_every_stage_with_the_untouched_base(tiny):
    whole = Randomised(layers=("conv1", "conv2", "fc1"))
    members = whole.members(tiny.base)
    assert [member.name for member in members] == ["base", "down to fc1", "down to conv2", "all layers"]
    assert members[0].subject == Subject(source=tiny.base)
    assert [set(layers_drawn(m)) for m in members[1:]] == [{"fc1"}, {"conv2", "fc1"}, {"conv1", "conv2", "fc1"}]
    assert [(pair.a, pair.b, pair.differs) for pair in whole.pairs(members)] == [
        (0, 1, ("down to fc1",)), (0, 2, ("down to conv2",)), (0, 3, ("all layers",)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("bottom_up", ["up to a", "up to b", "all layers"]),
        ("independent", ["only a", "only b", "only c"]),
        ("full", ["all layers"]),
    ],
)
def test_stages_are_named_after_their_order(tiny, order, names):
    members = Randomised(layers=("a", "b", "c"), order=order).members(tiny.base)
    assert [member.name for member in members[1:]] == names


def test_layers_of_one_stage_are_drawn_together_and_named_by_the_first(tiny):
    members = Randomised(layers=(("conv1", "bn1"), "fc1"), order="independent").members(tiny.base)
    assert [(member.name, set(layers_drawn(member))) for member in members[1:]] == [
        ("only conv1", {"conv1", "bn1"}), ("only fc1", {"fc1"}),
    ]  # fmt: skip


def test_every_seed_of_a_stage_is_in_the_stages_column(tiny):
    whole = Randomised(layers=("a", "b"), seeds=(3, 4))
    members = whole.members(tiny.base)
    assert [m.name for m in members[1:]] == [
        "down to b, draw 3", "down to b, draw 4", "all layers, draw 3", "all layers, draw 4",
    ]  # fmt: skip
    assert [m.subject.edit_seed for m in members[1:]] == [3, 4, 3, 4]
    assert [pair.differs for pair in whole.pairs(members)] == [("down to b",)] * 2 + [("all layers",)] * 2


def test_the_layers_of_a_cascade_are_the_models(tiny_file):
    tiny_file.write_text(tiny_file.read_text() + "[[family]]\ntype = 'randomised'\n")
    family = load(tiny_file).families[1]
    assert family.layers == (("fc1",), ("fc2",))


def test_layers_that_are_named_stay(tiny):
    named = Randomised(layers=("fc2",))
    assert with_layers(named, lambda: pytest.fail("built")) is named
    with pytest.raises(SpecError, match="expected layers that hold weights, found none"):
        Randomised().members(tiny.base)
    with pytest.raises(SpecError, match="expected different seeds"):
        Randomised(layers=("fc1",), seeds=(1, 1)).members(tiny.base)


def test_models_side_by_side_are_compared_every_two(tiny):
    given = [Given(weights=str(i), module="", answers="") for i in range(3)]
    whole = SideBySide(models=tuple(zip("abc", given, strict=True)))
    members = whole.members(given[0])
    assert [member.name for member in members] == ["a", "b", "c"]
    assert [(pair.a, pair.b) for pair in whole.pairs(members)] == [(0, 1), (0, 2), (1, 2)]
    assert {pair.differs for pair in whole.pairs(members)} == {("model",)}


def test_weights_have_no_twins():
    with pytest.raises(SpecError, match="expected a base that can be trained again, found weights"):
        family(init=[0, 1]).members(Given(weights="", module="", answers=""))
