"""The verb that downloads: where to, what it says, and what it refuses. What happens in between is the data room's."""

import errno
import hashlib
import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from consilience.cli import main as command
from consilience.cli.fetch import _show
from consilience.data import fetch as fetching
from consilience.data.fashion_mnist import fashion_mnist
from consilience.data.fetch import Published, Step
from consilience.data.idx import read_idx, write_idx
from consilience.data.mnist import mnist


@pytest.fixture
def call(capfd, monkeypatch):
    """A verb's words to the exit code and what was said."""
    monkeypatch.delenv("CONSILIENCE_DATA", raising=False)

    def call(*words):
        try:
            code = command.call("fetch", [str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        said = capfd.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Two digits, published in a folder that is the only mirror, for both data sets."""
    folder, contents = tmp_path / "mirror", {}
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = torch.tensor([10, 20], dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
        for kind, array in (("images-idx3", images), ("labels-idx1", torch.tensor([1, 2], dtype=torch.uint8))):
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            write_idx(path, array)
            unpacked = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            contents[path.name] = hashlib.sha256(unpacked + read_idx(path).numpy().tobytes()).hexdigest()
    for data in (mnist, fashion_mnist):
        monkeypatch.setitem(data.__dict__, "published", Published((folder.as_uri(),), contents))
    return folder


def test_a_data_set_lands_where_the_other_verbs_read_it_and_is_found_afterwards(call, mirror, tmp_path):
    data = tmp_path / "data"
    first, second = call("mnist", "--data", data), call("mnist", "--data", data)
    assert (first.code, second.code) == (0, 0)
    assert first.out == f"fetched 4, found 0: {data / 'mnist'}\n"
    assert second.out == f"fetched 0, found 4: {data / 'mnist'}\n"
    assert "train-images-idx3-ubyte.gz: fetched, 0.0 MB\n" in first.err
    assert "train-images-idx3-ubyte.gz: is there\n" in second.err
    assert mnist(data / "mnist", split="test")[1].label == 2


def test_the_environment_names_the_folder_as_for_the_other_verbs(call, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIENCE_DATA", str(tmp_path))
    assert call("fashion_mnist").out == f"fetched 4, found 0: {tmp_path / 'fashion_mnist'}\n"


def test_a_folder_that_is_spelled_with_a_hyphen_is_used(call, mirror, tmp_path):
    (tmp_path / "fashion-mnist").mkdir()
    assert call("fashion_mnist", "--data", tmp_path).out == f"fetched 4, found 0: {tmp_path / 'fashion-mnist'}\n"


def test_without_a_folder_nothing_is_fetched(call, mirror, tmp_path):
    said = call("mnist")
    assert said.code == 2
    assert said.err == (
        "consilience fetch: mnist: expected a folder to put it into, found none; give --data DIR or set "
        "CONSILIENCE_DATA to the folder that is to hold 'mnist/'\n"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnits", "no data set to fetch is named 'mnits'; did you mean 'mnist'?"),
        ("fashion-mnist", "no data set to fetch is named 'fashion-mnist'; did you mean 'fashion_mnist'?"),
        ("imagination", "no data set to fetch is named 'imagination'; there are: "),
        ("mnist10k", "found 'mnist10k', which needs no files of its own; use it as it is"),
    ],
)
def test_what_cannot_be_fetched_is_refused_by_name(call, tmp_path, name, said):
    refused = call(name, "--data", tmp_path)
    assert refused.code == 2
    assert said in refused.err
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_that_fails_is_named_while_it_happens_and_at_the_end(call, mirror, tmp_path):
    (mirror / "train-labels-idx1-ubyte.gz").unlink()
    said = call("mnist", "--data", tmp_path / "data")
    assert said.code == 2
    assert "train-labels-idx1-ubyte.gz: left a mirror: file://" in said.err
    assert "expected a mirror to give this file, found none that does (file://" in said.err
    assert "Traceback" not in said.err


def test_a_full_disk_is_said_in_one_line(call, mirror, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "_receive", full)
    said = call("mnist", "--data", tmp_path)
    assert said.code == 2
    assert said.err.startswith(f"consilience fetch: {tmp_path / 'mnist'}: expected to write, found 'No space left on")


def test_a_data_folder_that_is_a_file_is_refused(call, mirror, tmp_path):
    (tmp_path / "file").write_text("")
    said = call("mnist", "--data", tmp_path / "file")
    assert said.code == 2
    assert said.err.startswith(f"consilience fetch: {tmp_path / 'file' / 'mnist'}: expected to write, found 'Not a dir")


def test_in_a_terminal_a_bar_moves_and_goes_with_its_file():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Progress(TextColumn("{task.description}"), TimeRemainingColumn(), console=console)
    for done in (10, 60):
        _show(bar, Step("a.gz", "received", done, 100))
    (task,) = bar.tasks
    assert (task.description, task.completed, task.total) == ("a.gz", 60, 100)
    _show(bar, Step("a.gz", "fetched", 100, 100))
    assert bar.tasks == []
    assert "a.gz: fetched, 0.0 MB" in console.file.getvalue()
