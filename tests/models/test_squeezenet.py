"""SqueezeNet against torchvision's, and with trained weights on photos."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from consilience.attribution.gradient import gradient
from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.edits import layers_of, randomise
from consilience.models.split import normalised
from consilience.models.squeezenet import squeezenet1_1
from consilience.rng import Rng
from consilience.tensors import Split

MEAN, SD = [part / 255 for part in (123.68, 116.779, 103.939)], [1 / 255] * 3


def data() -> Path:
    root = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere"))
    if not (root / "weights" / "squeezenet1_1.safetensors").is_file() or not (root / "imagenet20").is_dir():
        pytest.skip("needs CONSILIENCE_DATA, a folder with weights/squeezenet1_1.safetensors and imagenet20/")
    return root


@pytest.fixture(scope="module")
def trained():
    model = squeezenet1_1((3, 227, 227), 1000, pooling="floor")
    model.load_state_dict(load_file(data() / "weights" / "squeezenet1_1.safetensors"))
    return normalised(model.eval().requires_grad_(False), MEAN, SD)


def photos(resampling):
    paths = sorted((data() / "imagenet20" / "val").glob("*.JPEG"))
    small = [np.asarray(Image.open(path).convert("RGB").resize((227, 227), resampling)) for path in paths]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255


def labels():
    folder = data() / "imagenet20"
    classes = (folder / "classes.txt").read_text().split()
    named = [re.search("<name>(.*?)</name>", path.read_text())[1] for path in sorted(folder.glob("annotation/*.xml"))]
    return torch.tensor([classes.index(name) for name in named])


@pytest.mark.parametrize("size", [(224, 224), (227, 64), (17, 40)])
def test_it_is_torchvisions(size):
    theirs = pytest.importorskip("torchvision.models").squeezenet1_1(weights=None, num_classes=11).eval()
    ours = squeezenet1_1((3, *size), 11).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))
    assert sum(parameter.numel() for parameter in squeezenet1_1((3, 64, 64), 1000).parameters()) == 1_235_496


def test_new_weights_are_spread_as_torchvisions():
    torch.manual_seed(0)
    theirs = pytest.importorskip("torchvision.models").squeezenet1_1(weights=None).state_dict()
    for name, weight in squeezenet1_1((3, 64, 64), 1000).state_dict().items():
        if name.endswith("bias"):
            assert not weight.any()
        else:
            assert float(weight.std() / theirs[name].std()) == pytest.approx(1, abs=0.1)
            assert float(weight.abs().max() / theirs[name].abs().max()) == pytest.approx(1, abs=0.3)


def test_randomised_layers_start_as_new_ones():
    model = squeezenet1_1((3, 64, 64), 10).eval()
    spread = {name: weight.std() for name, weight in model.state_dict().items() if name.endswith("weight")}
    coverage = randomise(model, Rng(0, []))
    assert set(coverage.changed) == set(spread)  # biases were zero and are again
    for name, weight in model.state_dict().items():
        assert not name.endswith("weight") or float(weight.std() / spread[name]) == pytest.approx(1, abs=0.2)
    assert layers_of(model)[:3] == ["features.0", "features.3.squeeze", "features.3.expand1x1"]


def test_the_head_of_the_features_is_the_model():
    model, x = squeezenet1_1((3, 64, 64), 5).eval(), torch.rand(2, 3, 64, 64)
    for split, seen in ((model, x), (normalised(model, MEAN, SD), x)):
        assert isinstance(split, Split)
        features = split.features(seen)
        assert features.shape == (2, 512, 3, 3)
        assert torch.equal(split.head(features), split(seen))
    assert squeezenet1_1((1, 40, 40), 3)(x[:, :1]).shape == (2, 3)
    assert isinstance(model.classifier[0], nn.Dropout)


@pytest.mark.parametrize(("pooling", "least"), [("ceil", 17), ("floor", 31)])
def test_an_image_of_which_nothing_would_be_left_is_refused(pooling, least):
    model = squeezenet1_1((3, least, least), 2, pooling=pooling).eval()
    assert model(torch.rand(1, 3, least, least)).shape == (1, 2)
    with pytest.raises(SpecError, match=f"at least {least} x {least} pixels, found 300 x {least - 1}; enlarge"):
        squeezenet1_1((3, 300, least - 1), 2, pooling=pooling)
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.rand(1, 3, least - 1, least - 1))
    assert "squeezenet1_1" in architecture.names()


@pytest.mark.real_data
@pytest.mark.parametrize(("resampling", "right"), [(Image.Resampling.BILINEAR, 12), (Image.Resampling.BICUBIC, 13)])
def test_trained_it_knows_most_of_twenty_photos(trained, resampling, right):
    answers = trained(photos(resampling)).argmax(1)
    assert len(answers) == 20
    assert int((answers == labels()).sum()) == right


@pytest.mark.real_data
def test_trained_it_is_explained_in_pixels(trained):
    x, target = photos(Image.Resampling.BILINEAR)[:4].double(), labels()[:4]
    x += 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))  # flat grounds tie in max-pools
    maps = gradient(trained.double(), x, target)
    step = torch.zeros_like(x)
    step[:, 1, 100, 120] = 1e-8
    slope = (trained(x + step) - trained(x - step)).gather(1, target[:, None])[:, 0] / 2e-8
    torch.testing.assert_close(maps[:, 1, 100, 120], slope, atol=1e-4, rtol=1e-4)
    trained.float()
