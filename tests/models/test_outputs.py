from collections import namedtuple

import pytest
import torch
from torch import nn

from consilience.attribution.gradient import gradient
from consilience.errors import ModelError
from consilience.models.outputs import output_of

Answer = namedtuple("Answer", "logits extra")
X, T = torch.rand(2, 1, 3, 3), torch.tensor([1, 0])


class Talkative(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer, self.shape = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), shape

    def forward(self, x):
        logits = self.layer(x)
        return {"dict": {"logits": logits, "extra": 0}, "tuple": (0, logits), "named": Answer(logits, 0)}[self.shape]


@pytest.mark.parametrize(("shape", "which"), [("dict", "logits"), ("tuple", 1), ("named", "logits"), ("named", 0)])
def test_one_output_is_explained(shape, which):
    model = Talkative(shape).eval()
    chosen = output_of(model, which)
    assert not chosen.training
    torch.testing.assert_close(gradient(chosen, X, T), gradient(model.layer, X, T))


@pytest.mark.parametrize(
    ("shape", "said"),
    [("dict", r"a dict of 'logits' \[2, 2\], 'extra' int; say which: output_of\(model, 'logits'\)"),
     ("tuple", r"a tuple of 0 int, 1 \[2, 2\]; say which: output_of\(model, 0\)")],
)  # fmt: skip
def test_a_model_that_returns_several_things_is_refused_with_what_it_returns(shape, said):
    with pytest.raises(ModelError, match=said):
        gradient(Talkative(shape), X, T)


@pytest.mark.parametrize(("shape", "which"), [("dict", "logit"), ("tuple", 2), ("tuple", "logits")])
def test_an_output_that_is_not_there_is_named(shape, which):
    with pytest.raises(ModelError, match=f"expected an output {which!r}"):
        output_of(Talkative(shape), which)(X)
