"""Run the experiments of "Agree to Disagree" and write what came out beside what was published.

``python scripts/agree_to_disagree.py --store store --out reproduction --page docs/reproduction/agree_to_disagree.md``
makes what the store lacks, a page for each experiment in ``--out``, and the tables between the two marks of
``--page``. With ``--only-tables`` nothing is made: rows that are not there say *not run*. The rows of MIMIC-CXR are
run where the folder of the data sets holds that one.
"""

import argparse
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from consilience.cli.experiments import data_folder
from consilience.errors import ConsilienceError
from consilience.experiment.config import load
from consilience.experiment.experiment import Experiment, Goal
from consilience.experiment.families import Ensembles
from consilience.experiment.specs import Condition, Summary, Train, plan
from consilience.experiment.store import Store

FOLDER = Path(__file__).parents[1] / "experiments" / "agree_to_disagree"
MARKS = "<!-- tables: written by scripts/agree_to_disagree.py -->", "<!-- end of tables -->"
NONE = "\u2013"


class Row(NamedTuple):
    """A row of the table of consistency, and what the paper has in it: alpha, C and its columns, accuracy."""

    name: str
    file: str
    method: str
    alpha: int | None = None
    c: float | None = None
    columns: Mapping[str, float] = MappingProxyType({})
    accuracy: float | None = None
    family: str = "twins"


SHAP, IG, BLACK, KERNEL, MEAN = "SHAP", "IG", "IG, black", "Kernel SHAP", "IG, black, mean of the maps"
METHODS = {  # component and baseline; the paper's integrated gradients start from the zero of normalised space
    SHAP: ("gradient_shap", None), IG: ("integrated_gradients", "mean"), BLACK: ("integrated_gradients", 0.0),
    KERNEL: ("kernel_shap", 0.0), MEAN: ("mean_over_models", None),
}  # fmt: skip
MIMIC, ENSEMBLES = "mimic_cxr", "averaging ensembles"
TABLE = [
    Row("MLP", "mlp", SHAP, 6, 0.0668, {"order": 0.062, "init": 0.066, "dropout_rate": 0.0687}, 98.125),
    Row("SVM (RBF)", "rbf_svm", KERNEL, 10, 0.9444, {"subset": 0.96, "init": 0.94}, 94.0556),
    Row("Small-CNN", "small_cnn", SHAP, 6, 0.0252, {"order": 0.018, "init": 0.06, "dropout_rate": 0.034}, 98.349),
    Row("GaborNet, fixed", "gabornet_frozen", SHAP, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 95.04),
    Row("ResNet-18", "resnet18", SHAP, 10, 0.0, {"order": 0, "init": 0}, 99.425),
    Row("ADP ensemble of ten", "adaptive_diversity_ridge", SHAP, 6, 0.2193, {"order": 0.192, "init": 0.233}, 99.083),
    Row("CNN", "cnn", SHAP, 12, 0.0652, {"order": 0.052, "init": 0.0564, "dropout_rate": 0.0914}, 98.9976),
    Row("DenseNet-121, MIMIC-CXR", MIMIC, SHAP, 6, 0.3329, {"init": 0.3329}, 75.6723),
    Row("DenseNet-121 ensemble, MIMIC-CXR", MIMIC, SHAP, 4, 0.3367, {"init": 0.3667}, 80.8, ENSEMBLES),
    Row("CNN", "cnn", IG, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 98.9976),
    Row("Hyper-batch ensemble", "hyper_batch_ensemble", IG, 2, 0.0, {"init": 0}, 99.32),
    Row("DenseNet-121, MIMIC-CXR", MIMIC, IG, 6, 0.168, {"order": 0.115, "init": 0.2033}, 75.6723),
]  # fmt: skip
UNPUBLISHED = [
    "linear", "gabornet", "rbf_svm", "mlp", "small_cnn", "cnn", "adaptive_diversity", "hyper_batch_ensemble",
    "hyper_deep_ensemble", "resnet18",
]  # fmt: skip
REMEDIES = ["small_cnn", "no_dropout", "swa", "ensemble", "explanation_agreement", "hyper_deep_ensemble"]
FACTORS = ["init", "order", "noise", "dropout_rate", "subset", "everything", "members", "nothing"]
DISTANCES = {  # of seeds: JSD, KS, Wilcoxon, accuracy of the logistic regression
    ("1", "1"): (0, 0, 0, 0.5), ("1", "12303"): (0.8062, 0.9744, 7.877e9, 0.973),
    ("1", "15135"): (0.8012, 0.9690, 1.738e10, 0.978), ("1", "16959"): (0.7346, 0.8890, 2.464e11, 0.975),
    ("12303", "12303"): (0, 0, 0, 0.5), ("12303", "15135"): (0.8228, 0.9913, 4.350e8, 0.979),
    ("12303", "16959"): (0.7900, 0.9567, 3.316e10, 0.974), ("15135", "15135"): (0, 0, 0, 0.5),
    ("15135", "16959"): (0.8122, 0.9810, 6.611e9, 0.975),
}  # fmt: skip


class Made:
    """An experiment, the store that holds what was made of it, and the family that is looked at."""

    def __init__(self, experiment: Experiment, store: Store, family: str = "twins") -> None:
        self.experiment, self.store, self.family = experiment, store, family

    @functools.cached_property
    def of_family(self) -> list[Goal]:
        """The family's goals."""
        return [goal for goal in self.experiment.goals() if goal.family == self.family]

    def rows(
        self, method: str, measure: str, summary: str, normalise: str = "none", where: Condition = "all"
    ) -> dict[str, dict[str, Any]]:
        """Rows of a summary of the family by column; none where it was not made."""
        for goal in self.goals(method):
            spec, how = goal.spec, goal.how
            if not isinstance(spec, Summary) or (spec.summary.use, spec.where) != (summary, where):
                continue
            if goal.measure.use == measure and how and (how.normalise, how.pool) == (normalise, None):
                return {row["name"]: row for row in self.store.table(spec)} if spec in self.store else {}
        return {}

    def goals(self, method: str | None = None) -> Iterator[Goal]:
        """The family's goals, of one method where it is named."""
        for goal in self.of_family:
            found = goal.method and (goal.method.use, goal.method.option("baseline"))
            if method is None or found == METHODS[method]:
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

    @property
    def size(self) -> dict[str, str]:
        """Architecture, members of each model, epochs, and how many models; a dash each where the file lacks them."""
        base = self.experiment.base
        family = next((one for one in self.experiment.families if one.name == self.family), None)
        if not isinstance(base, Train) or family is None:
            return dict.fromkeys(("architecture", "members", "epochs", "models"), NONE)
        of, members = base.model.option("of"), base.model.option("members")
        members = family.size if isinstance(family, Ensembles) else members or 1
        name = base.model.label if of is None else getattr(of, "label", str(of))
        return {"architecture": name, "members": str(members), "epochs": str(base.epochs),
                "models": str(len(family.members(base)))}  # fmt: skip

    def seconds(self) -> float:
        """Of one process after the other, by the clock, for everything behind the numbers."""
        specs = [spec for spec in plan(self.experiment.specs()) if spec in self.store]
        return sum(float(self.store.provenance(spec)["seconds"]) for spec in specs)


def rows_of(made: dict[str, Made]) -> list[tuple[Row, Made | None]]:
    """The paper's rows, then those that it does not have, each with what was made of it, if anything was."""
    known = {(row.file, row.method) for row in TABLE}
    more = [
        Row(made[file].experiment.name, file, method)
        for file in UNPUBLISHED
        if file in made
        for method in (SHAP, BLACK)
        if (file, method) not in known
    ]
    found: list[tuple[Row, Made | None]] = []
    for row in (*TABLE, *more):
        one = made.get(row.file)
        if one is not None and row.family != one.family:
            one = Made(one.experiment, one.store, row.family)
        found.append((row, one if one is not None and one.there else None))
    return found


def consistency_table(made: dict[str, Made]) -> list[str]:
    """Published, row split and sound, and where agreement image by image stands on its scale."""
    head = ["model", "method", "architecture", "members", "epochs", "models", "published C", "C, row split",
            "C, sound", "null", "C, L2-scaled", "cosine on the scale", "n", "published alpha", "alpha",
            "accuracy, published", "accuracy"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row, one in rows_of(made):
        size = [NONE] * 4 if one is None else [*one.size.values()]
        known = NONE if row.c is None else f"{row.c:g}"
        lines.append([row.name, row.method, *size, known, *_obtained(row, one)])
    return _markdown(lines)


def _obtained(row: Row, one: Made | None) -> list[str]:
    alpha = NONE if row.alpha is None else str(row.alpha)
    accuracy = NONE if row.accuracy is None else f"{row.accuracy:.1f} %"
    if one is None:
        return ["*not run*", "*not run*", NONE, NONE, NONE, NONE, alpha, NONE, accuracy, NONE]
    split = one.rows(row.method, "separability_row_split", "consistency_row_split").get("overall")
    sound = one.rows(row.method, "separability", "consistency").get("overall")
    scaled = one.rows(row.method, "separability", "consistency", normalise="l2").get("overall")
    cosine = one.rows(row.method, "cosine", "calibrated_similarity").get("overall")
    right = one.accuracy()
    return [
        _number(split["estimate"] if split else None),
        _interval(sound),
        _number(sound["null"] if sound else None),
        _interval(scaled),
        _interval(cosine),
        str(sound["n"]) if sound else NONE,
        alpha,
        str(sound["pairs"]) if sound else NONE,
        accuracy,
        f"{100 * min(right):.1f} to {100 * max(right):.1f} %",
    ]


def right_table(made: dict[str, Made]) -> list[str]:
    """C and agreement of all images, and of those that both models of a pair name rightly."""
    head = ["model", "method", "C, sound: all", "both right", "cosine on the scale: all", "both right",
            "images that count"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row, one in rows_of(made):
        if one is None:
            continue
        told, alike = (
            [one.rows(row.method, *what, where=where).get("overall") for where in ("all", "both_right")]
            for what in (("separability", "consistency"), ("cosine", "calibrated_similarity"))
        )
        last = alike[1]
        count = NONE if last is None else f"{100 * (1 - last['undefined'] / (last['n'] * last['pairs'])):.1f} %"
        lines.append([row.name, row.method, *map(_interval, told), *map(_interval, alike), count])
    return _markdown(lines)


def factor_table(made: dict[str, Made]) -> list[str]:
    """C by factor, sound, and published where there was a column."""
    there = [(row, one) for row, one in rows_of(made) if one is not None]
    every = [one.rows(row.method, "separability", "consistency") for row, one in there]
    factors = [name for name in FACTORS if any(name in found for found in every)]
    lines = [["model", "method", *factors, "nothing, row split"], ["---"] * (3 + len(factors))]
    for (row, one), found in zip(there, every, strict=True):
        cells = []
        for factor in factors:
            known = f" (published {row.columns[factor]:g})" if factor in row.columns else ""
            cells.append(_interval(found.get(factor)) + known)
        split = one.rows(row.method, "separability_row_split", "consistency_row_split").get("nothing")
        lines.append([row.name, row.method, *cells, _interval(split)])
    return _markdown(lines)


def agreement_table(made: dict[str, Made], files: Sequence[str], factors: Sequence[str]) -> list[str]:
    """Cosine of twins that differ in one factor, on the scale from other images (0) to the same model (1)."""
    head = ["experiment", "method", *factors, "C, sound, init", "C, sound, overall", "accuracy"]
    lines = [head, ["---"] * len(head)]
    for file in files:
        one = made[file]
        if not one.there:
            lines.append([one.experiment.name, NONE, *["*not run*"] * len(factors), NONE, NONE, NONE])
            continue
        for method in [SHAP, BLACK, *([MEAN] if any(one.goals(MEAN)) else [])]:
            found = one.rows(method, "cosine", "calibrated_similarity")
            told = one.rows(method, "separability", "consistency")
            right = one.accuracy()
            cells = [_interval(found.get(factor)) for factor in factors]
            cells += [_interval(told.get("init")), _interval(told.get("overall"))]
            lines.append([one.experiment.name, method, *cells, f"{100 * sum(right) / len(right):.1f} %"])
    return _markdown(lines)


def mode_table(one: Made) -> list[str]:
    """Explanation modes of many twins: who explains alike, and how alike inside and to the others."""
    lines = [["method", "mode", "pairs", "agreement inside", "to the others", "p"], ["---"] * 6]
    for method in (SHAP, BLACK):
        for name, row in one.rows(method, "cosine", "modes").items():
            numbers = (_number(row[key], ".2f") for key in ("estimate", "null", "p"))
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
    """Every pair of seeds: what was published, and what each measure is; pooled over pixels, and pixel by pixel.

    Where both seeds are the same, it is of a model and the very same training run again.
    """
    lines = [["seeds", *(f"{name}, published" for name in ("JSD", "KS", "Wilcoxon", "accuracy")),
              *(f"{name} pooled" for name in ("JSD", "KS", "Wilcoxon")), "Wilcoxon, smaller sum of ranks",
              "Wasserstein pooled", "KS per pixel", "pixels that differ", "Wilcoxon per pixel",
              "Wasserstein per pixel", "accuracy, LR", "accuracy, LDA"]]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    for (a, b), published in DISTANCES.items():
        pair = "base" if a == "1" else f"everything {a}", "nothing 1" if a == b == "1" else f"everything {b}"
        mine = {goal.measure.use: goal for goal in one.goals() if (goal.a, goal.b) == pair and goal.spec in one.store}
        known = [f"{a}, {b}", *(f"{number:.4g}" for number in published)]
        lines.append([*known, *(_distances(one, pair, mine) if mine else ["*not run*"] + [NONE] * 10)])
    return _markdown(lines)


def _distances(one: Made, pair: tuple[str, str], mine: dict[str, Goal]) -> list[str]:
    def number(use: str, column: str = "value", form: str = ".4f") -> str:
        return _number(one.mean(mine[use], column) if use in mine else None, form)

    told = [goal for goal in one.goals() if (goal.a, goal.b) == pair and goal.measure.use == "separability"]
    right = {str(goal.measure.option("classifier")): _number(0.5 + one.mean(goal) / 2) for goal in told}
    return [
        number("jensen_shannon", "pooled"),
        number("kolmogorov_smirnov", "pooled"),
        number("wilcoxon", "pooled"),
        number("wilcoxon", "smaller", ".3e"),
        number("wasserstein", "pooled"),
        number("kolmogorov_smirnov"),
        number("kolmogorov_smirnov", "rejected", ".0%").replace("%", " %"),
        number("wilcoxon"),
        number("wasserstein"),
        right.get("logistic", NONE),
        right.get("lda", NONE),
    ]


def mean_table(one: Made, leave_out: Sequence[str] = ()) -> list[str]:
    """Everything else of an experiment: each measure's mean over pairs or models, and its range.

    What is undefined is left out of both, and counted.
    """
    values: dict[tuple[str, str, str], list[float]] = {}
    for goal in one.goals():
        if not isinstance(goal.spec, Summary) and goal.spec in one.store and goal.measure.use not in leave_out:
            method = "" if goal.method is None else goal.method.use
            values.setdefault((method, goal.label, goal.part), []).append(one.mean(goal))
    lines = [["method", "measure", "of", "mean", "lowest to highest", "models or pairs", "undefined"], ["---"] * 7]
    for (method, measure, part), found in values.items():
        known = _defined(found)
        mean = _number(sum(known) / len(known) if known else None)
        spread = f"{min(known):.3f} to {max(known):.3f}" if known else NONE
        counts = str(len(found)), str(len(found) - len(known))
        lines.append([method or NONE, measure, part or NONE, mean, spread, *counts])
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
        cells = (_defined(found.get(epoch, [])) for epoch in epochs)
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
    head = ["file", "architecture", "members", "epochs", "models", "trained on", "explained",
            "minutes of one process"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for file, one in made.items():
        base = one.experiment.base
        if one.there and isinstance(base, Train):
            lines.append([f"`{file}.toml`", *one.size.values(), base.data.label, one.experiment.examples.label,
                          f"{one.seconds() / 60:.1f}"])  # fmt: skip
    return _markdown(lines)


def tables(made: dict[str, Made]) -> str:
    """All tables, one after the other."""
    parts = {
        "Consistency (table 1)": consistency_table(made),
        "Where both models are right": right_table(made),
        "By factor": factor_table(made),
        "Agreement image by image": agreement_table(made, ["mlp", "small_cnn", "cnn", "gabornet"], FACTORS[:4]),
        "What explains how maps vary": share_table(made, ["mlp", "small_cnn", "cnn", "modes"]),
        "Explanation modes of twelve MLPs": mode_table(made["modes"]),
        "Remedies, with the same yardstick": agreement_table(made, REMEDIES, ["init", "order", "members"]),
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


def _number(value: float | None, form: str = ".3f") -> str:
    return NONE if value is None or value != value else f"{value:{form}}"


def _defined(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == value]


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def path_of(file: str) -> Path:
    """The file of an experiment; that of the radiographs lies beside the folder."""
    return (FOLDER.parent if file == MIMIC else FOLDER) / f"{file}.toml"


def main() -> int:
    """Make what is missing, then write pages and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="desk", choices=("smoke", "desk", "paper"))
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--on", default="processes:2")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: CONSILIENCE_DATA)")
    parser.add_argument("--page", type=Path, help="a Markdown file whose marked part is replaced by the tables")
    parser.add_argument("--only", nargs="*", help="names of files, without their ending")
    parser.add_argument("--only-tables", action="store_true")
    chosen = parser.parse_args()
    data = data_folder(chosen.data)
    files = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "common")
    if data is not None and any((data / name).is_dir() for name in (MIMIC, MIMIC.replace("_", "-"))):
        files.append(MIMIC)
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for file in [] if chosen.only_tables else (chosen.only or files):
        words = [str(path_of(file)), "--store", str(chosen.store), "--profile", chosen.profile]
        words += [] if data is None else ["--data", str(data)]
        command = [sys.executable, "-m", "consilience"]
        where = ["--on", chosen.on, "--device", chosen.device]
        for verb, rest in (("run", where), ("report", ["--out", str(chosen.out / f"{file}.html")])):
            if subprocess.run([*command, verb, *words, *rest], check=False).returncode:
                failed.append(f"{verb} {file}")
    store, made = Store(chosen.store), dict[str, Made]()
    for file in files:
        try:
            made[file] = Made(load(path_of(file), profile=chosen.profile, data=data), store)
        except ConsilienceError as error:
            print(error, file=sys.stderr)
            if file != MIMIC:  # whose rows alone are then missing
                return 1
            failed.append(f"load {file}")
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
