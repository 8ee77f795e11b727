"""What stands around a network: the seam between its maps and its decision, and the mean in front of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from consilience.errors import ModelError, SpecError


class SplitModel(nn.Module):
    """Layers in a row with a seam: before it what has a plane, after it what decides.

    The layers are children of the model itself under their own names, so that a state dict says
    ``conv1.weight`` on whichever side of the seam the layer is.
    """

    split = True

    def __init__(self, features: Mapping[str, nn.Module], head: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._before, self._after = tuple(features), tuple(head)
        for name, layer in (*features.items(), *head.items()):
            self.add_module(name, layer)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The last maps that have a plane."""
        for name in self._before:
            x = getattr(self, name)(x)
        return x

    def head(self, features: Float[Tensor, "n d i j"]) -> Float[Tensor, "n k"]:
        """Logits of those maps."""
        for name in self._after:
            features = getattr(self, name)(features)
        return features

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.head(self.features(x))


def normalised(model: nn.Module, mean: Sequence[float], sd: Sequence[float]) -> "Normalised":
    """The model, taking pixels: ``(x - mean) / sd`` stands in front of it, a number for each channel.

    The state dict keeps the model's own keys. What the model offers besides, the result offers for
    pixels as well: ``features`` and ``head`` of a split model, ``members`` of an ensemble.

    Raises:
        SpecError: Other many means than deviations, or a deviation that is not positive.
    """
    if len(mean) != len(sd) or not mean or not all(map(math.isfinite, mean)):
        raise SpecError(
            f"normalised: expected a finite mean and a deviation for each channel, found mean {tuple(mean)} and sd "
            f"{tuple(sd)}; give one number a channel in both"
        )
    if not all(0 < value < math.inf for value in sd):
        raise SpecError(
            f"normalised: expected deviations above 0, found sd {tuple(sd)}; take 1 for a channel that never changes"
        )
    return _behind(model, *(torch.tensor(each, dtype=torch.float32)[None, :, None, None] for each in (mean, sd)))


class Normalised(nn.Module):
    """A model behind the mean and the deviation of its data; made by ``normalised``."""

    pixel_mean: Tensor
    pixel_sd: Tensor

    def __init__(self, model: nn.Module, mean: Float[Tensor, "1 c 1 1"], sd: Float[Tensor, "1 c 1 1"]) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_sd", sd, persistent=False)
        self.register_state_dict_post_hook(_without_wrapper)
        self.register_load_state_dict_pre_hook(_with_wrapper)
        self.training = model.training

    def normalise(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels as the model inside expects them.

        Raises:
            ModelError: The images have other many channels than the mean.
        """
        if x.shape[1] != self.pixel_mean.shape[1]:  # broadcasting would hide it
            raise ModelError(
                f"x: expected images with {self.pixel_mean.shape[1]} channels, as many as the model's mean has, "
                f"found {list(x.shape)}; give those images, or a mean and sd for these"
            )
        return (x - self.pixel_mean) / self.pixel_sd

    def forward(self, x: Float[Tensor, "n c h w"]) -> Any:
        """What the model inside answers, logits as a rule."""
        return self.model(self.normalise(x))


class NormalisedSplit(Normalised):
    """A split model behind mean and deviation; its features take pixels."""

    split = True

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """The last maps that have a plane."""
        maps: Tensor = self.model.features(self.normalise(x))
        return maps

    def head(self, features: Float[Tensor, "n d i j"]) -> Float[Tensor, "n k"]:
        """Logits of those maps."""
        logits: Tensor = self.model.head(features)
        return logits


class NormalisedEnsemble(Normalised):
    """An ensemble behind mean and deviation; its members take pixels, and hold the ensemble's own weights."""

    @property
    def members(self) -> nn.ModuleList:
        """Each member behind the same mean and deviation."""
        return nn.ModuleList([_behind(member, self.pixel_mean, self.pixel_sd) for member in self.model.members])

    @property
    def shares(self) -> tuple[float, ...]:
        """What each member counts in the ensemble; alike where it does not say."""
        members = len(self.model.members)
        return tuple(getattr(self.model, "shares", (1 / members,) * members))


def _behind(model: nn.Module, mean: Float[Tensor, "1 c 1 1"], sd: Float[Tensor, "1 c 1 1"]) -> Normalised:
    if getattr(model, "split", False):
        return NormalisedSplit(model, mean, sd)
    if isinstance(getattr(model, "members", None), nn.ModuleList):
        return NormalisedEnsemble(model, mean, sd)
    return Normalised(model, mean, sd)


def _without_wrapper(module: nn.Module, weights: dict[str, Any], prefix: str, _: object) -> None:
    """``model.conv1.weight`` becomes ``conv1.weight``, and so do the names under which versions are kept."""
    inside = f"{prefix}model."
    for name in [name for name in weights if name.startswith(inside)]:
        weights[prefix + name.removeprefix(inside)] = weights.pop(name)
    versions = getattr(weights, "_metadata", {})
    for name in [name for name in versions if f"{name}.".startswith(inside)]:
        versions[(prefix + f"{name}.".removeprefix(inside)).rstrip(".")] = versions.pop(name)


def _with_wrapper(module: nn.Module, weights: dict[str, Any], prefix: str, *_: object) -> None:
    """The way back, before the weights are loaded."""
    for name in [name for name in weights if name.startswith(prefix)]:
        weights[f"{prefix}model.{name.removeprefix(prefix)}"] = weights.pop(name)
