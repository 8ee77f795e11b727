"""Weights that somebody else trained: which files are read, and which tensors a model takes from them."""

import copy
import functools
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from consilience.errors import DataError, ModelError
from consilience.models.cnn import small_cnn
from consilience.models.densenet import densenet121
from consilience.models.mlp import mlp
from consilience.models.resnet import resnet18
from consilience.models.split import normalised
from consilience.models.squeezenet import squeezenet1_1
from consilience.models.weights import fingerprint, read_weights, start_from
from tests.models import learn


def drawn(build, seed=0):
    """A model whose weights are drawn from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def cnn(channels=3, classes=4, seed=0):
    return drawn(lambda: small_cnn((channels, 6, 6), classes), seed)


def trained(model):
    """Tensors as if a training had changed all of them."""
    return {
        name: tensor + 1 if not tensor.is_floating_point() else tensor + 0.1 + 0.1 * tensor.abs().cos()
        for name, tensor in model.state_dict().items()
    }


def state(model):
    return copy.deepcopy(model.state_dict())


@functools.cache
def torchvisions():
    """Torchvision's DenseNet-121 for 1,000 classes, with other statistics and shifts than a new one has."""

    def build():
        model = pytest.importorskip("torchvision.models").densenet121(weights=None).double()
        learn(model)
        return model

    return drawn(build).eval().requires_grad_(False)


def as_once_published(tensors):
    """DenseNet's tensors under the names, and without the counters, of torchvision's file."""
    old = OrderedDict()
    for name, tensor in tensors.items():
        if not name.endswith("num_batches_tracked"):
            for part in ("norm1", "norm2", "conv1", "conv2"):
                if "denselayer" in name:
                    name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
            old[name] = tensor
    return old


# What a model takes


def test_all_is_taken_where_the_classes_are_as_many():
    model, given = drawn(lambda: resnet18((3, 32, 32), 5)), trained(drawn(lambda: resnet18((3, 32, 32), 5), 1))
    started = start_from(model, given, "file")
    assert started.loaded == tuple(model.state_dict())
    assert (started.summed, started.fresh) == ((), ())
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())
    assert started.label == f"{len(given)} tensors loaded; fresh: none"


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda classes: small_cnn((3, 6, 6), classes), ("fc1.weight", "fc1.bias")),
        (lambda classes: mlp((1, 4, 4), classes, hidden=(6, 5)), ("fc3.weight", "fc3.bias")),
        (lambda classes: resnet18((3, 32, 32), classes), ("fc.weight", "fc.bias")),
        (lambda classes: squeezenet1_1((3, 40, 40), classes), ("classifier.1.weight", "classifier.1.bias")),
        (lambda classes: nn.Linear(3, classes, bias=False), ("weight",)),
        (lambda classes: normalised(small_cnn((3, 6, 6), classes), [0.5] * 3, [0.2] * 3), ("fc1.weight", "fc1.bias")),
    ],
)
def test_a_last_layer_for_other_classes_keeps_its_fresh_draws(build, head):
    given = trained(drawn(lambda: build(7), 9))
    one, two = (drawn(lambda: build(4), seed) for seed in (1, 2))
    before = state(one)
    started = start_from(one, given, "file")
    assert start_from(two, given, "file") == started
    assert started.fresh == head
    assert set(started.loaded) == set(before) - set(head)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else given[name]), name
        assert name in head or torch.equal(tensor, two.state_dict()[name])
    assert not torch.equal(one.state_dict()[head[0]], two.state_dict()[head[0]])


def test_nothing_is_drawn_and_the_given_tensors_stay_their_owners():
    model, given = cnn(), trained(cnn(classes=9))
    kept, chance = copy.deepcopy(given), torch.get_rng_state()
    start_from(model, given, "file")
    assert torch.equal(chance, torch.get_rng_state())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(given[name], kept[name]) for name in kept)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_filters_for_three_channels_see_a_grey_image_as_three_equal_ones():
    colour, grey = cnn(3).double().eval(), cnn(1, seed=1).double().eval()
    started = start_from(grey, colour.state_dict(), "file")
    assert (started.summed, started.fresh) == (("conv1.weight",), ())
    assert set(started.loaded) == {"conv1.bias", "fc1.weight", "fc1.bias"}
    assert started.label == "3 tensors loaded; summed over three channels: conv1.weight; fresh: none"
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-12, rtol=0)


def test_values_of_another_precision_are_taken_in_the_models():
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        model, given = cnn(1), {name: tensor.to(kind) for name, tensor in trained(cnn(1)).items()}
        start_from(model, given, "file")
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, given[name].float())


def test_counters_of_batch_norm_may_lack_and_stay_as_they_were():
    model = drawn(lambda: resnet18((3, 32, 32), 5))
    given = {name: tensor for name, tensor in trained(model).items() if not name.endswith("num_batches_tracked")}
    started = start_from(model, given, "file")
    assert set(started.loaded) == set(given)
    assert not model.bn1.num_batches_tracked
    assert torch.equal(model.bn1.running_mean, given["bn1.running_mean"])


@pytest.mark.parametrize("channels", [3, 1])
def test_torchvisions_densenet_starts_ours_from_its_file(tmp_path, channels):
    theirs = torchvisions()
    path = tmp_path / "densenet121.pth"
    torch.save(as_once_published(theirs.state_dict()), path, _use_new_zipfile_serialization=False)
    given = read_weights(path)
    assert "features.denseblock1.denselayer1.norm.1.weight" in given
    assert len(given) == len(theirs.state_dict()) - 121
    ours = densenet121((channels, 64, 64), 2).double().eval()
    started = start_from(ours, given, path.name)
    assert started.fresh == ("classifier.weight", "classifier.bias")
    assert started.summed == (("features.conv0.weight",) if channels == 1 else ())
    assert len(started.loaded) + len(started.summed) + len(started.fresh) == len(given)
    x = torch.rand(2, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.features(x), theirs.features(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-9)


def test_a_model_whose_own_names_have_the_prefix_starts_from_its_own_state_dict():
    model, given = nn.DataParallel(cnn(seed=1)), trained(nn.DataParallel(cnn()))
    started = start_from(model, given, "file")
    assert started.loaded == tuple(given)
    assert all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())
    inner = nn.ModuleDict({"module": nn.Linear(3, 2), "head": nn.Linear(2, 2)})
    start_from(inner, {f"module.{name}": torch.ones_like(t) for name, t in inner.state_dict().items()}, "file")
    assert all((tensor == 1).all() for tensor in inner.state_dict().values())


def test_the_prefix_of_a_parallel_training_is_dropped():
    given = trained(cnn())
    model, other = cnn(seed=1), cnn(seed=1)
    assert start_from(model, {f"module.{name}": tensor for name, tensor in given.items()}, "file") == start_from(
        other, given, "file"
    )
    assert torch.equal(model.fc1.weight, given["fc1.weight"])


# What it refuses


def without(name):
    return lambda given: {key: tensor for key, tensor in given.items() if key != name}


def changed(**new):
    return lambda given: {**given, **{name.replace("__", "."): make(given) for name, make in new.items()}}


REFUSED = {  # what is done to the weights of a small network for 3 channels, and what the message must say
    "missing": (without("conv1.bias"), ["no 'conv1.bias'"]),
    "missing head": (without("fc1.weight"), ["no 'fc1.weight'"]),
    "left over": (changed(fc2__weight=lambda _: torch.ones(2)), ["'fc2.weight', which the model lacks"]),
    "other width": (
        changed(conv1__weight=lambda given: given["conv1.weight"][:8]),
        ["'conv1.weight' of [8, 3, 3, 3] where the model has [32, 3, 3, 3]"],
    ),
    "head of other inputs": (
        changed(fc1__weight=lambda given: given["fc1.weight"][:2, :5], fc1__bias=lambda given: given["fc1.bias"][:2]),
        ["'fc1.weight' of [2, 5]", "'fc1.bias' of [2] where the model has [4]"],
    ),
    "half of a head": (
        changed(fc1__weight=lambda given: given["fc1.weight"][:2]),
        ["'fc1.weight' of [2, 128] where the model has [4, 128]"],
    ),
    "head without its bias": (
        lambda given: without("fc1.bias")({**given, "fc1.weight": given["fc1.weight"][:2]}),
        ["'fc1.weight' of [2, 128]", "no 'fc1.bias'"],
    ),
    "two channels": (
        changed(conv1__weight=lambda given: given["conv1.weight"][:, :2]),
        ["'conv1.weight' of [32, 2, 3, 3]"],
    ),
    "one channel": (
        changed(conv1__weight=lambda given: given["conv1.weight"][:, :1]),
        ["'conv1.weight' of [32, 1, 3, 3]"],
    ),
    "bytes": (
        changed(conv1__bias=lambda given: given["conv1.bias"].byte()),
        ["'conv1.bias' of torch.uint8 where the model has torch.float32"],
    ),
    "complex": (
        changed(conv1__bias=lambda given: given["conv1.bias"].to(torch.complex64)),
        ["'conv1.bias' of torch.complex64"],
    ),
    "complex head of other classes": (
        changed(
            fc1__weight=lambda given: given["fc1.weight"][:2].to(torch.complex64),
            fc1__bias=lambda given: given["fc1.bias"][:2],
        ),
        ["'fc1.weight' of torch.complex64 where the model has torch.float32"],
    ),
    "whole numbers in a head of other classes": (
        changed(
            fc1__weight=lambda given: given["fc1.weight"][:2], fc1__bias=lambda given: given["fc1.bias"][:2].long()
        ),
        ["'fc1.bias' of torch.int64 where the model has torch.float32"],
    ),
    "one of them under another name": (
        lambda given: {("module." if name == "fc1.bias" else "") + name: tensor for name, tensor in given.items()},
        ["no 'fc1.bias'", "'module.fc1.bias', which"],
    ),
    "not a number": (
        changed(fc1__bias=lambda given: given["fc1.bias"] * torch.nan),
        ["NaN or infinity in 'fc1.bias'"],
    ),
    "too large for the model": (
        changed(fc1__bias=lambda given: given["fc1.bias"].double() * 1e300),
        ["NaN or infinity in 'fc1.bias'"],
    ),
    "nothing": (lambda _: {}, ["no 'conv1.weight', no 'conv1.bias', no 'fc1.weight', no 'fc1.bias'"]),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_fit_is_one_error_and_changes_nothing(why):
    change, words = REFUSED[why]
    model = cnn()
    before = state(model)
    with pytest.raises(ModelError) as caught:
        start_from(model, change(trained(cnn(seed=1))), "photos.pth")
    message = str(caught.value)
    assert message.startswith("photos.pth: expected ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_complex_filters_are_not_summed_over_channels():
    given = {name: tensor.to(torch.complex64) for name, tensor in cnn(3).state_dict().items()}
    with pytest.raises(ModelError, match=r"'conv1.weight' of torch.complex64 where the model has torch.float32"):
        start_from(cnn(1), given, "file")


def test_only_the_first_convolution_is_summed_over_channels():
    build = lambda inner: nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(inner, 5, 1))  # noqa: E731
    with pytest.raises(ModelError, match=r"'1.weight' of \[5, 3, 1, 1\] where the model has \[5, 1, 1, 1\]"):
        start_from(build(1), build(3).state_dict(), "file")


def test_only_the_last_layer_may_have_other_classes():
    """A layer on which no other one feeds would else be left as it was drawn."""

    def build(side):
        return nn.ModuleDict({"side": nn.Linear(3, side), "main": nn.Linear(3, 2)})

    with pytest.raises(ModelError, match=r"'side.weight' of \[5, 3\]"):
        start_from(build(4), build(5).state_dict(), "file")


def test_a_head_with_nan_is_refused_even_if_it_is_not_taken():
    given = trained(cnn(classes=9))
    given["fc1.bias"][0] = torch.inf
    with pytest.raises(ModelError, match=r"NaN or infinity in 'fc1.bias'"):
        start_from(cnn(), given, "file")


def test_five_names_are_told_and_the_number_of_the_others():
    names = [f"layer{number}" for number in range(9)]
    with pytest.raises(ModelError) as caught:
        start_from(cnn(), {**cnn().state_dict(), **{name: torch.ones(1) for name in names}}, "file")
    assert [name for name in names if f"'{name}'" in str(caught.value)] == names[:5]
    assert " and 4 more; name the architecture" in str(caught.value)


def test_an_old_and_a_new_name_of_one_tensor_are_refused():
    given = densenet121((3, 64, 64), 2).state_dict()
    new = "features.denseblock1.denselayer1.norm1.weight"
    with pytest.raises(ModelError, match="expected each tensor once"):
        start_from(densenet121((3, 64, 64), 2), {**given, new.replace("norm1", "norm.1"): given[new]}, "file")


# Files


@pytest.mark.parametrize("held", [None, "state_dict", "model"])
@pytest.mark.parametrize("ending", ["safetensors", "pth", "old.pt"])
def test_a_file_of_either_kind_gives_the_tensors_that_were_written(tmp_path, held, ending):
    given, path = trained(drawn(lambda: resnet18((1, 32, 32), 3))), tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(given, path)
    else:
        whole = {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in given.items()}
        torch.save({held: whole, "epoch": 7} if held else whole, path, _use_new_zipfile_serialization=ending == "pth")
    found = read_weights(path)
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert not any(tensor.requires_grad for tensor in found.values())
    path.write_bytes(bytes(path.stat().st_size))  # what was read is no view of the file
    assert all(torch.equal(found[name], given[name]) for name in given)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _whole(path):
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    return path.read_bytes()


def _tensors(path):
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    return path.read_bytes()


DAMAGED = {
    "absent": ("pth", lambda path: None),
    "absent safetensors": ("safetensors", lambda path: None),
    "folder": ("pth", lambda path: path.mkdir()),
    "empty": ("pth", lambda path: path.write_bytes(b"")),
    "empty safetensors": ("safetensors", lambda path: path.write_bytes(b"")),
    "half": ("pth", lambda path: path.write_bytes(_whole(path)[:-400])),
    "half safetensors": ("safetensors", lambda path: path.write_bytes(_tensors(path)[:-4])),
    "page": ("pth", lambda path: path.write_bytes(b"<html>not found</html>")),
    "page safetensors": ("safetensors", lambda path: path.write_bytes(b"<html>not found</html>")),
    "safetensors called pth": ("pth", lambda path: path.write_bytes(_tensors(path))),
    "module": ("pth", lambda path: torch.save(nn.Linear(2, 2), path)),
    "code": ("pth", lambda path: torch.save({"a": Trap(path.with_name("trap"))}, path)),
    "pickle with code": ("pth", lambda path: path.write_bytes(pickle.dumps(Trap(path.with_name("trap"))))),
    "tensor": ("pth", lambda path: torch.save(torch.ones(3), path)),
    "list": ("pth", lambda path: torch.save([torch.ones(3)], path)),
    "number among tensors": ("pth", lambda path: torch.save({"a": torch.ones(3), "epoch": 3}, path)),
    "number as a name": ("pth", lambda path: torch.save({3: torch.ones(3)}, path)),
    "text in the state dict": ("pth", lambda path: torch.save({"state_dict": {"a": "ones"}}, path)),
    "sparse": ("pth", lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path)),
    "nothing": ("pth", lambda path: torch.save({}, path)),
    "no values": ("pth", lambda path: torch.save({"a": torch.ones(3, device="meta")}, path)),
    "nothing held": ("pth", lambda path: torch.save({"model": {}}, path)),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_file_that_holds_no_weights_is_one_error_and_no_code_of_it_is_run(tmp_path, damage):
    ending, make = DAMAGED[damage]
    path = tmp_path / f"weights.{ending}"
    make(path)
    with pytest.raises(DataError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected weights, complete, ")
    assert message.endswith("; download the file again, or save the state dict alone")
    assert "\n" not in message
    assert "found ''" not in message
    assert "weights_only" not in message  # torch advises to run the code
    assert not (tmp_path / "trap").exists()


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage")
def test_what_is_wrong_in_a_file_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(3), "epoch": 3}, path)
    with pytest.raises(DataError, match="found int under 'epoch'"):
        read_weights(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(DataError, match="found what only code in the file could read, or no weights at all"):
        read_weights(path)
    torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)
    with pytest.raises(DataError, match="found a tensor that is sparse or quantised under 'a'"):
        read_weights(path)
    torch.save({3: torch.ones(3)}, path)
    with pytest.raises(DataError, match="found a tensor under 3;"):
        read_weights(path)
    torch.save({"a": torch.ones(3, device="meta")}, path)
    with pytest.raises(DataError, match="found a tensor without values, of the meta device, under 'a'"):
        read_weights(path)
    torch.save({"state_dict": {}, "model": {}}, path)
    with pytest.raises(DataError, match="found no tensor;"):
        read_weights(path)


def test_of_two_holders_the_first_that_holds_something_is_read(tmp_path):
    path, one, two = tmp_path / "weights.pth", {"a": torch.ones(1)}, {"b": torch.ones(1), "c": torch.ones(1)}
    for held, name in (({"state_dict": {}, "model": one}, "a"), ({"model": two, "state_dict": one}, "a")):
        torch.save(held, path)
        assert list(read_weights(path)) == [name]


# Fingerprints


def test_a_view_has_the_fingerprint_of_its_values():
    values = torch.tensor([1 + 2j, 3 - 4j])
    assert values.conj().is_conj()
    negative = values[:1].conj().imag
    assert negative.is_neg()
    assert fingerprint({"a": values.conj()}) == fingerprint({"a": torch.tensor([1 - 2j, 3 + 4j])})
    assert fingerprint({"a": negative}) == fingerprint({"a": torch.tensor([-2.0])})
    single = torch.arange(4.0)[2::2][:1]
    assert single.stride() == (2,)
    assert fingerprint({"a": single}) == fingerprint({"a": torch.tensor([2.0])})


def test_a_fingerprint_is_of_names_types_shapes_and_values_alone(tmp_path):
    given = trained(drawn(lambda: resnet18((1, 32, 32), 3)))
    save_file(given, tmp_path / "a.safetensors")
    torch.save({"state_dict": given, "epoch": 3}, tmp_path / "b.pth")
    backwards = dict(reversed(given.items()))
    spread = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in given.items()}
    assert not spread["conv1.weight"].is_contiguous()
    same = [read_weights(tmp_path / "a.safetensors"), read_weights(tmp_path / "b.pth"), backwards, spread]
    assert {fingerprint(each) for each in same} == {fingerprint(given)}
    weight = given["conv1.weight"]
    one = weight.clone()
    one[0, 0, 0, 0] += 1e-6
    others = [
        {**given, "conv1.weight": one},
        {**given, "conv1.weight": weight.flatten()},
        {**given, "conv1.weight": weight.view(torch.int32)},
        {**given, "fc.bias": given["fc.bias"].view(torch.int32)},
        {("conv2.weight" if name == "conv1.weight" else name): tensor for name, tensor in given.items()},
        {name: tensor for name, tensor in given.items() if name != "fc.bias"},
        {**given, "more": torch.empty(0)},
        {**given, "more": torch.tensor(True)},
        {**given, "more": torch.tensor(1.0, dtype=torch.bfloat16)},
    ]
    assert len({fingerprint(each) for each in [given, *others]}) == len(others) + 1


# Real weights


@pytest.mark.real_data
@pytest.mark.parametrize("channels", [3, 1])
def test_imagenets_squeezenet_starts_one_for_ten_classes(channels):
    path = Path(os.environ.get("CONSILIENCE_DATA", "/nowhere")) / "weights" / "squeezenet1_1.safetensors"
    if not path.is_file():
        pytest.skip("needs CONSILIENCE_DATA, a folder with weights/squeezenet1_1.safetensors")
    given = read_weights(path)
    photos, ours = squeezenet1_1((3, 64, 64), 1000).double(), squeezenet1_1((channels, 64, 64), 10).double()
    assert start_from(photos, given, path.name).fresh == ()
    assert start_from(ours, given, path.name).fresh == ("classifier.1.weight", "classifier.1.bias")
    x = torch.rand(2, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = photos.eval().features(255 * x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours.eval().features(255 * x), expected, atol=1e-6, rtol=1e-6)
    assert (expected > 0).any()
