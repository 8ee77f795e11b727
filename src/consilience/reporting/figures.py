"""Pictures that lie inside the page: maps as small images on one colour scale."""

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from consilience.experiment.desk import Desk, labels
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import Redraw
from consilience.experiment.specs import Explain
from consilience.experiment.store import Store
from consilience.tensors import join_channels

SIGNED = colormaps["RdBu_r"]  # blue below zero, red above: told apart by colour-blind readers, white at zero


class Strip(NamedTuple):
    """A row of pictures: one member's maps, or the examples themselves."""

    name: str
    pictures: list[str]


class Gallery(NamedTuple):
    """The same examples explained by each twin, on one scale."""

    method: str
    captions: list[str]
    strips: list[Strip]
    limit: float
    scale: str


def galleries(experiment: Experiment, desk: Desk, count: int = 5) -> list[Gallery]:
    """For each method, the first examples of ``count`` different classes under each twin."""
    examples = desk.examples(experiment.examples)
    ids = first_of_each_class(desk, experiment, count)
    batch = examples.batch(ids)
    captions = [f"{examples.classes[int(label)]} (example {id_})" for id_, label in zip(ids, batch.label, strict=True)]
    photos = Strip("example", [picture(x) for x in batch.x])
    found = []
    for family in experiment.families:
        if isinstance(family, Redraw):
            continue
        members = family.members(experiment.base)
        for method in experiment.methods:
            specs = [experiment.maps_of(member, method) for member in members]
            there = [
                (m.name, _maps(desk.store, s, ids)) for m, s in zip(members, specs, strict=True) if s in desk.store
            ]
            if not there:
                continue
            limit = float(torch.cat([maps for _, maps in there]).abs().nan_to_num().flatten().quantile(0.995)) or 1.0
            strips = [photos, *(Strip(name, [signed(m, limit) for m in maps]) for name, maps in there)]
            found.append(Gallery(method.label, captions, strips, limit, scale()))
    return found


def first_of_each_class(desk: Desk, experiment: Experiment, count: int) -> list[int]:
    """Ids of the first example of each of the first ``count`` classes that occur."""
    found: dict[int, int] = {}
    examples = desk.examples(experiment.examples)
    for index, label in enumerate(labels(examples).tolist()):
        found.setdefault(label, index)
        if len(found) == min(count, len(examples.classes)):
            break
    return [found[label] for label in sorted(found)]


def _maps(store: Store, spec: Explain, ids: list[int]) -> Tensor:
    return join_channels(store.tensors(spec)["maps"][ids], "sum")


def signed(values: Tensor, limit: float) -> str:
    """One map ``[h, w]`` as a picture: white is zero, full colour is ``limit``; grey where it is undefined."""
    colours = SIGNED((values.numpy() / limit + 1) / 2)
    colours[~np.isfinite(values.numpy())] = (0.6, 0.6, 0.6, 1)
    return _png((colours[..., :3] * 255).round().astype(np.uint8))


def picture(x: Tensor) -> str:
    """One image ``[c, h, w]`` in [0, 1]."""
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return _png(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def scale() -> str:
    """The colours from minus to plus the limit."""
    return signed(torch.linspace(-1, 1, 128).expand(4, 128), 1.0)


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
