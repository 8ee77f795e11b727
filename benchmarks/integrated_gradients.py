"""Integrated Gradients, 50 nodes: cost in bare passes of the same frozen model, and peak memory.

``python -m benchmarks.integrated_gradients``; with ``--strict`` a missed goal is an exit code.
"""

import argparse
import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.side_by_side import Line, Peak, fastest, peak_in_process, peak_of, ratio, seconds, show
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.experiment.executors import keep_pages
from consilience.models.cnn import cnn
from consilience.models.mlp import mlp
from consilience.models.split import normalised

STEPS = 50
FLOORS = {"mlp": (256, 512, 1024, 2048), "cnn": (32, 50, 64, 128)}
EXAMPLES = {"mlp": 128, "cnn": 24}
MEMORY_EXAMPLES = {"mlp": 512, "cnn": 64}
GOALS = {"mlp": 0.55, "cnn": 0.95}
STREAMING_GOAL = 1.05
MEMORY_GOAL = 1.05


def model_of(name: str) -> nn.Module:
    """One of the papers' two networks behind its normalisation, with random weights; frozen."""
    torch.manual_seed(0)
    bare = {"mlp": mlp, "cnn": cnn}[name]((1, 28, 28), 10)
    return normalised(bare, [0.1307], [0.3081]).eval().requires_grad_(False)


def inputs_of(examples: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(1)
    return torch.rand(examples, 1, 28, 28, generator=chance), torch.randint(10, (examples,), generator=chance)


def plain(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient, but not the one that the path method knows: so it streams."""
    return gradient(model, x, target)


def bare_passes(model: nn.Module, points: Tensor, target: Tensor, chunk: int) -> None:
    for part, classes in zip(points.split(chunk), target.split(chunk), strict=True):
        x = part.detach().requires_grad_()
        torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)


def captum_variants(model: nn.Module, x: Tensor, target: Tensor, chunk: int) -> dict[str, Callable[[], object]]:
    if importlib.util.find_spec("captum") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients
    attribute = functools.partial(
        IntegratedGradients(model).attribute, x, torch.zeros_like(x), target=target, n_steps=STEPS,
        method="riemann_middle",
    )  # fmt: skip
    return {
        "captum, one call": attribute,
        "captum, internal_batch_size": functools.partial(attribute, internal_batch_size=max(chunk, len(x))),
    }


def time_of(name: str, rounds: int) -> int:
    """Print one network's ratios; how many goals are missed."""
    keep_pages()  # on both sides alike, as in worker processes: without it, page faults are a fifth of the time
    model, (x, target) = model_of(name), inputs_of(EXAMPLES[name])
    nodes = (torch.arange(STEPS) + 0.5) / STEPS
    points = (x[:, None] * nodes.view(1, -1, 1, 1, 1)).flatten(0, 1)
    repeated = target.repeat_interleave(STEPS)
    floors: dict[str, Callable[[], object]] = {
        f"bare passes, {chunk} at once": functools.partial(bare_passes, model, points, repeated, chunk)
        for chunk in FLOORS[name]
    }
    ours: dict[str, Callable[[], object]] = {
        "ours": lambda: integrated_gradients(model, x, target, steps=STEPS),
        "ours, streaming": lambda: integrated_gradients(model, x, target, of=plain, steps=STEPS),
    }
    peers = captum_variants(model, x, target, FLOORS[name][2])
    spent = seconds({**floors, **ours, **peers}, rounds)
    floor = fastest(spent, list(floors))
    goals = {"ours": GOALS[name], "ours, streaming": STREAMING_GOAL}
    lines = [Line(other, ratio(spent, other, floor), goals.get(other)) for other in spent]
    return show(f"{name}: {len(x)} examples, {STEPS} nodes, CPU time to '{floor}'", lines)


def peaks_of(name: str, repeats: int) -> int:
    """Print one network's peak memory; how many goals are missed."""
    few, missed = MEMORY_EXAMPLES[name], 0
    for kind in ("shared", "streaming"):
        sizes = {"n examples": (few, STEPS), "4n examples": (4 * few, STEPS), "4 times the nodes": (few, 4 * STEPS)}
        peaks = {
            title: sorted(
                peak_in_process("benchmarks.integrated_gradients", "--peak", name, kind, *size) for _ in range(repeats)
            )[repeats // 2]
            for title, size in sizes.items()
        }
        first, *others = sizes
        lines = [Line(first, peaks[first].process, unit="MiB")]
        lines += [Line(f"{title} to n", peaks[title].process / peaks[first].process, MEMORY_GOAL) for title in others]
        lines += [Line(f"{title}: of it by the call", peaks[title].growth, unit="MiB") for title in sizes]
        missed += show(f"{name}, {kind}: peak memory of the process, n = {few}", lines)
    return missed


def peak(name: str, kind: str, examples: int, steps: int) -> Peak:
    """Memory that one call needs, in this process, after a small call has loaded everything."""
    model, (x, target) = model_of(name), inputs_of(examples)
    of = gradient if kind == "shared" else plain
    integrated_gradients(model, x[:2], target[:2], of=of, steps=2)
    return peak_of(lambda: integrated_gradients(model, x, target, of=of, steps=steps))


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each peak")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--peak", nargs=4, metavar=("MODEL", "KIND", "EXAMPLES", "STEPS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.peak:
        name, kind, examples, steps = chosen.peak
        print(*peak(name, kind, int(examples), int(steps)))
        return 0
    missed = sum(time_of(name, chosen.rounds) + peaks_of(name, chosen.repeats) for name in FLOORS)
    print(f"\n{missed} goals missed")
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
