"""Losses against their definitions."""

import pytest
import torch
from torch import nn

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.errors import DataError, ModelError
from consilience.training.objectives import binary_cross_entropy, cross_entropy


def test_cross_entropy_is_the_mean_of_minus_log_probabilities():
    x, label = torch.randn(5, 3, 1, 1), torch.tensor([0, 2, 1, 1, 0])
    batch = Batch(torch.arange(5), x, label, torch.arange(5))
    probability = x.flatten(1).exp() / x.flatten(1).exp().sum(1, keepdim=True)
    expected = sum(-probability[i, y].log() for i, y in enumerate(label)) / 5
    torch.testing.assert_close(cross_entropy(nn.Flatten(), batch), expected)


def test_cross_entropy_is_found_by_name():
    assert "cross_entropy" in objective.names()


def test_binary_cross_entropy_is_that_of_two_logits_of_which_one_is_zero():
    logit, label = torch.randn(5, 1, 1, 1), torch.tensor([0, 1, 1, 0, 1])
    batch = Batch(torch.arange(5), logit, label, torch.arange(5))
    two = torch.cat([torch.zeros(5, 1), logit.flatten(1)], 1)
    torch.testing.assert_close(binary_cross_entropy(nn.Flatten(), batch), nn.functional.cross_entropy(two, label))


def test_binary_cross_entropy_refuses_more_than_one_logit_and_more_than_two_classes():
    batch = Batch(torch.arange(2), torch.randn(2, 1, 1, 1), torch.tensor([0, 2]), torch.arange(2))
    with pytest.raises(DataError, match=r"expected classes 0 and 1, found \[0, 2\]"):
        binary_cross_entropy(nn.Flatten(), batch)
    with pytest.raises(ModelError, match="expected a model with one logit, found 2"):
        binary_cross_entropy(nn.Flatten(), batch._replace(x=torch.randn(2, 2, 1, 1)))
