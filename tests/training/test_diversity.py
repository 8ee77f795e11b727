"""Objectives of what an ensemble's members answer: by definition, by finite differences, and where they end."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from consilience.component import objective
from consilience.data.examples import Arrays, Batch
from consilience.errors import ModelError, SpecError
from consilience.models.cnn import small_cnn
from consilience.models.ensemble import mean_of
from consilience.models.hyper_batch import hyper_batch_ensemble
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.training.as_published import RIDGE, adaptive_diversity_ridge
from consilience.training.consistent import explanation_agreement
from consilience.training.diversity import adaptive_diversity, member_cross_entropy
from consilience.training.loop import begun
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import adadelta, adam

ALL = [member_cross_entropy, adaptive_diversity, adaptive_diversity_ridge, explanation_agreement]


class Answers(nn.Module):
    """A member that answers the same logits whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x):
        return self.logits


class Ensemble(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)


def answering(members, classes, n=5, scale=1.0, seed=0):
    """An ensemble with random logits, and a batch of as many images."""
    chance = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(members, n, classes, generator=chance, dtype=torch.float64)
    batch = Batch(torch.arange(n), torch.zeros(n, 1, 1, 1), torch.arange(n) % classes, torch.arange(n))
    return Ensemble([Answers(own) for own in logits]), batch


def slow_diversity(model, batch, alpha, beta, ridge=0.0):
    """Pang et al. 2019, equations 3 to 5, image by image: sum of losses - alpha H(mean) - beta log det."""
    logits = np.stack([member.logits.detach().numpy() for member in model.members])
    total = 0.0
    for i, y in enumerate(batch.label.tolist()):
        probability = np.exp(logits[:, i]) / np.exp(logits[:, i]).sum(1, keepdims=True)
        mean = probability.mean(0)
        rows = np.delete(probability, y, axis=1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        determinant = np.linalg.det(rows @ rows.T + ridge * np.eye(len(rows)))
        entropy = -(mean * np.log(mean)).sum()
        total += -np.log(probability[:, y]).sum() - alpha * entropy - beta * np.log(determinant)
    return total / len(batch.label)


def planted(n=24):
    """Noise, with one bright row of pixels whose place is the class."""
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    labels = torch.arange(n) % 4
    images[torch.arange(n), 0, labels] += 0.5
    return Arrays(images, labels, tuple("abcd"), (0.4,), (0.3,))


def built(members=3, classes=4, of=small_cnn):
    return normalised(mean_of((1, 8, 8), classes, members=members, of=of), (0.4,), (0.3,))


still = functools.partial(small_cnn, dropout=0.0)


# Each by itself


def test_the_members_losses_are_added():
    model, batch = answering(3, 4)
    expected = sum(
        -member.logits[i].log_softmax(0)[y] / 5 for member in model.members for i, y in enumerate(batch.label)
    )
    torch.testing.assert_close(member_cross_entropy(model, batch), expected)


@pytest.mark.parametrize("optimizer", [adam, adadelta])
def test_each_member_ends_as_if_it_had_been_trained_alone(run, optimizer):
    build = functools.partial(built, of=still)
    given = {"examples": planted(), "optimizer": optimizer, "epochs": 2}
    together = run(build, objective=member_cross_entropy, **given).weights
    start = begun(build, 0)
    for place in range(3):
        member = functools.partial(copy.deepcopy, start.members[place])
        for name, weight in run(member, objective=cross_entropy, **given).weights.items():
            assert torch.equal(together[f"members.{place}.{name}"], weight)
            assert not torch.equal(start.state_dict()[f"members.{place}.{name}"], weight)


def test_the_loss_of_the_mean_is_another_thing(run):
    given = {"examples": planted(), "build": functools.partial(built, of=still), "epochs": 1}
    own, mean = (run(objective=each, **given).weights for each in (member_cross_entropy, cross_entropy))
    assert not torch.allclose(own["members.0.fc1.weight"], mean["members.0.fc1.weight"])


# Diversity


@pytest.mark.parametrize(("members", "classes"), [(1, 2), (2, 3), (3, 10), (9, 10)])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.0, 1.0), (3.0, 0.0)])
def test_adaptive_diversity_is_its_definition(members, classes, alpha, beta):
    model, batch = answering(members, classes)
    expected = slow_diversity(model, batch, alpha, beta)
    assert float(adaptive_diversity(model, batch, alpha=alpha, beta=beta).detach()) == pytest.approx(expected)


@pytest.mark.parametrize("members", [2, 3, 10, 12])
def test_the_published_form_is_its_definition_for_any_number_of_members(members):
    model, batch = answering(members, 10)
    expected = slow_diversity(model, batch, 2.0, 0.5, RIDGE)
    assert float(adaptive_diversity_ridge(model, batch).detach()) == pytest.approx(expected)


@pytest.mark.parametrize("members", [2, 4, 9])
def test_its_slope_is_that_of_finite_differences(members):
    model, batch = answering(members, 10, n=2, scale=2.0)

    def loss(*logits):
        return adaptive_diversity(Ensemble([Given(own) for own in logits]), batch)

    assert torch.autograd.gradcheck(loss, [member.logits for member in model.members], eps=1e-7, atol=1e-4)


class Given(nn.Module):
    """A member that answers a tensor that someone else differentiates."""

    def __init__(self, logits):
        super().__init__()
        self.given = (logits,)

    def forward(self, x):
        return self.given[0]


@pytest.mark.parametrize("scale", [1.0, 0.01, 60.0])  # of logits: as usual, hardly any opinion, very sure
@pytest.mark.parametrize("members", [2, 9])
def test_loss_and_slope_are_finite_up_to_classes_less_one(members, scale):
    model, batch = answering(members, 10, scale=scale)
    loss = adaptive_diversity(model.float(), batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(member.logits.grad.isfinite().all() for member in model.members)


def test_nine_fresh_networks_of_ten_classes_have_a_finite_slope():
    torch.manual_seed(0)
    model = normalised(mean_of((1, 8, 8), 10, members=9), (0.4,), (0.3,))
    batch = Batch(torch.arange(20), torch.rand(20, 1, 8, 8), torch.arange(20) % 10, torch.arange(20))
    loss = adaptive_diversity(model, batch)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in model.parameters())


@pytest.mark.parametrize(("members", "classes"), [(10, 10), (2, 2), (5, 3)])
def test_more_members_than_classes_less_one_are_refused_with_the_reason(members, classes):
    model, batch = answering(members, classes)
    with pytest.raises(SpecError, match=f"at most {classes - 1} members for {classes} classes, found {members}: their"):
        adaptive_diversity(model, batch)


def gram(model, batch, i):
    """Of one image, the products of the members' directions."""
    rows = np.stack([np.delete(m.logits[i].softmax(0).detach().numpy(), batch.label[i]) for m in model.members])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def volume(of, model, batch):
    """The mean log volume that an objective sees."""
    return (of(model, batch, beta=0.0) - of(model, batch, beta=1.0)).item()


def test_what_the_ridge_says_of_ten_members_is_the_ridge():
    """Ten rows in nine dimensions: however the members answer, one factor of the determinant is the ridge itself."""
    for seed in range(5):
        model, batch = answering(10, 10, seed=seed)
        ten = volume(adaptive_diversity_ridge, model, batch)
        spanned = np.mean([np.log(np.linalg.eigvalsh(gram(model, batch, i))[1:]).sum() for i in range(5)])
        assert ten == pytest.approx(spanned + math.log(RIDGE), abs=0.5)
    model, batch = answering(3, 10)
    three = [volume(each, model, batch) for each in (adaptive_diversity, adaptive_diversity_ridge)]
    assert three[0] == pytest.approx(three[1], abs=1e-4)


def test_diversity_makes_the_members_wrong_answers_differ(run):
    def wrong_cosine(weights):
        model = built(2)
        model.load_state_dict(weights)
        model.eval()
        batch = planted(n=48).batch(range(24, 48))
        rows = torch.stack([member(batch.x).softmax(1) for member in model.members])
        others = nn.functional.one_hot(batch.label, 4) == 0
        one, two = rows[:, others].view(2, -1, 3)
        return float(nn.functional.cosine_similarity(one, two, dim=1).mean().detach())

    given = {"examples": planted(), "build": functools.partial(built, 2), "epochs": 6}
    plain = wrong_cosine(run(objective=member_cross_entropy, **given).weights)
    diverse = wrong_cosine(run(objective=functools.partial(adaptive_diversity, beta=2.0), **given).weights)
    assert diverse < plain - 0.2


# All of them


@pytest.mark.parametrize("of", ALL)
@pytest.mark.parametrize(
    "build", [built, lambda: normalised(hyper_batch_ensemble((1, 8, 8), 4, members=3), (0.4,), (0.3,))]
)
def test_an_epoch_moves_every_weight_and_is_the_same_twice(run, same, build, of):
    given = {"examples": planted(), "build": build, "epochs": 1, "keep": [0], "optimizer": adam}
    first = run(objective=of, **given)
    assert math.isfinite(first.history[0]["loss"])
    assert all(not torch.equal(weight, first.kept[0][name]) for name, weight in first.weights.items())
    assert same(first, run(objective=of, **given))


@pytest.mark.parametrize("of", ALL)
@pytest.mark.parametrize("model", [mlp((1, 8, 8), 4), Ensemble([])])
def test_a_model_without_members_is_refused(of, model):
    with pytest.raises(ModelError, match="objective: expected an ensemble, whose models are in its ModuleList"):
        of(model, planted().batch([0, 1]))


@pytest.mark.parametrize("use", ["adaptive_diversity", "adaptive_diversity_ridge"])
@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"beta": -0.1}])
def test_a_negative_weight_is_refused_where_it_is_written(use, wrong):
    with pytest.raises(SpecError, match=rf"train\.objective\.{use}: Expected"):
        objective.choose({"use": use, **wrong}, "train.objective")


def test_the_published_form_says_that_it_is_legacy():
    assert objective.get("adaptive_diversity_ridge").legacy
    assert not objective.get("adaptive_diversity").legacy
