"""The guide's page on adding a measure, done as it says: its blocks become an installed plug-in that is used."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "add_a_measure.md"

DRIVER = """
import contextlib, io, json, pytest
from consilience.cli.main import call

with contextlib.redirect_stdout(io.StringIO()) as listed:
    assert call("list", ["measure"]) == 0
assert pytest.main(["-q", "-p", "no:cacheprovider", "test_sign_measures.py"]) == 0
assert call("run", ["experiment.toml"]) == 0
assert call("report", ["experiment.toml"]) == 0
with open("result.json", "w") as file:
    json.dump(listed.getvalue(), file)
"""


def blocks() -> dict[str, str]:
    """The page's code blocks that name a file."""
    return dict(re.findall(r"^```\w+\n# file: (\S+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE))


def install(folder: Path) -> None:
    """What pip would leave behind, without pip: the module, and the notes that say which entry points it has."""
    for name, text in blocks().items():
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(blocks()["pyproject.toml"])["project"]
    notes = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (notes / "entry_points.txt").write_text(points, encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The folder of a stranger who followed the page."""
    folder = tmp_path_factory.mktemp("stranger")
    install(folder)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr, result.stderr
    return folder


def test_the_page_has_all_the_files_it_speaks_of():
    assert set(blocks()) == {"sign_measures.py", "test_sign_measures.py", "pyproject.toml", "experiment.toml"}


def test_the_measure_is_listed_with_the_first_line_of_its_docstring(done):
    listed = json.loads((done / "result.json").read_text())
    assert re.search(r"measure\s+sign_overlap\s+Share of the pixels", listed)


def test_the_measure_has_its_lines_on_the_page(done):
    lines = json.loads((done / "report.json").read_text())["lines"]
    mine = {line["measure"]: line for line in lines if line["column"] == "overall"}
    assert set(mine) == {"cosine", "sign_overlap", "sign_overlap(least=0.01)"}
    line = mine["sign_overlap"]
    assert (line["method"], line["pairs"], line["examples"]) == ("integrated_gradients", 1, 20)
    assert 0 <= line["agreement"] <= line["floor"] == 1
    assert line["wrong_image"] is not None
