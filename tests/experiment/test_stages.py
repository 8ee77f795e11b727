"""Explaining a set in batches: an interrupted file goes on, and what is of no use is not kept."""

import pytest
import torch

from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.component import attribution, dataset
from consilience.data.views import subset
from consilience.errors import ModelError
from consilience.experiment import stages
from consilience.experiment.desk import Place, labels, load_examples
from consilience.experiment.files import read_tensors, write_tensors
from consilience.experiment.specs import Data, Explain, Given, Spread, Subject, groups, plan
from consilience.experiment.stages import make, write_maps
from consilience.experiment.store import Store
from consilience.measures.spread import spread
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


@pytest.fixture
def spread_out(tmp_path, monkeypatch):
    """Makes the spread of four models' maps of thirty images, so many bytes of a model's maps at a time."""
    data = Data(choice=dataset.choose({"use": "subset", "count": 30}), fingerprint=subset(count=30).fingerprint)
    method = attribution.choose("gradient")
    given = [Given(weights=str(index), module="", answers="") for index in range(4)]
    spec = Spread(of=tuple(Explain(subject=Subject(source=one), method=method, data=data) for one in given))
    maps = torch.randn(4, 30, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    maps[1, 3] = torch.nan

    def spread_out(size, interrupted=False):
        store = Store(tmp_path / f"store-{size}-{interrupted}")
        for one, values in zip(spec.of, maps, strict=True):
            with store.draft([one]) as draft:
                write_tensors(draft / one.stage / one.digest / "data.safetensors", {"maps": values})
        monkeypatch.setattr(stages, "SPREAD_BYTES", size)
        if interrupted:
            monkeypatch.setattr(stages, "spread", stops_after(2))
            with pytest.raises(KeyboardInterrupt):
                make([spec], store.root, Place())
            monkeypatch.setattr(stages, "spread", spread)
        make([spec], store.root, Place())
        return store, spec, maps

    return spread_out


def stops_after(calls):
    left = iter(range(calls))

    def stops(family):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return spread(family)

    return stops


def test_the_spread_of_models_is_that_of_their_maps_in_whatever_portions(spread_out):
    found = {}
    for size in (1, 1000, 2**20):  # an example at a time, some, all
        store, spec, maps = spread_out(size)
        for name, expected in spread(list(maps))._asdict().items():
            torch.testing.assert_close(store.tensors(spec, name)[name], expected, rtol=0, atol=0, equal_nan=True)
        names = ("mean", "deviation", "agreement_of_sign")
        found[size] = [(store.folder(spec) / f"{name}.safetensors").read_bytes() for name in names]
    assert found[1] == found[1000] == found[2**20]
    known = [i for i in range(30) if i != 3]
    mean, deviation = store.tensors(spec, "mean")["mean"], store.tensors(spec, "deviation")["deviation"]
    torch.testing.assert_close(mean[known], maps.mean(0)[known])
    torch.testing.assert_close(deviation[known], maps.std(0)[known])
    assert mean[3].isnan().all()


def test_an_interrupted_spread_is_made_anew_with_the_same_bytes(spread_out):
    (whole, spec, _), (cut, _, _) = spread_out(1000), spread_out(1000, interrupted=True)
    for path in whole.folder(spec).glob("*.safetensors"):
        assert (cut.folder(spec) / path.name).read_bytes() == path.read_bytes()


def test_families_whose_members_stand_beside_each_other_have_a_spread_for_each_method(tiny):
    spreads = tiny.spreads()
    assert [one.of[0].method for one in spreads] == list(tiny.methods), "controls and the floor have none"
    assert all(len(one.of) == 4 for one in spreads)
    assert {spec.digest for spec in plan(tiny.specs())} >= {one.digest for one in spreads}
    assert [group for group in groups(spreads) if len(group) > 1] == []
