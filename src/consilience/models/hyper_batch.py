"""Hyper-batch ensembles: members that share most weights, each with a strength of regularisation of its own.

A layer of member k computes with ``W * (r_k s_k^T) + (D * (r_k s_k^T)) * e(z)``: the shared weights ``W`` and their
change ``D`` belong to all, the rank-one fast weights ``r_k s_k^T`` and the biases to the member, and ``e`` says how
the weights answer to the strength ``z``, one number for each output.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.ensemble import MeanOf

FILTERS = 32
SPREAD, ANSWER = 0.75, 1e-4  # deviations with which the fast weights and the answer to the strength begin
Rate = Annotated[float, Meta(gt=0, lt=1)]


@architecture(version=1, paper="wenzel2020hyperparameter")
def hyper_batch_ensemble(
    shape: tuple[int, int, int],
    classes: int,
    *,
    members: Annotated[int, Meta(ge=1)] = 4,
    rates: tuple[Rate, Rate] = (0.05, 0.5),
) -> nn.Module:
    """Members of the shape of ``small_cnn`` that share their filters; log of their mean probability, as ``mean_of``.

    In training each member draws, anew for every image, a rate of dropout, uniform in its logarithm; its weights are
    told the rate. Otherwise nothing is dropped and the rate stands in the middle of the member's range. To be
    trained with ``member_cross_entropy``.

    Simpler than the paper in four things. What varies is one rate of dropout, not the weight decay of every layer.
    Ranges are not tuned on validation data, since the training loop has none: member ``k`` has the k-th of
    ``members`` equal parts, in the logarithm, of ``rates`` for good. Answers of weights and biases share one
    embedding a layer. The network is one convolution and one linear layer instead of a Wide ResNet.

    Args:
        members: How many there are.
        rates: Smallest and largest rate of dropout of all members.

    Raises:
        SpecError: The rates do not ascend, or the image is too small.
    """
    low, high = rates
    if not low < high:
        raise SpecError(
            f"hyper_batch_ensemble.rates: expected a smaller and a larger rate, found {low} and {high}; exchange them"
        )
    channels, height, width = shape
    if min(height, width) < 4:
        raise SpecError(
            f"hyper_batch_ensemble: expected images of at least 4 x 4 pixels, found {height} x {width}; enlarge them"
        )
    inside = FILTERS * ((height - 2) // 2) * ((width - 2) // 2)
    shared = [
        Shared(nn.Conv2d(channels, FILTERS, 3, bias=False), nn.Conv2d(channels, FILTERS, 3, bias=False), FILTERS),
        Shared(nn.Linear(inside, classes, bias=False), nn.Linear(inside, classes, bias=False), classes),
    ]
    places = [(-1 + 2 * part / members, -1 + 2 * (part + 1) / members) for part in range(members)]
    ensemble = MeanOf(
        [Member(shared, [Fast(channels, FILTERS), Fast(inside, classes)], rates, place) for place in places]
    )
    ensemble.add_module("shared", nn.ModuleList(shared))
    return ensemble


class Shared(nn.Module):
    """Of one layer what belongs to all members: weights, their change, and the answer to the strength."""

    def __init__(self, weight: nn.Module, change: nn.Module, outputs: int) -> None:
        super().__init__()
        self.weight, self.change = weight, change
        self.answer = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw how the weights answer, at first hardly at all."""
        nn.init.normal_(self.answer, std=ANSWER)


class Fast(nn.Module):
    """Of one layer what belongs to one member: a factor of each input and output, biases and their change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.r, self.s = nn.Parameter(torch.empty(outputs)), nn.Parameter(torch.empty(inputs))
        self.bias, self.change = nn.Parameter(torch.empty(outputs)), nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors about one; biases begin at zero."""
        for factor in (self.r, self.s):
            nn.init.normal_(factor, mean=1.0, std=SPREAD)
        for bias in (self.bias, self.change):
            nn.init.zeros_(bias)

    def forward(self, x: Float[Tensor, "n ..."], shared: Shared, z: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        """The layer of this member; factors of the outputs instead of the weights, which is the same."""
        scaled = x * _along(self.s[None], x)
        y: Tensor = shared.weight(scaled)
        answer = _along(z[:, None] * shared.answer, y)
        changed: Tensor = (y + shared.change(scaled) * answer) * _along(self.r[None], y)
        return changed + _along(self.bias[None], y) + _along(self.change[None], y) * answer


class Member(nn.Module):
    """One member; the weights that it shares lie in the ensemble, so that they are saved and counted once."""

    def __init__(
        self, shared: Sequence[Shared], layers: Sequence[Fast], rates: tuple[float, float], place: tuple[float, float]
    ) -> None:
        super().__init__()
        self._shared = tuple(shared)  # in a tuple, where torch does not look for children
        self.conv1, self.fc1 = layers
        self.rates, self.place = rates, place

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        first, last = self._shared
        z = self.strength(x)
        maps: Tensor = functional.max_pool2d(self.conv1(x, first, z).relu(), 2)
        if self.training:
            kept = 1 - self.rate(z)[:, None, None, None]
            # From the global generator, as dropout's, which the training loop seeds.
            maps = maps * (torch.rand_like(maps[..., :1, :1]) < kept) / kept
        logits: Tensor = self.fc1(maps.flatten(1), last, z)
        return logits

    def strength(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Of each image, where the log of the rate stands between the smallest, -1, and the largest of all, 1."""
        low, high = self.place
        share = torch.rand_like(x[:, 0, 0, 0]) if self.training else torch.full_like(x[:, 0, 0, 0], 0.5)
        return low + (high - low) * share

    def rate(self, z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The rate of dropout of such a strength."""
        low, high = map(math.log, self.rates)
        return (low + (high - low) * (z + 1) / 2).exp()


def _along(values: Float[Tensor, "m d"], x: Float[Tensor, "n d ..."]) -> Tensor:
    """The values, standing at the channels of ``x``."""
    return values.view(*values.shape, *[1] * (x.ndim - 2))
