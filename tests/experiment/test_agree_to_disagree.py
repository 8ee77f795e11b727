"""The files of a paper's experiments: each can be loaded in every profile, one is run, and the tables say what was."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts.agree_to_disagree import __main__ as script
from scripts.agree_to_disagree import published, tables
from scripts.agree_to_disagree.made import Made
from tests.data.radiographs import plant

from consilience.errors import DataError
from consilience.experiment.config import load
from consilience.experiment.families import Ensembles
from consilience.experiment.run import run
from consilience.experiment.specs import Measure, Summary
from consilience.experiment.store import Store
from consilience.measures.resampling import columns
from consilience.tensors import Table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "agree_to_disagree"
FILES = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "common")
TINY = (
    'train.model={use = "mlp", hidden = [8]}',
    "train.data.count=100",
    "examples.count=40",
    'compare=["cosine", "separability_row_split", {use = "separability", permutations = 5}]',
)
SMALL = 'train.data={use = "mnist10k"}', 'examples.data={use = "mnist10k", split = "test"}'
"""What lies with the package in the place of what has to be fetched."""


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
    more = {
        "hyper_deep_ensemble": ('train.select.data={use = "mnist10k", split = "test"}',),
        "one_model": ('explanation_accuracy.data={use = "mnist10k"}',),
    }
    twins = load(FOLDER / f"{file}.toml", profile="paper", changes=[*SMALL, *more.get(file, ())]).families[0]
    if isinstance(twins, Ensembles):
        assert twins.count == 4  # each of seeds of its own
        return
    drawn = {factor: seeds for factor, seeds in twins.values.items() if factor not in ("nothing", "dropout_rate")}
    assert drawn
    assert all(seeds[:4] == [1, 12303, 15135, 16959] for seeds in drawn.values())
    assert file == "modes" or all(len(seeds) == 4 for seeds in drawn.values())


def cells(lines, *start):
    """The cells, by column, of the one row that starts with these."""
    head, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    (found,) = (row for row in rows if row[: len(start)] == [*start])
    return dict(zip(head, found, strict=True))


MEASURES = {"separability": 1, "separability_row_split": 2, "cosine": 3, "squared_distance": 4}
METHODS = {
    ("gradient_shap", None): 0, ("integrated_gradients", 0.0): 100, ("kernel_shap", 0.0): 200,
    ("integrated_gradients", "mean"): 300, ("mean_over_models", None): 400,
}  # fmt: skip
COLUMNS = ["overall", "init", "order", "noise", "dropout_rate", "subset", "everything", "members", "nothing"]


class Planted:
    """A store that holds all that is asked for; whose number it is can be read off it.

    Ones say the measure; 10 of scaled maps; 20 where both models are right; hundreds say the method; hundredths the
    column. So 101.02 is C (of ``separability``), by integrated gradients, of twins in another order.
    """

    def __init__(self, **values):
        self.values = values

    def __contains__(self, spec):
        return True

    def table(self, spec):
        measure = spec.table[0].measure
        method = measure.of.method
        number = MEASURES[measure.measure.use] + METHODS[method.use, method.option("baseline")]
        number += (10 if measure.normalise == "l2" else 0) + (20 if spec.where == "both_right" else 0)
        if spec.summary.use == "modes":
            return [{"name": "mode 1", "pairs": 3, "estimate": number, "null": number + 0.5, "p": float("nan")}]
        nothing = torch.zeros(len(spec.table), 1)
        differs = tuple(entry.differs for entry in spec.table)
        a, b = (tuple(getattr(entry, one) for entry in spec.table) for one in "ab")
        names = [name for name, _ in columns(Table(a, b, differs, torch.tensor([0]), torch.tensor([0]), nothing))]
        return [
            {"name": name, "pairs": len(spec.table), "n": 600, "undefined": 60 * len(spec.table), "low": None,
             "high": None, "null": 0.875, "estimate": number + COLUMNS.index(name) / 100}
            for name in names if name in COLUMNS
        ]  # fmt: skip

    def tensors(self, spec):
        assert isinstance(spec, Measure)
        known = self.values.get(spec.measure.use, 0.5)
        found = known(spec) if callable(known) else known
        found = found if isinstance(found, dict) else {"value": found}
        return {name: torch.tensor([float(value)]) for name, value in found.items()}

    def provenance(self, spec):
        return {"seconds": 0.0}


@pytest.fixture(scope="module")
def made():
    """Some files' profile for two cores, as if it had been run."""
    files = (
        "mlp", "small_cnn", "cnn", "rbf_svm", "adaptive_diversity", "adaptive_diversity_ridge", "ensemble",
        "hyper_deep_ensemble", "modes", "representations",
    )  # fmt: skip
    return {file: Made(load(FOLDER / f"{file}.toml", profile="desk"), Planted()) for file in files}


def chosen(made, *files):
    return {file: made[file] for file in files}


def test_the_script_names_files_that_there_are():
    named = {row.file for row in published.TABLE} | {*published.UNPUBLISHED, *published.REMEDIES}
    assert named <= {*FILES, published.MIMIC}
    assert all(script.path_of(file).is_file() for file in named)


def test_each_row_says_whose_numbers_they_are_and_of_how_many_models(made):
    files = "rbf_svm", "adaptive_diversity_ridge", "adaptive_diversity", "hyper_deep_ensemble", "cnn"
    lines = tables.consistency_table(chosen(made, *files))
    row = cells(lines, "SVM (RBF)", "Kernel SHAP")
    assert (row["published C"], row["published alpha"], row["C, row split"]) == ("0.9444", "10", "202.000")
    assert (row["C, sound"], row["null"], row["C, L2-scaled"]) == ("201.00", "0.875", "211.00")
    assert (row["cosine on the scale"], row["n"]) == ("203.00", "600")
    assert cells(lines, "Twins of a Gaussian SVM on MNIST", "SHAP")["published C"] == published.NONE
    ten = cells(lines, "ADP ensemble of ten", "SHAP")
    assert [ten[name] for name in ("architecture", "members", "epochs", "models")] == ["small_cnn", "10", "1", "3"]
    assert (ten["published C"], ten["C, sound"]) == ("0.2193", "1.00")
    three = cells(lines, "Twins of an ensemble trained for diversity on MNIST", "SHAP")
    assert (three["members"], three["published C"], three["published alpha"]) == ("3", published.NONE, published.NONE)
    deep = cells(lines, "Hyper-deep ensembles of MLPs on MNIST", "IG, black")
    assert [deep[name] for name in ("architecture", "members", "models", "C, sound")] == ["mlp", "2", "3", "101.00"]
    assert cells(lines, "CNN", "IG")["C, sound"] == "301.00"


def test_what_both_models_name_rightly_stands_beside_all(made):
    lines = tables.right_table(chosen(made, "mlp"))
    assert lines[0].count("both right") == 2
    assert lines[2] == "| MLP | SHAP | 1.00 | 21.00 | 3.00 | 23.00 | 90.0 % |"


def test_c_of_each_factor_has_its_column_and_what_was_published_of_it(made):
    lines = tables.factor_table(chosen(made, "mlp", "rbf_svm", "hyper_deep_ensemble"))
    row = cells(lines, "MLP", "SHAP")
    assert (row["init"], row["order"]) == ("1.01 (published 0.066)", "1.02 (published 0.062)")
    assert (row["noise"], row["nothing"], row["nothing, row split"]) == ("1.03", "1.08", "2.08")
    svm = cells(lines, "SVM (RBF)", "Kernel SHAP")
    assert (svm["subset"], svm["init"]) == ("201.05 (published 0.96)", f"{published.NONE} (published 0.94)")
    assert cells(lines, "Twins of a Gaussian SVM on MNIST", "IG, black")["subset"] == "101.05"
    assert cells(lines, "Hyper-deep ensembles of MLPs on MNIST", "SHAP")["members"] == "1.07"


def test_agreement_is_by_factor_and_c_of_first_weights_and_of_all(made):
    lines = tables.agreement_table(made, ["small_cnn", "hyper_deep_ensemble"], ["init", "order", "members"])
    row = cells(lines, "Twins of a small CNN on MNIST", "IG, black")
    assert [row[name] for name in ("init", "order", "members")] == ["103.01", "103.02", published.NONE]
    assert (row["C, sound, init"], row["C, sound, overall"], row["accuracy"]) == ("101.01", "101.00", "50.0 %")
    deep = cells(lines, "Hyper-deep ensembles of MLPs on MNIST", "SHAP")
    assert [deep[name] for name in ("init", "order", "members")] == [published.NONE, published.NONE, "3.07"]
    assert (deep["C, sound, init"], deep["C, sound, overall"]) == (published.NONE, "1.00")


def test_of_an_averaging_ensemble_the_mean_of_the_maps_stands_below_the_map_of_the_mean(made):
    lines = tables.agreement_table(made, ["ensemble"], ["init"])[2:]
    assert [line.split(" | ")[1:3] for line in lines] == [
        ["SHAP", "3.01"], ["IG, black", "103.01"], ["IG, black, mean of the maps", "403.01"],
    ]  # fmt: skip


def test_modes_and_shares_have_their_rows(made):
    assert tables.mode_table(made["modes"])[2:] == [
        f"| SHAP | mode 1 | 3 | 3.00 | 3.50 | {published.NONE} |",
        f"| IG, black | mode 1 | 3 | 103.00 | 103.50 | {published.NONE} |",
    ]
    lines = tables.share_table(made, ["mlp", "modes"])
    assert cells(lines, "Twins of an MLP on MNIST", "IG, black")["order"] == "104.02"
    assert cells(lines, "Explanation modes of twelve MLPs", "SHAP")["everything"] == "4.06"


def of_seeds(first):
    """Numbers of a pair that tell which two trainings it is of."""

    def value(spec):
        a, b = spec.of.subject.source, spec.other.subject.source
        pair = (a.init, b.init) if not b.run else (0, 0)
        return first + {(1, 12303): 0.01, (15135, 16959): 0.02, (0, 0): 0.03}.get(pair, 0.04)

    return value


def pooled(first, **more):
    return lambda spec: {"value": of_seeds(first)(spec), "pooled": of_seeds(first + 0.1)(spec), **more}


DISTANCES = {
    "jensen_shannon": pooled(0.1), "kolmogorov_smirnov": pooled(0.3, rejected=0.25), "wasserstein": pooled(0.5),
    "wilcoxon": pooled(0.7, smaller=1.5e9), "separability": lambda spec: 0.5 if "lda" in spec.measure.label else 0.25,
}  # fmt: skip


def test_distances_of_seeds_stand_beside_the_published_ones():
    experiment = load(FOLDER / "distances.toml", profile="desk", changes=[
        'family=[{type = "retrain", values = {everything = [1, 12303, 15135, 16959], nothing = [0, 1]}}]'
    ])  # fmt: skip
    lines = tables.distance_table(Made(experiment, Planted(**DISTANCES)))
    row = cells(lines, "1, 12303")
    assert [row[f"{name}, published"] for name in ("JSD", "KS", "Wilcoxon", "accuracy")] == [
        "0.8062", "0.9744", "7.877e+09", "0.973",
    ]  # fmt: skip
    pooled = [row[f"{name} pooled"] for name in ("JSD", "KS", "Wilcoxon", "Wasserstein")]
    assert pooled == ["0.2100", "0.4100", "0.8100", "0.6100"]
    pixels = [row[f"{name} per pixel"] for name in ("KS", "Wilcoxon", "Wasserstein")]
    assert pixels == ["0.3100", "0.7100", "0.5100"]
    assert (row["pixels that differ"], row["Wilcoxon, smaller sum of ranks"]) == ("25 %", "1.500e+09")
    assert (row["accuracy, LR"], row["accuracy, LDA"]) == ("0.625", "0.750")
    assert cells(lines, "15135, 16959")["JSD pooled"] == "0.2200"
    same = cells(lines, "1, 1")
    assert (same["JSD, published"], same["accuracy, published"], same["JSD pooled"]) == ("0", "0.5", "0.2300")
    assert cells(lines, "15135, 15135")["JSD pooled"] == "*not run*"


def test_a_pair_of_seeds_that_is_not_there_is_said_not_to_be():
    experiment = load(FOLDER / "distances.toml", profile="desk", changes=[
        'family=[{type = "retrain", values = {everything = [1, 12303]}}]', 'compare=["jensen_shannon"]'
    ])  # fmt: skip
    lines = tables.distance_table(Made(experiment, Planted(**DISTANCES)))
    assert cells(lines, "1, 1")["JSD pooled"] == "*not run*"
    row = cells(lines, "1, 12303")
    assert (row["JSD pooled"], row["KS pooled"], row["accuracy, LR"]) == ("0.2100", published.NONE, published.NONE)


def test_what_is_undefined_is_left_out_of_a_mean_and_counted(made):
    def cosine(spec):
        b = spec.other.subject.source
        return (
            float("nan") if spec.of.method.use == "integrated_gradients" or b.order > 1 else 0.01 * (b.init > 1) + 0.25
        )

    one = Made(made["small_cnn"].experiment, Planted(cosine=cosine))
    lines = tables.mean_table(one)
    assert not any("nan" in line for line in lines)
    lost = cells(lines, "integrated_gradients", "cosine")
    assert (lost["mean"], lost["lowest to highest"]) == (published.NONE, published.NONE)
    assert lost["undefined"] == lost["models or pairs"] != "0"
    some = cells(lines, "gradient_shap", "cosine")
    assert 0 < int(some["undefined"]) < int(some["models or pairs"])
    assert some["lowest to highest"] == "0.250 to 0.260"
    assert 0.25 < float(some["mean"]) < 0.26
    assert cells(lines, published.NONE, "accuracy")["undefined"] == "0"


def test_weights_have_a_row_a_tensor_and_a_column_an_epoch(made):
    def distance(spec):
        if spec.other.source.init == 16959:
            return float("nan")
        return (spec.of.epoch or 9) + 0.1 * (spec.other.source.init == 15135) + 0.5 * ("shannon" in spec.measure.label)

    one = Made(made["representations"].experiment, Planted(weight_distance=distance))
    lines = tables.weight_table(one)
    tensor = "`conv1.weight`"
    row = cells(lines, "weight_distance", tensor)
    assert row["epoch 1"] == "1.0667 (1.0000 to 1.1000)"  # three pairs without the fourth seed: 1.0, 1.1, 1.1
    assert (row["epoch 2"], row["end"]) == ("2.0667 (2.0000 to 2.1000)", "9.0667 (9.0000 to 9.1000)")
    assert cells(lines, "weight_distance(distance=jensen_shannon)", tensor)["end"] == "9.5667 (9.5000 to 9.6000)"


def test_radiographs_have_their_rows_once_there_are_some(tmp_path):
    plant(tmp_path / "mimic_cxr", complete=True)
    experiment = load(script.path_of(published.MIMIC), data=tmp_path, changes=["examples.count=3"])
    lines = tables.consistency_table({published.MIMIC: Made(experiment, Planted())})
    one, mean = (cells(lines, f"DenseNet-121{of}, MIMIC-CXR", "SHAP") for of in ("", " ensemble"))
    assert [one[name] for name in ("members", "C, row split", "C, sound")] == ["1", "2.000", "1.00"]
    assert [mean[name] for name in ("members", "C, sound", "models", "alpha")] == ["3", "1.00", "2", "1"]
    assert cells(lines, "DenseNet-121, MIMIC-CXR", "IG")["C, sound"] == "301.00"
    assert not any("*not run*" in line for line in lines if "MIMIC" in line)
    twins = experiment.families[0].values
    assert twins["init"] == [1, 12303, 15135, 16959]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """``main`` with these words, and what it would have run; what ``failing`` names fails. MNIST need not be there."""
    commands, reads = [], script.load

    def loaded(path, **how):
        return reads(path, **how) if path.stem == published.MIMIC or how["profile"] == "paper" else None

    def main(*words, failing=""):
        def run(command, check):
            commands.append(command)
            return SimpleNamespace(returncode=int(f"{command[3]} {Path(command[4]).stem}" == failing))

        monkeypatch.setattr(script, "load", loaded)
        monkeypatch.setattr(script, "tables", " ".join)
        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))
        monkeypatch.setattr(sys, "argv", ["script", "--store", str(tmp_path / "store"), "--out", str(tmp_path), *words])
        commands.clear()
        return script.main(), [*commands]

    monkeypatch.delenv("CONSILIENCE_DATA", raising=False)
    return main


@pytest.mark.parametrize("failing", ["run mlp", "report mlp"])
def test_after_a_failed_row_the_tables_are_written_and_the_exit_code_is_1(asked, tmp_path, capsys, failing):
    code, commands = asked("--profile", "smoke", "--only", "mlp", "swa", failing=failing)
    assert code == 1
    assert failing in capsys.readouterr().err
    assert "mlp" in (tmp_path / "tables.md").read_text("utf-8")
    assert [(command[3], Path(command[4]).stem) for command in commands] == [
        ("run", "mlp"), ("report", "mlp"), ("run", "swa"), ("report", "swa"),
    ]  # fmt: skip
    assert asked("--profile", "smoke", "--only", "mlp", "swa")[0] == 0


def test_data_are_found_where_the_environment_says(asked, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CONSILIENCE_DATA", str(tmp_path))
    assert asked("--profile", "paper", "--only-tables") == (1, [])
    assert f"{tmp_path}: expected a folder 'mnist'" in capsys.readouterr().err


def test_radiographs_are_run_where_they_are_and_do_not_stop_the_others(asked, tmp_path, capsys):
    (tmp_path / "data" / "mimic_cxr").mkdir(parents=True)  # nothing in it
    code, commands = asked("--profile", "smoke", "--data", str(tmp_path / "data"))
    assert [Path(command[4]).stem for command in commands].count("mimic_cxr") == 2
    assert all(command[command.index("--data") + 1] == str(tmp_path / "data") for command in commands)
    assert code == 1
    assert "load mimic_cxr" in capsys.readouterr().err
    assert (tmp_path / "tables.md").read_text("utf-8").split() == FILES
    assert not any("mimic_cxr" in command[4] for command in asked("--profile", "smoke")[1])


def test_what_was_not_run_is_said_not_to_be_and_what_was_has_its_numbers(tmp_path):
    experiment = load(FOLDER / "mlp.toml", profile="smoke", changes=TINY)
    outcome = run(experiment, tmp_path / "store")
    assert not outcome.failures, outcome.failures[0].trace
    made = {
        file: Made(
            experiment if file == "mlp" else load(FOLDER / f"{file}.toml", profile="smoke"),
            Store(tmp_path / "store"),
        )
        for file in FILES
    }
    lines = tables.consistency_table(made)
    row = cells(lines, "MLP", "SHAP")
    assert row["published C"] == "0.0668"
    assert 0 <= float(row["C, row split"]) <= 1
    assert "not run" not in " ".join(row.values())
    assert [row[name] for name in ("n", "alpha", "published alpha")] == ["40", "1", "6"]
    assert [row[name] for name in ("architecture", "members", "epochs", "models")] == [
        "mlp(hidden=(8,))",
        "1",
        "1",
        "2",
    ]
    assert all("*not run*" in line for line in lines if "DenseNet" in line or "CNN" in line or "ADP" in line)
    text = tables.tables(made)
    assert "`mlp.toml`" in text
    assert "nan" not in text.split("## How it was made")[1]


def test_ink_and_paper_have_their_place_on_the_scale(tmp_path):
    compare = 'compare=["on_part", {use = "on_part", part = "background"}]'
    changes = (*TINY[:3], compare, 'judge=["accuracy"]', 'conditions=["all"]')
    experiment = load(FOLDER / "parts.toml", profile="smoke", changes=changes)
    outcome = run(experiment, tmp_path / "store")
    assert not outcome.failures, outcome.failures[0].trace
    store = Store(tmp_path / "store")
    lines = tables.scale_table(Made(experiment, store), ["overall", "init", "order"])[2:]
    rows = [store.table(goal.spec) for goal in experiment.goals() if isinstance(goal.spec, Summary)]
    assert len(lines) == len(rows) == 2
    for line, label, both in zip(lines, ("on_part", "on_part(part=background)"), rows, strict=True):
        assert [row["name"] for row in both] == ["overall", "init"]
        shown = [f"{row['estimate']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for row in both]
        assert line == f"| gradient_shap | {label} | {shown[0]} | {shown[1]} | {published.NONE} |"


def test_tables_are_put_between_the_marks_of_a_page_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{script.MARKS[0]}\nold\n{script.MARKS[1]}\n\nAfter.\n")
    words = ["--only-tables", "--profile", "smoke", "--store", tmp_path / "store", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "scripts.agree_to_disagree", *map(str, words), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    text = page.read_text("utf-8")
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert text.count("*not run*") > 10
    assert done.stdout.strip() == str(tmp_path / "out" / "tables.md")
