"""The hyper-batch ensemble: its layers by the paper's formula, its rates, and what is shared."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from consilience.component import architecture
from consilience.data.examples import Batch
from consilience.errors import SpecError
from consilience.models.cnn import small_cnn
from consilience.models.hyper_batch import hyper_batch_ensemble
from consilience.models.split import normalised
from consilience.tensors import Ensemble
from consilience.training.diversity import member_cross_entropy

SHAPE, CLASSES = (2, 8, 9), 3
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
LABEL = torch.tensor([0, 2, 1, 1])


@pytest.fixture
def model():
    """With an answer to the rate that can be seen, in double precision."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = hyper_batch_ensemble(SHAPE, CLASSES, members=3)
        for name, weight in model.named_parameters():
            if name.endswith(("answer", "bias", "change")):
                weight.normal_()
    return model.double()


def slow_weights(shared, fast, z):
    """Wenzel et al. 2020, section 4: W * (r s^T) + [D * (r s^T)] * e(z), entry by entry of outputs and inputs."""
    weight = torch.empty_like(shared.weight.weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            fast_weight = fast.r[o] * fast.s[i]
            answer = z * shared.answer[o]
            weight[o, i] = shared.weight.weight[o, i] * fast_weight + shared.change.weight[o, i] * fast_weight * answer
    return weight, fast.bias + fast.change * z * shared.answer


@pytest.mark.parametrize("place", range(3))
def test_a_member_computes_with_the_paper_s_weights(model, place):
    model, x = model.eval().requires_grad_(False), X[:2]
    z = torch.tensor([-2 / 3, 0.0, 2 / 3], dtype=torch.float64)[place]  # the middles of three parts of -1 to 1
    member = model.members[place]
    maps = functional.conv2d(x, *slow_weights(model.shared[0], member.conv1, z)).relu()
    maps = functional.max_pool2d(maps, 2).flatten(1)
    expected = functional.linear(maps, *slow_weights(model.shared[1], member.fc1, z))
    torch.testing.assert_close(member(x), expected)


def test_the_ensemble_answers_with_the_log_of_the_mean_probability(model):
    model = model.eval()
    mean = sum(member(X).softmax(1) for member in model.members) / 3
    torch.testing.assert_close(model(X), mean.log())
    spread = torch.stack([member(X).softmax(1) for member in model.members]).std(0)
    assert spread.max() > 0.1


def test_shared_weights_are_saved_once_and_cost_little_for_another_member():
    counts = [
        sum(weight.numel() for weight in hyper_batch_ensemble((1, 28, 28), 10, members=members).state_dict().values())
        for members in (1, 2, 4)
    ]
    single = sum(weight.numel() for weight in small_cnn((1, 28, 28), 10).parameters())
    inputs, outputs = 1 + 32 * 13 * 13, 32 + 10
    assert counts[1] - counts[0] == inputs + 3 * outputs  # a factor of each input; of each output also two biases
    assert counts[2] == counts[0] + 3 * (inputs + 3 * outputs)
    assert counts[2] < 0.61 * 4 * single
    names = list(hyper_batch_ensemble((1, 8, 8), 2, members=2).state_dict())
    assert len(names) == 2 * 2 * 4 + 2 * 3
    assert not any("_shared" in name for name in names)


@pytest.mark.parametrize("members", [1, 3, 4])
def test_the_members_ranges_tile_the_rates_evenly_in_the_logarithm(members):
    model = hyper_batch_ensemble(SHAPE, CLASSES, members=members, rates=(0.1, 0.4))
    edges = torch.tensor([[float(member.rate(torch.tensor([z]))) for z in member.place] for member in model.members])
    torch.testing.assert_close(edges[0, 0], torch.tensor(0.1))
    torch.testing.assert_close(edges[-1, 1], torch.tensor(0.4))
    torch.testing.assert_close(edges[1:, 0], edges[:-1, 1])
    torch.testing.assert_close(edges[:, 1] / edges[:, 0], torch.full((members,), 4 ** (1 / members)))


def test_in_evaluation_nothing_is_drawn_and_the_rate_stands_in_the_middle(model):
    model, before = model.eval(), torch.get_rng_state()
    assert torch.equal(model(X), model(X))
    assert torch.equal(before, torch.get_rng_state())
    for member in model.members:
        low, high = (float(member.rate(torch.tensor([z]))) for z in member.place)
        assert float(member.rate(member.strength(X))[0]) == pytest.approx(math.sqrt(low * high))


def test_in_training_each_image_has_a_rate_of_its_member_s_range(model):
    x = torch.zeros(4000, *SHAPE).double()
    for member in model.train().members:
        z = member.strength(x)
        low, high = member.place
        assert low <= z.min() < z.max() <= high
        assert float(z.mean()) == pytest.approx((low + high) / 2, abs=0.02)  # 3 of its deviations at most
        assert float(z.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.05)


def test_an_image_loses_whole_maps_at_the_very_rate_that_its_weights_are_told():
    """A layer that counts: every map is one, and the logit is the sum of what is left of them."""
    model = hyper_batch_ensemble((1, 4, 4), 2, members=1, rates=(0.05, 0.6)).train()
    member, x = model.members[0], torch.zeros(3000, 1, 4, 4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        member.conv1.bias.fill_(1.0)
        for weight in (member.fc1.r, member.fc1.s, model.shared[1].weight.weight):
            weight.fill_(1.0)
    torch.manual_seed(0)
    z = member.strength(x)
    torch.manual_seed(0)
    left = member(x)[:, 0].detach() * (1 - member.rate(z))
    torch.testing.assert_close(left, left.round(), atol=1e-4, rtol=0)  # of 32 maps, whole ones
    expected = 32 * (1 - member.rate(z))
    deviation = (32 * member.rate(z) * (1 - member.rate(z))).sqrt()
    score = (left - expected) / deviation
    assert abs(float(score.mean())) < 4 / math.sqrt(3000)
    assert float(score.std()) == pytest.approx(1, abs=0.06)
    assert float(torch.corrcoef(torch.stack([left, expected]))[0, 1]) > 0.7


def test_every_weight_learns_from_the_members_own_losses(model):
    model = normalised(model.train(), (0.4, 0.5), (0.3, 0.2)).double()
    assert isinstance(model, Ensemble)
    torch.manual_seed(0)
    member_cross_entropy(model, Batch(torch.arange(4), X, LABEL, torch.arange(4))).backward()
    slopes = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(slope is not None and slope.abs().max() > 0 for slope in slopes.values())


def test_a_copy_shares_among_its_own_members_and_not_with_the_model(model):
    twin = copy.deepcopy(model).eval()
    before = model.eval()(X)
    with torch.no_grad():
        twin.shared[0].weight.weight += 1
    assert torch.equal(model(X), before)
    for mine, other in zip(model.members, twin.members, strict=True):
        assert not torch.allclose(mine(X), other(X))


def test_two_seeds_make_two_models_and_one_seed_makes_one():
    def build(seed):
        torch.manual_seed(seed)
        return hyper_batch_ensemble(SHAPE, CLASSES).eval()(X.float())

    assert torch.equal(build(1), build(1))
    assert not torch.allclose(build(1), build(2))


@pytest.mark.parametrize("rates", [[0.5, 0.1], [0.2, 0.2]])
def test_rates_that_do_not_ascend_are_refused(rates):
    choice = architecture.choose({"use": "hyper_batch_ensemble", "rates": rates})
    with pytest.raises(SpecError, match="expected a smaller and a larger rate, found"):
        choice.build()(SHAPE, CLASSES)


@pytest.mark.parametrize("wrong", [{"members": 0}, {"rates": [0.0, 0.5]}, {"rates": [0.1, 1.0]}, {"rates": [0.1]}])
def test_options_out_of_range_are_refused_where_they_are_written(wrong):
    with pytest.raises(SpecError, match=r"train\.model\.hyper_batch_ensemble: Expected"):
        architecture.choose({"use": "hyper_batch_ensemble", **wrong}, "train.model")


def test_an_image_of_which_nothing_would_be_left_is_refused():
    hyper_batch_ensemble((1, 4, 4), 2)(torch.rand(1, 1, 4, 4))
    with pytest.raises(SpecError, match="at least 4 x 4 pixels, found 28 x 3; enlarge"):
        hyper_batch_ensemble((1, 28, 3), 2)
