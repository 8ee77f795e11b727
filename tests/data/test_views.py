import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers

from consilience.component import dataset
from consilience.data.examples import Arrays
from consilience.data.idx import write_idx
from consilience.data.mnist import mnist
from consilience.data.mnist10k import mnist10k
from consilience.data.views import fold_fingerprint, only_fold, random_subset, subset, subset_fingerprint, without_fold
from consilience.errors import DataError, SpecError


def arrays(n=6, brightness=3):
    images = (torch.arange(n * 4) * brightness % 256).to(torch.uint8).reshape(n, 1, 2, 2)
    return Arrays(images, torch.arange(n) % 2, ("even", "odd"), (0.1,), (0.2,), groups=torch.arange(n) // 2)


@settings(deadline=None)
@given(n=integers(1, 9), data=integers(0, 8))
def test_a_subset_is_the_beginning_of_its_whole(n, data):
    whole, count = arrays(n), data % n + 1
    view = subset(of=lambda: whole, count=count)
    assert len(view) == count
    assert [example.label for example in view] == [i % 2 for i in range(count)]
    ids = list(reversed(range(count)))
    for ours, theirs in zip(view.batch(ids), whole.batch(ids), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert all(torch.equal(view[i].x, whole[i].x) for i in ids)


def test_what_belongs_to_the_set_stays():
    whole = arrays()
    view = subset(of=lambda: whole, count=2)
    assert (view.shape, view.classes, view.mean, view.sd) == (whole.shape, whole.classes, whole.mean, whole.sd)


@pytest.mark.parametrize("index", [2, 5, -1])
def test_examples_behind_the_last_cannot_be_reached(index):
    view = subset(of=arrays, count=2)
    with pytest.raises(IndexError, match=f"expected an id from 0 to 1, found {index}"):
        view[index]
    with pytest.raises(IndexError, match=f"expected an id from 0 to 1, found {index}"):
        view.batch([0, index])


@pytest.mark.parametrize("count", [7, 100])
def test_more_examples_than_there_are_cannot_be_had(count):
    with pytest.raises(DataError, match=f"subset: expected a count from 1 to 6, .* found {count}; change the count"):
        subset(of=arrays, count=count)


def test_the_fingerprint_knows_content_and_count():
    prints = {
        arrays().fingerprint,
        subset(of=arrays, count=2).fingerprint,
        subset(of=arrays, count=3).fingerprint,
        subset(of=functools.partial(arrays, brightness=5), count=2).fingerprint,
        subset(of=functools.partial(subset, of=arrays, count=4), count=2).fingerprint,
    }
    assert len(prints) == 5
    assert subset(of=arrays, count=2).fingerprint in prints


def test_a_subset_of_the_embedded_digits_is_the_default():
    view, whole = subset(count=10), mnist10k()
    assert view.batch(range(10)).label.tolist() == list(range(10))
    assert torch.equal(view.batch(range(10)).x, whole.batch(range(10)).x)


def test_the_folder_reaches_the_data_set_inside(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", torch.zeros(3, 28, 28, dtype=torch.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.tensor([4, 5, 6], dtype=torch.uint8))
    inner = {"use": "subset", "count": 3, "of": "mnist"}
    choice = dataset.choose({"use": "subset", "count": 2, "of": inner})
    built = choice.build(root=tmp_path)()
    assert [example.label for example in built] == [4, 5]
    by_hand = subset(of=functools.partial(subset, of=functools.partial(mnist, tmp_path), count=3), count=2)
    assert built.fingerprint == by_hand.fingerprint


def test_a_count_is_asked_for_and_is_a_positive_number():
    assert dataset.choose({"use": "subset", "count": 5}).label == "subset(count=5)"
    for wrong in ({}, {"count": 0}, {"count": "5"}):
        with pytest.raises(SpecError, match=r"subset: .*count"):
            dataset.choose({"use": "subset", **wrong})


def ids_of(view):
    """Where each of the view's images stood, read from its pixels."""
    return [int((view[i].x.flatten()[0] * 255).round()) // 12 for i in range(len(view))]


@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_a_random_subset_holds_so_many_different_examples_in_their_order(share):
    whole = arrays(20)
    view = random_subset(of=lambda: whole, share=share, seed=3)
    found = ids_of(view)
    assert len(found) == round(share * 20)
    assert found == sorted(set(found))
    assert view.batch([1, 0]).ids.tolist() == [1, 0]
    assert torch.equal(view.batch([1, 0]).x[0], view[1].x)
    assert [int(label) for label in view.batch(range(len(view))).label] == [one % 2 for one in found]


def test_another_seed_draws_other_examples_and_the_same_one_the_same():
    first, again, other = (random_subset(of=lambda: arrays(20), share=0.5, seed=seed) for seed in (1, 1, 2))
    assert ids_of(first) == ids_of(again) != ids_of(other)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint == subset_fingerprint(arrays(20).fingerprint, 0.5, 1)


def test_every_example_is_left_out_with_one_fold_together_with_its_group():
    whole = arrays(20)
    views = [without_fold(of=lambda: whole, folds=4, fold=fold) for fold in range(4)]
    left_out = [set(range(20)) - set(ids_of(view)) for view in views]
    assert sorted(i for part in left_out for i in part) == list(range(20))
    for part in left_out:
        assert all({i // 2 * 2, i // 2 * 2 + 1} <= part for i in part)
    assert len({view.fingerprint for view in views}) == 4
    assert views[2].fingerprint == fold_fingerprint(whole.fingerprint, 4, 2)


def test_a_fold_that_there_is_not_is_refused():
    with pytest.raises(DataError, match="expected one from 0 to 3, found 4"):
        without_fold(of=lambda: arrays(20), folds=4, fold=4)


def test_a_loop_over_a_random_subset_ends():
    assert len(list(random_subset(of=lambda: arrays(10), share=0.5))) == 5


def test_a_fold_alone_is_what_is_left_out_elsewhere():
    whole = arrays(20)
    kept, other = (view(of=lambda: whole, folds=4, fold=1) for view in (only_fold, without_fold))
    assert sorted(ids_of(kept) + ids_of(other)) == list(range(20))
    assert len(kept) == 6  # of ten groups of two, each of the first two folds has three
    assert kept.fingerprint != other.fingerprint


def test_more_folds_than_groups_are_refused():
    with pytest.raises(DataError, match="expected at least 6 groups of examples, found 5"):
        without_fold(of=lambda: arrays(10), folds=6)
