"""Components: what a signature says becomes roles, options, checks and identity."""

import functools
from typing import Annotated, NamedTuple

import msgspec
import pytest
from jaxtyping import Float
from torch import Tensor

from consilience import component
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.component import Choice, Kind, attribution, measure, score
from consilience.errors import SpecError


def test_roles_stand_before_the_star_and_options_after_it():
    found = attribution.get("integrated_gradients")
    assert dict(found.roles) == {"model": True, "x": True, "target": True, "rng": False}
    assert list(found.nested) == ["of"]
    assert set(found.schema.__struct_fields__) == {"baseline", "nodes", "steps", "multiply"}


def test_a_method_draws_only_where_it_cannot_do_without():
    assert attribution.choose("random_map").draws
    assert not attribution.choose("integrated_gradients").draws
    assert attribution.choose({"use": "integrated_gradients", "of": "random_map"}).draws


def test_options_equal_to_their_default_are_left_out():
    assert attribution.choose({"use": "integrated_gradients", "steps": 50}) == attribution.choose(
        "integrated_gradients"
    )
    assert attribution.choose({"use": "integrated_gradients", "steps": 9}).options["steps"] == 9


def test_nested_components_and_versions_are_always_in():
    choice = attribution.choose("integrated_gradients")
    of, version = choice.options["of"], score.get("logit").version
    assert of.options == {"rule": Choice("backward", "plain_rule", 1), "score": Choice("score", "logit", version)}


def test_three_spellings_are_one_choice():
    written = attribution.choose({"use": "integrated_gradients", "steps": 9, "of": {"use": "gradient"}})
    assert written == attribution.choose(functools.partial(integrated_gradients, steps=9))
    assert written == attribution.choose(functools.partial(integrated_gradients, of=gradient, steps=9))
    assert written == attribution.choose(written)


def test_a_choice_becomes_the_function_with_its_options():
    built = attribution.choose({"use": "integrated_gradients", "steps": 9}).build()
    assert built.func is integrated_gradients
    assert built.keywords["steps"] == 9
    assert built.keywords["of"].func is gradient


@pytest.mark.parametrize(
    ("given", "better"),
    [
        ("cosine", "higher"), ("l2", "lower"), ("on_part", "higher"), ({"use": "on_part", "of": "l2"}, "lower"),
        ("wrong_image", "lower"), ({"use": "wrong_image", "of": "l2"}, "higher"),
        ({"use": "wrong_image", "of": {"use": "on_mask", "of": "squared_distance"}}, "higher"),
    ],
)  # fmt: skip
def test_a_measure_that_nests_a_distance_goes_the_other_way(given, better):
    assert measure.choose(given).better == better


def test_what_is_no_measure_has_no_better_way():
    assert attribution.choose("integrated_gradients").better is None


def test_a_choice_is_written_as_a_person_would():
    assert attribution.choose("integrated_gradients").label == "integrated_gradients"
    nested = {"use": "integrated_gradients", "steps": 9, "of": {"use": "gradient", "score": "log_probability"}}
    assert attribution.choose(nested).label == "integrated_gradients(of=gradient(score=log_probability), steps=9)"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gradiant", ["no attribution is named 'gradiant'", "did you mean 'gradient'"]),
        ({"use": "integrated_gradients", "stebs": 4}, ["explain[0].integrated_gradients", "did you mean 'steps'"]),
        ({"use": "integrated_gradients", "steps": 0}, ["explain[0].integrated_gradients", "int", ">= 1", "steps"]),
        ({"use": "integrated_gradients", "steps": "many"}, ["int", "str", "steps"]),
        ({"use": "integrated_gradients", "of": "logit"}, ["no attribution is named 'logit'"]),
        ({"use": "integrated_gradients", "of": {"use": "gradient", "score": 3}}, ["integrated_gradients.of.gradient"]),
        ({"use": "integrated_gradients", "baseline": float("nan")}, ["finite", "nan", "baseline"]),
        ({"steps": 4}, ["explain[0]", "use"]),
        (len, ["explain[0]", "registered component"]),
        (7, ["explain[0]", "registered component"]),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_its_place(given, words):
    with pytest.raises(SpecError) as error:
        attribution.choose(given, "explain[0]")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_unknown_role_is_refused_where_the_component_is_read():
    def odd(maps: Tensor, wallpaper: Tensor) -> Tensor:
        """Odd."""
        return maps + wallpaper

    with pytest.raises(SpecError, match="no role of measure is named 'wallpaper'"):
        measure.read(odd)


def test_a_measure_of_two_models_cannot_ask_for_one_of_them():
    def odd(maps: Tensor, other: Tensor, model: Tensor) -> Tensor:
        """Odd."""
        return maps + other + model

    with pytest.raises(SpecError, match=r"asks for one's \['model'\]"):
        measure.read(odd)


def test_an_option_without_a_type_is_refused():
    def odd(maps: Tensor, *, colour=3) -> Tensor:
        """Odd."""
        return maps + colour

    with pytest.raises(SpecError, match="expected typed options after the"):
        measure.read(odd)


def test_options_may_not_be_collected():
    def odd(maps: Tensor, **options: int) -> Tensor:
        """Odd."""
        return maps + len(options)

    with pytest.raises(SpecError, match="expected typed options after the"):
        measure.read(odd)


def test_a_component_without_words_is_refused():
    def odd(maps: Tensor) -> Tensor:
        return maps

    with pytest.raises(SpecError, match="expected a docstring"):
        measure.read(odd)


def test_two_components_cannot_share_a_name():
    kind = Kind("measure", "consilience.measures", needs=["maps"])

    def twice(maps: Tensor) -> Tensor:
        """A first one."""
        return maps

    kind(version=1)(twice)

    def other(maps: Tensor) -> Tensor:
        """A second one."""
        return -maps

    other.__name__, other.__module__ = "twice", "elsewhere"
    with pytest.raises(SpecError, match="found a second measure 'twice'"):
        kind(version=1)(other)


def test_columns_come_from_the_return_annotation():
    class Found(NamedTuple):
        hit: Float[Tensor, " n"]
        curve: Float[Tensor, "n steps"]

    def several(maps: Tensor) -> Found:
        """Several numbers."""
        return Found(maps, maps)

    def one(maps: Tensor) -> Float[Tensor, ""]:
        """One number."""
        return maps.sum()

    assert measure.read(several).columns == {"hit": "n", "curve": "n steps"}
    assert measure.read(one).columns == {"value": ""}


def test_an_option_s_constraint_comes_from_its_annotation():
    def bounded(maps: Tensor, *, share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5) -> Tensor:
        """Bounded."""
        return maps * share

    with pytest.raises(msgspec.ValidationError, match="<= 1"):
        msgspec.convert({"share": 2.0}, measure.read(bounded).schema)


def test_every_kind_finds_its_components_by_folder():
    assert {"cosine", "spearman", "accuracy"} <= set(component.measure.names())
    assert {"mlp", "cnn", "small_cnn"} <= set(component.architecture.names())
