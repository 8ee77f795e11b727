"""The tables, as Markdown: published, and what came out."""

import platform
from collections.abc import Sequence
from typing import Any

import torch

from consilience.experiment.experiment import Goal
from consilience.experiment.specs import Summary, Train
from scripts.agree_to_disagree.made import Made, rows_of
from scripts.agree_to_disagree.published import BLACK, DISTANCES, FACTORS, MEAN, NONE, REMEDIES, SHAP, Row


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
