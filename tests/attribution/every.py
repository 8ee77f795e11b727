"""Every method of the registry, called as the engine calls it: with draws, a background, patterns, at little cost."""

import torch
from tests import models
from tests.laws.laws import Twice
from torch import nn

from consilience.attribution.patterns import patterns_from_weights
from consilience.attribution.scores import logit
from consilience.component import attribution
from consilience.rng import Rng

NAMES = [name for name in attribution.names() if not name.startswith("published_")]
CONTROLS = ["center_map", "edge_map", "input_map", "input_x_random", "random_map", "uniform_map"]
"""What does not look at the model."""

FEWER = {  # of what is only repeated
    "adaptive_integrated_gradients": {"most": 16},
    "expected_gradients": {"samples": 4},
    "extremal_perturbation": {"iterations": 3, "areas": (0.1,)},
    "integrated_gradients": {"steps": 6},
    "integrated_gradients_over_background": {"steps": 3},
    "kernel_shap": {"samples": 40},
    "kernel_shap_over_background": {"samples": 40},
    "pattern_guided_integrated_gradients": {"steps": 3},
    "rise": {"masks": 20},
    "smooth_grad": {"samples": 3},
    "square_grad": {"samples": 3},
    "var_grad": {"samples": 3},
}


def background(like):
    """Two images of the same kind."""
    return models.batch(2, like.shape[1], dtype=like.dtype)[0]


def filters(label, weight):
    """A pattern that no data are needed for: the filter itself."""
    return weight


def explained(name, model, x, target, ids=None, *, others=None, patterns=None, **options):
    """Maps of one method; what flows into it besides is made of the model and the images, where it is not given."""
    component = attribution.get(name)
    flows = {}
    if "rng" in component.roles:
        flows["rng"] = Rng(0, range(len(x)) if ids is None else ids)
    if "background" in component.roles:
        flows["background"] = background(x) if others is None else others
    if "patterns" in component.roles:
        flows["patterns"] = patterns_from_weights(model, x[:1], filters) if patterns is None else patterns
    if name == "mean_over_models" and not isinstance(getattr(model, "members", None), nn.ModuleList):
        model = Twice(model)
    return component.function(model, x, target, **flows, **{**FEWER.get(name, {}), **options})


def logits_of(model, x, target):
    """The target's logit of each image, without a graph."""
    with torch.no_grad():
        answer = model(x)
    both = torch.cat([-answer, answer], 1) if answer.shape[1] == 1 else answer
    return both.gather(1, target[:, None])[:, 0]


RECTIFIERS = ("ReluBackward0", "HardtanhBackward0")


def through_the_graph(model, x, target, back):
    """Slopes in the pixels where every rectifier's node of torch's own graph passes back ``back(slope in, out)``."""
    x = x.clone().requires_grad_()
    answer = logit(model(x), target).sum()
    waiting, seen = [answer.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            if node.name() in RECTIFIERS:
                node.register_hook(lambda into, out: (back(into[0], out[0]), *into[1:]))
    return torch.autograd.grad(answer, x)[0]
