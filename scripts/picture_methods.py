"""Draw every method on five photos of a trained SqueezeNet: the picture of the guide.

``python scripts/picture_methods.py --from DIR --out docs/guide/methods.jpg`` reads
DIR/weights/squeezenet1_1.safetensors and DIR/imagenet20. What repeats itself (masks, iterations, samples) is repeated
less often than by default; the picture says how often. Methods that need patterns or an ensemble are left out: there
are none of this network.
"""

import argparse
import functools
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from consilience.component import attribution
from consilience.models.split import normalised
from consilience.models.squeezenet import squeezenet1_1
from consilience.rng import Rng

PHOTOS, SIDE = (1, 4, 7, 10, 16), 227
SQUARE, NAMES = 1.28, 1.75  # inches: of a map, and of the names beside them
MEAN, SD = [part / 255 for part in (123.68, 116.779, 103.939)], [1 / 255] * 3
GROUPS = {
    "slopes": ["gradient", "gradient_x_input", "smooth_grad", "square_grad", "var_grad"],
    "paths": ["integrated_gradients", "adaptive_integrated_gradients", "integrated_gradients_over_background",
              "expected_gradients", "gradient_shap"],
    "rules": ["guided_backprop", "deconvolution", "excitation_backprop", "contrastive_excitation_backprop", "lrp"],
    "layers": ["grad_cam", "element_grad_cam", "guided_grad_cam"],
    "Shapley values": ["deep_lift", "deep_lift_shap", "kernel_shap"],
    "perturbations": ["occlusion", "rise", "extremal_perturbation"],
    "controls": ["random_map", "input_map", "edge_map", "uniform_map", "center_map", "input_x_random"],
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "smooth_grad": {"samples": 25}, "square_grad": {"samples": 25}, "var_grad": {"samples": 25},
    "integrated_gradients_over_background": {"steps": 16},
    "kernel_shap": {"region": 16, "samples": 2000}, "occlusion": {"window": 32, "stride": 8},
    "rise": {"masks": 1500}, "extremal_perturbation": {"areas": (0.1,), "iterations": 250},
}  # fmt: skip
FROM_LEAST = ("rise",)
LEFT_OUT = {"mean_over_models", "pattern_net", "pattern_attribution", "pattern_guided_integrated_gradients"}


def trained(source: Path) -> nn.Module:
    """The network behind the mean and the deviation that its weights expect."""
    model = squeezenet1_1((3, SIDE, SIDE), 1000, pooling="floor")
    model.load_state_dict(load_file(source / "weights" / "squeezenet1_1.safetensors"))
    return normalised(model, MEAN, SD).eval().requires_grad_(False)


def photos(source: Path, numbers: Sequence[int]) -> Tensor:
    """Photos in pixels."""
    paths = [source / "imagenet20" / "val" / f"photo_{number:02}.JPEG" for number in numbers]
    small = [
        np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for path in paths
    ]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255


def maps_of(name: str, model: nn.Module, x: Tensor, target: Tensor, background: Tensor) -> Tensor:
    """One method's maps, channels summed."""
    method: Callable[..., Tensor] = functools.partial(attribution.get(name).function, **OPTIONS.get(name, {}))
    flows = {"rng": Rng(0, PHOTOS), "background": background}
    asked = inspect.signature(method).parameters
    begun = time.monotonic()
    maps = method(model, x, target, **{role: flow for role, flow in flows.items() if role in asked})
    print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    return maps.detach().sum(1)


def draw(x: Tensor, rows: dict[str, Tensor], out: Path) -> None:
    """A column a photo, a row a method; each map on its own scale, zero white."""
    names = [name for group in GROUPS.values() for name in group]
    figure, axes = plt.subplots(
        len(names) + 1, len(x), figsize=(SQUARE * len(x) + NAMES, SQUARE * (len(names) + 1)), squeeze=False,
        gridspec_kw={"wspace": 0.03, "hspace": 0.03, "left": NAMES / (SQUARE * len(x) + NAMES), "right": 0.995,
                     "top": 0.998, "bottom": 0.012},
    )  # fmt: skip
    for column, image in enumerate(x):
        axes[0, column].imshow(image.permute(1, 2, 0).numpy())
    for row, name in enumerate(names, start=1):
        for column, one in enumerate(rows[name]):
            one = one - one.min() if name in FROM_LEAST else one  # scores of seen pixels, all of them high
            span = float(torch.quantile(one.abs().flatten(), 0.995)) or float(one.abs().max()) or 1.0
            axes[row, column].imshow(one.numpy(), cmap="RdBu_r", vmin=-span, vmax=span, interpolation="nearest")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(linewidth=0.4, color="#999")
    for row, name in enumerate(["photo", *names]):
        options = ", ".join(f"{key}={value}" for key, value in OPTIONS.get(name, {}).items())
        options += ",\nfrom its least value" if name in FROM_LEAST else ""
        label = name.replace("_", " ").replace(" over", "\nover") + (f"\n{options}" if options else "")
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7, labelpad=6)
    legend = "red speaks for the class that the network answers, blue against it; each map on its own scale"
    figure.text(0.5, 0.003, legend, ha="center", fontsize=7)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 78, "optimize": True})


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="folder with weights/ and imagenet20/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder for maps that are there already")
    chosen = parser.parse_args(arguments)
    there = {name for name in attribution.names() if not name.startswith("published_")} - LEFT_OUT
    if missing := there ^ {name for group in GROUPS.values() for name in group}:
        raise SystemExit(f"expected a place for every method, found none or too many for {sorted(missing)}")
    torch.set_num_threads(1)  # on a shared machine two wait for each other
    model, x = trained(chosen.source), photos(chosen.source, PHOTOS)
    background = photos(chosen.source, [number for number in range(20) if number not in PHOTOS][:8])
    with torch.no_grad():
        target = model(x).argmax(1)
    rows = {}
    for name in sorted(there):
        kept = chosen.cache / f"{name}.pt" if chosen.cache else None
        if kept and kept.is_file():
            rows[name] = torch.load(kept, weights_only=True)
            continue
        rows[name] = maps_of(name, model, x, target, background)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(rows[name], kept)
    draw(x, rows, chosen.out)


if __name__ == "__main__":
    main()
