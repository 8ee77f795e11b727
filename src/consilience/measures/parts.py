"""Agreement of two models' maps on a part of each image: on what matters in it, or on the rest."""

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.agreement import cosine
from consilience.pairs import Pairs, over_family, over_pairs
from consilience.tensors import Paired, slices

BLOCK = 2**22  # numbers of all twins' maps together, of the examples that are measured at a time

Part = Literal["foreground", "background"]


@measure(version=1, better="higher")
@over_pairs
def on_part(
    family: Sequence[Float[Tensor, "n ..."]],
    pairs: Pairs,
    x: Float[Tensor, "n c h w"],
    *,
    of: Paired = cosine,
    part: Part = "foreground",
    above: float = 0.1,
) -> Iterator[Float[Tensor, " n"]]:
    """``of`` between the two maps where the image is bright, or where it is not; NaN where that is fewer than 2 pixels.

    For images whose object is bright on black. All else is as if the maps had no other pixels: ranks are
    those among the part's. What needs the plane, such as ``ssim``, is refused. The part is that of the image whose
    map is ``maps``; where ``other`` is of another image, as in ``wrong_image``, it is looked at there too.

    Args:
        of: The agreement, of two maps of an image and nothing else.
        part: ``"foreground"``: the pixels of which a channel is above ``above``; ``"background"``: the others.
        above: The pixel value that the foreground exceeds.
    """
    yield from _on("on_part", family, pairs, (x > above).any(1), of, part)


@measure(version=1, better="higher")
@over_pairs
def on_mask(
    family: Sequence[Float[Tensor, "n ..."]],
    pairs: Pairs,
    mask: Bool[Tensor, "n h w"],
    *,
    of: Paired = cosine,
    part: Part = "foreground",
) -> Iterator[Float[Tensor, " n"]]:
    """``of`` between the two maps on the object's mask, or outside it; NaN where that is fewer than 2 pixels.

    Otherwise as ``on_part``.

    Args:
        of: The agreement, of two maps of an image and nothing else.
        part: ``"foreground"``: the object; ``"background"``: the rest of the image.
    """
    yield from _on("on_mask", family, pairs, mask, of, part)


def _on(
    name: str, family: Sequence[Tensor], pairs: Pairs, foreground: Bool[Tensor, "n h w"], of: Paired, part: Part
) -> Iterator[Float[Tensor, " n"]]:
    _check(name, of)
    chosen = foreground if part == "foreground" else ~foreground
    sizes = chosen.flatten(1).sum(1)
    first = family[0]
    if (len(first), *first.shape[-2:]) != chosen.shape:
        raise SpecError(
            f"{name}: expected maps of the {len(chosen)} images, as large as they are, {list(chosen.shape[1:])}, found "
            f"{list(first.shape)}; compare maps that are not pooled, of the same examples"
        )
    numbers = first[:1].numel()
    values = torch.full((len(pairs), len(chosen)), torch.nan, dtype=torch.float64, device=chosen.device)
    for rows in slices(len(chosen), max(1, BLOCK // max(1, numbers * len(family)))):
        twins = [family[member][rows].flatten(-2) for member in range(len(family))]
        for size in sorted(set(sizes[rows].tolist())):  # images with equally many pixels are measured together
            if size < 2:
                continue
            here = (sizes[rows] == size).nonzero()[:, 0]
            found = over_family(of, [_gathered(maps[here], chosen[rows][here]) for maps in twins], pairs)
            for value, result in zip(values, found, strict=True):
                value[rows.start + here] = _checked(name, of, result, len(here))
    yield from values


def _gathered(maps: Float[Tensor, "m ... d"], chosen: Bool[Tensor, "m h w"]) -> Float[Tensor, "m e"]:
    """The chosen pixels alone, equally many of each map, in all channels."""
    picked = chosen.flatten(1).view(len(maps), *[1] * (maps.ndim - 2), -1).expand_as(maps)
    return maps[picked].view(len(maps), -1)


def _check(name: str, of: Paired) -> None:
    """Refuse what a part of a map cannot be given to.

    Raises:
        SpecError: ``of`` asks for more than two maps, or for their plane.
    """
    parameters = inspect.signature(of).parameters
    asked = [role for role, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if asked != ["maps", "other"]:
        raise SpecError(
            f"{name}.of: expected a measure of two maps of an image, found {_named(of)}, which asks for {asked}; "
            "choose one such as 'cosine'"
        )
    if {"h", "w"} & set(getattr(parameters["maps"].annotation, "dim_str", "").split()):
        raise SpecError(
            f"{name}.of: expected a measure that takes pixels in any arrangement, found {_named(of)}, which needs "
            "the plane; choose one such as 'spearman'"
        )


def _checked(name: str, of: Paired, result: object, count: int) -> Tensor:
    if not isinstance(result, Tensor) or result.shape != (count,):
        raise SpecError(
            f"{name}.of: expected a measure with a number for each image, found {_named(of)}; "
            "choose one such as 'cosine'"
        )
    return result.double()


def _named(of: Paired) -> str:
    return str(getattr(of.func if isinstance(of, functools.partial) else of, "__name__", of))
