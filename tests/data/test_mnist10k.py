import importlib.util
import os
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from consilience.component import dataset
from consilience.data.idx import read_idx
from consilience.data.mnist10k import mnist10k

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_mnist10k.py"
COUNTS = {"train": 800, "test": 200}
FINGERPRINTS = {"train": "94fa60c0e8563fd4387818ecf70d880e", "test": "96896d6afb6bd1bd5bf675d1a4e5a068"}


@pytest.fixture(scope="module", params=["train", "test"])
def split(request):
    return request.param


@pytest.fixture(scope="module")
def data(split):
    return mnist10k(split=split)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_mnist10k", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(name):
    root = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere")) / name
    if not root.is_dir():
        pytest.skip(f"needs CONSILIENCE_DATA, a folder with {name}/")
    return root


def test_the_digits_are_the_ones_that_published_numbers_were_made_with(data, split):
    assert data.fingerprint == FINGERPRINTS[split], "digits changed: raise the version of mnist10k"
    assert dataset.get("mnist10k").version == 1


def test_classes_take_turns(data, split):
    labels = data.batch(range(len(data))).label
    assert data.classes == tuple("0123456789")
    assert torch.equal(labels, torch.arange(10).repeat(COUNTS[split]))


def test_pixels_look_like_the_whole_of_mnist(data):
    x = data.batch(range(len(data))).x
    assert data.shape == tuple(x.shape[1:]) == (1, 28, 28)
    assert 0 == x.min() < x.max() == 1
    assert x.mean().item() == pytest.approx(data.mean[0], abs=0.005)
    assert x.std().item() == pytest.approx(data.sd[0], abs=0.005)


def test_no_digit_stands_twice():
    rows = [mnist10k(split=split).batch(range(10 * count)).x.flatten(1) for split, count in COUNTS.items()]
    assert len({row.numpy().tobytes() for row in torch.cat(rows)}) == 10_000


def test_digits_of_a_class_look_alike():
    """A label that belongs to another image would spoil this: the nearest class mean names the class."""
    train, test = (mnist10k(split=split) for split in ("train", "test"))
    learn, judge = train.batch(range(8000)), test.batch(range(2000))
    means = torch.stack([learn.x[learn.label == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(judge.x.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == judge.label).float().mean() > 0.75  # 0.82 on the whole of MNIST; 0.1 by chance


def test_the_training_part_is_the_default():
    assert mnist10k().fingerprint == mnist10k(split="train").fingerprint


def test_the_licence_of_the_digits_travels_with_them():
    text = (files("consilience.data") / "mnist10k_files" / "LICENSE").read_text()
    assert "CC BY-SA 3.0" in text
    assert "LeCun" in text
    assert "Cortes" in text


def test_a_selection_takes_turns_and_takes_nothing_twice(script):
    labels = torch.arange(1000) * 7 % 10
    chosen = script.select(labels, "train", 20)
    assert labels[chosen].tolist() == list(range(10)) * 20
    assert len(set(chosen.tolist())) == 200


def test_a_selection_is_drawn_from_the_whole_and_for_each_part_anew(script):
    labels = torch.arange(10_000) % 10
    train, test = (script.select(labels, split, 100) for split in ("train", "test"))
    assert train.double().mean().item() == pytest.approx(4999.5, abs=4 * 10_000 / 12**0.5 / 1000**0.5)
    assert torch.equal(train, script.select(labels, "train", 100))
    assert not torch.equal(train, test)


@pytest.mark.real_data
def test_the_script_makes_the_embedded_files_from_mnist(script, tmp_path, capsys):
    script.main(["--from", str(folder("mnist")), "--to", str(tmp_path)])
    assert f"{tmp_path / 'test-labels.gz'}: [2000], " in capsys.readouterr().out
    for split in COUNTS:
        for what in ("images", "labels"):
            name = f"{split}-{what}.gz"
            assert torch.equal(read_idx(tmp_path / name), read_idx(script.HOME / name))


@pytest.mark.real_data
def test_the_script_refuses_a_data_set_of_the_same_file_names(script, tmp_path, capsys):
    source = str(folder("fashion-mnist"))
    with pytest.raises(SystemExit):
        script.main(["--from", source, "--to", str(tmp_path / "new")])
    assert "expected the train part of MNIST as published" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
