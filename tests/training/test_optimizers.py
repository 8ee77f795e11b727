"""Optimizers: their rates, and that each of them finds the bottom of a bowl."""

import functools

import pytest
import torch
from torch import nn

from consilience.component import optimizer
from consilience.errors import SpecError
from consilience.training.optimizers import adadelta, adam, sgd


def weights():
    return [nn.Parameter(torch.tensor([3.0, -2.0]))]


def test_adadelta_s_rate_falls_to_seven_tenths_every_epoch_as_published():
    rate = adadelta(weights()).rate
    assert [rate(epoch) for epoch in range(4)] == [1.0, 0.7, 1.0 * 0.7**2, 1.0 * 0.7**3]
    assert adadelta(weights(), lr=2.0, gamma=0.5).rate(3) == 0.25


def test_adadelta_s_rates_are_those_of_the_scheduler_that_the_study_used():
    descent = torch.optim.Adadelta(weights(), lr=1.0)
    scheduler, rate = torch.optim.lr_scheduler.StepLR(descent, step_size=1, gamma=0.7), adadelta(weights()).rate
    for epoch in range(14):
        assert scheduler.get_last_lr() == pytest.approx([rate(epoch)], rel=1e-12)
        descent.step()
        scheduler.step()


def test_adam_s_rate_is_constant():
    assert {adam(weights(), lr=0.25).rate(epoch) for epoch in range(5)} == {0.25}


def test_the_rate_of_gradient_descent_falls_to_a_tenth_at_each_milestone():
    rate = sgd(weights(), lr=1.0, milestones=(2, 4)).rate
    assert [rate(epoch) for epoch in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert sgd(weights()).rate(1000) == 0.1


@pytest.mark.parametrize("name", optimizer.names())
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
    parameters = [nn.Parameter(torch.tensor([0.3, -0.2]))]
    schedule = optimizer.choose({"use": name, "lr": 1.0 if name == "adadelta" else 0.1}).build()(parameters)
    for _ in range(300):
        schedule.optimizer.zero_grad()
        (parameters[0] ** 2).sum().backward()
        schedule.optimizer.step()
    assert parameters[0].abs().max() < 0.02


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adadelta, functools.partial(torch.optim.Adadelta, lr=1.0)),
        (functools.partial(adam, weight_decay=0.1), functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=0.1)),
        (
            functools.partial(sgd, nesterov=True),
            functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        ),
    ],
)
def test_steps_are_torch_s_own(ours, theirs):
    mine, other = weights(), weights()
    for parameters, descent in [(mine, ours(mine).optimizer), (other, theirs(other))]:
        for _ in range(5):
            descent.zero_grad()
            (parameters[0] ** 4).sum().backward()
            descent.step()
    torch.testing.assert_close(mine, other)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(SpecError, match="sgd: expected a momentum above 0"):
        sgd(weights(), nesterov=True, momentum=0.0)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": "fast"}, {"gamma": 1.5}])
def test_options_out_of_range_are_refused_where_they_are_written(wrong):
    with pytest.raises(SpecError, match=r"train\.optimizer\.adadelta: Expected"):
        optimizer.choose({"use": "adadelta", **wrong}, "train.optimizer")
