"""Explaining a set in batches: an interrupted file goes on, and what is of no use is not kept."""

import pytest
import torch

from consilience.attribution.controls import random_map
from consilience.attribution.gradient import gradient
from consilience.component import attribution, dataset, measure
from consilience.data.views import subset
from consilience.errors import ModelError
from consilience.experiment import stages
from consilience.experiment.desk import Place, labels, load_examples
from consilience.experiment.files import read_tensors, write_tensors
from consilience.experiment.specs import (
    Activate,
    Average,
    Data,
    Explain,
    Given,
    Measure,
    Predict,
    Select,
    Spread,
    Subject,
    groups,
    plan,
)
from consilience.experiment.stages import make, write_maps
from consilience.experiment.store import Store
from consilience.measures.representation import arranged
from consilience.measures.spread import spread
from consilience.models.cnn import small_cnn
from consilience.models.mlp import linear
from consilience.rng import Rng

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


THREE = [Subject(source=Given(weights=str(index), module="", answers="")) for index in range(3)]


def some(count):
    return Data(choice=dataset.choose({"use": "subset", "count": count}), fingerprint=subset(count=count).fingerprint)


def chosen(tmp_path, spec, values):
    """What is chosen where the inputs hold these tensors."""
    store = Store(tmp_path)
    for one, tensors in zip(spec.by, values, strict=True):
        with store.draft([one]) as draft:
            write_tensors(draft / one.stage / one.digest / "data.safetensors", tensors)
    make([spec], store.root, Place())
    return store.table(spec)


@pytest.mark.parametrize(("by", "best"), [("accuracy", 0), ("calibration_error", 1)])
def test_the_best_candidate_has_the_highest_mean_or_the_lowest_where_less_is_better(tmp_path, by, best):
    answers = [Predict(subject=one, data=some(10)) for one in THREE]
    measures = tuple(Measure(measure=measure.choose(by), of=answer) for answer in answers)
    means = [0.75, 0.25, 0.5]
    note = chosen(tmp_path, Select(candidates=tuple(THREE), by=measures), [{"value": torch.tensor(m)} for m in means])
    assert note == {"best": best, "means": means}


def test_members_of_an_ensemble_are_those_whose_answers_help_most(tmp_path):
    label = labels(load_examples(some(10).choice, Place()))
    right, even = torch.nn.functional.one_hot(label, 10) * 9.0, torch.zeros(10, 10)
    spec = Average(members=tuple(THREE), size=2, by=tuple(Predict(subject=one, data=some(10)) for one in THREE))
    values = [{"logits": logits} for logits in (even, -right, right)]
    assert chosen(tmp_path / "answers", spec, values) == {"members": [2, 2]}
    halves = [{"logits": even}, *({"logits": right * (torch.arange(10) % 2 == odd)[:, None]} for odd in (0, 1))]
    assert sorted(chosen(tmp_path / "halves", spec, halves)["members"]) == [1, 2]


@pytest.mark.parametrize("places", [None, 3])
def test_activations_are_of_as_many_places_of_each_example_as_are_asked_for(tmp_path, places):
    examples = load_examples(some(4).choice, Place())
    model, batch = small_cnn(examples.shape, 10).eval(), examples.batch(range(4))
    layer, found = next((name, one(batch.x)) for name, one in model.named_modules() if isinstance(one, torch.nn.Conv2d))
    spec = Activate(subject=THREE[0], data=some(4), layer=layer, places=places)
    make([spec], tmp_path, Place(models={THREE[0].source.digest: model}))
    rows = Store(tmp_path).tensors(spec)["activations"]
    assert len(rows) == 4 * (places or found.shape[2] * found.shape[3])
    torch.testing.assert_close(rows, arranged(found.detach(), places, Rng(0, range(4))))
