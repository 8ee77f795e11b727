"""The command: verb names and one-line helps are known here; a verb is imported when it runs."""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from consilience.errors import ConsilienceError, unknown

VERBS = {
    "run": ("experiments", "make what an experiment file asks for and the store lacks"),
    "plan": ("experiments", "what a run would make: jobs, minutes, gigabytes"),
    "report": ("experiments", "one page, and its JSON twin, of what was made"),
    "prune": ("experiments", "remove artifacts that no experiment file needs"),
    "train": ("single", "train one model into a file"),
    "explain": ("single", "explain examples with one method into a file"),
    "preflight": ("single", "check that a method means on a model what its name says"),
    "fetch": ("fetch", "download a data set's files and check them"),
    "check-data": ("check", "count a data set's examples and see whether they can be read"),
    "list": ("look", "the components there are, by kind"),
    "show": ("look", "one component, or one artifact by its digest"),
}

HELP = """Can this explanation of a deep model be trusted?

usage: consilience VERB ...      (consilience VERB --help says more)

{verbs}

A first run:  consilience run experiments/quickstart.toml
              consilience report experiments/quickstart.toml
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; 0 where all went well, 1 where a job failed, 2 where the call was wrong, 130 on Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {name:<12}{text}" for name, (_, text) in VERBS.items())))
        raise SystemExit(0)
    if words[0] in ("-V", "--version"):
        print(version("consilience"))
        raise SystemExit(0)
    raise SystemExit(call(words[0], words[1:]))


def call(verb: str, words: Sequence[str]) -> int:
    """Run a verb with the rest of the words."""
    gc.set_threshold(100_000, 50, 50)  # importing torch makes many objects and no garbage
    try:
        if verb not in VERBS:
            print(f"consilience: {unknown('verb', verb, VERBS)}", file=sys.stderr)
            return 2
        import tyro  # a fifth of a second that --help does without

        home = importlib.import_module(f"consilience.cli.{VERBS[verb][0]}")
        function = getattr(home, f"{verb.replace('-', '_')}_verb")
        return int(tyro.cli(function, prog=f"consilience {verb}", args=list(words)) or 0)
    except ConsilienceError as error:
        print(f"consilience {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nconsilience {verb}: stopped; run the same command again to go on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
