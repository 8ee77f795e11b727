"""The page: one file that needs nothing else, and its twin in JSON with the same numbers."""

import functools
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import msgspec
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from consilience.errors import DiskError
from consilience.experiment.desk import Desk, Place
from consilience.experiment.experiment import Experiment
from consilience.experiment.store import Store, writing
from consilience.reporting.causes import cause_tables
from consilience.reporting.charts import cascade_charts, epoch_charts, shade
from consilience.reporting.figures import Gallery, galleries, scale, scale_of_deviation
from consilience.reporting.grades import figures, number
from consilience.reporting.layout import (
    blocks,
    classified,
    distance_tables,
    matrices,
    pivots,
    represented_tables,
)
from consilience.reporting.learning import learning_charts
from consilience.reporting.page import Page, page_of
from consilience.reporting.tables import COMPARED, MEETS


def report(
    experiment: Experiment,
    store: Store | Path | str,
    out: Path | str = "report.html",
    *,
    data: Path | Place | None = None,
) -> Path:
    """Write what the store holds of an experiment as one self-contained page, and ``.json`` beside it.

    Args:
        experiment: As loaded from its file.
        store: Where the artifacts are.
        out: The page's file.
        data: The folder of the data sets, for pictures and classes, or a ``Place`` that holds them in memory.

    Raises:
        ArtifactError: The store is none, or an artifact is damaged.
        DiskError: The page cannot be written.
    """
    store = store if isinstance(store, Store) else Store(store)
    out = Path(out)
    desk = Desk(store, data if isinstance(data, Place) else Place(data))
    page = page_of(experiment, desk)
    text = rendered(page, galleries(experiment, desk))
    with writing(out.parent):
        try:
            out.write_text(text, encoding="utf-8")
            out.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(page), indent=2))
        except FileNotFoundError:
            raise DiskError(f"{out}: expected a folder to write into, found none; make it or name another") from None
    return out


def rendered(page: Page, pictures: Sequence[Gallery]) -> str:
    """The page as HTML that needs no other file."""
    tables = blocks(page.lines)
    return _template().render(
        page=page,
        agreement=[block for block in tables if block.kind not in ("cascade", "epochs")],
        cascade=[block for block in tables if block.kind == "cascade"],
        epochs=[block for block in tables if block.kind == "epochs"],
        classified=classified(page.told, page.performances),
        causes=cause_tables(page.causes),
        pairs=matrices(page.matrices, page.told),
        distances=distance_tables(page.distances),
        represented=represented_tables(page.represented),
        pivots=pivots(page.judged),
        learning=learning_charts(page.told),
        charts=cascade_charts(page.lines),
        earlier=epoch_charts(page.lines),
        twins=[one for one in pictures if one.kind in COMPARED],
        stages=[one for one in pictures if one.kind == "cascade"],
        kept=[one for one in pictures if one.kind == "epochs"],
        references={key: reference(key) for key in page.references},
    )


def _template() -> Template:
    """The page's template; its parts lie beside it in the package."""
    parts = files("consilience.reporting").joinpath("templates")
    environment = Environment(
        loader=FunctionLoader(lambda name: parts.joinpath(name).read_text("utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "figures": figures, "drawing": Markup, "at": at, "breakable": breakable,
    }  # fmt: skip
    environment.globals |= {"shade": shade, "meets": MEETS, "scale": scale, "scale_of_deviation": scale_of_deviation}
    return environment.get_template("page.html")


def at(value: float) -> str:
    """Where a value of the scale lies on its drawing, which stops at both ends."""
    return f"{100 * min(1.0, max(0.0, value)):.1f}%"


def breakable(name: str) -> Markup:
    """A name, escaped, that may go on in the next line after a mark between its words."""
    return Markup("<wbr>").join(re.split(r"(?<=[_(,=])(?=\w)", name))


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
