"""Means of models: by their definition, with what explains them, and chosen one by one."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

from consilience.attribution.cam import grad_cam
from consilience.attribution.deep_lift import deep_lift
from consilience.attribution.ensemble import mean_over_models
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import log_probability, probability
from consilience.component import architecture
from consilience.errors import ModelError, SpecError
from consilience.models.cnn import small_cnn
from consilience.models.ensemble import mean_of, mean_of_models, select_greedily
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.tensors import Ensemble, Split

SHAPE, CLASSES = (1, 8, 8), 4
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 3, 1, 2, 0])


def loud(**options):
    """An ensemble whose members have strong opinions, else all their probabilities are alike; always the same."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = mean_of(SHAPE, CLASSES, **options)
        for member in model.members:
            member.fc1.weight *= 8
    return model.double().eval().requires_grad_(False)


def slow_mean(members, x, weights):
    """Of each image and class, the weighted mean of the members' probabilities."""
    total = torch.zeros(len(x), CLASSES, dtype=torch.float64)
    for member, weight in zip(members, weights, strict=True):
        for i, logits in enumerate(member(x).detach().double()):
            for k in range(CLASSES):
                total[i, k] += weight * math.exp(logits[k]) / sum(math.exp(other) for other in logits)
    return total / sum(weights)


@pytest.mark.parametrize("weights", [(), (1.0, 2.0, 5.0), (0.2, 0.2, 0.6)])
def test_the_logits_are_the_log_of_the_weighted_mean_probability(weights):
    model = loud(weights=weights)
    expected = slow_mean(model.members, X.double(), weights or (1.0,) * 3)
    torch.testing.assert_close(model(X.double()).exp(), expected)
    torch.testing.assert_close(model(X.double()).softmax(1), expected)


def test_members_begin_with_weights_of_their_own_drawn_one_after_another():
    torch.manual_seed(3)
    model = mean_of(SHAPE, CLASSES, members=3)
    torch.manual_seed(3)
    alone = [small_cnn(SHAPE, CLASSES) for _ in range(3)]
    for member, single in zip(model.members, alone, strict=True):
        assert all(torch.equal(weight, single.state_dict()[name]) for name, weight in member.state_dict().items())
    for one, two in itertools.combinations(model.members, 2):
        assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_ensemble_of_one_has_its_member_s_probabilities():
    model = mean_of(SHAPE, CLASSES, members=1).eval()
    torch.testing.assert_close(model(X), model.members[0](X).log_softmax(1))


def test_members_that_are_sure_and_contradict_each_other_stay_finite():
    model = mean_of(SHAPE, CLASSES, members=2, of=functools.partial(mlp, hidden=()))
    with torch.no_grad():
        for member, sign in zip(model.members, (1, -1), strict=True):
            member.fc1.weight.zero_()
            member.fc1.bias.copy_(sign * torch.tensor([400.0, 0.0, -200.0, -400.0]))
    logits = model(X)
    torch.testing.assert_close(logits[0], torch.tensor([-math.log(2), -400.0, -200.0 - math.log(2), -math.log(2)]))
    logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize(
    "of",
    [
        functools.partial(integrated_gradients, of=functools.partial(gradient, score=probability)),
        functools.partial(gradient, score=probability),
    ],
)
def test_the_mean_of_the_members_explanations_explains_the_mean_probability(of, weights):
    model = normalised(loud(weights=weights), (0.4,), (0.3,)).double()
    maps = mean_over_models(model, X.double(), T, of=of)
    torch.testing.assert_close(maps, of(model, X.double(), T), atol=1e-5, rtol=1e-5)
    assert maps.abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("score", [None, log_probability])
def test_of_a_score_that_is_not_averaged_it_does_not(score):
    model = loud()
    of = functools.partial(gradient, score=score) if score else gradient
    maps, whole = mean_over_models(model, X.double(), T, of=of), of(model, X.double(), T)
    assert (maps - whole).norm() > 0.05 * whole.norm()


def test_behind_mean_and_deviation_it_is_an_ensemble_for_pixels_under_the_same_names():
    inner = mean_of(SHAPE, CLASSES, members=2).eval()
    model = normalised(inner, (0.4,), (0.3,))
    assert isinstance(model, Ensemble)
    assert all(isinstance(member, Split) for member in model.members)
    assert list(model.state_dict()) == [
        f"members.{i}.{layer}.{kind}" for i in (0, 1) for layer in ("conv1", "fc1") for kind in ("weight", "bias")
    ]
    torch.testing.assert_close(model(X), mean_of_models(list(model.members))(X))


def test_a_file_names_the_architecture_of_the_members():
    choice = architecture.choose({"use": "mean_of", "members": 2, "of": {"use": "mlp", "hidden": [5], "dropout": 0.0}})
    model = choice.build()(SHAPE, CLASSES)
    assert [type(member) for member in model.members] == [nn.Sequential] * 2
    assert model.members[0].fc1.weight.shape == (5, 64)
    assert choice.label == "mean_of(members=2, of=mlp(dropout=0.0, hidden=(5,)))"


@pytest.mark.parametrize("wrong", [{"members": 0}, {"weights": [1.0, 0.0, 1.0]}, {"weights": [-1.0, 1.0, 1.0]}])
def test_options_out_of_range_are_refused_where_they_are_written(wrong):
    with pytest.raises(SpecError, match=r"train\.model\.mean_of: Expected"):
        architecture.choose({"use": "mean_of", **wrong}, "train.model")


# Of models that there are


def test_trained_models_are_held_and_not_copied():
    models = [small_cnn(SHAPE, CLASSES).eval(), mlp(SHAPE, CLASSES, hidden=(5,)).eval()]
    ensemble = mean_of_models(models, (3.0, 1.0))
    torch.testing.assert_close(ensemble(X).exp().detach(), slow_mean(models, X, (3.0, 1.0)).float())
    assert ensemble.members[0] is models[0]
    assert not any(module.training for module in ensemble.modules())
    assert ensemble.shares == (0.75, 0.25)
    assert mean_of_models([models[0], small_cnn(SHAPE, CLASSES)]).training


def test_models_that_take_pixels_make_an_ensemble_that_does():
    models = [normalised(small_cnn(SHAPE, CLASSES).eval(), (mean,), (0.3,)) for mean in (0.2, 0.5)]
    torch.testing.assert_close(mean_of_models(models)(X).exp().detach(), slow_mean(models, X, (1, 1)).float())


def test_deep_lift_explains_the_mean_completely():
    model, x = loud(members=4), X.double()
    gap = (model(x) - model(torch.zeros_like(x))).gather(1, T[:, None])[:, 0]
    torch.testing.assert_close(deep_lift(model, x, T).sum((1, 2, 3)), gap)


@pytest.mark.parametrize("members", [2, 4, 9])  # as many as a plane of 2 x 2 or 3 x 3 has places
def test_the_members_are_never_taken_for_a_plane(members):
    with pytest.raises(ModelError, match="expected a layer with a plane"):
        grad_cam(mean_of(SHAPE, members, members=members).eval(), X, T % members)


@pytest.mark.parametrize(
    ("count", "weights"), [(0, ()), (2, (1.0,)), (2, (1.0, 1.0, 1.0)), (2, (1.0, 0.0)), (2, (1.0, float("inf")))]
)
def test_weights_that_make_no_mean_are_refused(count, weights):
    with pytest.raises(SpecError, match="weights: expected"):
        mean_of_models([small_cnn(SHAPE, CLASSES) for _ in range(count)], weights)


@pytest.mark.parametrize("classes", [(3, 4), (1, 1)])
def test_members_of_other_classes_or_with_a_single_logit_are_refused(classes):
    model = mean_of_models([mlp(SHAPE, count, hidden=()) for count in classes])
    with pytest.raises(ModelError, match="expected members with the same classes, two or more"):
        model(X)


# Greedy choice


def answers(models, n=40, classes=3, seed=0):
    chance = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % classes
    skill = torch.rand(models, 1, 1, generator=chance) * 3
    logits = torch.randn(models, n, classes, generator=chance) * 2 + skill * torch.eye(classes)[label]
    return logits.softmax(2), label


def log_loss(probabilities, label, picks):
    mean = sum(probabilities[pick].double() for pick in picks) / len(picks)
    return sum(-math.log(mean[i, y]) for i, y in enumerate(label.tolist())) / len(label)


@pytest.mark.parametrize("seed", range(6))
def test_each_pick_is_the_best_that_can_be_added(seed):
    probabilities, label = answers(7, seed=seed)
    picks = select_greedily(probabilities, label, 5)
    assert len(picks) == 5
    for place, pick in enumerate(picks):
        losses = [log_loss(probabilities, label, [*picks[:place], model]) for model in range(7)]
        assert losses[pick] == pytest.approx(min(losses), abs=1e-12)


def test_two_that_make_up_for_each_other_are_found_though_each_is_no_better_than_a_third():
    right, wrong = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
    first, second = torch.stack([right, right, wrong, wrong]), torch.stack([wrong, wrong, right, right])
    third = torch.tensor([[0.45, 0.55]] * 4)
    assert select_greedily(torch.stack([third, first, second]), torch.zeros(4, dtype=torch.int64), 2) == [0, 1]
    assert select_greedily(torch.stack([first, third, second]), torch.zeros(4, dtype=torch.int64), 4)[1:] != [0, 0, 0]


def test_a_model_may_be_picked_again_and_the_first_of_equals_is():
    probabilities, label = answers(1)
    assert select_greedily(probabilities, label, 3) == [0, 0, 0]
    assert select_greedily(probabilities.expand(4, -1, -1), label, 2) == [0, 0]
    good, bad = torch.tensor([[0.99, 0.01]] * 3), torch.tensor([[0.01, 0.99]] * 3)
    assert select_greedily(torch.stack([bad, good]), torch.zeros(3, dtype=torch.int64), 4) == [1] * 4


def test_a_probability_of_zero_is_bad_but_not_the_end():
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    label = torch.tensor([0, 0])
    assert select_greedily(torch.stack([certain, torch.full((2, 2), 0.5)]), label, 2)[0] == 1
    assert select_greedily(torch.stack([certain, certain.flip(0)]), label, 2) == [0, 1]


def test_a_model_that_is_undefined_is_never_picked():
    probabilities, label = answers(3)
    probabilities[0, 5, 2] = torch.nan
    assert 0 not in select_greedily(probabilities, label, 6)
    with pytest.raises(ModelError, match="expected a model without NaN, found none among 3"):
        select_greedily(torch.full_like(probabilities, torch.nan), label, 1)


@pytest.mark.parametrize(("models", "n", "size"), [(0, 4, 1), (2, 0, 1), (2, 4, 0)])
def test_a_choice_among_nothing_is_refused(models, n, size):
    with pytest.raises(SpecError, match="expected at least one pick, model and example"):
        select_greedily(torch.rand(models, n, 3), torch.zeros(n, dtype=torch.int64), size)
