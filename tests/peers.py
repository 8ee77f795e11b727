"""Lets the third parties that want torchvision be imported: its wheel does not fit torch's CPU build.

Importing torchvision fails there, since the operators of its compiled part are missing; declaring them is enough
for everything that does not call them. Import this module before such a package.
"""

import contextlib

from torch import library

MISSING = ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
           "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # fmt: skip
_LIBRARY = library.Library("torchvision", "FRAGMENT")

for _schema in MISSING:
    with contextlib.suppress(RuntimeError):  # the wheel fits after all
        _LIBRARY.define(_schema)
