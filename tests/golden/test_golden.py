"""Golden numbers: a small file a component. Where numbers change, the version does too, or this test says so.

``pytest tests/golden --golden`` writes the files anew, after a version was raised.
"""

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.laws import laws
from torch import nn

from consilience.attribution.gradient import gradient
from consilience.component import KINDS
from consilience.data.examples import Batch
from consilience.models.ensemble import mean_of_models
from consilience.rng import Rng
from consilience.tensors import Table

HERE = Path(__file__).parent
ALL = [
    (kind.name, name)
    for kind in KINDS.values()
    for name in kind.names()
    if "root" not in kind.get(name).roles and kind.get(name).function.__module__.startswith("consilience.")
]


def fixed(model: nn.Module) -> nn.Module:
    """Weights that no generator draws."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) * 0.7 + 0.3).view_as(parameter) * 0.3)
    return model.eval().requires_grad_(False)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.sin(torch.arange(4 * 100) * 1.3).view(4, 1, 10, 10) + 1) / 2
    return x, torch.tensor([0, 2, 1, 2])


def network() -> nn.Module:
    return fixed(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 3)))


def table(shift: float) -> Table:
    pairs = ((0, 1, ("init",)), (0, 2, ("init",)), (1, 2, ("init",)), (0, 3, ("order",)), (1, 3, ("init", "order")))
    value = torch.sin(torch.arange(5 * 12) * 0.9).view(5, 12).double() * 0.1 + shift
    return Table(*zip(*pairs, strict=True), torch.arange(12), torch.arange(12) % 3, value)


def every_two() -> Table:
    """Two groups of two twins, or nearly."""
    pairs = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    shift = torch.tensor([0.8, 0.3, 0.35, 0.25, 0.3, 0.7], dtype=torch.float64)[:, None]
    value = torch.sin(torch.arange(6 * 12) * 0.9).view(6, 12).double() * 0.1 + shift
    return Table(*zip(*pairs, strict=True), (("init",),) * 6, torch.arange(12), torch.arange(12) % 3, value)


def tables(name: str) -> dict:
    """What flows into a summary."""
    ends = {"table": table(0.6), "floor": table(0.9), "wrong_image": table(0.2), "null": table(0.05)}
    if name == "variance_shares":  # of distances, so that the floor is the smallest
        ends |= {"floor": table(0.2), "wrong_image": table(0.9)}
    if name == "modes":
        ends["table"] = every_two()
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    return {**ends, "p": p, "rng": Rng(0, []), "better": "higher"}


def numbers(kind: str, component) -> list:
    """What a component makes of a fixed input."""
    x, target = images()
    flows = {"rng": Rng(5, [3, 1, 4, 9]), "background": x.flip(3), "patterns": laws.patterns(network(), x)}
    deep = ("squeezenet1_1", "densenet121")
    side = 40 if component.name in deep else 12  # pixels; a deep network leaves nothing of a small image
    make = {
        "attribution": lambda f: f(
            laws.fitting(f, network()), x, target, **{r: v for r, v in flows.items() if component.roles.get(r)}
        ),
        "backward": lambda f: gradient(
            network(), x, target, rule=functools.partial(f, **{r: flows[r] for r in component.roles if r in flows})
        ),
        "measure": lambda f: f(**{role: value for role, value in laws.roles().items() if role in component.roles}),
        "score": lambda f: f(torch.sin(torch.arange(12.0)).view(4, 3), target),
        "summary": lambda f: [
            [v for v in row if not isinstance(v, str)]
            for row in f(
                **{role: tables(component.name)[role] for role in component.roles},
                **({"draws": 200} if "draws" in component.schema.__struct_fields__ else {}),
            )
        ],
        "architecture": lambda f: _answered(
            fixed(f((1, side, side), 3)).double(), x.repeat(1, 1, 4, 4)[..., :side, :side].double(), target
        ),
        "objective": lambda f: f(*_step(component, x, target)),
        "optimizer": lambda f: _steps(f),
        "augmentation": lambda f: f(x, Rng(5, [3, 1, 4, 9])),
        "edit": lambda f: _edited(component),
        "dataset": lambda f: _summed(f(count=7) if "count" in component.schema.__struct_fields__ else f()),
    }
    return json.loads(json.dumps(_plain(make[kind](component.function))))


def _answered(model, x, label) -> torch.Tensor:
    if getattr(model, "fitted", False):
        model.fit(x, label)
    return model(x)


def _summed(examples) -> list:
    batch = examples.batch(range(7))
    return [examples.fingerprint, len(examples), batch.x.double().sum(dim=(1, 2, 3)), batch.label]


def _step(component, x, target) -> tuple[nn.Module, Batch]:
    """What an objective is of: a network, one with a single logit, or two in an ensemble."""
    batch = Batch(torch.arange(4), x, target, torch.arange(4))
    if component.name == "binary_cross_entropy":
        return fixed(nn.Sequential(nn.Flatten(), nn.Linear(100, 1))), batch._replace(label=target.clamp(max=1))
    if component.name == "cross_entropy":
        return network(), batch
    return mean_of_models([network(), fixed(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)))]), batch


def _edited(component) -> list:
    model = network()
    given = {"rng": Rng(5, []), "x": images()[0], "source": network}
    coverage = component.function(model, **{role: given[role] for role in component.roles if role in given})
    return [coverage.changed, coverage.kept, [weight.flatten()[:20] for weight in model.state_dict().values()]]


def _steps(optimizer) -> list:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    schedule, seen = optimizer(iter([weight])), []
    for step in range(4):
        for group in schedule.optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        schedule.optimizer.zero_grad()
        (weight**2).sum().backward()
        schedule.optimizer.step()
        seen.append(weight.detach().clone())
    return seen


def _plain(value):
    if isinstance(value, torch.Tensor):
        return _plain(value.double().flatten()[:60].tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def defaults(component) -> dict[str, str]:
    parameters = inspect.signature(component.function).parameters.values()
    return {
        p.name: component.nested[p.name].name if p.name in component.nested else repr(p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def _close(one, two) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(_close(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, int | float):
        return abs(one - two) <= 1e-5 + 1e-4 * abs(two)
    return one == two


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_numbers_and_defaults_change_only_with_the_version(kind, name, request):
    component = KINDS[kind].get(name)
    path = HERE / kind / f"{name}.json"
    found = {"version": component.version, "defaults": defaults(component), "numbers": numbers(kind, component)}
    if request.config.getoption("--golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found) + "\n")
    assert path.exists(), "a new component: run pytest tests/golden --golden, look at the file, and commit it"
    golden = json.loads(path.read_text())
    if golden["version"] != found["version"]:
        pytest.fail("the version was raised: run pytest tests/golden --golden, and commit what changed")
    assert found["defaults"] == golden["defaults"], "a default changed: raise the version"
    assert _close(found["numbers"], golden["numbers"]), "numbers changed: raise the version, or find out why"


def test_no_golden_file_is_left_of_a_component_that_went():
    assert {(path.parent.name, path.stem) for path in HERE.glob("*/*.json")} <= set(ALL)


def test_a_changed_number_is_noticed():
    assert _close([1.0, [2.0, None]], [1.0000001, [2.0, None]])
    assert not _close([1.0, [2.0, None]], [1.001, [2.0, None]])
    assert not _close([1.0], [1.0, 2.0])
