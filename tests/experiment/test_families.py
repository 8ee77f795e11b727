"""Families: who is compared with whom, and in what they differ."""

import msgspec
import pytest

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.experiment.config import load
from consilience.experiment.desk import Place, load_examples
from consilience.experiment.factors import differences
from consilience.experiment.families import (
    Ensembles,
    Epochs,
    Folds,
    Randomised,
    Redraw,
    Retrain,
    SideBySide,
    with_layers,
)
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
        family(shuffle=[1, 2]),
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


def test_twins_on_other_parts_of_the_data_differ_in_the_subset(tiny):
    whole = Retrain(values={"subset": [0, 1, 2]}, share=0.5)
    members = whole.members(tiny.base)
    data = [member.subject.source.data for member in members]
    assert len({one.fingerprint for one in data}) == 3
    assert {one.choice.use for one in data} == {"random_subset"}
    assert [pair.differs for pair in whole.pairs(members)] == [("subset",)] * 3
    for one in data:  # known without reading, and as it is read
        examples = load_examples(one.choice, Place())
        assert (examples.fingerprint, len(examples)) == (one.fingerprint, 30)


def test_everything_varies_all_chances_at_once(tiny):
    whole = family(everything=[3, 4])
    members = whole.members(tiny.base)
    train = members[1].subject.source
    assert (train.init, train.order, train.noise, train.augment) == (4, 4, 4, 4)
    assert whole.pairs(members) == [(0, 1, ("init", "order", "noise", "augment"))]


def test_what_was_run_again_is_compared_with_the_base_alone(tiny):
    whole = family(init=[0, 1], nothing=[0, 1])
    members = whole.members(tiny.base)
    assert members[2].subject.source.run == 1
    assert {(pair.a, pair.b): pair.differs for pair in whole.pairs(members)} == {
        (0, 1): ("init",),
        (0, 2): ("nothing",),
    }


def test_folds_are_trainings_without_a_part_each(tiny):
    folds = Folds(count=3)
    members = folds.members(tiny.base)
    for member in members:
        data = member.subject.source.data
        assert load_examples(data.choice, Place()).fingerprint == data.fingerprint
    assert len({member.subject.source.digest for member in members}) == 3
    assert [pair.differs for pair in folds.pairs(members)] == [("fold",)] * 3


def test_epochs_compare_the_end_with_what_was_kept(tiny):
    base = msgspec.structs.replace(tiny.base, epochs=3, keep=(1, 2))
    members = Epochs().members(base)
    assert [(member.name, member.subject.epoch) for member in members] == [
        ("epoch 3", None), ("epoch 1", 1), ("epoch 2", 2)
    ]  # fmt: skip
    assert Epochs().pairs(members) == [(0, 1, ("epoch 1",)), (0, 2, ("epoch 2",))]
    with pytest.raises(SpecError, match="add 'keep'"):
        Epochs().members(tiny.base)


def test_ensembles_share_no_model(tiny):
    members = Ensembles(size=2, count=3).members(tiny.base)
    trained = [part.source for member in members for part in member.subject.source.members]
    assert len({train.digest for train in trained}) == 6
    assert all(train.init == train.order == train.noise for train in trained)


def test_candidates_of_a_hyper_deep_ensemble_have_options_of_their_own(tiny):
    members = Ensembles(size=2, count=2, candidates=8, search={"dropout": [0.1, 0.4]}).members(tiny.base)
    first = members[0].subject.source
    assert (first.size, len(first.members)) == (2, 8)
    assert {part.source.model.option("dropout") for part in first.members} == {0.1, 0.4}


def test_a_candidate_is_trained_again_with_its_options_and_seeds_of_its_own(tiny):
    given = Ensembles(size=2, count=2, candidates=3, search={"dropout": [0.1, 0.2, 0.3, 0.4]})
    once, twice = (msgspec.structs.replace(given, seeds=seeds).members(tiny.base) for seeds in (1, 2))
    trained = [[part.source for part in member.subject.source.members] for member in twice]
    assert [len(each) for each in trained] == [6, 6]
    assert len({train.init for each in trained for train in each}) == 12  # no seed twice, in no ensemble
    for first, again in zip(trained, once, strict=True):
        assert first[::2] == [part.source for part in again.subject.source.members]  # those of a single seed stay
        assert [train.model for train in first[::2]] == [train.model for train in first[1::2]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Ensembles(candidates=3, search={"dropout": []}), "expected values of 'dropout' to draw from, found none"),
        (Ensembles(candidates=2, count=2, search={"dropout": [0.1] * 50 + [1.5]}), "mlp: Expected `float` < 1.0"),
        (Ensembles(candidates=2, search={"droput": [0.1]}), "did you mean 'dropout'"),
        (Ensembles(seeds=2), "expected 'candidates' of which each is trained with 2 seeds, found none"),
    ],
)
def test_a_search_that_some_candidate_could_not_be_drawn_from_is_refused(tiny, given, words):
    with pytest.raises(SpecError, match=words):
        given.members(tiny.base)


@pytest.mark.parametrize("given", [Folds(), Epochs(), Ensembles()], ids=["folds", "epochs", "ensembles"])
def test_a_base_that_cannot_be_trained_again_has_no_such_family(given):
    with pytest.raises(SpecError, match="expected a base that can be trained again"):
        given.members(Given(weights="a", module="b", answers="c"))


def test_twins_may_differ_in_whether_examples_are_shuffled(tiny):
    whole = family(shuffle=[1, 0])
    members = whole.members(tiny.base)
    assert [member.subject.source.shuffle for member in members] == [True, False]
    assert members[0].subject.source.digest == tiny.base.digest
    assert whole.pairs(members) == [(0, 1, ("shuffle",))]
