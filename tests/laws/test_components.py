"""Laws of every component, of whatever kind."""

import inspect
import re
from importlib.resources import files

import msgspec
import pytest

from consilience.component import KINDS
from consilience.roles import ROLES

ALL = [(kind.name, name) for kind in KINDS.values() for name in kind.names()]
BIBLIOGRAPHY = files("consilience").joinpath("references.bib").read_text("utf-8")


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_component_says_what_comes_out_and_what_each_option_does(kind, name):
    component = KINDS[kind].get(name)
    text = inspect.getdoc(component.function)
    assert text.split("\n")[0].rstrip().endswith("."), "the first line is a sentence"
    for option in (*component.nested, *component.schema.__struct_fields__):
        assert re.search(rf"^    {option}: ", text, re.MULTILINE), f"option '{option}' is not described"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_paper_is_in_the_bibliography(kind, name):
    paper = KINDS[kind].get(name).paper
    assert paper is None or f"{{{paper}," in BIBLIOGRAPHY


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_component_can_be_chosen_by_name_and_by_itself(kind, name):
    component = KINDS[kind].get(name)
    if any(field.required for field in msgspec.structs.fields(component.schema)):
        pytest.skip("has an option without a default")
    assert KINDS[kind].choose(name) == KINDS[kind].choose(component.function)


def test_every_role_is_described_and_asked_for_by_some_kind():
    asked = {role for kind in KINDS.values() for role in (*kind.takes, *kind.needs)}
    assert asked == set(ROLES)
