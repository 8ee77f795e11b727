"""How a step follows the slope, and at which rate in which epoch.

The rate is a function of the epoch, so that a schedule has no state of its own. Of torch's
implementations the fused ones are taken where there are any: on a processor a step of Adam over
half a million weights takes a quarter of the time.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple

import torch
from msgspec import Meta
from torch import nn

from consilience.component import optimizer
from consilience.errors import SpecError


class Schedule(NamedTuple):
    """An optimizer and its learning rate in each epoch, counted from 0."""

    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]


@optimizer(version=1, paper="zeiler2012adadelta")
def adadelta(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Annotated[float, Meta(gt=0)] = 1.0,
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.7,
) -> Schedule:
    """Adadelta whose rate falls by a factor every epoch: ``lr * gamma**epoch``.

    Args:
        lr: Learning rate of the first epoch.
        gamma: Rate of an epoch divided by that of the epoch before.
    """
    return Schedule(torch.optim.Adadelta(parameters, lr=lr), lambda epoch: lr * gamma**epoch)


@optimizer(version=1, paper="kingma2015adam")
def adam(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Annotated[float, Meta(gt=0)] = 1e-3,
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0,
) -> Schedule:
    """Adam with a constant rate.

    Args:
        lr: Learning rate of all epochs.
        weight_decay: Of the squared weights, added to the loss.
    """
    return Schedule(torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True), lambda _: lr)


@optimizer(version=1)
def sgd(
    parameters: Iterable[nn.Parameter],
    *,
    lr: Annotated[float, Meta(gt=0)] = 0.1,
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9,
    nesterov: bool = False,
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0,
    milestones: tuple[Annotated[int, Meta(ge=1)], ...] = (),
) -> Schedule:
    """Gradient descent with momentum; the rate falls to a tenth at every milestone.

    Args:
        lr: Learning rate before the first milestone.
        momentum: Share of the last step that the next one keeps.
        nesterov: Take the slope where the momentum leads rather than where the weights are.
        weight_decay: Of the squared weights, added to the loss.
        milestones: Numbers of epochs after which the rate falls.

    Raises:
        SpecError: Nesterov's slope was asked for without momentum.
    """
    if nesterov and not momentum:
        raise SpecError("sgd: expected a momentum above 0 with nesterov, found 0; give one or leave nesterov out")
    descent = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    return Schedule(descent, lambda epoch: lr * 0.1 ** sum(epoch >= milestone for milestone in milestones))
