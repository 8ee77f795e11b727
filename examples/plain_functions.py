"""Methods and measures without experiment file, store or engine: twins of a model explain the same digits.

Put your own modules in their place: a model takes pixels in [0, 1], ``[n, c, h, w]``, and answers
logits ``[n, k]``.
"""

import torch

from consilience.attribution.path import integrated_gradients
from consilience.data.mnist10k import mnist10k
from consilience.data.views import subset
from consilience.measures.agreement import cosine, wrong_image
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.training.loop import Chances, train
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import adam

DIGITS, HELD_OUT = subset(count=1000), mnist10k(split="test").batch(range(100))


def fresh() -> torch.nn.Module:
    """An untrained network with the digits' mean and deviation in front of it."""
    return normalised(mlp(DIGITS.shape, len(DIGITS.classes), hidden=(64,)), DIGITS.mean, DIGITS.sd)


def twin(init: int) -> torch.nn.Module:
    """A model that differs from its twin in the first weights alone."""
    model = fresh()
    recipe = {"objective": cross_entropy, "optimizer": adam, "epochs": 3, "batch_size": 64}
    model.load_state_dict(train(fresh, DIGITS, chances=Chances(init=init), **recipe).weights)
    return model.eval().requires_grad_(False)


one, two = (integrated_gradients(twin(init), HELD_OUT.x, HELD_OUT.label, steps=20) for init in (0, 1))
print(f"same image, two models:   {cosine(one, two).mean():.2f}")
print(f"other image, same class:  {wrong_image(one, two, HELD_OUT.label).mean():.2f}")
