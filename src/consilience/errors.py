"""What can go wrong, in four kinds and one form: where; what was expected, what was found; what to do."""

import difflib
from collections.abc import Iterable


class ConsilienceError(Exception):
    """Anything that Consilience itself refuses."""


class SpecError(ConsilienceError):
    """What you wrote: a file, an option, an argument."""


class DataError(ConsilienceError):
    """What lies on disk as data, or what it holds."""


class ArtifactError(ConsilienceError):
    """What the store holds, or cannot hold."""


class DiskError(ArtifactError):
    """The disk itself refuses: full, read-only, not allowed."""


class ModelError(ConsilienceError):
    """What a model cannot do, or what it did."""


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """The sentence for a name that nothing has, with the nearest name that something has."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"no {what} is named '{name}'; did you mean '{near[0]}'?"
    return f"no {what} is named '{name}'; there are: {', '.join(known) or 'none'}"
