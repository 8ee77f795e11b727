"""Losses against their definitions."""

import torch
from torch import nn

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.training.objectives import cross_entropy


def test_cross_entropy_is_the_mean_of_minus_log_probabilities():
    x, label = torch.randn(5, 3, 1, 1), torch.tensor([0, 2, 1, 1, 0])
    batch = Batch(torch.arange(5), x, label, torch.arange(5))
    probability = x.flatten(1).exp() / x.flatten(1).exp().sum(1, keepdim=True)
    expected = sum(-probability[i, y].log() for i, y in enumerate(label)) / 5
    torch.testing.assert_close(cross_entropy(nn.Flatten(), batch), expected)


def test_cross_entropy_is_found_by_name():
    assert "cross_entropy" in objective.names()
