"""A tiny experiment, made once, and processes that may die of it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consilience.component import KINDS
from consilience.experiment.config import load
from consilience.experiment.run import run

HERE = Path(__file__).parent
TINY = """
name = "Twins of a tiny network"
explain = ["gradient", { use = "integrated_gradients", steps = 4 }]
controls = ["random_map"]
compare = ["cosine", "spearman"]
judge = ["accuracy", "completeness_gap"]
summarise = [{ use = "calibrated_similarity", draws = 100 }]

[train]
data = { use = "subset", of = "mnist10k", count = 60 }
model = { use = "mlp", hidden = [8] }
epochs = 1
batch_size = 20

[examples]
data = { use = "mnist10k", split = "test" }
count = 30

[[family]]
type = "retrain"
values = { init = [0, 1], order = [0, 1], noise = [0, 1] }
"""


def contents(store):
    """Every file of a store that says something of the results, by its place; provenance tells of seconds."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(Path(store).rglob("*"))
        if path.is_file() and path.name != "provenance.json" and path.suffix != ".lock" and ".notes" not in path.parts
    }


@pytest.fixture
def tiny_file(tmp_path):
    """The tiny experiment's file."""
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    return file


@pytest.fixture(scope="session")
def _tiny(tmp_path_factory):
    file = tmp_path_factory.mktemp("tiny") / "tiny.toml"
    file.write_text(TINY)
    experiment, store = load(file), file.with_name("store")
    outcome = run(experiment, store)
    assert not outcome.failures
    return experiment, store


@pytest.fixture(scope="session")
def tiny(_tiny):
    """The tiny experiment, loaded."""
    return _tiny[0]


@pytest.fixture(scope="session")
def made(_tiny):
    """The folder of a store that holds all of it. Not to be changed."""
    return _tiny[1]


@pytest.fixture
def copied(made, tmp_path):
    """A folder with a store of one's own that holds all of the tiny experiment."""
    return Path(shutil.copytree(made, tmp_path / "copied"))


@pytest.fixture
def trials(monkeypatch):
    """The components that go wrong, registered for one test."""
    for kind in KINDS.values():
        kind.names()
        monkeypatch.setattr(kind, "_found", dict(kind._found))
    spec = importlib.util.spec_from_file_location("trials", HERE / "plugin" / "trials.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def order(tmp_path_factory):
    """The command in a process of its own, with the components that go wrong installed: words to code, out and err."""
    plugin = tmp_path_factory.mktemp("plugin")
    shutil.copy(HERE / "plugin" / "trials.py", plugin)
    (plugin / "trials-1.dist-info").mkdir()
    (plugin / "trials-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trials\nVersion: 1\n")
    (plugin / "trials-1.dist-info" / "entry_points.txt").write_text("[consilience.components]\ntrials = trials\n")
    environment = {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    driver = subprocess.Popen(
        [sys.executable, HERE / "driver.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )

    def order(*words, **rest):
        print(json.dumps({"words": [str(word) for word in words], **rest}), file=driver.stdin, flush=True)
        answer = json.loads(driver.stdout.readline())
        assert not answer.pop("hung"), answer
        return answer

    with driver:
        yield order
        driver.stdin.close()
