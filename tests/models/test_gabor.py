"""The network with a bank of Gabor filters, against the published definition of the filters."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consilience.attribution.path import integrated_gradients
from consilience.errors import SpecError
from consilience.models.edits import blocks_of, cascade, layers_of, randomise
from consilience.models.gabor import GaborBank, gabornet
from consilience.models.split import normalised
from consilience.rng import Rng
from consilience.tensors import Split

NUMBERS = ["freq", "theta", "sigma", "psi"]


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def batch(channels=1, side=12, n=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, side, side, generator=generator), torch.arange(n) % 3


def slow_filter(freq, theta, sigma, psi):
    """The published filter of 3 x 3 pixels, word for word; rows are y, columns x."""
    places = (-1.0, 0.5, 2.0)
    rows = []
    for y in places:
        row = []
        for x in places:
            along = x * math.cos(theta) + y * math.sin(theta)
            across = -x * math.sin(theta) + y * math.cos(theta)
            bell = math.exp(-0.5 * (along**2 + across**2) / (sigma + 1e-3) ** 2)
            row.append(bell * math.cos(freq * along + psi) / (2 * math.pi * sigma**2))
        rows.append(row)
    return rows


def slow_filters(bank):
    numbers = torch.stack([bank.state_dict()[name] for name in NUMBERS], -1).tolist()
    return torch.tensor([[slow_filter(*four) for four in row] for row in numbers], dtype=torch.float64)


def train(model, x, y, steps=1):
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_filters_are_the_published_ones(frozen):
    bank = seeded(lambda: GaborBank(3, 5, 3, frozen=frozen)).double()
    expected = slow_filters(bank)
    torch.testing.assert_close(bank.kernel(), expected)
    x = batch(channels=3)[0].double()
    torch.testing.assert_close(bank(x), F.conv2d(x, expected))


@pytest.mark.parametrize("sigma", [0.3, 0.01, 0.0011])
def test_narrow_filters_are_the_published_ones_too(sigma):
    bank = seeded(lambda: GaborBank(1, 1, 3)).double()
    nn.init.constant_(bank.sigma, sigma)
    torch.testing.assert_close(bank.kernel(), slow_filters(bank))


@pytest.mark.parametrize("sigma", [1e-3, 1e-6, 1e-20, 0.0, -1e-20, -1e-3, -1.0, 1e20])
def test_filters_and_slopes_are_finite_whatever_the_width(sigma):
    model = seeded(lambda: gabornet((1, 12, 12), 3))
    nn.init.constant_(model.gabor.sigma, sigma)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert model.gabor.kernel().isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_slopes_of_all_four_numbers_are_those_of_small_steps():
    bank = seeded(lambda: GaborBank(2, 3, 3)).double()
    picks = torch.rand(2, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = [getattr(bank, name).detach().clone().requires_grad_() for name in NUMBERS]

    def maps(*numbers):
        named = dict(zip(NUMBERS, numbers, strict=True))
        return torch.func.functional_call(bank, named, (picks,))

    assert torch.autograd.gradcheck(maps, given)


def test_it_starts_as_published():
    bank = seeded(lambda: GaborBank(40, 40, 3)).requires_grad_(False)
    scales = (math.pi / 2 / bank.freq).log2() * 2
    angles = bank.theta / (math.pi / 8)
    assert sorted(scales.round().unique().tolist()) == [0, 1, 2, 3, 4]
    assert sorted(angles.round().unique().tolist()) == list(range(8))
    torch.testing.assert_close(scales, scales.round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(angles, angles.round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(bank.sigma * bank.freq, torch.full((40, 40), math.pi))
    assert 0 <= float(bank.psi.min()) < 0.02
    assert math.pi - 0.02 < float(bank.psi.max()) < math.pi
    for drawn, values in ((scales.round(), 5), (angles.round(), 8)):  # five deviations of a share
        shares = torch.stack([(drawn == value).float().mean() for value in range(values)])
        assert float((shares - 1 / values).abs().max()) < 5 * (1 / values / 1600) ** 0.5


def test_parameters_are_as_many_as_published():
    model = gabornet((1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in model.fc1.parameters()) == 54_090
    assert {name: tuple(getattr(model.gabor, name).shape) for name in NUMBERS} == dict.fromkeys(NUMBERS, (32, 1))
    assert list(model.state_dict()) == [*(f"gabor.{name}" for name in NUMBERS), "fc1.weight", "fc1.bias"]
    assert sum(parameter.numel() for parameter in gabornet((3, 28, 28), 10).gabor.parameters()) == 4 * 32 * 3


def test_a_step_of_training_moves_every_number_of_the_bank():
    model = seeded(lambda: gabornet((1, 12, 12), 3, dropout=0.0))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model.train(), *batch())
    for name in NUMBERS:
        assert bool((model.state_dict()[f"gabor.{name}"] != before[f"gabor.{name}"]).all()), name


@pytest.mark.parametrize("thawed", [False, True])
def test_a_frozen_bank_never_moves(thawed):
    model = seeded(lambda: gabornet((1, 12, 12), 3, frozen=True)).train()
    if thawed:
        model.requires_grad_(False).requires_grad_(True)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, *batch(), steps=3)
    assert all(torch.equal(before[f"gabor.{name}"], getattr(model.gabor, name)) for name in NUMBERS)
    assert not torch.equal(before["fc1.weight"], model.fc1.weight)


def test_frozen_or_not_it_starts_alike_and_loads_the_other_s_weights():
    learns, frozen = (seeded(lambda f=f: gabornet((1, 12, 12), 3, frozen=f)).eval() for f in (False, True))
    x, y = batch()
    assert torch.equal(learns(x), frozen(x))
    train(learns.train(), x, y)
    frozen.load_state_dict(learns.state_dict())
    assert torch.equal(learns.eval()(x), frozen(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_edits_find_the_bank_and_draw_it_as_a_new_one(frozen):
    model = seeded(lambda: gabornet((1, 12, 12), 3, frozen=frozen)).eval()
    x = batch()[0]
    assert layers_of(model) == ["gabor", "fc1"]
    assert cascade(blocks_of(model), "top_down") == [("fc1",), ("gabor", "fc1")]
    answers, before = model(x), {name: weight.clone() for name, weight in model.state_dict().items()}
    coverage = randomise(model, Rng(0, []), layers=("gabor",))
    assert coverage.changed == tuple(f"gabor.{name}" for name in NUMBERS)
    assert coverage.kept == ("fc1.weight", "fc1.bias")
    torch.testing.assert_close(model.gabor.sigma * model.gabor.freq, torch.full((32, 1), math.pi))
    assert not torch.allclose(model(x), answers)
    shuffled = randomise(model, Rng(1, []), layers=("gabor",), initializer="shuffle")
    assert shuffled.changed == coverage.changed
    assert set(model.gabor.freq.flatten().tolist()) == set(before["gabor.freq"].flatten().tolist())


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 9, 12)])
def test_the_head_of_the_features_is_the_model(shape):
    model = gabornet(shape, 4).eval()
    x = torch.rand(2, *shape)
    for split in (model, normalised(model, [0.5] * shape[0], [0.2] * shape[0])):
        assert isinstance(split, Split)
        assert split.features(x).shape[:2] == (2, 32)
        assert torch.equal(split.head(split.features(x)), split(x))
        assert split(x).shape == (2, 4)


def test_an_image_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(SpecError, match="gabornet: expected images of at least 4 x 4 pixels, found 28 x 3; enlarge"):
        gabornet((1, 28, 3), 2)


@pytest.mark.parametrize("learning", [False, True])
def test_its_explanations_are_complete(learning):
    model = seeded(lambda: gabornet((3, 12, 12), 3)).double().eval().requires_grad_(learning)
    x, target = batch(channels=3)[0].double(), batch()[1]
    with torch.no_grad():
        rise = (model(x) - model(torch.zeros_like(x))).gather(1, target[:, None])[:, 0]
    maps = integrated_gradients(model, x, target, steps=128)
    torch.testing.assert_close(maps.sum((1, 2, 3)), rise, atol=2e-3 * float(rise.abs().max()), rtol=0)


def test_its_printed_form_says_what_it_is():
    assert repr(GaborBank(1, 32, 3, frozen=True)) == "GaborBank(1, 32, 3, frozen=True)"
