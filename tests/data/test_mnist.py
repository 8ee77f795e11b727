import functools
import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.component import dataset
from consilience.data.fashion_mnist import fashion_mnist
from consilience.data.idx import write_idx
from consilience.data.mnist import mnist
from consilience.errors import DataError, SpecError

FOLDERS = {"mnist": mnist, "fashion-mnist": fashion_mnist}
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def folder(name):
    root = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere")) / name
    if not root.is_dir():
        pytest.skip(f"needs CONSILIENCE_DATA, a folder with {name}/")
    return root


@functools.cache
def published(name, split):
    return FOLDERS[name](folder(name), split=split)


@pytest.fixture
def planted(tmp_path):
    """Two training images and one test image, told apart by their brightness."""
    for prefix, values in (("train", [10, 20]), ("t10k", [30])):
        images = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", torch.tensor(values, dtype=torch.uint8) // 10)
    return tmp_path


@pytest.mark.parametrize("data", FOLDERS.values(), ids=FOLDERS)
def test_each_split_is_read_from_its_own_files(planted, data):
    train, test = data(planted), data(planted, split="test")
    assert (len(train), len(test)) == (2, 1)
    assert (train[0].label, train[1].label, test[0].label) == (1, 2, 3)
    assert (test[0].x * 255).unique().tolist() == pytest.approx([30])
    assert len(set(train.classes)) == 10


@pytest.mark.parametrize("data", FOLDERS.values(), ids=FOLDERS)
def test_a_missing_file_of_a_set_is_named(planted, data):
    (planted / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(data(planted)) == 2
    with pytest.raises(DataError, match="expected one of t10k-labels-idx1-ubyte, "):
        data(planted, split="test")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_choice_is_handed_its_folder_by_the_engine(planted, name):
    assert len(dataset.choose({"use": name, "split": "test"}).build(root=planted)()) == 1
    with pytest.raises(SpecError, match=rf"{name}: Invalid enum value 'tset' - at `\$.split`"):
        dataset.choose({"use": name, "split": "tset"})


@pytest.mark.real_data
@pytest.mark.parametrize("name", MD5)
def test_the_files_are_mnist_as_published(name):
    content = gzip.decompress((folder("mnist") / f"{name}.gz").read_bytes())
    assert hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]


@pytest.mark.real_data
@pytest.mark.parametrize("name", FOLDERS)
def test_mean_and_deviation_are_those_of_the_training_pixels(name):
    data = published(name, "train")
    pixels = torch.from_numpy(np.bincount(data.images.numpy().ravel(), minlength=256))
    values = torch.arange(256).double() / 255
    mean = (pixels * values).sum() / pixels.sum()
    sd = ((pixels * (values - mean) ** 2).sum() / pixels.sum()).sqrt()
    assert (mean.item(), sd.item()) == pytest.approx((*data.mean, *data.sd), abs=6e-5)


@pytest.mark.real_data
@pytest.mark.parametrize("name", FOLDERS)
def test_real_sets_have_their_published_sizes(name):
    train, test = (published(name, split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    assert train.fingerprint != test.fingerprint
    assert test.labels.bincount().tolist() == {
        "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        "fashion-mnist": [1000] * 10,
    }[name]  # fmt: skip


@pytest.mark.real_data
def test_names_of_articles_fit_what_they_name():
    """Trousers are narrow, bags are wide, and ankle boots reach higher than sandals."""
    data = published("fashion-mnist", "test")
    means = {name: data.images[data.labels == k, 0].float().mean(0) for k, name in enumerate(data.classes)}
    sides = {name: image[:, [*range(6), *range(22, 28)]].mean().item() for name, image in means.items()}
    assert min(sides, key=sides.get) == "Trouser"
    assert sides["Bag"] > sides["Dress"]
    assert means["Ankle boot"][:10].mean() > means["Sandal"][:10].mean()
    assert means["Pullover"][:, :5].mean() > means["T-shirt/top"][14:, :5].mean()
