"""The files of a paper's experiments: each can be loaded in every profile, and one is run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from consilience.errors import DataError
from consilience.experiment.config import load
from consilience.experiment.run import run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "agree_to_disagree"
FILES = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "common")
TINY = (
    'train.model={use = "mlp", hidden = [8]}',
    "train.data.count=100",
    "examples.count=40",
    'compare=["cosine", "separability_row_split", {use = "separability", permutations = 5}]',
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("profile", ["smoke", "desk"])
def test_a_file_can_be_loaded_without_any_data(file, profile):
    experiment = load(FOLDER / f"{file}.toml", profile=profile)
    assert experiment.goals()
    assert experiment.families[0].name == "twins"


@pytest.mark.parametrize("file", FILES)
def test_the_whole_experiment_asks_for_mnist_and_has_the_papers_seeds(file, tmp_path):
    with pytest.raises(DataError, match="expected a folder 'mnist'"):
        load(FOLDER / f"{file}.toml", profile="paper", data=tmp_path)
    text = (FOLDER / f"{file}.toml").read_text("utf-8") + (FOLDER / "common.toml").read_text("utf-8")
    assert "12303, 15135, 16959" in text


def script():
    spec = importlib.util.spec_from_file_location("agree", ROOT / "scripts" / "agree_to_disagree.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_names_files_that_there_are():
    module = script()
    named = {row.file for row in module.TABLE if row.file} | {*module.UNPUBLISHED, *module.REMEDIES}
    assert named <= set(FILES)


def test_what_was_not_run_is_said_not_to_be_and_what_was_has_its_numbers(tmp_path):
    experiment = load(FOLDER / "mlp.toml", profile="smoke", changes=TINY)
    outcome = run(experiment, tmp_path / "store")
    assert not outcome.failures, outcome.failures[0].trace
    module = script()
    made = {
        file: module.Made(
            experiment if file == "mlp" else load(FOLDER / f"{file}.toml", profile="smoke"),
            module.Store(tmp_path / "store"),
        )
        for file in FILES
    }
    lines = module.consistency_table(made)
    row = next(line for line in lines if line.startswith("| MLP | SHAP |")).split(" | ")
    assert row[2] == "0.0668"
    assert 0 <= float(row[3]) <= 1
    assert "not run" not in " ".join(row)
    assert row[7].endswith("40, 1") or "40, 1" in row
    assert all("*not run*" in line for line in lines if "DenseNet" in line or "CNN" in line or "ADP" in line)
    text = module.tables(made)
    assert "`mlp.toml`" in text
    assert "nan" not in text.split("## How it was made")[1]


def test_ink_and_paper_have_their_place_on_the_scale(tmp_path):
    compare = 'compare=["on_part", {use = "on_part", part = "background"}]'
    changes = (*TINY[:3], compare, 'judge=["accuracy"]', 'conditions=["all"]')
    experiment = load(FOLDER / "parts.toml", profile="smoke", changes=changes)
    outcome = run(experiment, tmp_path / "store")
    assert not outcome.failures, outcome.failures[0].trace
    module = script()
    store = module.Store(tmp_path / "store")
    lines = module.scale_table(module.Made(experiment, store), ["overall", "init", "order"])[2:]
    rows = [store.table(goal.spec) for goal in experiment.goals() if isinstance(goal.spec, module.Summary)]
    assert len(lines) == len(rows) == 2
    for line, label, both in zip(lines, ("on_part", "on_part(part=background)"), rows, strict=True):
        assert [row["name"] for row in both] == ["overall", "init"]
        shown = [f"{row['estimate']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in both]
        assert line == f"| gradient_shap | {label} | {shown[0]} | {shown[1]} | {module.NONE} |"


def test_tables_are_put_between_the_marks_of_a_page_and_nothing_else_changes(tmp_path):
    module = script()
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{module.MARKS[0]}\nold\n{module.MARKS[1]}\n\nAfter.\n")
    words = ["--only-tables", "--profile", "smoke", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    command = [sys.executable, str(ROOT / "scripts" / "agree_to_disagree.py"), *map(str, words), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text = page.read_text("utf-8")
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert text.count("*not run*") > 10
    assert done.stdout.strip() == str(tmp_path / "out" / "tables.md")
