"""Lets the third parties that want torchvision be imported: its wheel does not fit torch's CPU build.

Importing torchvision fails there, since the operators of its compiled part are missing; declaring them is enough
for everything that does not call them. ``tests/conftest.py`` does it before any test is imported.
"""

import contextlib

from torch.library import Library

MISSING = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
           "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # fmt: skip
DECLARED = Library("torchvision", "FRAGMENT")  # it declares for as long as it is there


def let_torchvision_be_imported() -> None:
    """Declare the operators that are missing."""
    for schema in MISSING:
        with contextlib.suppress(RuntimeError):  # the wheel fits after all
            DECLARED.define(schema)
