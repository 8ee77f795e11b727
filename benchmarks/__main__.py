"""All benchmarks, one after the other: ``python -m benchmarks``."""

from benchmarks import integrated_gradients, running

if __name__ == "__main__":
    raise SystemExit(max(integrated_gradients.main(["--strict"]), running.main(["--strict"])))
