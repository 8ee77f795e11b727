"""Peak memory of measuring a family: with four times the twins, or four times the images, it stays.

But ``separability`` learns from all maps of a class of two twins at once, so what is beyond its portions grows with
the images of one class: shown for one large class, beside what its docstring says of it.

``python -m benchmarks.memory``; with ``--strict`` a missed goal is an exit code.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from benchmarks.side_by_side import Line, Peak, peak_in_process, peak_of, show
from consilience import component
from consilience.data.examples import Arrays
from consilience.experiment.desk import Desk, Place
from consilience.experiment.files import RowWriter
from consilience.experiment.specs import Data, Explain, Given, Measure, Prepared, Subject, comparison, explanation
from consilience.experiment.store import Store
from consilience.experiment.values import measured

SIZES = {
    "n": (10, 1000, 10),
    "4 times the twins": (40, 1000, 10),
    "4 times the images, of more classes": (10, 4000, 40),
    "4 times the images of each class": (10, 4000, 10),
}
LARGE = {"2000 images": (2, 2000, 1), "8000 images": (2, 8000, 1)}
EACH = 2 * 28 * 28 * 15 / 1024  # KiB of an image's two maps, as the docstring of ``separability`` says
MEASURES = ("cosine", "spearman", "ssim", "top_k_agreement", "wrong_image", "separability")
GOAL = 1.1


def digits(images: int, classes: int) -> Arrays:
    """Blank images; only their number and labels matter here."""
    names, label = tuple(map(str, range(classes))), torch.arange(images) % classes
    return Arrays(torch.zeros(images, 1, 28, 28, dtype=torch.uint8), label, names, (0.0,), (1.0,))


def explained(store: Store, twin: int, examples: Arrays) -> Explain:
    """A twin's maps in the store: noise, since nothing here depends on what they show."""
    given = Given(weights=str(twin), module="", answers="")
    method = component.attribution.choose("gradient")
    spec = explanation(Subject(source=given), method, Data(fingerprint=examples.fingerprint), 0)
    chance = torch.Generator().manual_seed(twin)
    with store.draft([spec]) as draft, RowWriter(
        Path(str(draft)) / spec.stage / spec.digest / "data.safetensors", "maps", len(examples)
    ) as writer:  # fmt: skip
        for _ in range(0, len(examples), 500):
            writer.append(torch.randn(500, 1, 28, 28, generator=chance))
    return spec


def peak(name: str, twins: int, images: int, classes: int) -> Peak:
    """Memory that measuring each twin with the next needs, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        store, examples = Store(folder), digits(images, classes)
        maps = [explained(store, twin, examples) for twin in range(twins)]
        desk = Desk(store, Place(handed={examples.fingerprint: examples}))
        options = {"permutations": 3} if name == "separability" else {}
        measure = component.measure.choose({"use": name, **options})
        group: list[Measure] = [comparison(Prepared(measure=measure), a, b) for a, b in itertools.pairwise(maps)]
        return peak_of(lambda: sum(1 for _ in measured(group, desk)))


def large_class() -> int:
    """What one more image costs where its class is larger than all portions."""
    small, large = (peak_in_process("benchmarks.memory", "--peak", "separability", *size) for size in LARGE.values())
    (_, few, _), (_, many, _) = LARGE.values()
    each = (large.process - small.process) * 1024 / (many - few)
    lines = [
        *(Line(title, one.growth, unit="MiB") for title, one in zip(LARGE, (small, large), strict=True)),
        Line("each more image", each, GOAL * EACH, "KiB"),
    ]
    return show("separability: of the peak by measuring, one class of 2 twins", lines)


def main(arguments: list[str] | None = None) -> int:
    """Print everything; 1 where ``--strict`` and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--peak", nargs=4, metavar=("MEASURE", "TWINS", "IMAGES", "CLASSES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.peak:
        name, *size = chosen.peak
        print(*peak(name, *map(int, size)))
        return 0
    missed = 0
    for name in MEASURES:
        peaks = {title: peak_in_process("benchmarks.memory", "--peak", name, *size) for title, size in SIZES.items()}
        first, *others = peaks
        lines = [Line(first, peaks[first].process, unit="MiB")]
        lines += [Line(f"{title} to n", peaks[title].process / peaks[first].process, GOAL) for title in others]
        lines += [Line(f"{title}: of it by measuring", peaks[title].growth, unit="MiB") for title in peaks]
        missed += show(
            f"{name}: peak memory of the process, n = {SIZES[first][0]} twins, {SIZES[first][1]} images", lines
        )
    missed += large_class()
    print(f"\n{missed} goals missed")
    return int(chosen.strict and missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
