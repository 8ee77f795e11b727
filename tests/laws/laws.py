"""Laws: what every component of a kind keeps, whatever its file. Each raises AssertionError where it is broken.

They are plain functions of a component, so that tests can also show that they fail for one that breaks them.
"""

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.elsewhere import elsewhere, moved
from torch import Tensor, nn

from consilience.attribution.ensemble import mean_over_models
from consilience.attribution.gradient import gradient
from consilience.attribution.patterns import patterns_from_weights
from consilience.rng import Rng
from consilience.tensors import Patterns

Method = Callable[..., Tensor]

N, SHAPE, CLASSES = 6, (1, 8, 8), 4


def examples() -> tuple[Tensor, Tensor]:
    """Six images and six targets."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(N, *SHAPE, generator=generator), torch.tensor([0, 1, 2, 3, 0, 1])


def convolutional() -> nn.Module:
    """A small network with everything that a batch could leak through: batch norm and dropout, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(36, CLASSES),
        )  # fmt: skip
        model.train()(torch.rand(32, *SHAPE))  # gives batch norm something to have learnt
    return model.eval().requires_grad_(False)


def background() -> Tensor:
    """Images that stand for nothing in particular, as many for every batch."""
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(13))


def patterns(model: nn.Module, x: Tensor) -> Patterns:
    """Patterns that no data are needed for: each filter over its squared length."""
    return patterns_from_weights(model, x, lambda _, w: w / w.flatten(1).square().sum(1).view(-1, *[1] * (w.ndim - 1)))


def explain(method: Method, model: nn.Module, x: Tensor, target: Tensor, ids: Any, seed: int = 0) -> Tensor:
    """Maps, with what the method asks for besides: the examples' own draws, a background, patterns."""
    asked, flows = inspect.signature(method).parameters, {"rng": Rng(seed, list(ids)), "background": background()}
    if "patterns" in asked:
        flows["patterns"] = patterns(convolutional(), examples()[0])
    flowing = {role: flow for role, flow in flows.items() if role in asked}
    return method(fitting(method, model), x, target, **flowing)


class Twice(nn.Module):
    """The least ensemble: a model beside itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList([model, model])
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return sum(member(x) for member in self.members) / len(self.members)


def fitting(method: Method, model: nn.Module) -> nn.Module:
    """The model as the method asks for it: an ensemble for what explains ensembles."""
    return Twice(model) if getattr(method, "func", method) is mean_over_models else model


def alike_in_any_batch(method: Method) -> None:
    """An example is explained alike alone, among others, and in another order."""
    model, (x, target) = convolutional(), examples()
    together = explain(method, model, x, target, range(N))
    alone = torch.cat([explain(method, model, x[[i]], target[[i]], [i]) for i in range(N)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    back = list(reversed(range(N)))
    reordered = explain(method, model, x[back], target[back], back)
    torch.testing.assert_close(together[back], reordered, atol=1e-5, rtol=1e-4)


def one_map_an_image(method: Method) -> None:
    """Maps are as many and as large as the images, of one channel or of theirs, in their type, finite, detached."""
    model, (x, target) = convolutional(), examples()
    maps = explain(method, model, x, target, range(N))
    assert maps.shape[0] == N
    assert maps.shape[2:] == x.shape[2:]
    assert maps.shape[1] in (1, x.shape[1])
    assert maps.dtype == x.dtype
    assert maps.isfinite().all()
    assert not maps.requires_grad
    empty = explain(method, model, x[:0], target[:0], [])
    assert len(empty) == 0


def draws_are_keyed(method: Method) -> None:
    """Numbers depend on the seed and the example, if on chance at all: never on a global generator."""
    model, (x, target) = convolutional(), examples()
    first = explain(method, model, x, target, range(N))
    torch.manual_seed(random.randrange(2**30))
    np.random.seed(random.randrange(2**30))
    random.seed(random.random())
    torch.testing.assert_close(first, explain(method, model, x, target, range(N)), atol=0, rtol=0)


def undefined_stays_alone(method: Method) -> None:
    """An image with NaN leaves the other images' maps as they are."""
    model, (x, target) = convolutional(), examples()
    spoilt = x.clone()
    spoilt[2, 0, 3, 3] = torch.nan
    others = [i for i in range(N) if i != 2]
    good, bad = (explain(method, model, v, target, range(N)) for v in (x, spoilt))
    torch.testing.assert_close(good[others], bad[others], atol=1e-5, rtol=1e-4)


class Failing(nn.Module):
    """Raises at its k-th call."""

    def __init__(self, inner: nn.Module, calls: int) -> None:
        super().__init__()
        self.inner, self.left = inner, calls

    def forward(self, x: Tensor) -> Tensor:
        """Logits, until the calls are used up."""
        answer = self.inner(x)
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the model failed")
        return answer


def _trace(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Everything that explaining could leave something on."""
    hooks = [
        len(getattr(module, name))
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    return {
        "weights": copy.deepcopy(model.state_dict()),
        "slopes": [parameter.grad is None for parameter in model.parameters()],
        "frozen": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": hooks,
        "x": x.clone(),
        "of x": (x.requires_grad, x.grad is None),
        # Python's own generator is left out: the type checks of the tests draw from it
        "chance": (torch.get_rng_state(), np.random.get_state()[1].tolist()),
        "graph": (torch.is_grad_enabled(), torch.get_num_threads()),
    }


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[k], two[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def leaves_no_trace(method: Method) -> None:
    """Nothing is left on the model, the images, hooks or random states."""
    model, (x, target) = convolutional(), examples()
    before = _trace(model, x)
    explain(method, model, x, target, range(N))
    _compare(before, _trace(model, x))


def leaves_no_trace_when_the_model_fails(method: Method) -> None:
    """The same when the model raises, at whichever of its calls."""
    _, (x, target) = None, examples()
    for calls in range(3):
        model = Failing(convolutional(), calls).eval()
        before = _trace(model, x)
        try:
            explain(method, model, x, target, range(N))
        except RuntimeError as error:
            assert str(error) == "the model failed"  # noqa: PT017  (a method may also get by with fewer calls)
        _compare(before, _trace(model, x))


def _compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    for what, value in before.items():
        assert _same(value, after[what]), f"explaining changed {what}"


def explained_alike_elsewhere(method: Method) -> None:
    """Maps are the same, and on the model's device, where this is not the processor."""
    model, (x, target) = convolutional(), examples()
    expected = explain(method, model, x, target, range(N))
    with elsewhere() as device:
        maps = explain(method, model.to(device), x.to(device), target.to(device), range(N))
        assert maps.device.type == device
        torch.testing.assert_close(maps.cpu(), expected, atol=1e-6, rtol=1e-5)


ATTRIBUTION = [
    alike_in_any_batch,
    explained_alike_elsewhere,
    one_map_an_image,
    draws_are_keyed,
    undefined_stays_alone,
    leaves_no_trace,
    leaves_no_trace_when_the_model_fails,
]


# Measures


def roles(n: int = 6) -> dict[str, Any]:
    """Something to flow into every role of a measure."""
    model, (x, target) = convolutional(), examples()
    generator = torch.Generator().manual_seed(11)
    maps, other = torch.randn(2, n, 8, 8, generator=generator)
    label = torch.tensor([0, 1, 0, 1, 0, 1])
    return {
        "maps": maps,
        "other": other,
        "label": label,
        "groups": torch.arange(n),
        "mask": torch.rand(n, 8, 8, generator=generator) < 0.3,
        "logits": torch.randn(n, CLASSES, generator=generator),
        "model": model,
        "x": x,
        "target": target,
        "explain": gradient,
        "output": lambda x, target: model(x).gather(1, target[:, None])[:, 0],
        "baseline": 0.0,
        "activations": torch.randn(40, 5, generator=generator),
        "other_activations": torch.randn(40, 4, generator=generator),
        "weights": torch.randn(4, 3, 2, generator=generator),
        "other_weights": torch.randn(4, 3, 2, generator=generator) + 0.5,
        "rng": Rng(0, range(n)),
    }


def given(measure: Callable[..., Any], wanted: Any, rows: list[int], values: dict[str, Any]) -> Any:
    """A measure's values of some examples; several numbers an example stand side by side."""
    some = {
        role: values[role][rows] if isinstance(values[role], Tensor) else values[role]
        for role in wanted
        if role != "rng"
    }
    if "rng" in wanted:
        some["rng"] = Rng(0, rows)
    result = measure(**some)
    if isinstance(result, tuple):
        result = torch.stack([column for column in result if column.ndim], 1)
    assert len(result) == len(rows), "not a value an example"
    return result


def measured_alike_alone(measure: Callable[..., Any], wanted: Any) -> None:
    """An example's value does not depend on its neighbours."""
    values = roles()
    together = given(measure, wanted, list(range(N)), values)
    alone = torch.cat([given(measure, wanted, [i], values) for i in range(N)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4, equal_nan=True)


def order_moves_with_examples(measure: Callable[..., Any], wanted: Any) -> None:
    """Reordered examples have reordered values; within a class the order is kept."""
    values, order = roles(), [1, 3, 5, 0, 2, 4]
    together = given(measure, wanted, list(range(N)), values)
    torch.testing.assert_close(
        together[order], given(measure, wanted, order, values), atol=1e-5, rtol=1e-4, equal_nan=True
    )


def undefined_is_nan(measure: Callable[..., Any], wanted: Any) -> None:
    """An example whose image, maps or answers are NaN has the value NaN, and no exception is raised."""
    values = roles()
    for role in ("x", "maps", "other", "logits"):
        if role in wanted:
            values[role] = values[role].clone()
            values[role][2] = torch.nan
    result = given(measure, wanted, list(range(N)), values)
    assert result.isnan()[2].all()
    assert result.isfinite().any()


def measuring_changes_nothing(measure: Callable[..., Any], wanted: Any) -> None:
    """What flows in is afterwards as it was."""
    values = roles()
    before = {k: v.clone() for k, v in values.items() if isinstance(v, Tensor)}
    trace = _trace(values["model"], values["x"])
    rng = {"rng": Rng(0, range(N))} if "rng" in wanted else {}
    measure(**{role: values[role] for role in wanted if role != "rng"}, **rng)
    assert all(torch.equal(v, values[k]) for k, v in before.items())
    _compare(trace, _trace(values["model"], values["x"]))


def measured_alike_elsewhere(measure: Callable[..., Any], wanted: Any) -> None:
    """Values are the same where the device is not the processor."""
    values = roles()
    some = {role: Rng(0, range(N)) if role == "rng" else values[role] for role in wanted}
    expected = measure(**some)
    with elsewhere() as device:
        model = values["model"].to(device)
        some |= {"output": lambda x, target: model(x).gather(1, target[:, None])[:, 0]} if "output" in some else {}
        found = moved(measure(**{role: moved(value, device) for role, value in some.items()}), "cpu")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, equal_nan=True)


MEASURE = [measured_alike_alone, order_moves_with_examples, undefined_is_nan, measuring_changes_nothing]


def broken(law: Callable[..., None], *args: Any) -> None:
    """The law must fail: otherwise the exception that a component declared is stale."""
    with pytest.raises(AssertionError):
        law(*args)
