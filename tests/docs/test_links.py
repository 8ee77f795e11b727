"""What the pages point to is there, and what they list is complete."""

import re
import typing
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest

from consilience.cli.main import VERBS
from consilience.component import KINDS
from consilience.experiment.families import Family
from consilience.experiment.schema import ExamplesTable, File, LearntTable, RepresentTable, TrainTable

ROOT = Path(__file__).parents[2]
TABLES = [File, TrainTable, ExamplesTable, RepresentTable, LearntTable]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changes/*.md")])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    """Targets of links and pictures, code blocks left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for link in links(page):
        if not link.startswith(("http:", "https:", "mailto:", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{name(page)}: nothing is at {link}"


def test_every_page_of_the_guide_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link).resolve() for link in links(index)}
    assert set((ROOT / "docs" / "guide").glob("*.md")) <= linked


def test_every_cited_paper_is_in_the_bibliography():
    known = set(
        re.findall(r"^@\w+\{([^,\s]+),", files("consilience").joinpath("references.bib").read_text("utf-8"), re.M)
    )
    cited = {kind.get(one).paper for kind in KINDS.values() for one in kind.names()} - {None}
    assert cited <= known


def test_the_documents_and_the_package_have_one_bibliography():
    assert (ROOT / "docs" / "references.bib").read_bytes() == files("consilience").joinpath(
        "references.bib"
    ).read_bytes()


def test_the_readme_lists_every_verb():
    text = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(?!consilience)([a-z-]+)[ `]", text, re.MULTILINE)) == set(VERBS)


@pytest.mark.parametrize("table", [*TABLES, *typing.get_args(Family)], ids=lambda table: table.__name__)
def test_the_guide_explains_every_key_of_experiment_files(table):
    text = (ROOT / "docs" / "guide" / "experiment_files.md").read_text("utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert {field.encode_name for field in msgspec.structs.fields(table)} <= explained
