"""Consilience: can this explanation be trusted?

The verbs. Everything else has one address of its own, such as
``consilience.attribution.path.integrated_gradients``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.attribution.preflight import preflight as preflight
    from consilience.experiment.config import load as load
    from consilience.experiment.run import run as run
    from consilience.experiment.store import Store as Store
    from consilience.reporting.audit import audit as audit
    from consilience.reporting.html import report as report

_HOMES = {
    "load": "consilience.experiment.config",
    "run": "consilience.experiment.run",
    "report": "consilience.reporting.html",
    "audit": "consilience.reporting.audit",
    "preflight": "consilience.attribution.preflight",
    "Store": "consilience.experiment.store",
}

__all__ = ["load", "run", "report", "audit", "preflight", "Store"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'consilience' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
