"""Load an experiment, run it, write its page: ``python examples/quickstart.py [KEY=VALUE ...]``.

The profile ``smoke`` is a look at the page within a minute, not a result. Any value of the file can be
changed, as in ``python examples/quickstart.py train.epochs=2 examples.count=100``.
"""

import sys
import tempfile
from pathlib import Path

from consilience import load, report, run

FILE = Path(__file__).parents[1] / "experiments" / "quickstart.toml"


def main() -> None:
    """Make everything in a temporary folder; the page stays, beside the caller."""
    experiment = load(FILE, profile="smoke", changes=sys.argv[1:])
    with tempfile.TemporaryDirectory() as store:
        outcome = run(experiment, store)
        print(f"made {outcome.made} artifacts in {outcome.seconds:.0f} s, {len(outcome.failures)} jobs failed")
        print(report(experiment, store, out="report.html").resolve())


if __name__ == "__main__":  # worker processes, where there are any, import this file
    main()
