"""The small convolutional architectures."""

import pytest
import torch
from torch import nn

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.cnn import cnn, small_cnn
from consilience.tensors import Split

BOTH = pytest.mark.parametrize("build", [small_cnn, cnn])


@pytest.mark.parametrize(("build", "count"), [(small_cnn, 54_410), (cnn, 1_199_882)])
def test_parameters_are_as_many_as_published(build, count):
    assert sum(parameter.numel() for parameter in build((1, 28, 28), 10).parameters()) == count


def test_layers_keep_their_own_names_in_the_state_dict():
    assert list(small_cnn((1, 8, 8), 2).state_dict()) == ["conv1.weight", "conv1.bias", "fc1.weight", "fc1.bias"]
    layers = [key.removesuffix(".weight") for key in cnn((1, 8, 8), 2).state_dict() if key.endswith("weight")]
    assert layers == ["conv1", "conv2", "fc1", "fc2"]


@BOTH
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 9, 12)])
def test_logits_come_out_for_any_image_that_is_large_enough(build, shape):
    assert build(shape, 4)(torch.rand(2, *shape)).shape == (2, 4)


@BOTH
def test_the_head_of_the_features_is_the_model(build):
    model, x = build((2, 9, 9), 4).eval(), torch.rand(3, 2, 9, 9)
    assert isinstance(model, Split)
    features = model.features(x)
    assert features.ndim == 4
    assert torch.equal(model.head(features), model(x))


@pytest.mark.parametrize(("build", "least"), [(small_cnn, 4), (cnn, 6)])
def test_an_image_of_which_nothing_would_be_left_is_refused(build, least):
    build((1, least, least), 2)(torch.rand(1, 1, least, least))
    with pytest.raises(SpecError, match=f"at least {least} x {least} pixels, found 28 x {least - 1}; enlarge"):
        build((1, 28, least - 1), 2)


def test_maps_are_dropped_whole_after_the_pooling_and_units_singly_before_the_last_layer():
    model = cnn((1, 8, 8), 2, dropout=0.4)
    assert isinstance(model.dropout1, nn.Dropout2d)
    assert isinstance(model.dropout2, nn.Dropout)
    assert model.dropout1.p == model.dropout2.p == 0.4
    maps = model.dropout1(torch.ones(8, 64, 2, 2))
    assert torch.equal(maps.flatten(2).amax(2), maps.flatten(2).amin(2))


def test_a_replaced_layer_is_the_one_that_computes():
    model, x = small_cnn((1, 8, 8), 2).eval(), torch.rand(2, 1, 8, 8)
    model.conv1 = nn.Conv2d(1, 32, 3)
    assert torch.equal(model.features(x), model.pool(model.conv1(x).relu()))


def test_all_architectures_of_the_study_are_found_by_name():
    assert {"linear", "mlp", "small_cnn", "cnn"} <= set(architecture.names())
