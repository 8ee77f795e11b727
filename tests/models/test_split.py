"""Mean and deviation in front of a model, and what must not change by that."""

import copy

import pytest
import torch
from torch import nn

from consilience.errors import ModelError, SpecError
from consilience.models.cnn import small_cnn
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.tensors import Ensemble, Split, start_of

MEAN, SD = (0.1, 0.2), (0.5, 0.25)
X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
CENTRED = (X - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SD)[:, None, None]


class Mean(nn.Module):
    """The least ensemble."""

    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return torch.stack([member(x) for member in self.members]).mean(0)


def test_the_model_inside_sees_centred_pixels():
    inner = mlp((2, 8, 8), 4).eval()
    torch.testing.assert_close(normalised(inner, MEAN, SD)(X), inner(CENTRED))


def test_weights_are_saved_under_the_model_s_own_names():
    inner = small_cnn((2, 8, 8), 4)
    saved = normalised(inner, MEAN, SD).state_dict()
    assert list(saved) == list(inner.state_dict())
    assert all(torch.equal(saved[name], weight) for name, weight in inner.state_dict().items())


def test_weights_of_the_bare_model_are_loaded_and_the_other_way_round():
    model, inner = normalised(small_cnn((2, 8, 8), 4), MEAN, SD), small_cnn((2, 8, 8), 4)
    assert not any(model.load_state_dict(inner.state_dict()))
    assert torch.equal(model.model.fc1.weight, inner.fc1.weight)
    other = small_cnn((2, 8, 8), 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.conv1.weight, inner.conv1.weight)


def test_the_names_hold_where_the_wrapper_is_a_child_beside_others():
    def build():
        child = normalised(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), MEAN, SD)
        return nn.ModuleDict({"first": nn.Linear(2, 2), "net": child, "last": nn.Linear(2, 2)})

    model, twin = build(), build()
    names = list(model.state_dict())
    assert names[1:4] == ["first.bias", "net.0.weight", "net.0.bias"]
    assert "net.1.num_batches_tracked" in names
    assert not any("model" in name for name in names)
    assert model.state_dict()._metadata["net.1"] == {"version": 2}
    twin.load_state_dict(model.state_dict())
    assert all(torch.equal(twin.state_dict()[name], model.state_dict()[name]) for name in names)


def test_the_names_hold_for_a_wrapper_in_a_wrapper_and_for_a_child_that_is_called_model():
    inner = nn.ModuleDict({"model": nn.Linear(2, 2)})
    twice = normalised(normalised(inner, MEAN, SD), MEAN, SD)
    assert list(twice.state_dict()) == ["model.weight", "model.bias"]
    weights = {name: torch.randn_like(weight) for name, weight in twice.state_dict().items()}
    twice.load_state_dict(weights)
    assert torch.equal(inner["model"].weight, weights["model.weight"])


def test_a_copy_keeps_the_names_and_loads_into_itself():
    model = normalised(small_cnn((2, 8, 8), 4), MEAN, SD)
    twin = copy.deepcopy(model)
    weights = {name: weight + 1 for name, weight in model.state_dict().items()}
    twin.load_state_dict(weights)
    assert torch.equal(twin.model.fc1.bias, weights["fc1.bias"])
    assert not torch.equal(model.model.fc1.bias, weights["fc1.bias"])


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(RuntimeError, match=r"fc9\.bias"):
        normalised(small_cnn((2, 8, 8), 4), MEAN, SD).load_state_dict({"fc9.bias": torch.zeros(1)})


def test_a_split_model_stays_split_and_its_features_take_pixels():
    inner = small_cnn((2, 8, 8), 4).eval()
    model = normalised(inner, MEAN, SD)
    assert isinstance(model, Split)
    torch.testing.assert_close(model.features(X), inner.features(CENTRED))
    assert torch.equal(model.head(model.features(X)), model(X))


def test_a_model_without_a_seam_is_not_made_to_look_split():
    assert not isinstance(normalised(mlp((2, 8, 8), 4), MEAN, SD), Split | Ensemble)


def test_the_mean_of_the_members_is_the_ensemble_for_pixels_too():
    inner = Mean(small_cnn((2, 8, 8), 4), mlp((2, 8, 8), 4)).eval()
    model = normalised(inner, MEAN, SD)
    assert isinstance(model, Ensemble)
    torch.testing.assert_close(model(X), torch.stack([member(X) for member in model.members]).mean(0))
    assert isinstance(model.members[0], Split)
    assert model.members[0].model.fc1.weight is inner.members[0].fc1.weight
    assert list(model.state_dict()) == list(inner.state_dict())


def test_the_mean_pixel_can_be_asked_for_and_is_not_saved():
    model = normalised(mlp((2, 8, 8), 4), MEAN, SD)
    assert torch.equal(start_of(X, "mean", model)[0, :, 0, 0], torch.tensor(MEAN))
    assert set(dict(model.named_buffers())) == {"pixel_mean", "pixel_sd"}
    assert model.pixel_sd.shape == (1, 2, 1, 1)
    assert not any("pixel" in name for name in model.state_dict())


def test_a_model_in_evaluation_mode_is_wrapped_in_it():
    assert not normalised(mlp((2, 8, 8), 4).eval(), MEAN, SD).training


@pytest.mark.parametrize("sd", [(1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_a_deviation_that_is_not_positive_is_refused(sd):
    with pytest.raises(SpecError, match="expected deviations above 0"):
        normalised(mlp((2, 8, 8), 4), MEAN, sd)


@pytest.mark.parametrize("mean", [(), (0.1,), (0.1, float("nan"))])
def test_a_mean_and_a_deviation_belong_to_every_channel(mean):
    with pytest.raises(SpecError, match="a finite mean and a deviation for each channel"):
        normalised(mlp((2, 8, 8), 4), mean, SD)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_with_other_many_channels_are_refused_rather_than_broadcast(channels):
    with pytest.raises(ModelError, match="expected images with 2 channels"):
        normalised(nn.Flatten(), MEAN, SD)(torch.rand(1, channels, 8, 8))
