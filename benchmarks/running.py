"""Runs as whole commands, wall clock: what two worker processes gain, and what a run costs that finds everything.

``python -m benchmarks.running``; with ``--strict`` a missed goal is an exit code.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.side_by_side import Line, show

EXPERIMENT = """
name = "benchmark"
explain = ["gradient", "integrated_gradients"]
compare = ["cosine", "spearman"]
judge = ["accuracy", "completeness_gap"]
train = { data = "mnist10k", model = "small_cnn", epochs = 5, batch_size = 32 }
examples = { data = { use = "mnist10k", split = "test" }, count = 300 }
family = [{ type = "retrain", values = { init = [0, 1, 2, 3, 4, 5] } }]
"""
TWO_WORKERS_GOAL, FOUND_GOAL = 1 / 1.6, 3.0


def wall(*words: object) -> float:
    """Seconds of a ``consilience`` command."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "consilience", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args(arguments)
    one, two, found = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.toml"
        file.write_text(EXPERIMENT)
        for turn in range(chosen.rounds):  # one after the other in each round, and the other way round in the next
            for workers in (1, 2) if turn % 2 else (2, 1):
                store = Path(folder) / f"{turn}-{workers}"
                spent = wall("run", file, "--store", store, "--on", f"processes:{workers}")
                (one if workers == 1 else two).append(spent)
            found.append(wall("run", file, "--store", store))
    gain = statistics.median(b / a for a, b in zip(one, two, strict=True))
    lines = [
        Line("one worker process", statistics.median(one), unit="s"),
        Line("two worker processes to one", gain, TWO_WORKERS_GOAL),
        Line("a run that finds everything", statistics.median(found), FOUND_GOAL, "s"),
    ]
    missed = show(f"runs: six twins of small_cnn, {chosen.rounds} rounds, wall clock", lines)
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
