"""Run the experiments of "Agree to Disagree" and write what came out beside what was published.

``python scripts/agree_to_disagree.py --store store --out reproduction --page docs/reproduction/agree_to_disagree.md``
makes what the store lacks, a page for each experiment in ``--out``, and the tables between the two marks of
``--page``. With ``--only-tables`` nothing is made: rows that are not there say *not run*.
"""

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from consilience.errors import ConsilienceError
from consilience.experiment.config import load
from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.specs import Summary, Train, plan
from consilience.experiment.store import Store

FOLDER = Path(__file__).parents[1] / "experiments" / "agree_to_disagree"
MARKS = "<!-- tables: written by scripts/agree_to_disagree.py -->", "<!-- end of tables -->"
NONE = "\u2013"


class Published(NamedTuple):
    """A row of the paper's table of consistency: experiment file, method, alpha, C and its columns, accuracy."""

    name: str
    file: str
    method: str
    alpha: int
    c: float
    columns: dict[str, float]
    accuracy: float


SHAP, IG, BLACK = "SHAP", "IG", "IG, black"
METHODS = {  # component and baseline; the paper's integrated gradients start from the zero of normalised space
    SHAP: ("gradient_shap", None), IG: ("integrated_gradients", "mean"), BLACK: ("integrated_gradients", 0.0),
}  # fmt: skip
TABLE = [
    Published("MLP", "mlp", SHAP, 6, 0.0668, {"order": 0.062, "init": 0.066, "dropout_rate": 0.0687}, 98.125),
    Published("SVM (RBF)", "rbf_svm", SHAP, 10, 0.9444, {"subset": 0.96, "init": 0.94}, 94.0556),
    Published("Small-CNN", "small_cnn", SHAP, 6, 0.0252, {"order": 0.018, "init": 0.06, "dropout_rate": 0.034}, 98.349),
    Published("GaborNet, fixed", "gabornet_frozen", SHAP, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 95.04),
    Published("ResNet-18", "resnet18", SHAP, 10, 0.0, {"order": 0, "init": 0}, 99.425),
    Published("ADP ensemble", "adaptive_diversity", SHAP, 6, 0.2193, {"order": 0.192, "init": 0.233}, 99.083),
    Published("CNN", "cnn", SHAP, 12, 0.0652, {"order": 0.052, "init": 0.0564, "dropout_rate": 0.0914}, 98.9976),
    Published("DenseNet-121, MIMIC-CXR", "", SHAP, 6, 0.3329, {"init": 0.3329}, 75.6723),
    Published("DenseNet-121 ensemble, MIMIC-CXR", "", SHAP, 4, 0.3367, {"init": 0.3667}, 80.8),
    Published("CNN", "cnn", IG, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 98.9976),
    Published("Hyper-batch ensemble", "hyper_batch_ensemble", IG, 2, 0.0, {"init": 0}, 99.32),
    Published("DenseNet-121, MIMIC-CXR", "", IG, 6, 0.168, {"order": 0.115, "init": 0.2033}, 75.6723),
]  # fmt: skip
UNPUBLISHED = ["linear", "gabornet", "rbf_svm", "mlp", "small_cnn", "cnn", "hyper_batch_ensemble", "resnet18"]
REMEDIES = ["small_cnn", "no_dropout", "swa", "ensemble", "explanation_agreement"]
FACTORS = ["init", "order", "noise", "dropout_rate", "subset", "everything", "nothing"]
DISTANCES = {  # of seeds: JSD, KS, accuracy of the logistic regression
    ("base", "everything 12303"): (0.8062, 0.9744, 0.973), ("base", "everything 15135"): (0.8012, 0.9690, 0.978),
    ("base", "everything 16959"): (0.7346, 0.8890, 0.975),
    ("everything 12303", "everything 15135"): (0.8228, 0.9913, 0.979),
    ("everything 12303", "everything 16959"): (0.7900, 0.9567, 0.974),
    ("everything 15135", "everything 16959"): (0.8122, 0.9810, 0.975),
}  # fmt: skip


class Made(NamedTuple):
    """An experiment and the store that holds what was made of it."""

    experiment: Experiment
    store: Store

    def rows(self, method: str, measure: str, summary: str, **how: Any) -> dict[str, dict[str, Any]]:
        """Rows of a summary of the twins by column; none where it was not made."""
        for goal in self.goals(method):
            spec = goal.spec
            if not isinstance(spec, Summary) or spec.where != "all" or goal.measure.use != measure:
                continue
            if spec.summary.use == summary and goal.how and goal.how.normalise == how.get("normalise", "none"):
                return {row["name"]: row for row in self.store.table(spec)} if spec in self.store else {}
        return {}

    def goals(self, method: str | None = None) -> Iterator[Goal]:
        """The twins' goals, of one method where it is named."""
        for goal in self.experiment.goals():
            found = goal.method and (goal.method.use, goal.method.option("baseline"))
            if goal.family == "twins" and (method is None or found == METHODS[method]):
                yield goal

    def mean(self, goal: Goal, column: str = "value") -> float:
        """Of a measure's values; NaN where it was not made."""
        return float(self.store.tensors(goal.spec)[column].nanmean()) if goal.spec in self.store else float("nan")

    def accuracy(self) -> list[float]:
        """Of each twin on the examples that were explained."""
        judged = [g for g in self.goals() if g.measure.use == "accuracy" and g.method is None and not g.b]
        return [self.mean(goal) for goal in judged if goal.spec in self.store]

    @property
    def there(self) -> bool:
        """Whether anything of it was made."""
        return bool(self.accuracy())

    def seconds(self) -> float:
        """Of the processor, for everything behind the numbers."""
        specs = [spec for spec in plan(self.experiment.specs()) if spec in self.store]
        return sum(float(self.store.provenance(spec)["seconds"]) for spec in specs)


def consistency_table(made: dict[str, Made]) -> list[str]:
    """Published, row split and sound, and where agreement image by image stands on its scale."""
    head = ["model", "method", "published C", "C, row split", "C, sound", "null", "C, L2-scaled", "cosine on the scale",
            "n, alpha", "accuracy, published", "accuracy"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    rows = [(row.name, row.file, row.method, f"{row.c:g}", f"{row.accuracy:.1f} %") for row in TABLE]
    known = {(row.file, row.method) for row in TABLE}
    rows += [
        (made[file].experiment.name, file, method, NONE, NONE)
        for file in UNPUBLISHED
        for method in (SHAP, BLACK)
        if (file, method) not in known and (file != "hyper_batch_ensemble" or method != SHAP)
    ]
    for name, file, method, c, accuracy in rows:
        lines.append([name, method, c, *_obtained(made.get(file), method, accuracy)])
    return _markdown(lines)


def _obtained(one: Made | None, method: str, accuracy: str) -> list[str]:
    if one is None or not one.there:
        return ["*not run*", "*not run*", NONE, NONE, NONE, NONE, accuracy, NONE]
    split = one.rows(method, "separability_row_split", "consistency_row_split").get("overall")
    sound = one.rows(method, "separability", "consistency").get("overall")
    scaled = one.rows(method, "separability", "consistency", normalise="l2").get("overall")
    cosine = one.rows(method, "cosine", "calibrated_similarity").get("overall")
    right = one.accuracy()
    return [
        f"{split['estimate']:.3f}" if split else NONE,
        _interval(sound),
        f"{sound['null']:.3f}" if sound else NONE,
        _interval(scaled),
        _interval(cosine),
        f"{sound['n']}, {sound['pairs']}" if sound else NONE,
        accuracy,
        f"{100 * min(right):.1f} to {100 * max(right):.1f} %",
    ]


def factor_table(made: dict[str, Made]) -> list[str]:
    """C by factor, sound, and published where there was a column."""
    there = [row for row in TABLE if row.file in made and made[row.file].there]
    every = [made[row.file].rows(row.method, "separability", "consistency") for row in there]
    factors = [name for name in FACTORS if any(name in found for found in every)]
    lines = [["model", "method", *factors, "nothing, row split"], ["---"] * (3 + len(factors))]
    for row, found in zip(there, every, strict=True):
        cells = []
        for factor in factors:
            known = f" (published {row.columns[factor]:g})" if factor in row.columns else ""
            cells.append(_interval(found.get(factor)) + known if factor in found else NONE + known)
        split = made[row.file].rows(row.method, "separability_row_split", "consistency_row_split").get("nothing")
        lines.append([row.name, row.method, *cells, _interval(split)])
    return _markdown(lines)


def agreement_table(made: dict[str, Made], files: Sequence[str], factors: Sequence[str]) -> list[str]:
    """Cosine of twins that differ in one factor, on the scale from other images (0) to the same model (1)."""
    lines = [["experiment", "method", *factors, "C, sound, init", "accuracy"], ["---"] * (4 + len(factors))]
    for file in files:
        one = made[file]
        if not one.there:
            lines.append([one.experiment.name, NONE, *["*not run*"] * len(factors), NONE, NONE])
            continue
        for method in (SHAP, BLACK):
            found = one.rows(method, "cosine", "calibrated_similarity")
            told = one.rows(method, "separability", "consistency").get("init")
            right = one.accuracy()
            cells = [_interval(found.get(factor)) for factor in factors]
            mean = f"{100 * sum(right) / len(right):.1f} %"
            lines.append([one.experiment.name, method, *cells, _interval(told), mean])
    return _markdown(lines)


def mode_table(one: Made) -> list[str]:
    """Explanation modes of many twins: who explains alike, and how alike inside and to the others."""
    lines = [["method", "mode", "pairs", "agreement inside", "to the others", "p"], ["---"] * 6]
    for method in (SHAP, BLACK):
        for name, row in one.rows(method, "cosine", "modes").items():
            values = (row[key] for key in ("estimate", "null", "p"))
            numbers = (NONE if value is None or value != value else f"{value:.2f}" for value in values)
            lines.append([method, name, str(row["pairs"]), *numbers])
    return _markdown(lines)


def share_table(made: dict[str, Made], files: Sequence[str]) -> list[str]:
    """What explains how maps vary: shares of the variance."""
    names: dict[str, None] = {}
    found = {}
    for file in files:
        for method in (SHAP, BLACK):
            rows = made[file].rows(method, "squared_distance", "variance_shares")
            if rows:
                found[file, method] = rows
                names |= dict.fromkeys(rows)
    lines = [["experiment", "method", *names], ["---"] * (2 + len(names))]
    for (file, method), rows in found.items():
        lines.append([made[file].experiment.name, method, *[_interval(rows.get(name)) for name in names]])
    return _markdown(lines)


def distance_table(one: Made) -> list[str]:
    """Every pair of seeds: what was published, and what each measure is."""
    head = ["seeds", "JSD, published", "KS, published", "accuracy, published"]
    head += ["JSD pooled", "KS pooled", "KS per pixel", "pixels that differ", "Wilcoxon per pixel", "accuracy, LR",
             "accuracy, LDA"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for pair, published in DISTANCES.items():
        mine = [goal for goal in one.goals() if (goal.a, goal.b) == pair and goal.spec in one.store]
        if not mine:
            continue  # a profile with fewer seeds
        by = {goal.measure.use: goal for goal in mine}
        told = [goal for goal in mine if goal.measure.use == "separability"]
        right = {str(goal.measure.option("classifier")): f"{0.5 + one.mean(goal) / 2:.3f}" for goal in told}
        seeds = ", ".join(name.removeprefix("everything ").replace("base", "1") for name in pair)
        smirnov = by["kolmogorov_smirnov"]
        found = [one.mean(by["jensen_shannon"], "pooled"), one.mean(smirnov, "pooled"), one.mean(smirnov)]
        lines.append([seeds, *(f"{number:g}" for number in published), *(f"{number:.4f}" for number in found),
                      f"{100 * one.mean(smirnov, 'rejected'):.0f} %", f"{one.mean(by['wilcoxon']):.4f}",
                      right["logistic"], right["lda"]])  # fmt: skip
    return _markdown(lines)


def mean_table(one: Made, leave_out: Sequence[str] = ()) -> list[str]:
    """Everything else of an experiment: each measure's mean over pairs or models, and its range."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for goal in one.goals():
        if not isinstance(goal.spec, Summary) and goal.spec in one.store and goal.measure.use not in leave_out:
            method = "" if goal.method is None else goal.method.use
            values.setdefault((method, goal.label, goal.part), []).append(one.mean(goal))
    lines = [["method", "measure", "of", "mean", "lowest to highest", "models or pairs"], ["---"] * 6]
    for (method, measure, part), found in values.items():
        spread = f"{min(found):.3f} to {max(found):.3f}"
        lines.append([method or NONE, measure, part or NONE, f"{sum(found) / len(found):.3f}", spread, str(len(found))])
    return _markdown(lines)


def weight_table(one: Made) -> list[str]:
    """How far the values of two models' tensors are apart, by epoch: mean over pairs, lowest and highest pair."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for goal in one.goals():
        if goal.measure.use == "weight_distance" and goal.spec in one.store:
            tensor, _, epoch = goal.part.partition(", ")
            values.setdefault((goal.label, tensor), {}).setdefault(epoch or "end", []).append(one.mean(goal))
    epochs = list(dict.fromkeys(epoch for found in values.values() for epoch in found))
    lines = [["measure", "tensor", *epochs], ["---"] * (2 + len(epochs))]
    for (measure, tensor), found in values.items():
        cells = (found.get(epoch, []) for epoch in epochs)
        spread = [f"{sum(v) / len(v):.4f} ({min(v):.4f} to {max(v):.4f})" if v else NONE for v in cells]
        lines.append([measure, f"`{tensor}`", *spread])
    return _markdown(lines)


def scale_table(one: Made, columns: Sequence[str]) -> list[str]:
    """Every measure of an experiment on the scale from other images (0) to the same model (1)."""
    lines = [["method", "measure", *columns], ["---"] * (2 + len(columns))]
    for goal in one.goals():
        spec = goal.spec
        if not isinstance(spec, Summary) or spec.summary.use != "calibrated_similarity" or spec.where != "all":
            continue
        if goal.method is not None and spec in one.store:
            found = {row["name"]: row for row in one.store.table(spec)}
            lines.append([goal.method.use, goal.label, *[_interval(found.get(name)) for name in columns]])
    return _markdown(lines)


def recipe_table(made: dict[str, Made]) -> list[str]:
    """What each experiment was made of."""
    lines = [["file", "model", "trained on", "epochs", "explained", "models", "CPU minutes"], ["---"] * 7]
    for file, one in made.items():
        base = one.experiment.base
        if one.there and isinstance(base, Train):
            twins = next(f for f in one.experiment.families if f.name == "twins")
            lines.append([f"`{file}.toml`", base.model.label, base.data.label, str(base.epochs),
                          one.experiment.examples.label, str(len(twins.members(base))),
                          f"{one.seconds() / 60:.1f}"])  # fmt: skip
    return _markdown(lines)


def tables(made: dict[str, Made]) -> str:
    """All tables, one after the other."""
    parts = {
        "Consistency (table 1)": consistency_table(made),
        "By factor": factor_table(made),
        "Agreement image by image": agreement_table(made, ["mlp", "small_cnn", "cnn", "gabornet"], FACTORS[:4]),
        "What explains how maps vary": share_table(made, ["mlp", "small_cnn", "cnn", "modes"]),
        "Explanation modes of twelve MLPs": mode_table(made["modes"]),
        "Remedies, with the same yardstick": agreement_table(made, REMEDIES, ["init", "order"]),
        "Distances between seeds (table 2)": distance_table(made["distances"]) if made["distances"].there else [],
        "Where twins disagree": mean_table(made["parts"]),
        "Where twins disagree, on the scale": scale_table(made["parts"], ["overall", *FACTORS[:4]]),
        "Single models": mean_table(made["one_model"]),
        "The models themselves": mean_table(
            made["representations"], ("weight_distance", "cosine", "calibration_error")
        ),
        "Their weights": weight_table(made["representations"]),
        "How it was made": recipe_table(made),
    }
    machine = f"{platform.machine()}, CPU, torch {torch.__version__}"
    return "\n\n".join([f"Made on: {machine}.", *("\n".join([f"## {name}", "", *p]) for name, p in parts.items() if p)])


def _interval(row: dict[str, Any] | None) -> str:
    if row is None or row["estimate"] is None or row["estimate"] != row["estimate"]:
        return NONE
    if row["low"] is None or row["low"] != row["low"]:
        return f"{row['estimate']:.2f}"
    return f"{row['estimate']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def main() -> int:
    """Make what is missing, then write pages and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="desk", choices=("smoke", "desk", "paper"))
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--on", default="processes:2")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda")
    parser.add_argument("--data", type=Path, help="folder of the data sets, for the profile 'paper'")
    parser.add_argument("--page", type=Path, help="a Markdown file whose marked part is replaced by the tables")
    parser.add_argument("--only", nargs="*", help="names of files, without their ending")
    parser.add_argument("--only-tables", action="store_true")
    chosen = parser.parse_args()
    files = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "common")
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for file in [] if chosen.only_tables else (chosen.only or files):
        words = [str(FOLDER / f"{file}.toml"), "--store", str(chosen.store), "--profile", chosen.profile]
        words += [] if chosen.data is None else ["--data", str(chosen.data)]
        command = [sys.executable, "-m", "consilience"]
        where = ["--on", chosen.on, "--device", chosen.device]
        for verb, rest in (("run", where), ("report", ["--out", str(chosen.out / f"{file}.html")])):
            if subprocess.run([*command, verb, *words, *rest], check=False).returncode:
                failed.append(f"{verb} {file}")
    store = Store(chosen.store)
    try:
        made = {f: Made(load(FOLDER / f"{f}.toml", profile=chosen.profile, data=chosen.data), store) for f in files}
    except ConsilienceError as error:
        print(error, file=sys.stderr)
        return 1
    text = tables(made)
    (chosen.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    if chosen.page is not None:
        whole = chosen.page.read_text("utf-8")
        part = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
        chosen.page.write_text(part.sub(lambda _: f"{MARKS[0]}\n\n{text}\n\n{MARKS[1]}", whole), encoding="utf-8")
    print(chosen.out / "tables.md")
    if failed:
        print(f"failed, and missing in the tables: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
