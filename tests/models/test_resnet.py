"""Residual networks against torchvision's."""

import copy
import functools

import pytest
import torch
from torch import nn

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.edits import blocks_of, cascade, layers_of, randomise
from consilience.models.resnet import resnet18, resnet50
from consilience.models.split import normalised
from consilience.rng import Rng
from consilience.tensors import Split
from tests.models import learn

BOTH = pytest.mark.parametrize("build", [resnet18, resnet50])


@functools.cache
def theirs(name, classes=7):
    """Torchvision's network with random weights and statistics, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(pytest.importorskip("torchvision.models"), name)(weights=None, num_classes=classes).double()
        learn(model)
    return model.eval().requires_grad_(False)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (33, 48)])
def test_it_is_torchvisions(build, size):
    peer = theirs(build.__name__)
    ours = build((3, *size), 7).double().eval()
    assert list(ours.state_dict()) == list(peer.state_dict())
    ours.load_state_dict(peer.state_dict())
    x = images(1, 3, *size)
    torch.testing.assert_close(ours(x), peer(x), atol=1e-5, rtol=1e-9)


def test_a_step_of_training_is_torchvisions_too():
    peer, x = copy.deepcopy(theirs("resnet18")).train().requires_grad_(True), images(2, 3, 33, 33)
    ours = resnet18((3, 33, 33), 7).double().train()
    ours.load_state_dict(peer.state_dict())
    for model in (ours, peer):
        nn.functional.cross_entropy(model(x), torch.tensor([1, 4])).backward()
    for (name, own), other in zip(ours.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-8, rtol=1e-5, msg=name)
    for (name, own), other in zip(ours.named_buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(own, other, msg=name)


def test_its_children_are_torchvisions():
    names = [name for name, _ in theirs("resnet18").named_children()]
    assert [name for name, _ in resnet18((3, 32, 32), 2).named_children() if name != "flatten"] == names


@pytest.mark.parametrize(
    ("build", "shape", "classes", "count"),
    [(resnet18, (1, 28, 28), 10, 11_175_370), (resnet50, (3, 224, 224), 1000, 25_557_032)],
)
def test_parameters_are_as_many_as_published(build, shape, classes, count):
    assert sum(parameter.numel() for parameter in build(shape, classes).parameters()) == count


@BOTH
def test_new_weights_are_spread_as_torchvisions(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = getattr(pytest.importorskip("torchvision.models"), build.__name__)(weights=None, num_classes=10)
        ours = build((3, 64, 64), 10).state_dict()
    for name, weight in peer.state_dict().items():
        if weight.ndim == 4:
            assert float(ours[name].std() / weight.std()) == pytest.approx(1, abs=0.05), name
            assert float(ours[name].mean() / weight.std()) == pytest.approx(0, abs=0.05), name
        elif name.startswith("fc"):  # uniform up to one over the root of how many inputs there are
            highest = float(ours[name].abs().max()) * peer.fc.in_features**0.5
            assert highest == pytest.approx(1, abs=0.01) if name == "fc.weight" else 0.5 < highest <= 1, name
        else:
            assert torch.equal(ours[name], weight), name


@pytest.mark.parametrize(("build", "count"), [(resnet18, 21), (resnet50, 54)])
def test_edits_find_every_layer_and_draw_it_as_a_new_one(build, count):
    model = build((3, 64, 64), 7).eval().requires_grad_(False)
    fresh = {name: weight.std() for name, weight in model.state_dict().items() if weight.ndim == 4}
    model.load_state_dict(theirs(build.__name__).state_dict())
    blocks = blocks_of(model)
    assert len(blocks) == count  # a convolution with its norm, or the linear layer
    assert blocks[0] == ("conv1", "bn1")
    assert blocks[-1] == ("fc",)
    assert ("layer2.0.downsample.0", "layer2.0.downsample.1") in blocks
    assert layers_of(model) == [name for block in blocks for name in block]
    stages = cascade(blocks, "top_down")
    x = images(1, 3, 32, 32).float()
    answers = model(x)
    assert randomise(model, Rng(0, []), layers=stages[0]).changed == ("fc.weight", "fc.bias")
    assert not torch.allclose(model(x), answers)
    coverage = randomise(model, Rng(0, []), layers=stages[-1])
    assert set(coverage.kept) == {"fc.weight", "fc.bias", *(n for n in model.state_dict() if n.endswith("tracked"))}
    for name, spread in fresh.items():
        assert float(model.state_dict()[name].std() / spread) == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize(("build", "pool"), [(resnet18, "mean"), (resnet18, "max"), (resnet50, "max")])
def test_the_head_of_the_features_is_the_model_and_pools_them(build, pool):
    model = build((3, 40, 40), 5, pool=pool).eval().requires_grad_(False)
    x = images(2, 3, 40, 40).float()
    for split in (model, normalised(model, [0.5] * 3, [0.2] * 3)):
        assert isinstance(split, Split)
        features = split.features(x)
        assert features.shape[2:] == (2, 2)
        assert torch.equal(split.head(features), split(x))
        pooled = features.mean((2, 3)) if pool == "mean" else features.amax((2, 3))
        torch.testing.assert_close(split.head(features), model.fc(pooled))


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 1), ("small", 4)])
def test_a_small_stem_keeps_the_size_of_the_image(stem, side):
    model = resnet18((1, 28, 28), 10, stem=stem).eval().requires_grad_(False)
    features = model.features(images(1, 1, 28, 28).float())
    assert features.shape == (1, 512, side, side)
    assert tuple(model.conv1.weight.shape[2:]) == ((7, 7) if stem == "imagenet" else (3, 3))


def test_every_block_but_the_stem_is_as_ever_with_a_small_one():
    usual, small = resnet18((3, 32, 32), 4), resnet18((3, 32, 32), 4, stem="small")
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (usual, small)]
    assert list(shapes[0]) == list(shapes[1])
    assert [name for name in shapes[0] if shapes[0][name] != shapes[1][name]] == ["conv1.weight"]


@pytest.mark.parametrize("side", [1, 28, 224])
def test_an_image_of_any_size_goes_in(side):
    model = resnet18((1, side, side), 3).eval().requires_grad_(False)
    assert model(images(1, 1, side, side).float()).shape == (1, 3)


@BOTH
def test_nothing_is_done_in_place_and_no_relu_is_used_twice(build):
    model = build((3, 32, 32), 3).eval()
    calls = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda module, *_: calls.append(module))
    model(images(1, 3, 32, 32).float())
    assert len(calls) == len(set(calls)) == {resnet18: 17, resnet50: 49}[build]


@pytest.mark.parametrize("option", ["stem", "pool"])
def test_what_there_is_no_such_thing_of_is_refused_where_it_is_written(option):
    with pytest.raises(SpecError, match=rf"model\.resnet18: .*at `\$\.{option}`"):
        architecture.choose({"use": "resnet18", option: "median"}, "model")
