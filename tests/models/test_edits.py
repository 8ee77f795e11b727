"""Layers that lose their weights: which, to what, and in which order."""

import copy
from collections import OrderedDict

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn
from torch.nn.utils import parametrizations

from consilience.component import architecture
from consilience.errors import ModelError, SpecError
from consilience.models.cnn import cnn, small_cnn
from consilience.models.edits import blocks_of, cascade, layers_of, randomise
from consilience.models.split import normalised
from consilience.rng import Rng

X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def learnt(model):
    """The model as if trained: every weight and statistic moved, none at the value it starts from."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict(keep_vars=True).values():
            noise = torch.rand(value.shape, generator=generator) + 0.5
            value.copy_(value + (noise if value.is_floating_point() else 7))
    return model.eval()


def plain():
    """Layers of equal shape in a row, one of them in a container."""
    inside = nn.Sequential(OrderedDict(a=nn.Linear(6, 6), b=nn.Linear(6, 6)))
    return learnt(
        nn.Sequential(OrderedDict(first=nn.Linear(6, 6), relu=nn.ReLU(), middle=inside, last=nn.Linear(6, 6)))
    )


def with_norms():
    return learnt(
        nn.Sequential(
            OrderedDict(
                norm0=nn.BatchNorm2d(2), conv1=nn.Conv2d(2, 4, 3), norm1=nn.BatchNorm2d(4), relu=nn.ReLU(),
                conv2=nn.Conv2d(4, 4, 3), norm2=nn.GroupNorm(2, 4), norm3=nn.BatchNorm2d(4, affine=False),
                flatten=nn.Flatten(), fc=nn.Linear(64, 3),
            )
        )
    )  # fmt: skip


class Tokens(nn.Module):
    """A weight beside layers, of which nobody knows how it is drawn."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.arange(6.0))
        self.fc = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)

    def forward(self, x):
        x = self.fc(x + self.token)[None]
        return self.attention(x, x, x)[0][0]


class Tied(nn.Module):
    """One weight in two places; the second has a bias of its own."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.out.weight = self.into.weight


def edited(model, seed=0, **options):
    twin = copy.deepcopy(model)
    return twin, randomise(twin, Rng(seed, []), **options)


def moved(model, twin):
    after = twin.state_dict()
    return tuple(name for name, value in model.state_dict().items() if not torch.equal(value, after[name]))


@pytest.mark.parametrize("initializer", ["own", "shuffle"])
def test_the_same_seed_draws_the_same_weights_and_another_seed_others(initializer):
    model = plain()
    one, two, three = (edited(model, seed, initializer=initializer)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one)


def test_what_was_drawn_before_does_not_matter():
    model = plain()
    one, _ = edited(model)
    torch.manual_seed(5)
    two, _ = edited(model)
    assert not moved(one, two)


@pytest.mark.parametrize("initializer", ["own", "shuffle"])
@pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
def test_a_later_stage_holds_the_new_weights_of_the_earlier_one(order, initializer):
    model = plain()
    full = edited(model, initializer=initializer)[0].state_dict()
    for stage in cascade(layers_of(model), order):
        twin, coverage = edited(model, layers=stage, initializer=initializer)
        assert all(torch.equal(twin.state_dict()[name], full[name]) for name in coverage.changed)
        assert {name.rpartition(".")[0] for name in coverage.changed} == set(stage)
        assert coverage.changed == moved(model, twin)


def test_layers_of_one_shape_get_different_weights():
    weights = edited(plain())[0].state_dict()
    assert not torch.equal(weights["first.weight"], weights["middle.a.weight"])
    assert not torch.equal(weights["middle.a.weight"], weights["middle.b.weight"])
    shuffled = edited(nn.ModuleDict({name: counting() for name in "ab"}), initializer="shuffle")[0].state_dict()
    assert not torch.equal(shuffled["a.weight"], shuffled["b.weight"])


def counting():
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(36.0).view(6, 6))
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(20, 5), lambda: nn.Conv2d(2, 6, 3)], ids=["linear", "conv"])
def test_weights_are_drawn_as_the_layer_itself_draws_them(make):
    model = learnt(nn.ModuleDict({"only": make()}))
    ours = {name: [] for name in ("weight", "bias")}
    fresh = {name: [] for name in ("weight", "bias")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for seed in range(200):
            layer, new = edited(model, seed)[0]["only"], make()
            for name in ours:
                ours[name].append(getattr(layer, name).detach().flatten())
                fresh[name].append(getattr(new, name).detach().flatten())
    bound = make().weight[0].numel() ** -0.5  # of kaiming_uniform with a = sqrt(5), by hand
    for name in ours:
        drawn = torch.cat(ours[name])
        assert 0.98 * bound < drawn.abs().max() <= bound
        assert ks_2samp(drawn.numpy(), torch.cat(fresh[name]).numpy()).pvalue > 0.01


@pytest.mark.parametrize(
    "make",
    [lambda: nn.LSTM(3, 4, 2), lambda: nn.Embedding(9, 4, padding_idx=2), lambda: nn.Bilinear(2, 3, 4)],
    ids=["lstm", "embedding", "bilinear"],
)
def test_the_draw_is_that_of_the_module_s_own_initializer_with_the_keyed_seed(make):
    model = learnt(nn.ModuleDict({"only": make()}))
    twin, coverage = edited(model, 3)
    expected = make()
    with torch.random.fork_rng():
        torch.manual_seed(Rng(3, []).common("only").bit_generator.random_raw() >> 1)
        expected.reset_parameters()
    assert all(torch.equal(value, twin["only"].state_dict()[name]) for name, value in expected.state_dict().items())
    assert coverage.kept == ()


def test_attention_is_drawn_as_when_it_is_made():
    model = learnt(nn.ModuleDict({"only": nn.MultiheadAttention(6, 2, add_bias_kv=True)}))
    twin, coverage = edited(model, 3)
    with torch.random.fork_rng():
        torch.manual_seed(Rng(3, []).common("only").bit_generator.random_raw() >> 1)
        expected = nn.MultiheadAttention(6, 2)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, twin["only"].state_dict()[name]), name
    assert len(coverage.changed) == 6
    assert layers_of(model) == ["only"]


def test_a_part_of_a_layer_gets_what_the_whole_layer_would_give_it():
    model = learnt(nn.ModuleDict({"only": nn.MultiheadAttention(6, 2)}))
    whole = edited(model)[0].state_dict()
    twin, coverage = edited(model, layers=("only.out_proj",))
    assert coverage.changed == ("only.out_proj.weight", "only.out_proj.bias") == moved(model, twin)
    assert all(torch.equal(twin.state_dict()[name], whole[name]) for name in coverage.changed)


def test_shuffled_weights_are_the_same_numbers_in_another_place():
    model = plain()
    twin, coverage = edited(model, initializer="shuffle")
    for name, value in model.state_dict().items():
        assert torch.equal(value.flatten().sort().values, twin.state_dict()[name].flatten().sort().values)
    assert coverage.changed == tuple(model.state_dict()) == moved(model, twin)


def test_what_shuffling_cannot_change_is_listed_as_kept():
    model = learnt(nn.ModuleDict({"fc": nn.Linear(6, 6), "slope": nn.PReLU()}))
    nn.init.zeros_(model["fc"].bias)
    _, coverage = edited(model, initializer="shuffle")
    assert (coverage.changed, coverage.kept) == (("fc.weight",), ("fc.bias", "slope.weight"))


@pytest.mark.parametrize("initializer", ["own", "shuffle"])
def test_torch_s_generator_is_untouched_also_when_an_initializer_fails(initializer, monkeypatch):
    def fails(layer):
        nn.init.uniform_(layer.bias)
        raise RuntimeError("no more")

    model, before = plain(), torch.get_rng_state()
    weights = copy.deepcopy(model.state_dict())
    randomise(copy.deepcopy(model), Rng(0, []), initializer=initializer)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(nn.Linear, "reset_parameters", fails)
    with pytest.raises(RuntimeError, match="no more"):
        randomise(model, Rng(0, []))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())


@pytest.mark.parametrize("name", sorted({*architecture.names()} - {"rbf_svm"}))  # which has no weights to draw
def test_a_full_randomisation_changes_every_weight_and_the_answers(name):
    make, x = architecture.get(name).function, X
    if side := {"squeezenet1_1": 20, "densenet121": 32}.get(name):  # they need more pixels
        x = torch.nn.functional.interpolate(X, side)
    model = learnt(normalised(make((2, *x.shape[2:]), 4), (0.1, 0.2), (0.5, 0.25)))
    twin, coverage = edited(model)
    assert coverage.kept == ()
    assert coverage.changed == tuple(model.state_dict()) == moved(model, twin)
    assert not torch.allclose(model(x), twin(x))
    assert edited(model, layers=cascade(blocks_of(model), "top_down")[-1])[1] == coverage


def test_layers_of_a_wrapped_model_have_the_names_of_the_bare_one():
    bare = learnt(small_cnn((2, 8, 8), 4))
    wrapped = normalised(normalised(copy.deepcopy(bare), (0.1, 0.2), (0.5, 0.25)), (0.0, 0.0), (1.0, 1.0))
    assert layers_of(wrapped) == layers_of(bare) == ["conv1", "fc1"]
    twin, coverage = edited(wrapped, layers=("fc1",))
    assert coverage == edited(bare, layers=("fc1",))[1]
    assert torch.equal(twin.model.model.fc1.weight, edited(bare, layers=("fc1",))[0].fc1.weight)
    assert torch.equal(twin.pixel_mean, wrapped.pixel_mean)


def test_a_wrapper_inside_is_not_seen_either():
    child = normalised(nn.Conv2d(2, 3, 3), (0.1, 0.2), (0.5, 0.25))
    model = learnt(nn.ModuleDict({"net": nn.Sequential(child, nn.Flatten()), "model": nn.Linear(2, 2)}))
    assert layers_of(model) == ["net.0", "model"]
    assert edited(model, layers=("net.0",))[1].changed == ("net.0.weight", "net.0.bias")


def test_a_container_stands_for_everything_in_it():
    model = plain()
    twin, coverage = edited(model, layers=("middle",))
    assert coverage.changed == ("middle.a.weight", "middle.a.bias", "middle.b.weight", "middle.b.bias")
    assert not moved(twin, edited(model, layers=("middle.b", "middle.a", "middle"))[0])


def test_a_name_does_not_stand_for_a_longer_one():
    model = learnt(nn.ModuleDict({"fc1": nn.Linear(2, 2), "fc10": nn.Linear(2, 2)}))
    assert edited(model, layers=("fc1",))[1].changed == ("fc1.weight", "fc1.bias")


def test_batch_norm_starts_anew_or_stays():
    model, first = with_norms(), with_norms()
    for module in first:
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()
    state = first.state_dict()
    twin, coverage = edited(model)
    assert coverage.kept == ()
    norms = [name for name in state if name.startswith("norm")]
    assert all(torch.equal(state[name], twin.state_dict()[name]) for name in norms)
    assert twin.norm1.running_var.tolist() == [1.0] * 4
    twin, coverage = edited(model, batch_norm="keep")
    assert coverage.kept == tuple(name for name in norms if not name.startswith("norm2"))
    assert coverage.changed == moved(model, twin)


def test_batch_norm_starts_anew_when_others_are_shuffled():
    twin, coverage = edited(with_norms(), initializer="shuffle")
    assert torch.equal(twin.norm1.running_mean, torch.zeros(4))
    assert set(coverage.kept) <= {"norm2.weight", "norm2.bias", "conv1.bias", "conv2.bias", "fc.bias"}


def test_batch_norm_that_never_learnt_is_listed_as_kept():
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)})
    assert edited(model)[1].changed == ("fc.weight", "fc.bias")


def test_a_weight_without_an_initializer_is_refused_and_nothing_is_edited():
    model = learnt(Tokens())
    before = copy.deepcopy(model.state_dict())
    for layers in ((), ("token",), ("fc", "token")):
        with pytest.raises(ModelError, match=r"no initializer that sets token; choose initializer='shuffle'"):
            randomise(model, Rng(0, []), layers=layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match=r"sets tokens\.0, tokens\.1;"):
        randomise(nn.ModuleDict({"tokens": nn.ParameterList([torch.ones(3)] * 2)}), Rng(0, []))
    twin, coverage = edited(model, layers=("fc", "attention"))
    assert coverage.kept == ("token",)
    assert edited(model, initializer="shuffle")[1].kept == ()
    assert not torch.allclose(model(X[0, 0, :, :6]), twin(X[0, 0, :, :6]))


def test_a_weight_that_the_initializer_leaves_alone_is_refused():
    class Half(nn.Linear):
        def reset_parameters(self):
            nn.init.uniform_(self.weight)

    with pytest.raises(ModelError, match=r"sets only\.bias;"):
        randomise(nn.ModuleDict({"only": Half(3, 3)}), Rng(0, []))
    model = nn.ModuleDict({"fc": parametrizations.weight_norm(nn.Linear(3, 3))})
    with pytest.raises(ModelError, match=r"original0, fc\.parametrizations\.weight\.original1"):
        randomise(model, Rng(0, []))


def test_a_tied_weight_changes_once_under_both_names():
    model = learnt(Tied())
    assert layers_of(model) == ["into", "out"]
    whole = edited(model)[0]
    assert whole.into.weight is whole.out.weight
    for layer, changed in {
        "into": ("into.weight", "out.weight"),
        "out": ("into.weight", "out.weight", "out.bias"),
    }.items():
        twin, coverage = edited(model, layers=(layer,))
        assert coverage.changed == changed
        assert torch.equal(twin.out.weight, whole.out.weight)


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("conv9", "no layer is named 'conv9'; did you mean 'conv"),
        ("model.fc1", "no layer is named 'model.fc1'"),
        ("", "no layer is named ''"),
        ("relu3", "expected layers with weights, found 'relu3', which has none; choose among conv1, conv2, fc1, fc2"),
    ],
)
def test_a_name_without_weights_is_refused(layer, sentence):
    with pytest.raises(SpecError, match=sentence):
        randomise(normalised(cnn((2, 8, 8), 4), (0.1, 0.2), (0.5, 0.25)), Rng(0, []), layers=("conv1", layer))


def test_a_model_without_weights_is_refused():
    with pytest.raises(ModelError, match="expected a model with weights, found none in Flatten"):
        randomise(nn.Flatten(), Rng(0, []))


def test_layers_stand_in_order_of_definition():
    assert layers_of(cnn((2, 8, 8), 4)) == ["conv1", "conv2", "fc1", "fc2"]
    assert layers_of(plain()) == ["first", "middle.a", "middle.b", "last"]
    assert layers_of(with_norms()) == ["norm0", "conv1", "norm1", "conv2", "norm2", "norm3", "fc"]
    assert layers_of(Tokens()) == ["token", "fc", "attention"]
    assert layers_of(nn.Linear(2, 2)) == ["weight", "bias"]


def test_a_norm_layer_goes_with_the_layer_before_it():
    assert blocks_of(with_norms()) == [("norm0",), ("conv1", "norm1"), ("conv2", "norm2", "norm3"), ("fc",)]
    assert blocks_of(nn.Linear(2, 2)) == [("weight", "bias")]


@pytest.mark.parametrize(
    ("order", "stages"),
    [
        ("top_down", [("c", "d"), ("b", "c", "d"), ("a", "b", "c", "d")]),
        ("bottom_up", [("a",), ("a", "b"), ("a", "b", "c", "d")]),
        ("independent", [("a",), ("b",), ("c", "d")]),
        ("full", [("a", "b", "c", "d")]),
    ],
)
def test_stages_follow_the_order(order, stages):
    assert cascade(["a", "b", ("c", "d")], order) == stages
    assert cascade([], order) == []
