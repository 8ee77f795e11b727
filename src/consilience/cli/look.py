"""Verbs that look: which components there are, what one of them does, what an artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from consilience.signature import Component


def list_verb(kind: Annotated[str | None, tyro.conf.Positional] = None, /) -> int:
    """List the components there are, by kind, with what comes out of each.

    Args:
        kind: Only this kind: attribution, measure, dataset, architecture, ...
    """
    from rich.console import Console
    from rich.table import Table

    from consilience.component import KINDS
    from consilience.errors import SpecError, unknown

    if kind is not None and kind not in KINDS:
        raise SpecError(unknown("kind", kind, KINDS))
    table = Table("kind", "name", "what comes out", box=None, pad_edge=False)
    for one in [kind] if kind else KINDS:
        for name in KINDS[one].names():
            table.add_row(one, name, KINDS[one].get(name).summary)
    Console().print(table, markup=False)
    return 0


def show_verb(name: Annotated[str, tyro.conf.Positional], /, store: Path = Path("store")) -> int:
    """Show a component by its name, or an artifact by the first letters of its digest.

    Args:
        name: A component's name or an artifact's digest.
        store: Folder of the artifacts.
    """
    from consilience.component import KINDS

    found = [kind.get(name) for kind in KINDS.values() if name in kind.names()]
    for component in found:
        print(_described(component))
    if not found:
        from consilience.errors import SpecError, unknown
        from consilience.experiment.store import Store

        if not store.is_dir():
            every = [known for kind in KINDS.values() for known in kind.names()]
            raise SpecError(f"{unknown('component', name, every)} (and there is no store '{store}' to look in)")
        folder = Store(store).find(name)
        print(f"{folder}\n")
        for file in sorted(folder.iterdir()):
            text = file.read_text("utf-8") if file.suffix == ".json" else f"({file.stat().st_size} bytes)"
            print(f"{file.name}\n{text}\n")
    return 0


def _described(component: Component) -> str:
    """Documentation, signature and source of a component."""
    import inspect

    from consilience.roles import ROLES

    lines = [f"{component.kind} {component.name}, version {component.version}"]
    lines += ["", inspect.getdoc(component.function) or "", "", "What flows in:"]
    lines += [f"  {role}: {ROLES[role]}" for role in component.roles]
    options = [p for p in inspect.signature(component.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if options:
        lines += ["", "Options and their defaults:"]
    for option in options:
        inner = component.nested.get(option.name)
        default = inner.name if inner else option.default
        lines.append(f"  {option.name} = {'(must be given)' if default is option.empty else default}")
    lines += ["", f"Source: {component.paper or 'ours'}. Defined in {component.function.__module__}."]
    return "\n".join(lines) + "\n"
