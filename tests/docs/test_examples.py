"""The scripts of ``examples/`` and the Python blocks of the README, each run once, tiny."""

import functools
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from consilience.experiment import config

ROOT = Path(__file__).parents[2]
TINY = (
    'train.model={use = "mlp", hidden = [8]}',
    "train.data.count=60",
    "examples.count=20",
    'explain=["gradient"]',
    'compare=["cosine"]',
    'family=[{type = "retrain", values = {init = [0, 1]}}]',
)
"""Changes that leave the quickstart's shape and little of its work."""

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder to write into, from which the experiment files are where they are in a clone."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)


def test_the_quickstart_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *TINY])
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "0 jobs failed" in said
    page = json.loads((tmp_path / "report.json").read_bytes())
    found = {(line["pairs"], line["examples"]) for line in page["lines"] if line["method"] == "gradient"}
    assert found == {(1, 20)}


def test_two_models_in_memory_are_audited(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audit.py", "--steps", "2", "--count", "20"])
    runpy.run_path(str(ROOT / "examples" / "audit.py"), run_name="__main__")
    page = json.loads((tmp_path / "audit.json").read_bytes())
    assert page["missing"] == 0
    assert {verdict["method"] for verdict in page["answer"]["methods"]} == {"gradient", "integrated_gradients"}


def test_plain_functions_show_twins_between_other_images_and_themselves(capsys):
    runpy.run_path(str(ROOT / "examples" / "plain_functions.py"), run_name="__main__")
    same, other = (float(number) for number in re.findall(r"-?\d\.\d\d", capsys.readouterr().out))
    assert 1 > same > other


def test_the_readme_runs_an_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config, "load", functools.partial(config.load, changes=TINY))
    exec(compile(BLOCKS[0], "README.md", "exec"), {"__name__": "readme"})
    assert re.search(r"made \d\d, found 0\n.*report\.html", capsys.readouterr().out)
    assert (tmp_path / "report.json").exists()


def test_the_readme_calls_a_method_and_a_measure(capsys):
    exec(compile(BLOCKS[1], "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("tensor([")


def test_the_readme_looks_before_it_explains(capsys):
    exec(compile(BLOCKS[2], "README.md", "exec"), {"__name__": "readme"})
    said = capsys.readouterr().out
    assert "good     guided_rule: acts on relu x1\n" in said
    assert all(line.startswith("good ") for line in said.splitlines())


def test_the_readme_audits_models_in_memory(tmp_path, capsys):
    exec(compile(BLOCKS[3], "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip() == "audit.html"
    assert (tmp_path / "audit.json").exists()


def test_every_python_block_of_the_readme_is_run():
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("page", ["README.md", "docs/guide/experiment_files.md"])
def test_experiments_that_pages_show_are_experiments(page, tmp_path):
    blocks = re.findall(r"^```toml\n(name = .*?)^```$", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    for text in blocks:
        (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
        assert config.load(tmp_path / "shown.toml").goals()
