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
from consilience.reporting.tables import FamilyKind, kind_of
from consilience.tensors import join_channels

SIGNED = colormaps["RdBu_r"].resampled(255)  # blue below zero, red above: told apart by colour-blind readers
UNDEFINED = 255  # the colour after those, grey
STAGES = 8  # of a long cascade that are shown, the untouched model among them


class Strip(NamedTuple):
    """A row of pictures: one member's maps, or the examples themselves."""

    name: str
    pictures: list[str]
    limit: float | None
    """Of the colour scale; None of examples."""


class Gallery(NamedTuple):
    """The same examples explained by each model of a family."""

    family: str
    kind: FamilyKind
    method: str
    captions: list[str]
    strips: list[Strip]
    members: int
    """How many there are, of which the strips may show some."""


def galleries(experiment: Experiment, desk: Desk, count: int = 5) -> list[Gallery]:
    """For each method, the first examples of ``count`` different classes under each model of each family.

    Models that are compared with each other share one colour scale. The stages of a cascade have one each: with
    weights drawn anew a map may be much fainter, and the measures look at its pattern.
    """
    examples = desk.examples(experiment.examples)
    ids = first_of_each_class(desk, experiment, count)
    batch = examples.batch(ids)
    captions = [f"{examples.classes[int(label)]} (example {id_})" for id_, label in zip(ids, batch.label, strict=True)]
    photos = Strip("example", [picture(x) for x in batch.x], None)
    found = []
    for family in experiment.families:
        if isinstance(family, Redraw):
            continue
        kind, members = kind_of(experiment, family.name), family.members(experiment.base)
        for method in experiment.methods:
            specs = [(member.name, experiment.maps_of(member, method)) for member in members]
            there = _picked([one for one in specs if one[1] in desk.store], kind)
            if there:
                maps = {name: _maps(desk.store, spec, ids) for name, spec in there}
                strips = [photos, *_strips(maps, shared=kind != "cascade")]
                found.append(Gallery(family.name, kind, method.label, captions, strips, len(members)))
    return found


def _picked(specs: list[tuple[str, Explain]], kind: FamilyKind) -> list[tuple[str, Explain]]:
    """All models; of a long cascade the first and the last stage and some between, evenly."""
    if kind != "cascade" or len(specs) <= STAGES:
        return specs
    return [specs[round(index * (len(specs) - 1) / (STAGES - 1))] for index in range(STAGES)]


def _strips(maps: dict[str, Tensor], *, shared: bool) -> list[Strip]:
    limits = {name: limit_of(one) for name, one in maps.items()}
    if shared:
        limits = dict.fromkeys(maps, limit_of(torch.cat(list(maps.values()))))
    return [Strip(name, [signed(one, limits[name]) for one in maps[name]], limits[name]) for name in maps]


def limit_of(maps: Tensor) -> float:
    """The value of full colour: only one pixel in 200 lies beyond. 1 where nothing is but zero."""
    values = np.abs(maps.numpy())
    defined = values[np.isfinite(values)]
    return float(np.quantile(defined, 0.995)) or float(defined.max()) or 1.0 if defined.size else 1.0


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
    share = (values.numpy() / limit + 1) / 2
    places = np.clip(np.nan_to_num(share) * 254, 0, 254).round().astype(np.uint8)
    places[~np.isfinite(values.numpy())] = UNDEFINED
    image = Image.fromarray(places).convert("P")
    image.putpalette([*(SIGNED(np.arange(255))[:, :3] * 255).round().astype(np.uint8).flatten().tolist(), *[153] * 3])
    return _png(image)


def picture(x: Tensor) -> str:
    """One image ``[c, h, w]`` in [0, 1]."""
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return _png(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def scale() -> str:
    """The colours from minus to plus the limit."""
    return signed(torch.linspace(-1, 1, 255).expand(4, 255), 1.0)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
