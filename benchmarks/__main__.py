"""All benchmarks, one after the other: ``python -m benchmarks``."""

from benchmarks import (
    attribution,
    integrated_gradients,
    memory,
    null_calibration,
    pairs,
    power,
    retraining,
    running,
    separability,
)

PARTS = (attribution, integrated_gradients, memory, null_calibration, pairs, power, retraining, running, separability)

if __name__ == "__main__":
    raise SystemExit(max(part.main(["--strict"]) for part in PARTS))
