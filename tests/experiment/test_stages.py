"""Explaining a set in batches: an interrupted file goes on, and what is of no use is not kept."""

import pytest
import torch

from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.component import dataset
from consilience.errors import ModelError
from consilience.experiment.desk import Place, labels, load_examples
from consilience.experiment.files import read_tensors
from consilience.experiment.stages import write_maps
from consilience.models.mlp import linear

COUNT = 300  # more than a batch


@pytest.fixture
def explain(tmp_path):
    """Explains into a file of that name; stops after so many batches."""
    examples = load_examples(dataset.choose({"use": "subset", "count": COUNT}), Place())
    model = linear(examples.shape, 10)

    def explain(name, method, batches=None):
        path = tmp_path / name
        shares = write_maps(path, method, model, examples, labels(examples), 0)
        for done, share in enumerate(shares, 1):
            assert 0 < share <= 1
            if done == batches:
                shares.close()
        return path

    return explain


@pytest.mark.parametrize("method", [gradient, random_map])
def test_an_interrupted_file_goes_on_and_ends_with_the_same_bytes(explain, method):
    whole = explain("whole", method)
    cut = explain("cut", method, batches=1)
    assert 0 < cut.stat().st_size < whole.stat().st_size
    assert explain("cut", method).read_bytes() == whole.read_bytes()
    assert len(read_tensors(whole)["maps"]) == COUNT


def test_maps_that_are_all_undefined_are_refused_also_when_they_were_interrupted(explain):
    def undefined(model, x, target):
        return torch.full_like(x, torch.nan)

    path = explain("maps", undefined, batches=1)
    with pytest.raises(ModelError, match=f"found none in {COUNT} examples"):
        explain("maps", undefined)
    assert not path.exists()


def test_an_interrupted_file_with_maps_is_kept_though_the_rest_is_undefined(explain):
    def first(model, x, target):
        return torch.full_like(x, 1.0 if len(x) == 256 else torch.nan)

    explain("maps", first, batches=1)
    maps = read_tensors(explain("maps", first))["maps"]
    assert maps[:256].eq(1).all()
    assert maps[256:].isnan().all()


def test_maps_that_are_infinite_somewhere_are_undefined_as_a_whole(explain):
    def infinite(model, x, target):
        maps = x.clone()
        maps[0, 0, 0, 0] = -torch.inf
        return maps

    maps = read_tensors(explain("maps", infinite))["maps"]
    assert maps.isnan().flatten(1).all(1).nonzero().flatten().tolist() == [0, 256]
    assert maps.isnan().flatten(1).any(1).sum() == 2
