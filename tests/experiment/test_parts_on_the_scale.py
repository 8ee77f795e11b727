"""Agreement on a part of the image, and distances, on the scale of an experiment: planted truth through the engine."""

import zlib

import pytest
import torch

from consilience.component import KINDS, attribution, dataset, measure
from consilience.data.examples import Arrays
from consilience.experiment.config import load
from consilience.experiment.run import run
from consilience.experiment.specs import Summary
from consilience.experiment.store import Store

EXPERIMENT = """
name = "Twins that agree about the squares alone"
explain = ["agreed"]
compare = [
  "cosine",
  "l2",
  "on_part",
  { use = "on_part", part = "background" },
  { use = "on_part", of = "l2" },
  { use = "on_part", of = "l2", part = "background" },
  "on_mask",
  { use = "on_mask", part = "background", of = "spearman" },
  "wrong_image",
  "wasserstein",
]
summarise = [{ use = "calibrated_similarity", draws = 100 }]

[train]
data = "squares"
model = { use = "mlp", hidden = [4] }
epochs = 1

[examples]
data = "squares"

[[family]]
type = "retrain"
values = { init = [0, 1] }
"""


class Squares(Arrays):
    """Bright squares on dark ground, with their masks."""

    def __init__(self, count, side):
        chance = torch.Generator().manual_seed(0)
        self.masks = torch.zeros(count, side, side, dtype=torch.bool)
        corners = torch.randint(0, side // 2, (count, 2), generator=chance).tolist()
        for mask, (top, left) in zip(self.masks, corners, strict=True):
            mask[top : top + side // 2, left : left + side // 2] = True
        noise = torch.rand(count, 1, side, side, generator=chance)
        images = torch.where(self.masks[:, None], 0.5 + noise / 2, noise / 20)
        super().__init__(images, torch.arange(count) % 2, ("even", "odd"), (0.2,), (0.3,))

    def batch(self, ids):
        return super().batch(ids)._replace(mask=self.masks[torch.as_tensor(ids)])


def squares():
    """Bright squares on dark ground, with their masks."""
    return Squares(60, 10)


def agreed(model, x, target):
    """Maps on which all models agree where the image is bright, and no two where it is dark."""

    def drawn(of):
        return torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(zlib.crc32(of.numpy().tobytes())))

    own = drawn(next(model.parameters()).detach())
    return torch.stack([torch.where(one > 0.1, drawn(one), drawn(one + own)) for one in x])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The experiment, and a store that holds all of it."""
    folder = tmp_path_factory.mktemp("squares")
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS.values():
            kind.names()
            patch.setattr(kind, "_found", dict(kind._found))
        dataset(version=1)(squares)
        attribution(version=1)(agreed)
        (folder / "squares.toml").write_text(EXPERIMENT)
        experiment, store = load(folder / "squares.toml"), Store(folder / "store")
        outcome = run(experiment, store)
        assert not outcome.failures, outcome.failures[0].trace
        yield experiment, store


def summaries(made):
    experiment, store = made
    return {
        goal.label: (goal.spec, store.table(goal.spec)[0])
        for goal in experiment.goals()
        if isinstance(goal.spec, Summary) and goal.family == "twins"
    }


def test_twins_agree_on_the_scale_where_the_images_are_bright_and_not_where_they_are_dark(made):
    places = {label: row["estimate"] for label, (_, row) in summaries(made).items()}
    whole = {label: places.pop(label) for label in ("cosine", "l2")}
    assert places == {
        "on_part": pytest.approx(1),
        "on_part(part=background)": pytest.approx(0, abs=0.05),
        "on_part(of=l2)": pytest.approx(1),
        "on_part(of=l2, part=background)": pytest.approx(0, abs=0.05),
        "on_mask": pytest.approx(1),
        "on_mask(of=spearman, part=background)": pytest.approx(0, abs=0.05),
    }
    assert all(0.05 < place < 0.6 for place in whole.values())


def test_the_baseline_is_of_the_first_image_s_part(made):
    _, store = made
    spec, _ = summaries(made)["on_mask(of=spearman, part=background)"]
    (entry,) = spec.wrong_image
    assert entry.measure.measure.label == "wrong_image(of=on_mask(of=spearman, part=background))"
    data = squares()
    one, two = (store.tensors(side)["maps"][:, 0] for side in (entry.measure.of, entry.measure.other))
    found = store.tensors(entry.measure)["value"]
    rank = measure.get("spearman").function
    for i in (0, 7, 58, 59):
        around, other = ~data.masks[i], (i + 2) % 60
        expected = rank(one[i][around][None], two[other][around][None])
        assert float(found[i]) == pytest.approx(float(expected))


def test_a_baseline_and_a_measure_of_sets_have_no_place_on_the_scale(made):
    experiment, _ = made
    compared = {how.label for how in experiment.compare}
    assert compared - summaries(made).keys() == {"wrong_image", "wasserstein"}
