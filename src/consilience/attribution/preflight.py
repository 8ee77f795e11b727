"""Does a method mean on a model what its name says? Asked on a few examples, before anybody looks at a map."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from consilience import component
from consilience.attribution.backward import Rules, witnessed
from consilience.attribution.gradient import gradient, scored
from consilience.attribution.scores import logit
from consilience.component import Choice
from consilience.errors import ModelError, SpecError
from consilience.rng import Rng
from consilience.tensors import Attribution, Patterns, check_batch, start_of

ROUNDING, WRONG = 1e-4, 1e-2  # of a map's length: what float32 leaves, and what no rounding explains
GAP, GAP_WRONG = 0.02, 0.2  # of what stands in a complete map, or of the score's difference where that is more

Verdict = Literal["good", "doubtful", "wrong"]


class Check(NamedTuple):
    """One question, its answer, and what was found."""

    name: str
    verdict: Verdict
    found: str


def preflight(
    method: Attribution | str,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    background: Float[Tensor, "m _ _ _"] | None = None,
    patterns: Patterns | None = None,
    seed: int = 0,
) -> list[Check]:
    """Whether a method means on a model what its name says: one line a check, none of them wrong.

    Args:
        method: A function, configured or not, or the name of one.
        background: Examples for methods that need them.
        patterns: For methods that need them.
        seed: Of the method's draws.

    Raises:
        ModelError: The method does not mean on this model what its name says; the message holds the table.
    """
    checks = examine(method, model, x, target, background=background, patterns=patterns, seed=seed)
    if any(check.verdict == "wrong" for check in checks):
        lines = "\n".join(f"  {check.verdict:<9} {check.name}: {check.found}" for check in checks)
        raise ModelError(
            f"preflight: expected that the method means on this model what its name says, found\n{lines}\n"
            "do not show these maps; mend what is wrong, or take another method"
        )
    return checks


def examine(
    method: Attribution | str,
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    target: Int[Tensor, " n"],
    *,
    background: Float[Tensor, "m _ _ _"] | None = None,
    patterns: Patterns | None = None,
    seed: int = 0,
) -> list[Check]:
    """All checks of ``preflight``, also where some are wrong."""
    check_batch(model, x, target)
    if not len(x):
        raise SpecError("preflight: expected at least one example, found none; two to eight will do")
    choice = component.attribution.choose(method, "method") if _is_registered(method) else None
    function: Any = choice.build() if choice is not None else method
    flows = {"background": background, "patterns": patterns}
    given = {role: flow for role, flow in flows.items() if flow is not None and role in _parameters(function)}
    draws = "rng" in _parameters(function)

    def explain(rows: Sequence[int]) -> Tensor:
        own = {"rng": Rng(seed, rows)} if draws else {}
        maps: Tensor = function(model, x[list(rows)], target[list(rows)], **given, **own)
        return maps.detach()

    everyone = range(len(x))
    with witnessed() as rules:
        maps = explain(everyone)
    checks = [_modes(model), *_bound(rules), *_values(maps), _again(maps, explain(everyone))]
    if len(x) > 1:
        checks.append(_alone(maps, explain([len(x) - 1])))
    if choice is not None and choice.complete:
        checks.append(_complete(maps, model, x, target, choice))
    return [*checks, *_plain(maps, model, x, target, choice)]


def _modes(model: nn.Module) -> Check:
    training = sorted({type(m).__name__ for m in model.modules() if m.training and _depends_on_mode(m)})
    if training:
        return Check("modes", "wrong", f"{', '.join(training)} in train mode; call model.eval()")
    return Check("modes", "good", "nothing in train mode that would change the model's answer")


def _depends_on_mode(module: nn.Module) -> bool:
    name = type(module).__name__
    if "Norm" in name:
        return getattr(module, "running_mean", None) is not None  # those that take the batch's own statistics
    return "Drop" in name or float(getattr(module, "dropout", 0) or 0) > 0


def _bound(rules: Sequence[Rules]) -> list[Check]:
    """What rules acted on, of the first pass of each rule; nothing for methods without a rule."""
    seen: dict[str, Rules] = {}
    for one in rules:
        seen.setdefault(one.name, one)
    checks = []
    for name, one in seen.items():
        bound = ", ".join(f"{operation} x{count}" for operation, count in sorted(one.bound.items()))
        passed = ", ".join(f"{operation} x{count}" for operation, count in sorted(one.passed.items()))
        checks.append(Check(name, "good", f"acts on {bound}" + (f"; plain derivative of {passed}" if passed else "")))
    return checks


def _values(maps: Tensor) -> list[Check]:
    rows = maps.flatten(1)
    odd, zero = int((~rows.isfinite()).any(1).sum()), int((rows == 0).all(1).sum())
    return [_counted("finite", odd, len(rows), "not finite"), _counted("not empty", zero, len(rows), "zero everywhere")]


def _counted(name: str, bad: int, total: int, what: str) -> Check:
    verdict: Verdict = "good" if not bad else "wrong" if bad == total else "doubtful"
    return Check(name, verdict, f"{bad} of {total} maps {what}")


def _again(first: Tensor, second: Tensor) -> Check:
    return _differs("deterministic", first, second, "when the same call is made again")


def _alone(together: Tensor, alone: Tensor) -> Check:
    return _differs("batch invariant", together[-1:], alone, "when an example is explained alone")


def _differs(name: str, one: Tensor, two: Tensor, when: str) -> Check:
    apart = _apart(one, two)
    verdict: Verdict = "good" if apart <= ROUNDING else "doubtful" if apart <= WRONG else "wrong"
    return Check(name, verdict, f"maps change by {apart:.1e} of their length {when}")


def _apart(one: Tensor, two: Tensor) -> float:
    """Largest distance of two maps, relative to the longer; of maps that are finite in both."""
    one, two = one.flatten(1).double(), two.flatten(1).double()
    length = torch.maximum(one.norm(dim=1), two.norm(dim=1))
    apart = torch.where(length > 0, (one - two).norm(dim=1) / length, 0)
    return float(apart[apart.isfinite()].amax()) if bool(apart.isfinite().any()) else 0.0


def _complete(maps: Tensor, model: nn.Module, x: Tensor, target: Tensor, choice: Choice) -> Check:
    score = next((c.build() for c in choice.nest if c.kind == "score"), logit)
    with torch.no_grad():
        baseline: Any = choice.option("baseline")
        rise = scored(model(x), target, score) - scored(model(start_of(x, baseline, model)), target, score)
    missed, held = (maps.flatten(1).sum(1) - rise).abs(), maps.flatten(1).abs().sum(1)
    gap = (missed / torch.maximum(held, rise.abs())).double()  # a difference near nothing would be no measure
    gap = gap[gap.isfinite()]
    if not len(gap):
        return Check("complete", "doubtful", "undefined: the maps are empty and the score is the baseline's")
    worst = float(gap.max())
    verdict: Verdict = "good" if worst <= GAP else "doubtful" if worst <= GAP_WRONG else "wrong"
    return Check(
        "complete", verdict, f"sums miss the score's difference to the baseline by up to {worst:.1%} of the map"
    )


def _plain(maps: Tensor, model: nn.Module, x: Tensor, target: Tensor, choice: Choice | None) -> list[Check]:
    """Whether it is the gradient under another name; where the two have one shape."""
    if choice is not None and choice.component.function is gradient and choice.is_default("rule"):
        return []
    slope = gradient(model, x, target)
    if slope.shape != maps.shape:
        return []
    alike = torch.cosine_similarity(slope.flatten(1), maps.flatten(1)).nanmean()
    same = _apart(slope, maps) <= ROUNDING
    found = "equal to the plain gradient" if same else f"cosine with the plain gradient {float(alike):.2f}"
    return [Check("not the gradient", "doubtful" if same else "good", found)]


def _is_registered(method: Attribution | str) -> bool:
    inner: Any = method
    while hasattr(inner, "func"):
        inner = inner.func
    return isinstance(inner, str) or component.attribution.by_function(inner) is not None


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
