"""DenseNet against torchvision's."""

import copy
import functools

import pytest
import torch
from torch import nn

from consilience.errors import SpecError
from consilience.models.densenet import densenet121
from consilience.models.edits import blocks_of, cascade, layers_of, randomise
from consilience.models.split import normalised
from consilience.rng import Rng
from consilience.tensors import Split
from tests.models import learn


@functools.cache
def theirs():
    """Torchvision's network with random weights and statistics, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pytest.importorskip("torchvision.models").densenet121(weights=None, num_classes=7).double()
        learn(model)
        nn.init.uniform_(model.classifier.bias, -0.3, 0.3)
    return model.eval().requires_grad_(False)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(64, 64), (29, 48)])
def test_it_is_torchvisions(size):
    ours = densenet121((3, *size), 7).double().eval()
    assert list(ours.state_dict()) == list(theirs().state_dict())
    ours.load_state_dict(theirs().state_dict())
    x = images(2, 3, *size)
    torch.testing.assert_close(ours(x), theirs()(x), atol=1e-5, rtol=1e-9)
    torch.testing.assert_close(ours.features(x), theirs().features(x), atol=1e-5, rtol=1e-9)


def test_a_step_of_training_is_torchvisions_too():
    peer, x = copy.deepcopy(theirs()).train().requires_grad_(True), images(2, 3, 64, 64)
    ours = densenet121((3, 64, 64), 7).double().train()
    ours.load_state_dict(peer.state_dict())
    for model in (ours, peer):
        nn.functional.cross_entropy(model(x), torch.tensor([1, 4])).backward()
    for (name, own), other in zip(ours.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-8, rtol=1e-5, msg=name)
    for (name, own), other in zip(ours.named_buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(own, other, msg=name)


def test_parameters_are_as_many_as_published():
    assert sum(parameter.numel() for parameter in densenet121((3, 224, 224), 2).parameters()) == 6_955_906


def test_new_weights_are_spread_as_torchvisions():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = pytest.importorskip("torchvision.models").densenet121(weights=None, num_classes=10).state_dict()
        ours = densenet121((3, 64, 64), 10).state_dict()
    for name, weight in peer.items():
        if weight.ndim == 4:
            assert float(ours[name].std() / weight.std()) == pytest.approx(1, abs=0.1), name
            assert float(ours[name].mean() / weight.std()) == pytest.approx(0, abs=0.1), name
        elif name == "classifier.weight":
            assert float(ours[name].abs().max() / weight.abs().max()) == pytest.approx(1, abs=0.1)
        else:
            assert torch.equal(ours[name], weight), name  # the last bias as well


def test_edits_find_every_layer_and_draw_it_as_a_new_one():
    model = densenet121((3, 64, 64), 7).eval().requires_grad_(False)
    fresh = {name: weight.std() for name, weight in model.state_dict().items() if weight.ndim == 4}
    model.load_state_dict(theirs().state_dict())
    blocks = blocks_of(model)
    assert len(blocks) == 121
    assert blocks[0] == ("features.conv0", "features.norm0", "features.denseblock1.denselayer1.norm1")
    assert blocks[-1] == ("classifier",)
    assert layers_of(model) == [name for block in blocks for name in block]
    stages = cascade(blocks, "top_down")
    x = images(1, 3, 32, 32).float()
    answers = model(x)
    assert randomise(model, Rng(0, []), layers=stages[0]).changed == ("classifier.weight", "classifier.bias")
    assert not model.classifier.bias.any()
    assert not torch.allclose(model(x), answers)
    kept = set(randomise(model, Rng(0, []), layers=stages[-1]).kept)
    assert kept == {"classifier.weight", "classifier.bias", *(n for n in model.state_dict() if n.endswith("tracked"))}
    for name, spread in fresh.items():
        assert float(model.state_dict()[name].std() / spread) == pytest.approx(1, abs=0.1), name


def test_the_head_of_the_features_is_the_model():
    model, x = densenet121((3, 64, 64), 5).eval().requires_grad_(False), images(2, 3, 64, 64).float()
    for split in (model, normalised(model, [0.5] * 3, [0.2] * 3)):
        assert isinstance(split, Split)
        features = split.features(x)
        assert features.shape == (2, 1024, 2, 2)
        before = features.clone()
        assert torch.equal(split.head(features), split(x))
        assert torch.equal(features, before)  # torchvision's ReLU would have changed them in place
    assert densenet121((1, 40, 40), 3).eval()(x[:, :1]).shape == (2, 3)


def test_an_image_of_which_nothing_would_be_left_is_refused():
    model = densenet121((1, 29, 29), 2).eval()
    assert model(torch.rand(1, 1, 29, 29)).shape == (1, 2)
    with pytest.raises(SpecError, match="densenet121: expected images of at least 29 x 29 pixels, found 40 x 28; enl"):
        densenet121((1, 40, 28), 2)
    with pytest.raises(RuntimeError, match="too small"):
        model(torch.rand(1, 1, 28, 28))
