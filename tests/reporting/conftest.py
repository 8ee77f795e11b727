"""Two pages that several tests look at: one of a real run, one of rows made by hand that strain the layout."""

import json
from typing import NamedTuple

import pytest
from tests.reporting.rows import strained

from consilience import Store, load, report, run
from consilience.experiment.experiment import Experiment
from consilience.reporting.html import rendered

EXPERIMENT = """
name = "Twins <script>alert(1)</script> & co"
explain = ["gradient", {use = "integrated_gradients", steps = 4}]
controls = ["random_map", "edge_map"]
compare = ["cosine", "spearman"]
judge = ["accuracy", "completeness_gap"]
summarise = [{use = "calibrated_similarity", draws = 100}]
train = {data = {use = "subset", count = 100}, model = {use = "mlp", hidden = [8]}, epochs = 1}
examples = {data = {use = "mnist10k", split = "test"}, count = 20}
family = [{type = "retrain", values = {init = [0, 1], order = [0, 1]}}, {type = "randomised"}]
"""


class Made(NamedTuple):
    """An experiment, its store, its page and the page's twin."""

    experiment: Experiment
    store: Store
    page: str
    twin: dict


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A small experiment that was run and reported."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    experiment, store = load(folder / "experiment.toml"), Store(folder / "store")
    assert not run(experiment, store).failures
    page = report(experiment, store, folder / "page.html")
    return Made(experiment, store, page.read_text("utf-8"), json.loads(page.with_suffix(".json").read_bytes()))


@pytest.fixture(scope="session")
def strained_page():
    """The page of twelve models, long names, a long cascade, and two measures that tell maps apart."""
    page, pictures = strained()
    return page, rendered(page, pictures)
