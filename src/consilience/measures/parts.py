"""Agreement of two models' maps on a part of each image: on what matters in it, or on the rest."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from consilience.component import Choice, measure
from consilience.errors import SpecError
from consilience.measures.agreement import cosine
from consilience.measures.distributions import Distance, jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon
from consilience.measures.separability import Separability, separability
from consilience.measures.similarity import ssim, ssim_within
from consilience.pairs import Maps, Pairs, over_family, over_pairs
from consilience.rng import Rng
from consilience.signature import Component
from consilience.tensors import Paired, slices

BLOCK = 2**22  # numbers of all twins' maps together, of the examples that are measured at a time

Part = Literal["foreground", "background"]

DISTRIBUTIONS: tuple[Callable[..., Any], ...] = (jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon)

WITHIN = {ssim: ssim_within}  # what needs the plane and knows how to look at some pixels of it


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
    those among the part's. Of ``ssim`` it is the mean over the windows with a pixel of the part in their middle,
    which reach beyond it. The part is that of the image whose map is ``maps``; where ``other`` is of another image,
    as in ``wrong_image``, it is looked at there too.

    Refused is what else needs the plane, and what gives no number for each image, of that image alone. There is
    ``separability_on_part`` for what learns from other images, ``distribution_on_part`` for distances of sets.

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


@measure(
    version=1,
    better="lower",
    breaks={"measured_alike_alone": "the other images of the class are what the classifier learns from"},
)
@over_pairs
def separability_on_part(
    family: Sequence[Float[Tensor, "n ..."]],
    pairs: Pairs,
    x: Float[Tensor, "n c h w"],
    label: Int[Tensor, " n"],
    groups: Int[Tensor, " n"],
    rng: Rng,
    *,
    of: Callable[..., Separability] = separability,
    part: Part = "foreground",
    above: float = 0.1,
) -> Iterator[Separability]:
    """``separability`` of maps that are zero outside the part of their image; NaN where it has fewer than 2 pixels.

    Both maps of an image have the same part, so that where it lies does not tell whose map it is. An image whose
    part has fewer than 2 pixels is not learnt from either.

    Args:
        of: ``separability``, with options of its own.
        part: As in ``on_part``.
        above: As in ``on_part``.
    """
    if _unwrapped(of) is not separability:
        raise SpecError(
            f"separability_on_part.of: expected separability, found {_named(of)}; choose 'on_part' for other measures"
        )
    foreground = (x > above).any(1)

    def fetch(member: int) -> Tensor:
        maps = family[member]
        chosen = _chosen("separability_on_part", foreground, part, maps)
        few, seen = chosen.flatten(1).sum(1) < 2, _spread_over(chosen, maps)
        return maps.where(seen, 0).masked_fill(few.view(-1, *[1] * (maps.ndim - 1)), torch.nan)

    yield from over_family(of, Maps(len(family), fetch), pairs, label=label, groups=groups, rng=rng)


@measure(version=1, better="lower")
@over_pairs
def distribution_on_part(
    family: Sequence[Float[Tensor, "n ..."]],
    pairs: Pairs,
    x: Float[Tensor, "n c h w"],
    *,
    of: Callable[..., Any] = jensen_shannon,
    part: Part = "foreground",
    above: float = 0.1,
) -> Iterator[Distance]:
    """How far apart two models' values in the part lie, by ``of``. NaN where fewer than 2 are left.

    A pixel's values are those of the images that have it in their part; ``value`` is the mean over the pixels that at
    least 2 images have there. ``pooled`` is of the values in all images' parts together. Images of which one of the
    two maps is not finite in the part are left out on both sides. What ``of`` tests besides is left out.

    Args:
        of: ``jensen_shannon``, ``kolmogorov_smirnov``, ``wasserstein`` or ``wilcoxon``.
        part: As in ``on_part``.
        above: As in ``on_part``.
    """
    if _unwrapped(of) not in DISTRIBUTIONS:
        raise SpecError(
            f"distribution_on_part.of: expected a distance of two sets, found {_named(of)}; choose one of "
            f"{', '.join(map(_named, DISTRIBUTIONS))}, or 'on_part' for what has a number for each image"
        )
    if not pairs:
        return
    first = family[pairs[0][0]]
    chosen = _spread_over(_chosen("distribution_on_part", (x > above).any(1), part, first), first).flatten(1)
    finite = [(family[member].flatten(1).isfinite() | ~chosen).all(1) for member in range(len(family))]
    alike: dict[bytes, list[tuple[int, int]]] = {}  # pairs with the same images share their work
    for a, b in pairs:
        alike.setdefault((finite[a] & finite[b]).cpu().numpy().tobytes(), []).append((a, b))
    found: dict[tuple[int, int], Distance] = {}
    for some in alike.values():
        a, b = some[0]
        inside = chosen & (finite[a] & finite[b])[:, None]
        found |= zip(some, _distances(of, family, some, inside), strict=True)
    yield from (found[a, b] for a, b in pairs)


def _distances(
    of: Callable[..., Any], family: Sequence[Tensor], pairs: Pairs, inside: Bool[Tensor, "n d"]
) -> Iterator[Distance]:
    """Of values that are all finite: pixel by pixel and together."""
    counts, total = inside.sum(0), torch.zeros(len(pairs), dtype=torch.float64, device=inside.device)
    for some in slices(len(counts), max(1, BLOCK // max(1, len(inside) * len(family)))):
        twins = [family[member].flatten(1)[:, some].T for member in range(len(family))]
        for count in sorted(set(counts[some].tolist()) - {0, 1}):  # pixels that equally many images have
            here = counts[some] == count
            held = inside[:, some].T[here]
            values = [maps[here][held].view(-1, count).T for maps in twins]
            total += torch.stack([result.value for result in over_family(of, values, pairs)]) * here.sum()
    value = total / (counts >= 2).sum()
    if inside.sum() < 2:
        nothing = torch.full_like(total, torch.nan)
        yield from map(Distance, value, nothing)
        return
    pooled = Maps(len(family), lambda member: family[member].flatten(1)[inside][:, None])
    for mean, result in zip(value, over_family(of, pooled, pairs), strict=True):
        yield Distance(mean, result.pooled)


def _chosen(
    name: str, foreground: Bool[Tensor, "n h w"], part: Part, maps: Float[Tensor, "n ..."]
) -> Bool[Tensor, "n h w"]:
    """The pixels of the part.

    Raises:
        SpecError: The maps are not as large as the images.
    """
    if (len(maps), *maps.shape[-2:]) != foreground.shape:
        raise SpecError(
            f"{name}: expected maps of the {len(foreground)} images, as large as they are, "
            f"{list(foreground.shape[1:])}, found {list(maps.shape)}; compare maps that are not pooled, of the same "
            "examples"
        )
    return foreground if part == "foreground" else ~foreground


def _spread_over(chosen: Bool[Tensor, "n h w"], maps: Float[Tensor, "n ..."]) -> Bool[Tensor, "n ..."]:
    """The same pixels in all channels."""
    return chosen.view(len(chosen), *[1] * (maps.ndim - 3), *chosen.shape[1:]).expand_as(maps)


def _on(
    name: str, family: Sequence[Tensor], pairs: Pairs, foreground: Bool[Tensor, "n h w"], of: Paired, part: Part
) -> Iterator[Float[Tensor, " n"]]:
    if reason := refused(of):
        raise SpecError(f"{name}.of: {reason}")
    first = family[0]
    chosen = _chosen(name, foreground, part, first)
    sizes, numbers = chosen.flatten(1).sum(1), first[:1].numel()
    values = torch.full((len(pairs), len(chosen)), torch.nan, dtype=torch.float64, device=chosen.device)
    for rows in slices(len(chosen), max(1, BLOCK // max(1, numbers * len(family)))):
        twins = [family[member][rows] for member in range(len(family))]
        if _unwrapped(of) in WITHIN:
            for value, result in zip(values, _within(of, twins, pairs, chosen[rows]), strict=True):
                value[rows] = result
            continue
        twins = [maps.flatten(-2) for maps in twins]
        for size in sorted(set(sizes[rows].tolist())):  # images with equally many pixels are measured together
            if size < 2:
                continue
            here = (sizes[rows] == size).nonzero()[:, 0]
            found = over_family(of, [_gathered(maps[here], chosen[rows][here]) for maps in twins], pairs)
            for value, result in zip(values, found, strict=True):
                value[rows.start + here] = _checked(name, of, result, len(here))
    yield from values


def _within(
    of: Paired, family: Sequence[Tensor], pairs: Pairs, chosen: Bool[Tensor, "m h w"]
) -> Iterator[Float[Tensor, " m"]]:
    """A measure that looks at the chosen pixels where they are."""
    yield from WITHIN[_unwrapped(of)](
        family, pairs, chosen, **(of.keywords if isinstance(of, functools.partial) else {})
    )


def _gathered(maps: Float[Tensor, "m ... d"], chosen: Bool[Tensor, "m h w"]) -> Float[Tensor, "m e"]:
    """The chosen pixels alone, equally many of each map, in all channels."""
    picked = chosen.flatten(1).view(len(maps), *[1] * (maps.ndim - 2), -1).expand_as(maps)
    return maps[picked].view(len(maps), -1)


def refused(of: Choice | Component | Paired) -> str | None:
    """Why a measure cannot be taken on a part of each image: what was expected and found, and what to do.

    Args:
        of: What is chosen as ``of`` of ``on_part`` or ``on_mask``.

    Returns:
        None where it can be taken.
    """
    component = of.component if isinstance(of, Choice) else of
    function = component.function if isinstance(component, Component) else component
    parameters = inspect.signature(function).parameters
    asked = [role for role, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if asked != ["maps", "other"]:
        return (
            f"expected a measure of two maps of an image, found {_named(function)}, which asks for {asked}; "
            f"choose {_instead(function)}"
        )
    if not _each_image(inspect.signature(function).return_annotation):
        return f"expected a measure with a number for each image, found {_named(function)}; choose {_instead(function)}"
    in_plane = {"h", "w"} & set(getattr(parameters["maps"].annotation, "dim_str", "").split())
    if in_plane and _unwrapped(function) not in WITHIN:
        return (
            f"expected a measure that takes pixels in any arrangement, found {_named(function)}, which needs "
            "the plane; choose one such as 'spearman'"
        )
    return None


def _instead(of: Paired) -> str:
    """What does for this measure what a part of each image alone cannot."""
    if _unwrapped(of) is separability:
        return "'separability_on_part'"
    return "'distribution_on_part'" if _unwrapped(of) in DISTRIBUTIONS else "one such as 'cosine'"


def _each_image(returned: object) -> bool:
    """Whether a result of this type is a number for each image; it may be where nothing is said."""
    return not hasattr(returned, "_fields") and getattr(returned, "dim_str", "n").strip() == "n"


def _checked(name: str, of: Paired, result: object, count: int) -> Tensor:
    """What no signature told."""
    if not isinstance(result, Tensor) or result.shape != (count,):
        raise SpecError(
            f"{name}.of: expected a measure with a number for each image, found {_named(of)}; "
            "choose one such as 'cosine'"
        )
    return result.double()


def _unwrapped(of: Callable[..., Any]) -> Callable[..., Any]:
    return of.func if isinstance(of, functools.partial) else of


def _named(of: Callable[..., Any]) -> str:
    return str(getattr(_unwrapped(of), "__name__", of))
