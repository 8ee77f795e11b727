"""What every benchmark measures with: rounds in random order, ratios within a round, peaks of fresh processes."""

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One printed number and the goal that stands beside it."""

    name: str
    value: float
    goal: float | None = None
    unit: str = "x"

    @property
    def missed(self) -> bool:
        return self.goal is not None and not self.value <= self.goal


def seconds(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; one round more, the first, is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(seed).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            begun = clock()
            variants[name]()
            if turn:
                spent[name].append(clock() - begun)
    return spent


def fastest(spent: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The name with the least median."""
    return min(names, key=lambda name: statistics.median(spent[name]))


def ratio(spent: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    """Median over the rounds of the ratio within the round."""
    return statistics.median(a / b for a, b in zip(spent[name], spent[reference], strict=True))


class Peak(NamedTuple):
    """Mebibytes: the process at its highest, and by how much the measured call raised it."""

    process: float
    growth: float


def peak_in_process(module: str, *words: object) -> Peak:
    """What ``python -m module words`` prints last, in a process of its own: the two numbers of a ``Peak``.

    Every tensor of 128 KiB or more has pages of its own there, which go with it (glibc). By default the
    library learns while it runs which blocks to keep, and identical processes differ by a tenth.
    """
    words = (sys.executable, "-m", module, *map(str, words))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return Peak(*map(float, done.stdout.split()[-2:]))


def peak_of(function: Callable[[], object]) -> Peak:
    """Memory of this process while the function ran (Linux)."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    function()
    highest = _status("VmHWM")
    return Peak(highest / 1024, (highest - before) / 1024)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def show(title: str, lines: Sequence[Line]) -> int:
    """Print a table, and how many goals are missed."""
    print(f"\n{title}")
    for line in lines:
        goal = "" if line.goal is None else f"   goal {line.goal:.2f}{'   MISSED' if line.missed else ''}"
        print(f"  {line.name:<44}{line.value:8.3f} {line.unit:<4}{goal}")
    return sum(line.missed for line in lines)
