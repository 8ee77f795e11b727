"""Methods beside those of other libraries, and beside the bare passes that they are made of.

``python -m benchmarks.attribution``; ``--device cuda`` on a graphics card, ``--strict`` for an exit code. What is not
installed is left out: captum, shap, pytorch-grad-cam, torchvision (for ResNet-18).
"""

import argparse
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.side_by_side import Line, fastest, ratio, seconds, show
from consilience.attribution.adaptive import adaptive_integrated_gradients
from consilience.attribution.cam import grad_cam
from consilience.attribution.deep_lift import deep_lift_shap
from consilience.attribution.expected import expected_gradients
from consilience.attribution.guided import guided_backprop
from consilience.attribution.path import integrated_gradients
from consilience.attribution.perturbation import occlusion, rise
from consilience.data.mnist10k import mnist10k
from consilience.experiment.executors import keep_pages
from consilience.models.cnn import cnn
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.models.squeezenet import squeezenet1_1
from consilience.rng import Rng
from consilience.tensors import slices

STEPS, SAMPLES = 50, 50
Call = Callable[[], object]


class Case(NamedTuple):
    """A network and what is explained of it; the digits' networks are trained, since noise has no typical line."""

    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    background: Tensor
    chunks: tuple[int, ...]
    """Of which the fastest bare pass is the reference."""


def case_of(name: str, device: str) -> Case | None:
    """One of the networks, with random weights, frozen; None where it cannot be had."""
    torch.manual_seed(0)
    shape, classes, n, m, chunks = {
        "mlp": ((1, 28, 28), 10, 256, 50, (256, 1024)),  # as many as a run explains at once
        "cnn": ((1, 28, 28), 10, 32, 30, (50, 100)),
        "squeezenet1_1": ((3, 227, 227), 1000, 2, 4, (2, 5, 10)),
        "resnet18": ((3, 224, 224), 1000, 4, 4, (2, 5, 10)),
    }[name]  # fmt: skip
    if name == "resnet18":
        if not _there("torchvision"):
            return None
        importlib.import_module("tests.peers").let_torchvision_be_imported()
        from torchvision.models import resnet18

        model: nn.Module = resnet18()
    else:
        bare = {"mlp": mlp, "cnn": cnn, "squeezenet1_1": squeezenet1_1}[name](shape, classes)
        model = normalised(bare, [0.5] * shape[0], [0.25] * shape[0])
    if name in ("mlp", "cnn"):
        return _digits(name, model, n, m, chunks, device)
    chance = torch.Generator().manual_seed(1)
    x, background = torch.rand(n, *shape, generator=chance), torch.rand(m, *shape, generator=chance)
    target = torch.randint(classes, (n,), generator=chance)
    model = model.eval().requires_grad_(False).to(device)
    return Case(name, model, x.to(device), target.to(device), background.to(device), chunks)


def _digits(name: str, model: nn.Module, n: int, m: int, chunks: tuple[int, ...], device: str) -> Case:
    """A network after an epoch of 4,000 digits, and digits that it has not seen."""
    train, test = mnist10k(), mnist10k(split="test").batch(range(n))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in slices(4000, 64):
        batch = train.batch(range(4000)[rows])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.x), batch.label).backward()
        optimizer.step()
    frozen = model.eval().requires_grad_(False).to(device)
    background = train.batch(range(4000, 4000 + m)).x
    return Case(name, frozen, test.x.to(device), test.label.to(device), background.to(device), chunks)


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _captum() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum import attr
    return attr


def bare(case: Case, points: int, *, backward: bool = True) -> dict[str, Call]:
    """So many forward and backward passes of each example, and nothing else, at several chunk sizes."""
    x = case.x.repeat_interleave(points, 0)
    target = case.target.repeat_interleave(points)

    def run(chunk: int) -> None:
        for rows in slices(len(x), chunk):
            if backward:
                part = x[rows].detach().requires_grad_()
                torch.autograd.grad(case.model(part).gather(1, target[rows, None]).sum(), part)
            else:
                with torch.no_grad():
                    case.model(x[rows])

    return {f"bare passes, {chunk} at once": functools.partial(run, chunk) for chunk in case.chunks}


def compared(case: Case, title: str, floors: dict[str, Call], others: dict[str, Call], goals: dict[str, float],
             rounds: int, reference: str | None = None) -> int:  # fmt: skip
    """Print a table of ratios to the fastest floor, or to the reference; how many goals are missed."""
    spent = seconds({**floors, **others}, rounds)
    to = reference or fastest(spent, list(floors))
    lines = [Line(name, ratio(spent, name, to), goals.get(name)) for name in spent]
    return show(f"{case.name}, {len(case.x)} examples: {title}, CPU time to '{to}'", lines)


def path(case: Case, rounds: int) -> int:
    """Integrated gradients, exact and to a stated error."""
    model, x, target = case.model, case.x, case.target
    others: dict[str, Call] = {
        "ours": lambda: integrated_gradients(model, x, target, steps=STEPS),
        "ours, adaptive to 2 %": lambda: adaptive_integrated_gradients(model, x, target),
    }
    if _there("captum"):
        attribute = functools.partial(
            _captum().IntegratedGradients(model).attribute, x, torch.zeros_like(x), target=target, n_steps=STEPS
        )
        others["captum, one call"] = attribute
        others["captum, internal_batch_size"] = functools.partial(attribute, internal_batch_size=case.chunks[-1])
    goals = {"ours": {"mlp": 0.55, "cnn": 0.95, "squeezenet1_1": 0.8, "resnet18": 0.8}[case.name]}
    if case.name in ("mlp", "cnn"):
        goals["ours, adaptive to 2 %"] = 0.35
    else:
        del others["ours, adaptive to 2 %"]  # of weights that nobody trained it says nothing
    return compared(case, f"integrated gradients, {STEPS} nodes", bare(case, STEPS), others, goals, rounds)


def expected(case: Case, rounds: int) -> int:
    """Expected gradients."""
    model, x, target, background = case.model, case.x, case.target, case.background
    rng = Rng(0, range(len(x)))
    others: dict[str, Call] = {"ours": lambda: expected_gradients(model, x, target, rng, background, samples=SAMPLES)}
    if _there("captum"):
        attribute = _captum().GradientShap(model).attribute
        others["captum GradientShap"] = lambda: attribute(x, background, n_samples=SAMPLES, target=target)
    title = f"expected gradients, {SAMPLES} samples"
    return compared(case, title, bare(case, SAMPLES), others, {"ours": 1.1}, rounds)


def deep(case: Case, rounds: int) -> int:
    """DeepLIFT-SHAP."""
    case = case._replace(x=case.x[:8], target=case.target[:8])
    model, x, target, background = case.model, case.x, case.target, case.background
    passes = bare(case, len(background))
    others: dict[str, Call] = {"ours": lambda: deep_lift_shap(model, x, target, background)}
    goals, reference = {}, None
    if _there("shap") and case.name in ("mlp", "cnn"):  # the others reuse modules, which shap refuses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import shap
        few = shap.DeepExplainer(model, background)
        others["shap.DeepExplainer, one class"] = lambda: few.shap_values(x, ranked_outputs=1, check_additivity=False)
        others["shap.DeepExplainer, default"] = lambda: few.shap_values(x, check_additivity=False)
        goals, reference = {"ours": 0.5}, "shap.DeepExplainer, one class"
    if _there("captum") and case.name in ("mlp", "cnn"):
        attribute = _captum().DeepLiftShap(model).attribute
        others["captum DeepLiftShap"] = lambda: attribute(x, background, target=target)
    return compared(case, f"DeepLIFT-SHAP, {len(background)} of background", passes, others, goals, rounds, reference)


def backwards(case: Case, rounds: int) -> int:
    """Guided backpropagation and Grad-CAM."""
    model, x, target = case.model, case.x, case.target
    layer = _last_convolution(model)
    others: dict[str, Call] = {"guided backpropagation, ours": lambda: guided_backprop(model, x, target)}
    if layer:
        others["Grad-CAM, ours"] = lambda: grad_cam(model, x, target)
    if _there("captum"):
        attr = _captum()
        attribute = attr.GuidedBackprop(model).attribute
        if case.name == "resnet18":  # it refuses a functional rectifier silently, and here it has modules
            others["guided backpropagation, captum"] = lambda: attribute(x.clone().requires_grad_(), target=target)
        if layer:
            cam = attr.LayerGradCam(model, layer).attribute
            others["Grad-CAM, captum"] = lambda: cam(x, target=target)
    if layer and _there("pytorch_grad_cam"):
        importlib.import_module("tests.peers").let_torchvision_be_imported()
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        theirs = GradCAM(model, [layer])
        classes = [ClassifierOutputTarget(int(one)) for one in target]
        others["Grad-CAM, pytorch-grad-cam"] = lambda: theirs(x.clone().requires_grad_(), classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compared(case, "one backward pass", bare(case, 1), others, {}, rounds)


def _last_convolution(model: nn.Module) -> nn.Module | None:
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return found[-1] if found else None


def perturbed(case: Case, rounds: int) -> int:
    """Occlusion and RISE, beside as many forward passes."""
    model, x, target = case.model, case.x, case.target
    side = x.shape[-1]
    window, stride = side // 7, side // 14
    places = (-(-(side - window) // stride) + 1) ** 2
    others: dict[str, Call] = {"occlusion, ours": lambda: occlusion(model, x, target, window=window, stride=stride)}
    others["RISE, ours"] = lambda: rise(model, x, target, Rng(0, range(len(x))), masks=places)
    if _there("captum"):
        attribute = functools.partial(
            _captum().Occlusion(model).attribute, x, sliding_window_shapes=(x.shape[1], window, window),
            strides=(x.shape[1], stride, stride), target=target,
        )  # fmt: skip
        others["occlusion, captum"] = attribute
        best = max(1, case.chunks[-1] // len(x))
        others["occlusion, captum, several at once"] = functools.partial(attribute, perturbations_per_eval=best)
    title = f"{places} perturbations of each"
    goals = {"occlusion, ours": 1.3, "RISE, ours": 1.5}
    return compared(case, title, bare(case, places, backward=False), others, goals, rounds)


PARTS = {"path": path, "expected": expected, "deep": deep, "backwards": backwards, "perturbed": perturbed}
NETWORKS = ("mlp", "cnn", "squeezenet1_1", "resnet18")


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--networks", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_pages()  # on both sides alike, as in worker processes
    missed = 0
    for name in chosen.networks:
        case = case_of(name, chosen.device)
        if case is not None:
            missed += sum(PARTS[part](case, chosen.rounds) for part in chosen.only)
    print(f"\n{missed} goals missed")
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
