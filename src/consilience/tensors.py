"""The types that flow between the rooms, and what several rooms do with tensors."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec
import torch
from torch import Tensor, nn

from consilience.errors import ModelError, SpecError, unknown

Attribution = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""``(model, x [n, c, h, w], target [n]) -> maps [n, c, h, w]``."""

Backward = Callable[[nn.Module], AbstractContextManager[Any]]
"""``(model) -> a context``: inside it the model runs as ever, and signal flows back by a rule."""

Score = Callable[[Tensor, Tensor], Tensor]
"""``(logits [n, k], target [n]) -> [n]``: what is explained."""

Paired = Callable[..., Tensor]
"""``(maps, other) -> [n]``: how alike two sets of maps of the same examples are."""

Channels = Literal["sum", "sum_abs", "max_abs", "keep"]
"""How the channels of a map are joined before it is measured."""

Normalisation = Literal["none", "l2", "l1", "rank", "sign"]
"""How a map is scaled before it is measured: not at all; to a length or a sum of absolute values of one; each value
replaced by its mean rank, as a share of the map's values in (0, 1]; or by its sign."""


class Blurred(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The image itself, blurred; in a file ``{blur = 4.0}``."""

    blur: Annotated[float, msgspec.Meta(gt=0)]
    """Deviation of the Gaussian in pixels. Beyond the edge, the edge goes on."""


Baseline = float | Literal["mean"] | tuple[float, ...] | Blurred
"""A value for every pixel, ``"mean"`` (the mean pixel of the data, which the model holds), a value of each channel, or
the image itself, blurred."""


class Table(NamedTuple):
    """Values of a family: a row for each pair of its members, a column for each example. NaN is undefined."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    differs: tuple[tuple[str, ...], ...]
    """In what the two members of a pair differ."""
    example: Tensor
    label: Tensor
    value: Tensor


class Row(NamedTuple):
    """One line of a summary. NaN is undefined; an interval is at the level that the summary states."""

    name: str
    pairs: int
    n: int
    undefined: int
    estimate: float
    low: float
    high: float
    p: float = float("nan")
    null: float = float("nan")
    """What the estimate would be if the models' maps were exchangeable."""


class Patterns(NamedTuple):
    """What the data puts into each filter: a pattern of every affine call of one forward pass, in their order.

    A call is known by its place, its function and its weight's shape, not by its weight, which it may share.
    """

    functions: tuple[str, ...]
    """Of each call: ``conv2d``, ``linear``."""
    values: tuple[Tensor, ...]
    """Of each call, as large as its weight."""
    labels: tuple[str, ...]
    """What a person would call it; for messages."""

    def to(self, like: Tensor) -> "Patterns":
        """The same patterns, in the type and on the device of a tensor."""
        return self._replace(values=tuple(value.to(like) for value in self.values))


class Coverage(NamedTuple):
    """What an edit did to a model's parameters and buffers, by their names in the state dict."""

    changed: tuple[str, ...]
    kept: tuple[str, ...]


CHUNK_BYTES = 32 * 2**20  # of saved activations; larger chunks leave the processor's cache and page
CHUNK_ROWS = 1024  # examples; nothing is gained by more, however small the model
FEW_ROWS, FEW_ROWS_BYTES = 8, 256 * 2**20  # where no example fits a cache, a few at once share what a layer costs
GPU_SHARE = 4  # of the free memory of a graphics card, a quarter


@runtime_checkable
class Split(Protocol):
    """A convolutional model in two parts, so that what lies between can be differentiated without hooks."""

    split: bool

    def features(self, x: Tensor) -> Tensor:
        """The last maps that have a plane, ``[n, c, h, w]``."""

    def head(self, features: Tensor) -> Tensor:
        """Logits ``[n, k]`` of those maps."""


@runtime_checkable
class Ensemble(Protocol):
    """A model that is a mean of others."""

    members: nn.ModuleList


def join_channels(maps: Tensor, channels: Channels) -> Tensor:
    """Maps ``[n, c, h, w]`` as ``[n, h, w]``, or untouched for ``keep``."""
    if channels == "keep":
        return maps
    if channels == "sum":
        return maps.sum(1)
    if channels == "sum_abs":
        return maps.abs().sum(1)
    return maps.abs().amax(1)


def prepare(maps: Tensor, channels: Channels, normalise: Normalisation, pool: int | None) -> Tensor:
    """Maps ``[n, c, h, w]`` as a measure gets them: channels joined, then scaled, then averaged to a grid."""
    joined = normalised_maps(join_channels(maps, channels), normalise)
    if pool is not None:
        joined = torch.nn.functional.adaptive_avg_pool2d(joined, pool)
    return joined


def normalised_maps(maps: Tensor, normalise: Normalisation) -> Tensor:
    """Each map ``[n, ...]`` scaled by itself. A map of zeros has no direction: NaN for ``l2`` and ``l1``."""
    if normalise == "none":
        return maps
    flat = maps.flatten(1).contiguous()
    if normalise in ("l2", "l1"):
        length: Tensor = torch.linalg.vector_norm(flat, 2 if normalise == "l2" else 1, dim=1, keepdim=True)
        return (flat / length).view_as(maps)
    if normalise == "sign":
        scaled = flat.sign()
    else:
        ordered = flat.sort(1).values  # equal values share the middle of the ranks that they take up
        ends = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
        scaled = ((ends[0] + ends[1] + 1) / (2 * flat.shape[1])).to(maps.dtype)
    return scaled.masked_fill(flat.isnan().any(1, keepdim=True), torch.nan).view_as(maps)


def start_of(x: Tensor, baseline: Baseline, model: nn.Module) -> Tensor:
    """The image of one baseline for every example, shaped as ``x``; where it is one for all, a view of it.

    Raises:
        SpecError: There is no such baseline, or it has another number of channels.
        ModelError: ``"mean"`` was asked for and the model holds no mean pixel.
    """
    if isinstance(baseline, Blurred):
        return blurred(x, baseline.blur)
    if isinstance(baseline, str):
        return _mean_pixel(baseline, model).to(x).expand_as(x)
    if isinstance(baseline, Sequence):
        if len(baseline) != x.shape[1]:
            raise SpecError(
                f"baseline: expected a value of each of the {x.shape[1]} channels, found {len(baseline)}: "
                f"{list(baseline)}; give as many, or one number for all"
            )
        return torch.tensor(baseline, dtype=torch.float64).to(x).view(1, -1, 1, 1).expand_as(x)
    return torch.tensor(baseline, dtype=torch.float64).to(x).expand_as(x)


def _mean_pixel(baseline: str, model: nn.Module) -> Tensor:
    if baseline != "mean":
        raise SpecError(unknown("baseline", baseline, ["mean"]))
    mean = getattr(model, "pixel_mean", None)
    if not isinstance(mean, Tensor):
        raise ModelError(
            "baseline 'mean': expected a model that holds its data's mean pixel, "
            f"found {type(model).__name__}; wrap it with normalised(model, mean, sd) or give a number"
        )
    return mean


def blurred(x: Tensor, deviation: float) -> Tensor:
    """Images ``[n, c, h, w]`` blurred by a Gaussian, cut off at four deviations; beyond the edge, the edge goes on.

    Raises:
        SpecError: The deviation is not above zero.
    """
    if not deviation > 0:
        raise SpecError(f"blur: expected a deviation above 0 pixels, found {deviation}; 4 hides most detail of digits")
    down, right = (_blur_of(length, deviation).to(x) for length in x.shape[2:])
    return down @ x @ right.T


def _blur_of(length: int, deviation: float) -> Tensor:
    """The blur of a line of pixels, as a matrix."""
    reach = int(4 * deviation + 0.5)
    away = torch.arange(-reach, reach + 1)
    taps = torch.exp(-0.5 * (away.double() / deviation) ** 2)
    places = (torch.arange(length)[:, None] + away).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (taps / taps.sum()).expand(length, -1))


def check_batch(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Refuse what no method can explain.

    Raises:
        SpecError: ``x`` is not a batch of float images, or ``target`` is not one class an image.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise SpecError(
            f"x: expected float images [n, c, h, w], found {x.dtype} {list(x.shape)}; "
            "add the missing axes or convert it"
        )
    if target.shape != x.shape[:1] or target.is_floating_point() or target.dtype == torch.bool:
        raise SpecError(
            f"target: expected {len(x)} class numbers, found {target.dtype} {list(target.shape)}; "
            "give one integer an image"
        )


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of activations that one backward pass through ``model(x)`` keeps."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    own = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        model(x.detach().requires_grad_())
    return sum(size for pointer, size in kept.items() if pointer not in own)


def rows_per_chunk(model: nn.Module, x: Tensor) -> int:
    """How many examples one forward and backward pass takes within the memory budget: 1 to ``CHUNK_ROWS``."""
    return 1 if len(x) == 0 else rows_of(saved_bytes(model, x[:1]), x)


def rows_of(each: int, x: Tensor) -> int:
    """How many examples, of so many bytes each, fit into the memory budget of the device of ``x``."""
    each = max(1, each)
    if x.is_cuda:
        rows = int(torch.cuda.mem_get_info(x.device)[0]) // GPU_SHARE // each
    else:
        rows = max(CHUNK_BYTES // each, min(FEW_ROWS, FEW_ROWS_BYTES // each))
    return max(1, min(CHUNK_ROWS, rows))


def in_halves(function: Callable[[slice], Tensor], rows: int) -> Tensor:
    """``function`` of all rows, or, where the device's memory does not take them, of each half, and so on."""
    waiting, done = [slice(0, rows)], []
    while waiting:
        some = waiting.pop()
        try:
            done.append(function(some))
        except torch.OutOfMemoryError:
            if some.stop - some.start < 2:
                raise
            middle = (some.start + some.stop) // 2
            waiting += [slice(middle, some.stop), slice(some.start, middle)]
    return torch.cat(done) if len(done) > 1 else done[0]


def slices(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(total)``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
