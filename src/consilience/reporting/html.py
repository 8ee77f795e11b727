"""The page: one file that needs nothing else, and its twin in JSON with the same numbers."""

import functools
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import msgspec
from jinja2 import Environment, StrictUndefined

from consilience.errors import DiskError
from consilience.experiment.desk import Desk, Place
from consilience.experiment.experiment import Experiment
from consilience.experiment.store import Store, writing
from consilience.reporting.figures import galleries
from consilience.reporting.tables import page_of


def report(
    experiment: Experiment, store: Store | Path | str, out: Path | str = "report.html", *, data: Path | None = None
) -> Path:
    """Write what the store holds of an experiment as one self-contained page, and ``.json`` beside it.

    Args:
        experiment: As loaded from its file.
        store: Where the artifacts are.
        out: The page's file.
        data: The folder of the data sets, for the pictures.

    Raises:
        ArtifactError: The store is none, or an artifact is damaged.
        DiskError: The page cannot be written.
    """
    store = store if isinstance(store, Store) else Store(store)
    out = Path(out)
    page = page_of(experiment, store)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    template = environment.from_string(files("consilience.reporting").joinpath("page.html").read_text("utf-8"))
    rows = Counter((line.family, line.method, line.measure) for line in page.lines)
    text = template.render(
        page=page,
        rows_of=lambda line: rows[line.family, line.method, line.measure],
        galleries=galleries(experiment, Desk(store, Place(data))),
        references={key: reference(key) for key in page.references},
    )
    with writing(out.parent):
        try:
            out.write_text(text, encoding="utf-8")
            out.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(page), indent=2))
        except FileNotFoundError:
            raise DiskError(f"{out}: expected a folder to write into, found none; make it or name another") from None
    return out


def number(value: float | None, digits: int = 2) -> str:
    """A number as the page shows it; a dash where it is undefined."""
    if value is None:
        return "\u2013"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\u2212")


@functools.cache
def _bibliography() -> dict[str, str]:
    text = files("consilience").joinpath("references.bib").read_text("utf-8")
    entries = re.findall(r"@\w+\{([^,]+),(.*?)\n\}", text, re.DOTALL)
    return dict(entries)


def reference(key: str) -> str:
    """Authors, title, where and when, as one line; the key itself where the bibliography has no such entry."""
    if key not in _bibliography():
        return key
    fields = dict(re.findall(r"(\w+)\s*=\s*\{(.*?)\}\s*,?\s*(?:\n|$)", _bibliography()[key]))
    where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher", "")
    authors = fields["author"].replace(" and ", ", ")
    return re.sub(r"[{}]", "", f"{authors}: {fields['title']}. {where}, {fields['year']}.")
