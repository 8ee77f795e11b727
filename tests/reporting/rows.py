"""Rows of a report made by hand, and a page of them that strains the layout."""

import itertools

import msgspec
import torch

from consilience.reporting.figures import Gallery, Strip, picture, signed
from consilience.reporting.page import Page
from consilience.reporting.tables import Judged, Line, Matrix, Size, Told, performances
from consilience.reporting.verdicts import answer

HOSTILE = 'net <b onload="alert(1)">&amp;'


def line(estimate=0.6, low=None, high=None, **rest):
    """A row of agreement, overall unless told otherwise; an estimate alone has an interval of 0.02 around it."""
    if estimate is not None and low is None:
        low, high = estimate - 0.01, estimate + 0.01
    row = {
        "family": "twins", "kind": "twins", "method": "gradient", "control": False, "measure": "cosine",
        "column": "overall", "pairs": 6, "examples": 50, "undefined": 0, "agreement": 0.5, "floor": 0.9,
        "wrong_image": 0.1, "level": 0.95,
    }  # fmt: skip
    return Line(**{**row, **rest}, estimate=estimate, low=low, high=high)


def stage(estimate=0.6, low=None, high=None, column="all layers", **rest):
    """A row of a cascade."""
    return line(estimate, low, high, **{"family": "randomised", "kind": "cascade", "column": column, **rest})


def told(consistency=0.4, **rest):
    """A row of consistency."""
    row = {
        "family": "twins", "kind": "twins", "method": "gradient", "control": False, "measure": "separability",
        "column": "overall", "pairs": 6, "examples": 50, "undefined": 0, "low": consistency - 0.05,
        "high": consistency + 0.05, "level": 0.95, "null": 0.97, "p": 0.05,
    }  # fmt: skip
    return Told(consistency=consistency, **{**row, **rest})


def sized(consistency=0.4, count=None, used=None, unit="images of each class", **rest):
    """A row of consistency, of a measure that stands with several counts; all images are 50 of each class."""
    measure = "separability" if count is None else f"separability(count={count})"
    size = Size(measure="separability", count=count, used=float(used or count or 50), unit=unit)
    return told(consistency, **{"measure": measure, "size": size, **rest})


def strained():
    """A page with much on it, and its pictures."""
    methods = ["integrated_gradients(of=gradient(score=probability),steps=128)", "gradient", HOSTILE, "grad_cam"]
    models = [f"dropout_rate 0.{i}" if i % 2 else f"{HOSTILE} {i}" for i in range(12)]
    factors = ["init", "order", "noise", "augment", "dropout_rate"]
    lines, rows, tables = [], [], []
    for index, (method, measure) in enumerate(itertools.product([*methods, "edge_map"], ["cosine", "ssim"])):
        place = {"method": method, "measure": measure, "control": method == "edge_map"}
        for at, column in enumerate(["overall", *factors, "several"]):
            lines.append(line(0.2 + 0.07 * index - 0.05 * at, column=column, undefined=index * at, **place))
        for at in range(40):
            lines.append(stage(1.3 - 0.05 * at - 0.03 * index, column=f"down to layer{at}.conv", pairs=1, **place))
    for index, method in enumerate(methods):
        values = [[None if a == b else (a * b + index) / 150 for b in range(12)] for a in range(12)]
        tables.append(Matrix("twins", method, "cosine", models, values, 0.9, 0.1))
        tables.append(Matrix("twins", method, "separability", models, values, None, None))
        for at, column in enumerate(["overall", *factors, "several"]):
            rows.append(told(0.9 - 0.1 * at - 0.03 * index, column=column, method=method))
        rows.append(told(0.98 - 0.01 * index, kind="floor", family="same model explained twice", method=method))
    sizes = [sized(0.9 / at, count, method=method) for method in methods for at, count in enumerate([5, 48, None], 1)]
    rows += [msgspec.structs.replace(row, family="others") for row in sizes]
    judged = [
        Judged("twins", "twins", measure, "higher", method, False, model, 50, index, 0.1234 + index / 99, 0.5)
        for measure, method in [("accuracy", ""), ("auc", ""), ("pointing_game", methods[0])]
        for index, model in enumerate(models)
    ]
    made = {"artifacts": 1, "seconds": 1.0, "training seconds": 0.5, "machine": "x", "device": "cpu", "versions": []}
    page = Page(
        title=f"Audit of {HOSTILE}", answer=answer(lines, rows, 12), lines=lines, told=rows, matrices=tables,
        judged=judged, performances=performances(judged), coverage={HOSTILE: {"changed": ["a"], "kept": [HOSTILE]}},
        chosen={"Model": HOSTILE, "Long": "x" * 300}, references=["of_a_plug_in"], made=made, missing=3,
    )  # fmt: skip
    return page, [_gallery(method, kind, models) for method in methods for kind in ("twins", "cascade")]


def _gallery(method, kind, models):
    maps = torch.linspace(-1, 1, 64).reshape(8, 8)
    strips = [Strip("example", [picture(maps.abs()[None])] * 5, None)]
    strips += [Strip(name, [signed(maps, 0.5)] * 5, 0.5) for name in models]
    return Gallery("twins", kind, method, [f"{HOSTILE} (example {i})" for i in range(5)], strips, len(models))
