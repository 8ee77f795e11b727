"""Telling two models' maps apart: scikit-learn on the same folds, planted truth, and a null that keeps its word."""

import functools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from consilience.attribution.path import integrated_gradients
from consilience.component import measure
from consilience.data.mnist10k import mnist10k
from consilience.errors import SpecError
from consilience.measures import holding_out, logistic
from consilience.measures import separability as room
from consilience.measures.agreement import cosine, wrong_image
from consilience.measures.as_published import separability_row_split
from consilience.measures.classifiers import learner
from consilience.measures.holding_out import Portion, _held_out, portion_of
from consilience.measures.separability import separability
from consilience.measures.splits import plan_of as drawn
from consilience.models.mlp import mlp
from consilience.pairs import over_family
from consilience.rng import Rng
from consilience.tensors import prepare


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def twins(seed: int, n: int = 60, side: int = 8, shift: float = 0.0, signal: float = 1.0) -> list[torch.Tensor]:
    """Maps of a common signal, each with noise of its own; the second has a small constant pattern besides."""
    common = signal * noise(seed, n, side, side)
    pattern = shift * noise(seed + 1, side, side)
    return [common + noise(seed + 2, n, side, side), common + noise(seed + 3, n, side, side) + pattern]


def told(a, b, label=None, groups=None, seed=0, **options):
    n = len(a)
    label = torch.zeros(n, dtype=torch.long) if label is None else label
    groups = torch.arange(n) if groups is None else groups
    return separability(a, b, label, groups, Rng(seed, range(n)), **{"permutations": 19, **options})


def plan_of(groups, folds=3, repeats=1, permutations=3, count=None, seed=0):
    return drawn(torch.arange(len(groups)), groups, Rng(seed, []), folds, repeats, permutations, count)


@functools.cache
def digits_explained(count: int = 600, classes: int = 10) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps of digits by integrated gradients of two networks that differ in their first weights alone."""
    examples = mnist10k(split="test").batch(range(count))
    train = mnist10k(split="train").batch(range(2000))
    maps = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = mlp((1, 28, 28), classes, hidden=(32,), dropout=0.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        for step in range(120):
            rows = slice(step * 100 % 2000, step * 100 % 2000 + 100)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(train.x[rows]), train.label[rows]).backward()
            optimizer.step()
        model.eval().requires_grad_(False)
        maps.append(integrated_gradients(model, examples.x, examples.label, steps=16)[:, 0])
    return maps, examples.label


# Against scikit-learn


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize(("shift", "side", "n"), [(0.0, 8, 60), (0.15, 8, 60), (0.15, 4, 90), (1.0, 12, 30)])
def test_held_out_values_are_those_of_scikit_learn_on_the_same_folds(shift, side, n, c):
    a, b = twins(5, n, side, shift)
    a[:, 0, 0] = b[:, 0, 0] = 0.3  # a pixel that never moves
    fold = plan_of(torch.arange(n)).fold[0]
    value = torch.full((n,), torch.nan).double()
    for kind in range(3):
        learn, ask = (fold != kind).nonzero()[:, 0], (fold == kind).nonzero()[:, 0]
        peer = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-10, max_iter=100_000))
        peer.fit(torch.cat([a[learn], b[learn]]).flatten(1).double(), np.repeat([0, 1], len(learn)))
        right = [peer.predict(maps[ask].flatten(1).double()) == label for label, maps in enumerate((a, b))]
        value[ask] = torch.as_tensor(right[0].astype(float) + right[1] - 1)
    found = told(a, b, c=c, permutations=0).value
    assert (found != value).sum() <= 1
    assert found.isfinite().all()


@pytest.mark.parametrize("c", [1.0, "cross_validated"])
@pytest.mark.parametrize("side", [5, 12], ids=["more rows", "more features"])
def test_how_much_is_fitted_at_once_changes_nothing(side, c, monkeypatch):
    a, b = twins(5, 40, side, 0.1)
    a[:, 0, 0] = b[:, 0, 0] = 0.3
    label, given = torch.arange(40) % 7 // 4, {"permutations": 4, "c": c, "folds": 4}
    together = told(a, b, label, **given)
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 8 * 300)
    chunked = told(a, b, label, **given)
    monkeypatch.setattr(room, "HELD_BYTES", 1)
    for name, most in {"FIT_BYTES": 1, "FEWEST": 3}.items():
        monkeypatch.setattr(holding_out, name, most)
    assert portion_of(plan_of(torch.arange(40), permutations=4), side**2) == Portion(1, 1, 3)
    for other in (chunked, told(a, b, label, **given)):
        for one, two in zip(together, other, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("rows_per_feature", [0.7, 1.0, 1.36, 1.7, 2.7])
def test_noise_near_the_threshold_of_being_told_apart_is_fitted_as_by_scikit_learn(rows_per_feature):
    """Up to twice as many rows as features, noise is told apart, just so, and a few rows decide: slow to find."""
    n = round(rows_per_feature * 60 * 3 / 4)
    a, b = noise(0, n, 60), noise(1, n, 60)
    plan, rows = plan_of(torch.arange(n), permutations=2), torch.cat([a, b]).double()
    answer = torch.cat([plan.exchanged, ~plan.exchanged], 1)
    fold = plan.fold[0].repeat(2)
    found = _held_out(rows[None], fold, plan.inner[0].repeat(2), answer, learner("logistic", 1.0), Portion(1, 3, 3))[0]
    for kind in range(3):
        learn = fold != kind
        z = StandardScaler().fit(rows[learn].numpy()).transform(rows.numpy())
        for labels, mine in zip(answer, found, strict=True):
            peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=100_000).fit(z[learn], labels[learn])
            np.testing.assert_allclose(mine[~learn], peer.decision_function(z[~learn]), atol=1e-5)


# What identical, exchanged and reordered maps get


@pytest.mark.parametrize("side", [3, 8, 20])
@pytest.mark.parametrize("by", ["class", "pooled"])
def test_identical_maps_get_exactly_nothing(side, by):
    a = noise(0, 40, side, side)
    result = told(a, a.clone(), torch.arange(40) % 2, by=by, repeats=2)
    assert (result.value == 0).all()
    assert (result.null == 0).all()
    assert result.p == 1


def test_exchanging_the_models_changes_nothing():
    a, b = twins(1, shift=0.1)
    one, two = told(a, b), told(b, a)
    assert torch.equal(one.value, two.value)
    torch.testing.assert_close(one.null, two.null)
    assert one.p == two.p


def test_the_order_of_examples_changes_nothing():
    (a, b), label, groups = twins(1, shift=0.1), torch.arange(60) % 2, torch.arange(60) // 3 * 7
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    one = told(a, b, label, groups, repeats=2, count=9)
    two = told(a[order], b[order], label[order], groups[order], repeats=2, count=9)
    torch.testing.assert_close(one.value[order], two.value, equal_nan=True)
    torch.testing.assert_close(one.null[order], two.null, equal_nan=True)
    assert one.p == two.p


def test_classes_do_not_know_of_each_other():
    a, b = twins(1, shift=0.1)
    both = told(a, b, torch.arange(60) % 2)
    alone = told(a[::2], b[::2], groups=torch.arange(60)[::2])
    torch.testing.assert_close(both.value[::2], alone.value)
    torch.testing.assert_close(both.null[::2], alone.null)


def test_maps_with_channels_are_their_pixels():
    a, b = twins(1, shift=0.1)
    torch.testing.assert_close(told(a, b), told(a[:, None], b[:, None]))
    assert told(a.view(60, 4, 4, 4), b.view(60, 4, 4, 4)).value.equal(told(a, b).value)


@pytest.mark.parametrize("room_for_all", [True, False])
def test_a_family_is_measured_as_its_pairs_are_and_read_once(room_for_all, monkeypatch):
    label, groups = torch.arange(60) % 3, torch.arange(60) // 2
    family, read, reader = [*twins(1, shift=0.2), *twins(4)], [], room._read

    def noted(*args):
        read.append(args[-1])
        return reader(*args)

    monkeypatch.setattr(room, "_read", noted)
    if not room_for_all:  # then two twins of one class are held at a time
        monkeypatch.setattr(room, "HELD_BYTES", 1)
    pairs = [(0, 1), (2, 0), (1, 2), (3, 3)]
    given = {"label": label, "groups": groups, "rng": Rng(3, range(60))}
    results = list(over_family(separability, family, pairs, **given))
    assert sorted(read) == ([0, 1, 2, 3] if room_for_all else sorted([0, 1, 2, 1, 3] * 3))
    for (a, b), result in zip(pairs, results, strict=True):
        torch.testing.assert_close(result, separability(family[a], family[b], **given))


def test_the_engine_knows_its_columns():
    assert measure.get("separability").columns == {"value": "n", "null": "n", "p": ""}
    assert measure.get("separability_row_split").columns == {"value": "classes"}
    assert measure.choose({"use": "separability", "c": "cross_validated"}).options == {"c": "cross_validated"}
    with pytest.raises(SpecError, match="separability"):
        measure.choose({"use": "separability", "c": "often"})


# The split


def test_a_split_never_shares_a_group():
    groups = torch.randint(0, 17, (60,), generator=torch.Generator().manual_seed(0)) * 1000
    plan = plan_of(groups, folds=4, repeats=5, permutations=30)
    for name in groups.unique():
        mine = groups == name
        for part in (plan.fold, plan.inner, plan.exchanged):
            assert (part[:, mine] == part[:, mine][:, :1]).all()
    for fold in plan.fold:
        counts = torch.tensor([len(groups[fold == kind].unique()) for kind in range(4)])
        assert counts.max() - counts.min() <= 1
    assert not torch.equal(plan.fold[0], plan.fold[1])
    assert not plan.exchanged[0].any()
    assert 0.4 < plan.exchanged[1:].double().mean() < 0.6


def test_what_is_known_of_a_group_is_never_asked_about():
    """Each group has a pattern of its own that betrays the model: worthless where groups are held out whole."""
    own = 10 * noise(0, 20, 16, 16).repeat_interleave(3, 0)
    a, b = noise(1, 60, 16, 16) + own, noise(2, 60, 16, 16) - own
    shared = told(a, b, groups=torch.arange(60)).value.mean()
    apart = told(a, b, groups=torch.arange(20).repeat_interleave(3)).value.mean()
    assert shared > 0.5
    assert apart.abs() < 0.3


def test_draws_depend_on_the_group_alone():
    few, many = plan_of(torch.arange(20)), plan_of(torch.arange(40), folds=4, repeats=2, permutations=5)
    assert torch.equal(few.exchanged, many.exchanged[:4, :20])
    few, many = plan_of(torch.arange(40), count=8), plan_of(torch.arange(40), count=20)
    assert set(few.image.tolist()) < set(many.image.tolist())
    assert len(few.image), len(many.image) == (8, 20)
    assert not torch.equal(plan_of(torch.arange(40)).fold, plan_of(torch.arange(40), seed=1).fold)


def test_a_count_leaves_the_other_images_undefined():
    a, b = twins(1, shift=0.5)
    label = torch.arange(60) % 2
    result = told(a, b, label, count=12)
    judged = result.value.isfinite()
    assert [int(judged[label == kind].sum()) for kind in range(2)] == [12, 12]
    assert torch.equal(judged, result.null.isfinite())


# Planted truth


def test_independent_noise_is_not_told_apart_although_no_two_maps_agree():
    """What it cannot see: the two maps of an image have nothing in common, and it calls the models alike."""
    a, b = noise(0, 300, 8, 8), noise(1, 300, 8, 8)
    result = told(a, b)
    assert result.value.mean().abs() < 0.12
    assert cosine(a, b).mean().abs() < 0.02
    assert result.p > 0.05


def test_the_same_map_times_a_fifth_more_is_told_apart():
    """A documented weakness of raw maps: the cosine is 1, the confidence is another."""
    maps, label = digits_explained()
    mine = maps[0][label == 3]
    assert told(mine, mine * 1.2).value.mean() > 0.2
    assert cosine(mine, mine * 1.2).min() > 0.9999


def test_another_scale_is_not_seen_in_maps_of_length_one():
    a, _ = twins(1, n=80)
    one, other = (prepare(maps[:, None], "sum", "l2", None) for maps in (a, a * 1.2))
    assert told(one, other).value.abs().mean() < 0.05


def test_images_of_one_model_shuffled_are_told_apart_as_before_though_no_map_agrees_any_more():
    a, b = twins(1, n=120, shift=0.4)
    shuffled = b[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
    before, after = told(a, b).value.mean(), told(a, shuffled).value.mean()
    assert before > 0.5
    assert (before - after).abs() < 0.15
    assert cosine(a, b).mean() > cosine(a, shuffled).mean() + 0.3


def test_maps_of_two_seeds_are_told_apart_although_they_agree():
    """Saturation: 50 images of a class suffice, whatever the agreement."""
    (a, b), label = digits_explained()
    result = told(a, b, label, count=50)
    assert result.value.nanmean() > 0.97
    assert result.p == 0.05
    assert result.null.nanmean().abs() < 0.05
    assert cosine(a, b).mean() > wrong_image(a, b, label).mean() + 0.3


def test_identical_maps_of_digits_are_consistent_and_as_published_they_are_not():
    maps, label = digits_explained()
    sound = 1 - told(maps[0], maps[0].clone(), label, permutations=0).value.mean()
    published = 1 - separability_row_split(maps[0], maps[0].clone(), label, Rng(0, range(len(label)))).mean()
    assert sound == 1
    assert published < 0.9


def test_a_small_shift_is_found():
    found = [told(*twins(10 * seed, shift=0.3)).p for seed in range(20)]
    assert sum(p <= 0.05 for p in found) >= 18


def test_strength_is_chosen_where_the_training_part_says_so():
    """Two pixels of 400 betray the model: a strong ridge is better than the default."""
    a, b = noise(0, 80, 20, 20), noise(1, 80, 20, 20)
    b[:, :3, :3] += 0.8
    chosen, fixed = told(a, b, c="cross_validated", permutations=2), told(a, b, c=10.0, permutations=2)
    assert chosen.value.mean() >= fixed.value.mean()
    assert chosen.value.mean() > 0.5


def test_the_chosen_strength_is_that_of_a_search_by_hand():
    a, b = twins(5, 60, 8, 0.2)
    plan = plan_of(torch.arange(60), permutations=0)
    rows, fold, inner = torch.cat([a, b]).flatten(1).double(), plan.fold[0].repeat(2), plan.inner[0].repeat(2)
    answer = torch.cat([torch.zeros(60), torch.ones(60)])[None].bool()
    found = _held_out(rows[None], fold, inner, answer, learner("logistic", "cross_validated"), Portion(1, 3, 1))[0, 0]
    for kind in range(3):
        learn = fold != kind
        z = StandardScaler().fit(rows[learn].numpy()).transform(rows.numpy())
        truth, part = answer[0].int().numpy(), inner.numpy()
        likely = []
        for c in holding_out.STRENGTHS:
            total = 0.0
            for left in range(3):
                some, others = learn.numpy() & (part != left), learn.numpy() & (part == left)
                fit = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(z[some], truth[some])
                total += fit.predict_log_proba(z[others])[np.arange(others.sum()), truth[others]].sum()
            likely.append(total)
        best = LogisticRegression(C=holding_out.STRENGTHS[int(np.argmax(likely))], tol=1e-10, max_iter=100_000)
        expected = best.fit(z[learn.numpy()], truth[learn.numpy()]).decision_function(z[~learn.numpy()])
        np.testing.assert_allclose(found[~learn], expected, atol=1e-4)


# The null


def test_p_keeps_its_promise_for_exchangeable_twins():
    """500 families: the rate of p <= 0.05 is 0.05, by the exact interval of a binomial."""
    hits = sum(bool(told(*twins(1000 + 10 * seed), seed=seed).p <= 0.05) for seed in range(500))
    low, high = binomtest(hits, 500).proportion_ci(0.95, method="exact")
    assert low <= 0.05 <= high


def test_p_is_uniform_also_where_accuracies_tie():
    """Twelve images and nine relabellings: accuracies tie all the time, and yet p is not too large."""
    found = [float(told(*twins(10 * seed, n=12, side=3), seed=seed, permutations=9).p) for seed in range(300)]
    rate = np.mean(np.array(found) <= 0.5)
    low, high = binomtest(int(rate * 300), 300).proportion_ci(0.99, method="exact")
    assert low <= 0.5 <= high
    assert set(np.round(found, 6)) <= {round(k / 10, 6) for k in range(1, 11)}


def test_the_null_is_near_nothing_where_the_models_are_told_apart():
    result = told(*twins(1, shift=1.0))
    assert result.value.mean() > 0.9
    assert result.null.mean().abs() < 0.15


# What is undefined, and what is refused


def test_images_without_a_finite_map_are_left_out_and_the_others_keep_their_folds():
    a, b = twins(1, shift=1.0)
    spoilt = a.clone()
    spoilt[5, 2, 2] = torch.nan
    b[9, 0, 0] = torch.inf
    result = told(spoilt, b)
    others = torch.tensor([i not in (5, 9) for i in range(60)])
    assert result.value[~others].isnan().all()
    assert result.value[others].isfinite().all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_class_with_too_few_images_is_undefined(n):
    a, b = noise(0, n + 12, 4, 4), noise(1, n + 12, 4, 4)
    label = torch.tensor([1] * n + [0] * 12)
    result = told(a, b, label)
    assert result.value[:n].isnan().all()
    assert result.value[n:].isfinite().all()
    assert torch.equal(result.p, told(a[n:], b[n:], groups=torch.arange(n, n + 12)).p)


@pytest.mark.parametrize("c", [1.0, "cross_validated"])
def test_however_many_images_nothing_is_raised(c):
    for n in range(12):
        result = told(noise(0, n, 3, 3), noise(1, n, 3, 3), c=c, permutations=2)
        assert result.value.isfinite().all() or result.value.isnan().all()
        assert result.p.isfinite() == (n > 0 and result.value.isfinite().all())


def test_without_permutations_there_is_no_null():
    result = told(*twins(1), permutations=0)
    assert result.value.isfinite().all()
    assert result.null.isnan().all()
    assert result.p.isnan()


def test_sets_of_maps_that_do_not_fit_are_refused():
    a, other, fewer = noise(0, 12, 8, 8), noise(1, 12, 7, 7), noise(1, 11, 8, 8)
    given = {"label": torch.zeros(12, dtype=torch.long), "groups": torch.arange(12), "rng": Rng(0, range(12))}
    for b in (other, fewer):
        with pytest.raises(SpecError, match="separability: expected two sets of maps"):
            told(a, b)
        with pytest.raises(SpecError, match="separability: expected two sets of maps of one shape, found"):
            list(over_family(separability, [a, a, b], [(0, 1), (1, 2)], **given))
    with pytest.raises(SpecError, match="a label and a group for each example"):
        told(a, a, torch.zeros(11, dtype=torch.long), torch.arange(11))
