"""The architectures without a plane."""

import msgspec
import pytest
import torch
from torch import nn

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.mlp import linear, mlp


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_mlp_has_the_published_number_of_parameters():
    assert parameters(mlp((1, 28, 28), 10)) == 540_006


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7)])
@pytest.mark.parametrize("build", [mlp, linear])
def test_logits_come_out_for_any_image_size(build, shape):
    assert build(shape, 4)(torch.rand(2, *shape)).shape == (2, 4)


def test_hidden_layers_are_as_many_and_as_wide_as_chosen():
    model = mlp((1, 2, 2), 3, hidden=(5,))
    assert {name: list(weight.shape) for name, weight in model.state_dict().items()} == {
        "fc1.weight": [5, 4],
        "fc1.bias": [5],
        "fc2.weight": [3, 5],
        "fc2.bias": [3],
    }
    assert list(mlp((1, 2, 2), 3, hidden=()).state_dict()) == ["fc1.weight", "fc1.bias"]


def test_the_linear_model_is_linear():
    model, x = linear((2, 3, 3), 4), torch.rand(6, 2, 3, 3)
    torch.testing.assert_close(model(x), x.flatten(1) @ model.fc1.weight.T + model.fc1.bias)


def test_dropout_follows_every_hidden_layer_with_the_chosen_share():
    shares = [layer.p for layer in mlp((1, 2, 2), 3, dropout=0.1) if isinstance(layer, nn.Dropout)]
    assert shares == [0.1, 0.1]


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"hidden": [0]}])
def test_options_out_of_range_are_refused_where_they_are_written(wrong):
    with pytest.raises(SpecError, match=r"train\.model\.mlp: Expected"):
        architecture.choose({"use": "mlp", **wrong}, "train.model")


def test_a_list_of_a_file_is_taken_for_the_hidden_layers():
    choice = architecture.choose({"use": "mlp", "hidden": [5, 6]})
    assert msgspec.to_builtins(choice.options) == {"hidden": (5, 6)}
    assert len(list(choice.build()((1, 2, 2), 3).parameters())) == 6
