"""How well a model answers."""

import torch

from consilience.measures.performance import accuracy


def test_accuracy_is_one_where_the_largest_logit_is_the_class():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [torch.nan, 1.0]])
    value = accuracy(logits, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(value, torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)
