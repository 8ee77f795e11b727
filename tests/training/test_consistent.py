"""Agreement of the members' explanations: by definition, in slopes that really arrive, and planted."""

import functools
import itertools

import pytest
import torch
from torch.nn import functional

from consilience.attribution.gradient import gradient
from consilience.component import objective
from consilience.data.examples import Arrays, Batch
from consilience.errors import SpecError
from consilience.models.ensemble import mean_of, mean_of_models
from consilience.models.mlp import linear, mlp
from consilience.models.split import normalised
from consilience.training.consistent import disagreement, explanation_agreement
from consilience.training.diversity import member_cross_entropy
from consilience.training.loop import Chances
from consilience.training.optimizers import adam

SHAPE, CLASSES = (1, 4, 4), 3
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
BATCH = Batch(torch.arange(5), X, torch.tensor([0, 2, 1, 1, 0]), torch.arange(5))


@pytest.fixture
def model():
    torch.manual_seed(2)
    of = functools.partial(mlp, hidden=(7,), dropout=0.0)
    return normalised(mean_of(SHAPE, CLASSES, members=3, of=of), (0.4,), (0.3,)).double()


def test_the_term_is_one_less_the_mean_cosine_of_the_members_gradients(model):
    maps = [gradient(member, X, BATCH.label) for member in model.members]
    values = [
        1 - functional.cosine_similarity(one[i].flatten(), two[i].flatten(), dim=0)
        for one, two in itertools.combinations(maps, 2)
        for i in range(5)
    ]
    expected = sum(values) / 15
    torch.testing.assert_close(disagreement(torch.stack(maps)), expected)
    loss = explanation_agreement(model, BATCH, weight=2.5)
    torch.testing.assert_close(loss.detach(), member_cross_entropy(model, BATCH).detach() + 2.5 * expected)


def slopes(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


def term(model):
    """The agreement alone: what a weight of one adds to the losses."""
    return explanation_agreement(model, BATCH, weight=1.0) - member_cross_entropy(model, BATCH)


def test_every_member_s_weights_receive_a_slope_from_the_agreement_alone(model):
    found = dict(zip(dict(model.named_parameters()), slopes(term(model), model), strict=True))
    for place in range(3):
        for layer in ("fc1", "fc2"):
            assert found[f"model.members.{place}.{layer}.weight"].norm() > 1e-3


def test_that_slope_is_the_one_of_finite_differences(model):
    exact, step = slopes(term(model), model), 1e-6
    for weight, slope in zip(model.parameters(), exact, strict=True):
        flat = weight.detach().view(-1)  # a view, so that the model itself is moved
        for place in range(0, flat.numel(), max(1, flat.numel() // 6)):
            flat[place] += step
            above = term(model).item()
            flat[place] -= 2 * step
            below = term(model).item()
            flat[place] += step
            assert (above - below) / (2 * step) == pytest.approx(slope.view(-1)[place].item(), abs=1e-7, rel=1e-4)


def test_without_weight_the_members_train_as_if_alone(model):
    for one, two in zip(
        slopes(explanation_agreement(model, BATCH, weight=0.0), model),
        slopes(member_cross_entropy(model, BATCH), model),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_an_image_without_a_gradient_is_left_out_and_spoils_nothing():
    torch.manual_seed(0)
    members = [linear(SHAPE, CLASSES).double() for _ in range(3)]
    with torch.no_grad():
        members[0].fc1.weight[1] = 0  # no gradient for the images of class 1
    model = mean_of_models(members)
    rows = [member.fc1.weight for member in members]
    values = [
        1 - functional.cosine_similarity(rows[a][y], rows[b][y], dim=0)
        for a, b in [(0, 1), (0, 2), (1, 2)]
        for y in BATCH.label.tolist()
        if not (a == 0 and y == 1)
    ]
    assert len(values) == 15 - 4
    torch.testing.assert_close(term(model), sum(values) / len(values))
    assert all(slope.isfinite().all() for slope in slopes(term(model), model))
    with torch.no_grad():
        for member in members:
            member.fc1.weight.zero_()
    assert term(model) == 0
    assert all(slope.isfinite().all() for slope in slopes(term(model), model))


def test_members_that_agree_entirely_have_nothing_to_pay():
    one = linear(SHAPE, CLASSES).double()
    twin = linear(SHAPE, CLASSES).double()
    twin.load_state_dict({name: 3 * weight for name, weight in one.state_dict().items()})
    assert term(mean_of_models([one, twin])).item() == pytest.approx(0, abs=1e-12)
    twin.load_state_dict({name: -weight for name, weight in one.state_dict().items()})
    assert term(mean_of_models([one, twin])).item() == pytest.approx(2)


def test_the_batch_is_left_as_it_was(model):
    before = X.clone()
    explanation_agreement(model, BATCH).backward()
    assert torch.equal(X, before)
    assert not X.requires_grad
    assert X.grad is None


def two_cues(n, seed):
    """Either of two bright places tells the class, so that a member may look at the one or at the other."""
    chance = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(n, 1, 6, 6, generator=chance) * 0.6, torch.arange(n) % 2
    images[labels == 1, :, :2, :2] += 0.4
    images[labels == 1, :, 4:, 4:] += 0.4
    return Arrays(images, labels, ("without", "with"), (0.4,), (0.3,))


@pytest.mark.parametrize("init", [0, 1])
def test_members_trained_to_agree_do_so_on_images_they_never_saw(run, init):
    def build():
        of = functools.partial(mlp, hidden=(16,), dropout=0.0)
        return normalised(mean_of((1, 6, 6), 2, members=3, of=of), (0.4,), (0.3,))

    def held_out(weight):
        of = functools.partial(explanation_agreement, weight=weight)
        given = {"optimizer": functools.partial(adam, lr=0.003), "epochs": 12, "examples": two_cues(60, 0)}
        model = build()
        model.load_state_dict(run(build, objective=of, chances=Chances(init=init), **given).weights)
        batch = two_cues(60, 1).batch(range(60))
        maps = torch.stack([gradient(member.eval(), batch.x, batch.label) for member in model.members])
        right = (model.eval()(batch.x).argmax(1) == batch.label).double().mean()
        return disagreement(maps).item(), right.item()

    (alone, accuracy), (together, with_agreement) = held_out(0.0), held_out(5.0)
    assert together < alone / 3
    assert min(accuracy, with_agreement) > 0.9


def test_a_member_without_company_is_refused():
    model = mean_of(SHAPE, CLASSES, members=1).double()
    with pytest.raises(SpecError, match="expected two members or more, found one"):
        explanation_agreement(model, BATCH)


def test_a_negative_weight_is_refused_where_it_is_written():
    with pytest.raises(SpecError, match=r"train\.objective\.explanation_agreement: Expected"):
        objective.choose({"use": "explanation_agreement", "weight": -1.0}, "train.objective")
