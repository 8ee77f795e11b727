"""Pictures that lie inside the page: maps as small images on one colour scale."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Colormap
from PIL import Image
from torch import Tensor

from consilience.experiment.desk import Desk, labels
from consilience.experiment.experiment import Experiment
from consilience.experiment.families import Redraw
from consilience.experiment.specs import Condition, Explain, Spread
from consilience.experiment.store import Store
from consilience.reporting.grades import listed
from consilience.reporting.tables import COMPARED, MEETS, FamilyKind, kind_of, study_of, summary_rows
from consilience.tensors import join_channels

SIGNED = colormaps["RdBu_r"].resampled(255)  # blue below zero, red above: told apart by colour-blind readers
UNSIGNED = colormaps["Purples"].resampled(255)  # from white to what is neither red nor blue
UNDEFINED = 255  # the colour after those, grey
STAGES = 8  # of a long cascade that are shown, the untouched model among them


class Strip(NamedTuple):
    """A row of pictures: the examples themselves, one member's maps, or what all members' maps have in common."""

    name: str
    pictures: list[str]
    limit: float | None
    """Of the colour scale; None of examples."""
    deviation: bool = False
    """Whether the pictures show a deviation, which begins at zero and has colours of its own."""


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

    Models that are compared with each other share one colour scale, and below them stand the mean and the deviation
    of all their maps; a model that is the medoid of a mode is called so. The stages of a cascade have a scale each,
    and earlier epochs too: with other weights a map may be much fainter, and the measures look at its pattern.
    """
    examples = desk.examples(experiment.examples)
    ids = first_of_each_class(desk, experiment, count)
    batch = examples.batch(ids)
    captions = [f"{examples.classes[int(label)]} (example {id_})" for id_, label in zip(ids, batch.label, strict=True)]
    photos = Strip("example", [picture(x) for x in batch.x], None)
    marks, found = _medoids(experiment, desk), []
    for family in experiment.families:
        if isinstance(family, Redraw):
            continue
        kind, members = kind_of(family), experiment.members_of(family)
        if kind == "epochs":
            members = [*members[1:], members[0]]  # the finished model last
        for method in experiment.methods:
            specs = [(member.name, experiment.maps_of(member, method)) for member in members]
            there = _picked([one for one in specs if one[1] in desk.store], kind)
            if there:
                maps = {name: _maps(desk.store, spec, ids) for name, spec in there}
                strips = [photos, *_strips(maps, shared=kind in COMPARED)]
                if kind in COMPARED:
                    strips = [
                        strip._replace(name=strip.name + marks.get((family.name, method.label, strip.name), ""))
                        for strip in strips
                    ]
                if kind in COMPARED and (spread := experiment.spread_of(family, method)) in desk.store:
                    strips += _spread(desk.store, spread, ids, strips[1].limit or 1.0)
                found.append(Gallery(family.name, kind, method.label, captions, strips, len(members)))
    return found


class Mode(NamedTuple):
    """A row of a summary ``modes``, and of what it is."""

    family: str
    method: str
    measure: str
    where: Condition
    name: str


def _medoids(experiment: Experiment, desk: Desk) -> dict[tuple[str, str, str], str]:
    if not any(choice.use == "modes" for choice in experiment.summarise):
        return {}
    rows = [
        Mode(goal.family, goal.method.label, goal.label, spec.where, row["name"])
        for goal, spec, row in summary_rows(study_of(experiment, desk), "modes")
        if goal.method is not None
    ]
    families = [(family.name, experiment.members_of(family)) for family in experiment.families]
    return medoids(rows, {family: [member.name for member in members] for family, members in families})


def medoids(rows: Sequence[Mode], members: Mapping[str, Sequence[str]]) -> dict[tuple[str, str, str], str]:
    """Of family, method and model: of which modes it is the medoid, to stand behind its name.

    The modes are those of all images, or of one condition where there are none; the measures by which models were
    grouped are named where there are several.

    Args:
        rows: All that there are.
        members: Of each family, its models' names by their positions.
    """
    where = min((row.where for row in rows), key=list(MEETS).index, default="all")
    rows = [row for row in rows if row.where == where]
    several = len({row.measure for row in rows}) > 1
    found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for row in rows:
        if told := re.fullmatch(r"(?:(mode \d+)|one mode): .*\(medoid (\d+)\)", row.name):
            place = row.family, row.method, members[row.family][int(told[2])]
            found.setdefault(place, {}).setdefault(told[1] or "the one mode", []).append(row.measure)
    return {
        place: "".join(f", medoid of {mode}" + (f" by {listed(by)}" if several else "") for mode, by in modes.items())
        for place, modes in found.items()
    }


def _picked(specs: list[tuple[str, Explain]], kind: FamilyKind) -> list[tuple[str, Explain]]:
    """All models; of a long cascade or many epochs the first and the last and some between, evenly."""
    if kind in COMPARED or len(specs) <= STAGES:
        return specs
    return [specs[round(index * (len(specs) - 1) / (STAGES - 1))] for index in range(STAGES)]


def _strips(maps: dict[str, Tensor], *, shared: bool) -> list[Strip]:
    limits = {name: limit_of(one) for name, one in maps.items()}
    if shared:
        limits = dict.fromkeys(maps, limit_of(torch.cat(list(maps.values()))))
    return [Strip(name, [signed(one, limits[name]) for one in maps[name]], limits[name]) for name in maps]


def _spread(store: Store, spec: Spread, ids: list[int], limit: float) -> list[Strip]:
    """The mean of all models' maps on their own scale, and their deviation on one that begins at zero.

    Over channels, means are summed like the maps; deviations do not add, so it is the root of their sum of squares.
    """
    mean = join_channels(store.tensors(spec, "mean")["mean"][ids], "sum")
    deviation = store.tensors(spec, "deviation")["deviation"][ids].square().sum(1).sqrt()
    own = limit_of(deviation)
    return [
        Strip("mean of these maps", [signed(one, limit) for one in mean], limit),
        Strip("their deviation", [unsigned(one, own) for one in deviation], own, deviation=True),
    ]


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
    return _coloured((values / limit + 1) / 2, SIGNED)


def unsigned(values: Tensor, limit: float) -> str:
    """One map ``[h, w]`` of values from zero on as a picture: white is zero, full colour is ``limit``."""
    return _coloured(values / limit, UNSIGNED)


def _coloured(share: Tensor, colours: Colormap) -> str:
    """Shares ``[h, w]`` of the way through the colours, those beyond at the ends; undefined ones grey."""
    found = share.numpy()
    places = np.clip(np.nan_to_num(found) * 254, 0, 254).round().astype(np.uint8)
    places[~np.isfinite(found)] = UNDEFINED
    image = Image.fromarray(places).convert("P")
    image.putpalette([*(colours(np.arange(255))[:, :3] * 255).round().astype(np.uint8).flatten().tolist(), *[153] * 3])
    return _png(image)


def picture(x: Tensor) -> str:
    """One image ``[c, h, w]`` in [0, 1]."""
    pixels = (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return _png(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def scale() -> str:
    """The colours from minus to plus the limit."""
    return signed(torch.linspace(-1, 1, 255).expand(4, 255), 1.0)


def scale_of_deviation() -> str:
    """The colours from zero to the limit."""
    return unsigned(torch.linspace(0, 1, 255).expand(4, 255), 1.0)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
