"""Rows of a report made by hand, and a page of them that strains the layout."""

import itertools

import msgspec
import torch

from consilience.reporting.alone import Judged, Reading, performances
from consilience.reporting.causes import Cause
from consilience.reporting.figures import Gallery, Strip, picture, signed, unsigned
from consilience.reporting.page import Page
from consilience.reporting.pairings import Distance, Matrix, Represented
from consilience.reporting.tables import Line, Size, Told
from consilience.reporting.verdicts import answer

HOSTILE = 'net <b onload="alert(1)">&amp;'


def line(estimate=0.6, low=None, high=None, **rest):
    """A row of agreement, overall unless told otherwise; an estimate alone has an interval of 0.02 around it."""
    if estimate is not None and low is None:
        low, high = estimate - 0.01, estimate + 0.01
    row = {
        "family": "twins", "kind": "twins", "method": "gradient", "control": False, "measure": "cosine",
        "column": "overall", "pairs": 6, "examples": 50, "undefined": 0, "better": "higher",
        "agreement": 0.5, "floor": 0.9, "wrong_image": 0.1, "level": 0.95,
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
        "high": consistency + 0.05, "level": 0.95, "smallest": 0.37, "null": 0.97, "p": 0.05,
    }  # fmt: skip
    return Told(consistency=consistency, **{**row, **rest})


def sized(consistency=0.4, count=None, used=None, unit="images of each class", **rest):
    """A row of consistency, of a measure that stands with several counts; all images are 50 of each class."""
    measure = "separability" if count is None else f"separability(count={count})"
    size = Size(measure="separability", count=count, used=float(used or count or 50), unit=unit)
    return told(consistency, **{"measure": measure, "size": size, **rest})


def epoch(estimate=0.6, low=None, high=None, column="epoch 1", **rest):
    """A row of the base as it was earlier."""
    return line(estimate, low, high, **{"family": "epochs", "kind": "epochs", "column": column, **rest})


def cause(column, estimate=0.4, **rest):
    """A row of variance shares."""
    row = {
        "family": "twins", "kind": "twins", "method": "gradient", "control": False, "measure": "squared_distance",
        "pairs": 6, "examples": 50, "undefined": 0, "summary": "variance_shares", "low": None, "high": None,
        "level": 0.95, "null": None, "p": None,
    }  # fmt: skip
    return Cause(column=column, estimate=estimate, **{**row, **rest})


def distance(column="value", mean=0.2, **rest):
    """A column of a measure of whole sets of maps."""
    row = {
        "family": "twins", "kind": "twins", "method": "gradient", "control": False, "measure": "kolmogorov_smirnov",
        "better": "lower", "pairs": 6, "undefined": 0, "low": mean, "high": mean,
    }  # fmt: skip
    return Distance(column=column, mean=mean, **{**row, **rest})


def represented(part="conv1", epoch="end", mean=0.9, **rest):
    """A layer of two models compared."""
    row = {
        "family": "twins", "measure": "cka", "better": "higher", "what": "activations", "pairs": 6, "undefined": 0,
        "low": 0.8, "high": 1.0,
    }  # fmt: skip
    return Represented(part=part, epoch=epoch, mean=mean, **{**row, **rest})


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
    lines += [line(0.4, method=method, condition="both_right", undefined=99) for method in methods]
    rows += [told(0.5, method=method, condition="both_agree") for method in methods]
    for method, at in itertools.product(methods, range(30)):
        lines.append(epoch(0.9 - 0.2 / (at + 1), column=f"epoch {at + 1}", method=method, pairs=1))
    judged = [
        Judged("twins", "twins", measure, "higher", method, False, model, 50, index, 0.1234 + index / 99, 0.5)
        for measure, method in [("accuracy", ""), ("auc", ""), ("pointing_game", methods[0])]
        for index, model in enumerate(models)
    ]
    made = {"artifacts": 1, "seconds": 1.0, "training seconds": 0.5, "machine": "x", "device": "cpu", "versions": []}
    page = Page(
        title=f"Audit of {HOSTILE}", answer=answer(lines, rows, 12), lines=lines, told=rows, matrices=tables,
        judged=judged, performances=performances(judged), coverage={HOSTILE: {"changed": ["a"], "kept": [HOSTILE]}},
        causes=_causes(methods),
        distances=[distance(f"column {i}", 10.0 ** (3 * i - 9), method=HOSTILE, measure="cosine") for i in range(8)],
        represented=[represented(f"{HOSTILE}.{part}", at) for part in range(9) for at in [*range(1, 25), "end"]],
        readings=[Reading("twins", one, False, 50, {models[0]: 0.5}, 0.4, 0.5, 0.6, None, 0.1) for one in methods],
        chosen={"Model": HOSTILE, "Long": "x" * 300}, references=["of_a_plug_in"], made=made, missing=3,
    )  # fmt: skip
    return page, [_gallery(method, kind, models) for method in methods for kind in ("twins", "cascade", "epochs")]


def _causes(methods):
    """Shares of many sources, one of them below zero, and modes of many models."""
    shares = [0.5, -0.1, 0.3, 0.004, 0.1, 0.05, None]
    sources = ["explainer", "init", "order", "noise", HOSTILE, "image", "several over their sum"]
    found = [cause(name, share, method=one) for one in methods for name, share in zip(sources, shares, strict=True)]
    mode = f"mode 1: {', '.join(f'model {i}' for i in range(30))} (medoid {HOSTILE})"
    return [*found, *(cause(mode, method=one, summary="modes", measure="cosine", p=0.01) for one in methods)]


def _gallery(method, kind, models):
    maps = torch.linspace(-1, 1, 64).reshape(8, 8)
    strips = [Strip("example", [picture(maps.abs()[None])] * 5, None)]
    strips += [Strip(name, [signed(maps, 0.5)] * 5, 0.5) for name in models]
    if kind == "twins":
        strips += [Strip("mean of these maps", [signed(maps, 0.5)] * 5, 0.5)]
        strips += [Strip("their deviation", [unsigned(maps.abs(), 0.5)] * 5, 0.5, deviation=True)]
    return Gallery("twins", kind, method, [f"{HOSTILE} (example {i})" for i in range(5)], strips, len(models))
