"""What a study of retrained twins costs: told apart, compared, trained and measured, beside loops over libraries.

``python -m benchmarks.retraining``, or ``--only`` some parts; ``--strict`` for an exit code where a goal is missed or a
result differs. One thread on both sides, also in the libraries' linear algebra, and memory kept by both.

With ``--device cuda`` the part ``stacked`` trains as one plain loop after another, as models stacked by ``vmap``, and
as CUDA graphs, by the wall clock. It was written without a graphics card: the graphs were never run, and the others on
a processor alone.
"""

import argparse
import copy
import functools
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks import pairs
from benchmarks.memory import SIZES
from benchmarks.separability import EXAMPLES, FOLDS, Fit, family_of, fits_of, right_by_peer, right_by_us
from benchmarks.side_by_side import Line, peak_in_process, ratio, seconds, show
from consilience.data.examples import Examples
from consilience.data.views import subset
from consilience.experiment.executors import keep_pages
from consilience.measures.representation import cka
from consilience.measures.separability import Separability, separability
from consilience.models.cnn import cnn, small_cnn
from consilience.models.mlp import mlp
from consilience.models.split import normalised
from consilience.pairs import Pairs, over_family
from consilience.rng import Rng, permutation
from consilience.training import objectives
from consilience.training.loop import Chances, begun, train
from consilience.training.optimizers import adam

TWINS, PERMUTATIONS, SAMPLE = 10, 19, 12
PAIRS = list(itertools.combinations(range(TWINS), 2))
NEURONS, ROWS = 512, 500
TRAINED, DIGITS, BATCH, RATE = 3, 4096, 64, 1e-3
NOISE = 0.01  # of the maps' deviation, so that no pixel is constant
PUBLISHED, CAREFUL, ALIGNED, PLAIN, FLAT = 1 / 100, 1 / 5, 1 / 8, 1.05, 1.05
STACKED_SAME = 1e-3  # the largest difference between weights that is called none: stacking adds in another order
NETWORKS = {"mlp": mlp, "small_cnn": small_cnn, "cnn": cnn}


def published(maps: Sequence[np.ndarray], label: Tensor, chosen: Sequence[tuple[int, int, int]]) -> None:
    """One fit for a pair and a class, by saga, rows divided at random, so that both maps of an image are apart."""
    for a, b, kind in chosen:
        rows, image = np.repeat([0, 1], int((label == kind).sum())), (label == kind).numpy()
        both = np.concatenate([maps[a][image], maps[b][image]])
        learn, ask = next(StratifiedShuffleSplit(1, test_size=0.3, random_state=0).split(both, rows))
        fit = LogisticRegression(C=1.0, solver="saga", max_iter=10_000)
        fit.fit(StandardScaler().fit_transform(both[learn]), rows[learn])
        fit.predict(StandardScaler().fit_transform(both[ask]))


def exchanged(maps: Sequence[np.ndarray], fits: Sequence[Fit]) -> None:
    """Lbfgs on one permutation of each fit: both maps of an image change places with probability one half."""
    chance = np.random.default_rng(0)
    for fit in fits:
        change = chance.random(len(fit.learn)) < 0.5
        learnt = np.concatenate([maps[fit.a][fit.learn], maps[fit.b][fit.learn]])
        scaler = StandardScaler().fit(learnt)
        peer = LogisticRegression(C=1.0, max_iter=10_000)
        peer.fit(scaler.transform(learnt), np.concatenate([change, ~change]))
        peer.predict(scaler.transform(np.concatenate([maps[fit.a][fit.ask], maps[fit.b][fit.ask]])))


def separabilities(rounds: int, _: str) -> int:
    """All separabilities of ten twins, alone and with permutations, beside scikit-learn's fits."""
    maps, label = family_of(TWINS)
    fits, raw = fits_of(label, PAIRS), [one.flatten(1).double().numpy() for one in maps]
    draw = random.Random(0)
    sample, tasks = draw.sample(fits, 10 * SAMPLE), [(a, b, kind) for a, b in PAIRS for kind in range(10)]
    given = {"label": label, "groups": torch.arange(EXAMPLES), "rng": Rng(0, range(EXAMPLES))}

    def measured(permutations: int) -> list[Separability]:
        return list(over_family(separability, maps, PAIRS, permutations=permutations, **given))

    peer = functools.partial(right_by_peer, raw, fits, max_iter=10_000)
    few = draw.sample(tasks, SAMPLE)
    spent = seconds({
        "ours": lambda: measured(0), "ours, permuted": lambda: measured(PERMUTATIONS), "lbfgs": lambda: list(peer()),
        "one permutation": lambda: exchanged(raw, sample), "saga": lambda: published(raw, label, few),
    }, rounds)  # fmt: skip
    scale = PERMUTATIONS * len(fits) / len(sample)
    spent["lbfgs, permuted"] = [
        one + scale * more for one, more in zip(spent["lbfgs"], spent["one permutation"], strict=True)
    ]
    spent["saga"] = [one * len(tasks) / SAMPLE for one in spent["saga"]]
    mine = right_by_us(measured(0), fits, PAIRS)
    differ = max(abs(a - b) for a, b in zip(peer(tol=1e-8), mine, strict=True))
    title = (
        f"separability: {len(PAIRS)} pairs of {TWINS} twins, 10 classes of {EXAMPLES // 10} images, {FOLDS} folds, CPU "
        f"time; saga as published, one fit a pair and class, from {SAMPLE} of {len(tasks)}; permutations from "
        f"{len(sample)} fits"
    )
    return show(title, [
        Line("ours to saga as published", ratio(spent, "ours", "saga"), PUBLISHED),
        Line(f"ours to saga, {FOLDS} such fits as ours makes", ratio(spent, "ours", "saga") / FOLDS, PUBLISHED),
        Line(f"{PERMUTATIONS} permutations, ours to saga without", ratio(spent, "ours, permuted", "saga")),
        Line("ours to lbfgs, the same folds", ratio(spent, "ours", "lbfgs"), CAREFUL),
        Line(f"the same with {PERMUTATIONS} permutations", ratio(spent, "ours, permuted", "lbfgs, permuted"), CAREFUL),
        Line("most test rows of one fit that differ", differ, 1, "rows"),
        Line("our mean accuracy", sum(mine) / sum(2 * len(fit.ask) for fit in fits), unit=""),
    ])  # fmt: skip


def separabilities_by_size(rounds: int, _: str) -> int:
    """The same for pairs that are easy and hard to tell apart, of few and many images; permutations for six pairs.

    Also of easy pairs whose maps are dense: no pixel is always the same, as in those of photographs.
    """
    missed = 0
    for kind, examples in itertools.product(("easy", "hard", "easy, dense"), (EXAMPLES, 4 * EXAMPLES)):
        maps, label = family_of(TWINS, examples, kind == "hard")
        if "dense" in kind:
            maps = [one + NOISE * one.std() * torch.randn(one.shape) for one in maps]
        fits, raw = fits_of(label, PAIRS), [one.flatten(1).double().numpy() for one in maps]
        numbers, some = random.Random(0).sample(range(len(fits)), 5 * SAMPLE), PAIRS[:6]
        sample = [fits[number] for number in numbers]
        given = {"label": label, "groups": torch.arange(examples), "rng": Rng(0, range(examples))}

        def measured(permutations: int, chosen: Pairs, maps: Any = maps, given: Any = given) -> list[Separability]:
            return list(over_family(separability, maps, chosen, permutations=permutations, **given))

        spent = seconds({
            "ours": functools.partial(measured, 0, PAIRS), "permuted": functools.partial(measured, PERMUTATIONS, some),
            "lbfgs": functools.partial(lambda *those: list(right_by_peer(*those, max_iter=10_000)), raw, sample),
            "one permutation": functools.partial(exchanged, raw, sample),
        }, rounds)  # fmt: skip
        each, permuted_fits = len(fits) / len(sample), len(some) * len(fits) // len(PAIRS)
        ratios = [own / peer / each for own, peer in zip(spent["ours"], spent["lbfgs"], strict=True)]
        permuted = [
            own / (peer + PERMUTATIONS * more) * len(sample) / permuted_fits
            for own, peer, more in zip(spent["permuted"], spent["lbfgs"], spent["one permutation"], strict=True)
        ]
        mine = right_by_us(measured(0, PAIRS), fits, PAIRS)
        peers = right_by_peer(raw, sample, max_iter=10_000, tol=1e-8)
        differ = max(abs(mine[number] - peer) for number, peer in zip(numbers, peers, strict=True))
        missed += show(f"separability: {kind} pairs, {examples // 10} images a class", [
            Line("a fit, ours", 1e3 * statistics.median(spent["ours"]) / len(fits), unit="ms"),
            Line("a fit, lbfgs", 1e3 * statistics.median(spent["lbfgs"]) / len(sample), unit="ms"),
            Line("ours to lbfgs, the same folds", statistics.median(ratios), CAREFUL),
            Line(f"the same with {PERMUTATIONS} permutations", statistics.median(permuted), CAREFUL),
            Line("most test rows of one fit that differ", differ, 1, "rows"),
            Line("our mean accuracy", sum(mine) / sum(2 * len(fit.ask) for fit in fits), unit=""),
        ])  # fmt: skip
    return missed


def sets(rounds: int, _: str) -> int:
    """Distributions of each pixel, all pairs: as in ``benchmarks.pairs``."""
    return pairs.sets_side_by_side(rounds)


def aligned_by_pair(layers: Sequence[Tensor]) -> Iterator[float]:
    """Linear CKA by its definition, pair by pair: the tables of products of all rows, centred."""
    for a, b in PAIRS:
        one, other = (rows.double() - rows.double().mean(0) for rows in (layers[a], layers[b]))
        x, y = one @ one.T, other @ other.T
        yield float((x * y).sum() / (x.norm() * y.norm()))


def aligned(rounds: int, _: str) -> int:
    """Linear CKA of all pairs."""
    chance = torch.Generator().manual_seed(0)
    shared, own = (torch.randn(count, ROWS, NEURONS, generator=chance) for count in (1, TWINS))
    layers = list(shared + own)
    run: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: list(over_family(cka, layers, PAIRS)), "loop": lambda: list(aligned_by_pair(layers))
    }  # fmt: skip
    spent = seconds(run, 3 * rounds)
    line = Line("linear CKA, ours to a loop over pairs", ratio(spent, "ours", "loop"), ALIGNED)
    missed = show(f"{len(PAIRS)} pairs of {TWINS} twins, {ROWS} rows of {NEURONS} neurons: CPU time", [line])
    found, expected = (np.array([float(one) for one in run[name]()]) for name in ("ours", "loop"))
    return missed + pairs.unequal({"cka": float(np.abs(found - expected).max())})


class Family(NamedTuple):
    """Twins to be trained: how each is built, and their digits, here and as floats where they are trained."""

    build: Callable[[], nn.Module]
    examples: Examples
    x: Tensor
    label: Tensor

    def batches(self, twin: int) -> Iterator[Tensor]:
        """Rows of each step of a twin's one epoch, in the order that ``train`` takes them."""
        order = torch.from_numpy(permutation(len(self.x), "order", twin, 0)).to(self.x.device)
        return iter(order.split(BATCH))


def digits(name: str, count: int = DIGITS, device: str = "cpu", dropout: float = 0.25) -> Family:
    """Twins of one of the papers' networks behind its normalisation, and the first so many digits."""
    examples = subset(count=count)
    data = examples.batch(range(count))

    def build() -> nn.Module:
        return normalised(NETWORKS[name](examples.shape, 10, dropout=dropout), examples.mean, examples.sd)

    return Family(build, examples, data.x.to(device), data.label.to(device))


def plain(family: Family, count: int) -> list[nn.Module]:
    """A loop as one writes it: one model after another, and no word about what may go wrong."""
    models = []
    for twin in range(count):
        model = begun(family.build, twin).to(family.x.device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        for rows in family.batches(twin):
            loss = cross_entropy(model(family.x[rows]), family.label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        models.append(model)
    return models


def ours(family: Family, count: int, folder: Path | None = None) -> list[dict[str, Tensor]]:
    """Weights of the twins by the package's loop, with checkpoints where there is a folder for them."""
    return [
        train(
            family.build, family.examples, objective=objectives.cross_entropy, epochs=1, batch_size=BATCH,
            optimizer=functools.partial(adam, lr=RATE), chances=Chances(twin, twin, twin, twin),
            checkpoint=folder and folder / str(time.monotonic_ns()), device=str(family.x.device),
        ).weights
        for twin in range(count)
    ]  # fmt: skip


def stacked(family: Family, count: int) -> list[nn.Module]:
    """All models in one pass: their weights lie on each other, and each sees a batch of its own."""
    models = [begun(family.build, twin).to(family.x.device).train() for twin in range(count)]
    weights, held = torch.func.stack_module_state(models)
    form = copy.deepcopy(models[0]).to("meta")
    optimizer = torch.optim.Adam(weights.values(), lr=RATE, fused=True)

    def loss(own: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(form, (own, buffers), (x,)), label)

    slopes = torch.func.vmap(torch.func.grad(loss), randomness="different")
    for each in zip(*(family.batches(twin) for twin in range(count)), strict=True):
        rows = torch.stack(each)
        for name, slope in slopes(weights, held, family.x[rows], family.label[rows]).items():
            weights[name].grad = slope
        optimizer.step()
    with torch.no_grad():
        for twin, model in enumerate(models):
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name][twin])
    return models


def graphed(family: Family, count: int) -> list[nn.Module]:
    """One model after another, whose step is recorded once and replayed. Never run, for want of a graphics card."""
    models = []
    for twin in range(count):
        model = begun(family.build, twin).to(family.x.device).train()
        first = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True, capturable=True)
        x, label = family.x[:BATCH].clone(), family.label[:BATCH].clone()
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what a first step allocates has to be there before one is recorded
            for _ in range(3):
                optimizer.zero_grad()
                _step(model, optimizer, x, label)
        torch.cuda.current_stream().wait_stream(aside)
        optimizer.zero_grad()
        with torch.cuda.graph(graph):  # the slopes lie in its own memory, and each replay writes them anew
            _step(model, optimizer, x, label)
        model.load_state_dict(first)  # into the memory that the graph knows
        for tensor in (one for state in optimizer.state.values() for one in state.values()):
            tensor.zero_()
        for rows in family.batches(twin):
            x.copy_(family.x[rows])
            label.copy_(family.label[rows])
            graph.replay()
        models.append(model)
    return models


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, label: Tensor) -> None:
    cross_entropy(model(x), label).backward()
    optimizer.step()


def trained(rounds: int, _: str) -> int:
    """The package's training loop beside the plain one; without dropout their weights are the same bits."""
    missed = 0
    for name in NETWORKS:
        family = digits(name)
        with tempfile.TemporaryDirectory() as folder:
            spent = seconds({
                "plain": functools.partial(plain, family, TRAINED), "ours": functools.partial(ours, family, TRAINED),
                "checkpoints": functools.partial(ours, family, TRAINED, Path(folder)),
            }, rounds)  # fmt: skip
        title = f"training {TRAINED} twins of {name}, one epoch of {DIGITS} digits, batches of {BATCH}: CPU time"
        missed += show(title, [
            Line("ours to a plain loop", ratio(spent, "ours", "plain"), PLAIN),
            Line("with checkpoints", ratio(spent, "checkpoints", "plain")),
        ])  # fmt: skip
        sure = digits(name, 1000, dropout=0.0)
        missed += pairs.unequal({name: apart_by(plain(sure, 2), ours(sure, 2))}, 0)
    return missed


def stacks(rounds: int, device: str) -> int:
    """Which way trains a family fastest: models one after another, stacked or, on a graphics card, recorded."""
    ways: dict[str, Callable[[Family, int], list[nn.Module]]] = {"plain": plain, "stacked": stacked}
    clock = time.process_time
    if device != "cpu":
        ways, clock = {**ways, "graphed": graphed}, _when_done
    missed = 0
    for name in NETWORKS:
        family = digits(name, 1024, device)
        spent = seconds(
            {way: functools.partial(make, family, TWINS) for way, make in ways.items()}, rounds, clock=clock
        )
        title = f"{TWINS} twins of {name}, batches of {BATCH}, on {device}"
        missed += show(title, [Line(f"{way} to plain", ratio(spent, way, "plain")) for way in ways if way != "plain"])
        sure = digits(name, 4 * BATCH, device, dropout=0.0)
        loops = plain(sure, 2)
        missed += pairs.unequal({
            f"{name}, {way}": apart_by(loops, [model.state_dict() for model in make(sure, 2)])
            for way, make in ways.items() if way != "plain"
        }, STACKED_SAME)  # fmt: skip
    return missed


def _when_done() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def apart_by(models: Sequence[nn.Module], others: Sequence[Mapping[str, Tensor]]) -> float:
    """The largest difference between any two weights."""
    states = (model.state_dict() for model in models)
    return max(
        float((value - other[name]).abs().max())
        for state, other in zip(states, others, strict=True)
        for name, value in state.items()
    )


def memory(_: int, __: str) -> int:
    """Peak of the process that measures a family in the engine: of four times the twins to it."""
    missed = 0
    for name in ("cosine", "separability"):
        some, four = (
            peak_in_process("benchmarks.memory", "--peak", name, *SIZES[size]) for size in ("n", "4 times the twins")
        )
        line = Line("4 times the twins to n", four.process / some.process, FLAT)
        missed += show(f"{name}: peak memory, n = {SIZES['n'][0]} twins, {SIZES['n'][1]} images", [line])
    return missed


PARTS = {
    "separability": separabilities, "separability_by_size": separabilities_by_size, "sets": sets, "cka": aligned,
    "training": trained, "stacked": stacks, "memory": memory,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device: expected 'cpu', as torch finds no graphics card, found '{chosen.device}'")
    torch.set_num_threads(1)
    keep_pages()  # on both sides alike, as in worker processes
    with threadpool_limits(1):  # NumPy's threads wait for each other by spinning, and would be counted as work
        missed = sum(PARTS[part](chosen.rounds, chosen.device) for part in chosen.only)
    print(f"\n{missed} goals missed")
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
