"""What layers put out: against running them by hand, and that nothing is left on the model."""

import copy

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.errors import ModelError
from consilience.models.recording import record
from consilience.models.split import normalised
from tests.laws.laws import Failing

X = torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """A rectifier that is used twice and works in place, a layer that is never called, and one with two outputs."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
            self.relu, self.idle = nn.ReLU(inplace=True), nn.Linear(2, 2)
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(8, 4))
            self.memory = nn.GRU(4, 5, batch_first=True)
            self.whole = Whole()

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        x = self.body(x)
        self.whole(x)
        return self.memory(x[:, None])[0][:, 0]


class Whole(nn.Module):
    """Puts out one number for the whole batch."""

    def forward(self, x):
        return x.sum()


def network() -> Network:
    return Network().eval()


def test_outputs_are_what_the_layers_put_out():
    model = network()
    found = record(model, X, ["conv1", "relu#1", "relu#2", "conv2", "body.1", "body", "memory"])
    with torch.no_grad():
        conv1 = model.conv1(X)
        conv2 = model.conv2(conv1.relu())
        body = model.body(conv2.relu())
    expected = {
        "conv1": conv1, "relu#1": conv1.relu(), "conv2": conv2, "relu#2": conv2.relu(), "body.1": body, "body": body,
        "memory": model.memory(body[:, None])[0],
    }  # fmt: skip
    assert list(found) == ["conv1", "relu#1", "relu#2", "conv2", "body.1", "body", "memory"]
    for name, output in found.items():
        torch.testing.assert_close(output, expected[name].detach())
        assert not output.requires_grad
    assert (found["conv1"] < 0).any(), "what the rectifier wrote in place is not the convolution's output"


def test_chunks_change_nothing(monkeypatch):
    whole = record(network(), X, ["conv1", "body"])
    monkeypatch.setattr(tensors, "CHUNK_ROWS", 3)
    for name, output in record(network(), X, ["conv1", "body"]).items():
        torch.testing.assert_close(output, whole[name])
    assert record(network(), X[:0], ["conv1", "body"])["conv1"].shape == (0, 3, 4, 4)


def test_a_model_behind_its_mean_has_the_same_names():
    inner = network()
    model = normalised(inner, [0.3], [0.5])
    torch.testing.assert_close(record(model, X, ["conv1"]), record(inner, (X - 0.3) / 0.5, ["conv1"]))
    torch.testing.assert_close(record(model, X, ["model.conv1"])["model.conv1"], record(model, X, ["conv1"])["conv1"])


def test_a_layer_of_two_names_is_found_under_both():
    layer = nn.Linear(36, 36)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer).eval()
    found = record(model, X, ["1#1", "3#2"])
    torch.testing.assert_close(found["3#2"], layer(layer(X.flatten(1)).relu()).detach())
    torch.testing.assert_close(found["1#1"], layer(X.flatten(1)).detach())


def test_attention_in_evaluation_mode_calls_its_layers_while_it_is_watched():
    """Its fast path would not; a hook switches it off."""
    encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).eval()
    model = nn.Sequential(nn.Flatten(1, 2), encoder).eval()
    found = record(model, X, ["1", "1.linear2"])
    torch.testing.assert_close(found["1"], encoder(X[:, 0]).detach(), atol=1e-5, rtol=1e-4)
    assert found["1.linear2"].shape == (7, 6, 6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("conv3", "record: no layer is named 'conv3'; did you mean 'conv2'"),
        ("conv3#1", "record: no layer is named 'conv3'; did you mean 'conv2'"),
        ("nothing", "no layer is named 'nothing'; there are: body, conv1, conv2, idle, memory, relu, whole"),
        ("", "no layer is named ''"),
        ("idle", "layer 'idle': expected one that the model calls, found that it does not; name another"),
        ("relu", "layer 'relu': expected one that the model calls once, found 2 calls; say which, from 'relu#1' to"),
        ("relu#3", "layer 'relu#3': expected that call, found 2 calls of the layer; count from 1"),
        ("relu#0", "layer 'relu#0': expected that call, found 2 calls of the layer; count from 1"),
        ("whole", r"layer 'whole': expected an output with the 7 examples as its first axis, found \[\]; name another"),
    ],
)
def test_a_layer_that_cannot_be_recorded_is_named(name, said):
    model = network()
    with pytest.raises(ModelError, match=said):
        record(model, X, ["conv1", name])
    assert hooks(model) == 0


def test_a_model_that_would_draw_is_refused():
    model = network()
    model.body.append(nn.Dropout())
    with pytest.raises(ModelError, match="expected a model in evaluation mode, found Dropout in training mode; call"):
        record(model, X, ["conv1"])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("calls", [0, 1, 9])
def test_nothing_is_left_on_the_model_also_when_it_fails(calls):
    """At its first call, which tells how many examples fit into memory, at its second, or not at all."""
    model, x = Failing(network(), calls).eval(), X.clone()
    weights, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    if calls < 2:
        with pytest.raises(RuntimeError, match="the model failed"):
            record(model, x, ["inner.conv1"])
    else:
        record(model, x, ["inner.conv1"])
    assert hooks(model) == 0
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert torch.equal(chance, torch.get_rng_state())


def test_the_caller_s_own_hooks_stay():
    model, seen = network(), []
    model.conv1.register_forward_hook(lambda module, args, out: seen.append(out) or out * 2)
    found = record(model, X, ["conv1"])["conv1"]
    torch.testing.assert_close(found, 2 * seen[-1])
    assert hooks(model) == 1
