"""Logistic regressions in lockstep: those of ``logistic`` one by one, scikit-learn, and maps that carry nothing."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from consilience.measures import holding_out, lockstep, logistic
from consilience.measures.classifiers import learner
from consilience.measures.separability import separability
from consilience.measures.splits import plan_of
from consilience.pairs import over_family
from consilience.rng import Rng

PAIRS = list(itertools.combinations(range(4), 2))
SIZES = {"more pixels": (40, 300), "more rows": (150, 60), "as many": (60, 80)}
APART = {"easy": 2.0, "middling": 0.3, "hard": 0.02}
MARGINS, BEYOND = 5e-3, 1e6  # the most by which margins may differ, relative to the largest; no margin but of the peak


def family_of(n: int, d: int, apart: float, models: int = 4) -> torch.Tensor:
    """Correlated maps of common images, of scales from 1 to 1e-4, a pixel that never moves and one that rarely does."""
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance).double()

    mix = drawn(d, d) * torch.logspace(0, -4, d)[:, None]
    maps = (drawn(n, d) + apart * (drawn(models, n, d) + drawn(models, 1, d))) @ mix
    maps[:, :, 1], maps[:, :, 2] = 0.1, 1e-20 * drawn(models, n)
    maps[0, 0, 2] = 1e-3
    return maps.float()


def folds(n: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(1)) % 3


def alone(maps: torch.Tensor, fold: torch.Tensor, c: float = 1.0) -> torch.Tensor:
    """Margins of the held-out rows of one pair, by ``logistic``."""
    both, twice = maps.flatten(0, 1), fold.repeat(2)
    answer, found = torch.arange(2).repeat_interleave(len(fold)).double(), torch.zeros(len(twice)).double()
    for kind in range(3):
        index = (twice != kind).nonzero()[:, 0][None]
        used = torch.ones_like(index, dtype=torch.bool)
        f = logistic.margins(logistic.problem_of([both], index, used), answer[index][None], used, c)
        found[twice == kind] = f[0, 0, twice == kind]
    return found


def assert_alike(found: torch.Tensor, expected: torch.Tensor, fold: torch.Tensor) -> None:
    for kind in range(3):
        one, other = (f[fold.repeat(2) == kind] for f in (found, expected))
        usual = other.abs() < BEYOND
        assert (one - other)[usual].abs().max() <= MARGINS * other[usual].abs().max()
        assert ((one > 0) != (other > 0)).sum() <= 1


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("apart", APART.values(), ids=APART.keys())
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_all_pairs_of_a_family_are_fitted_as_each_alone(size, apart, c):
    family, fold = family_of(*size, apart), folds(size[0])
    found = lockstep.held_out(family, torch.tensor(PAIRS), fold, c)
    assert found.isfinite().all()
    for (a, b), f in zip(PAIRS, found, strict=True):
        assert_alike(f, alone(family[[a, b]], fold, c), fold)


def by_scikit_learn(maps: torch.Tensor, fold: torch.Tensor, **how: object) -> torch.Tensor:
    """The same by scikit-learn."""
    twice, rows, labels = fold.repeat(2).numpy(), maps.flatten(0, 1).double().numpy(), np.repeat([0, 1], len(fold))
    found = np.zeros(len(rows))
    for kind in range(3):
        learn, ask = twice != kind, twice == kind
        scaler = StandardScaler().fit(rows[learn])
        peer = LogisticRegression(max_iter=100_000, **how).fit(scaler.transform(rows[learn]), labels[learn])
        found[ask] = peer.decision_function(scaler.transform(rows[ask]))
    return torch.as_tensor(found)


@pytest.mark.parametrize("apart", APART.values(), ids=APART.keys())
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_margins_are_those_of_scikit_learn(size, apart):
    family, fold = family_of(*size, apart, models=2), folds(size[0])
    found = lockstep.held_out(family, torch.tensor([[0, 1]]), fold, 1.0)[0]
    assert_alike(found, by_scikit_learn(family, fold, tol=1e-8), fold)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_identical_maps_among_others_carry_exactly_nothing(size):
    family = family_of(*size, 0.3)
    family[3] = family[1]
    found = lockstep.held_out(family, torch.tensor([[0, 1], [1, 3], [2, 2], [3, 0]]), folds(size[0]), 1.0)
    assert (found[1:3] == 0).all()
    assert (found[[0, 3]] != 0).any(1).all()


def test_models_that_differ_in_their_last_digits_are_fitted_too():
    """Single precision would see nothing but rounding; slopes in double precision lead back."""
    one = family_of(40, 300, 0.3, models=1)[0].double()
    chance = torch.Generator().manual_seed(2)
    family = torch.stack([one, one * (1 + 1e-7 * torch.randn(one.shape, generator=chance).sign())])
    fold = folds(40)
    found = lockstep.held_out(family, torch.tensor([[0, 1]]), fold, 1.0)[0]
    assert_alike(found, by_scikit_learn(family, fold, solver="newton-cholesky", tol=1e-14), fold)


def test_what_is_not_found_in_lockstep_is_found_alone(monkeypatch):
    """Whatever lies beyond single precision, and what would take too many steps."""
    family, given = list(family_of(40, 900, 0.02)), {"label": torch.zeros(40).long(), "groups": torch.arange(40)}
    given |= {"rng": Rng(0, range(40)), "permutations": 0}
    expected = list(over_family(separability, family, PAIRS, **given))
    monkeypatch.setattr(lockstep, "ROUNDS", 1)
    assert lockstep.held_out(torch.stack(family), torch.tensor(PAIRS), folds(40), 1.0).isnan().all()
    for one, other in zip(expected, over_family(separability, family, PAIRS, **given), strict=True):
        assert (one.value != other.value).sum() <= 3  # one row a fold


@pytest.mark.parametrize("most", [None, 1, 2_000_000], ids=["all pairs", "no room", "two pairs"])
def test_values_are_those_of_each_labelling_by_itself(most, monkeypatch):
    """With permutations, rows are turned once for all labellings; without, the fits go in lockstep. NaN stays out."""
    family = list(family_of(60, 900, 0.1))
    family[2][7, 5] = torch.nan
    label, given = torch.arange(60) // 30, {"groups": torch.arange(60), "rng": Rng(0, range(60))}
    turned = list(over_family(separability, family, PAIRS, label=label, permutations=1, **given))
    monkeypatch.setattr(holding_out, "SHARED", 1)  # also of few pairs
    if most is not None:
        monkeypatch.setattr(holding_out, "FIT_BYTES", most)
    called, held_out = [], lockstep.held_out

    def noted(*args):
        called.append(len(args[1]))
        return held_out(*args)

    monkeypatch.setattr(lockstep, "held_out", noted)
    found = list(over_family(separability, family, PAIRS, label=label, permutations=0, **given))
    assert bool(called) == (most != 1)
    for one, other in zip(found, turned, strict=True):
        assert torch.equal(one.value.isnan(), other.value.isnan())
        differ = (one.value.nan_to_num() - other.value.nan_to_num()).abs()
        assert differ.view(2, 30).sum(1).max() <= 3  # one row a fold


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_that_are_the_same_in_all_maps_are_left_out(dtype, monkeypatch):
    """Also where they are not 0; one that a single map changes stays."""
    family, fold = family_of(40, 60, 0.3).to(dtype), folds(40)
    rare, still = torch.zeros(4, 40, 1, dtype=dtype), torch.linspace(-2, 3, 100, dtype=dtype).expand(4, 40, -1)
    rare[2, 7] = 1e-3
    bare = torch.cat([family, rare], 2)[..., torch.arange(61) != 1]  # without the pixel that never moves
    padded = torch.cat([still[..., :40], family, still[..., 40:], rare], 2)
    given, seen, fits = bare.clone(), [], lockstep._fits

    def noted(maps, *rest):
        seen.append(maps.rows.shape[2])
        return fits(maps, *rest)

    monkeypatch.setattr(lockstep, "_fits", noted)
    assert torch.equal(
        lockstep.held_out(padded, torch.tensor(PAIRS), fold, 1.0),
        lockstep.held_out(bare, torch.tensor(PAIRS), fold, 1.0),
    )
    assert seen == [60, 60]
    assert torch.equal(bare, given)  # what it was given is as it was
    for (a, b), f in zip(PAIRS, lockstep.held_out(padded, torch.tensor(PAIRS), fold, 1.0), strict=True):
        assert_alike(f, alone(padded[[a, b]], fold), fold)


def test_maps_in_which_nothing_ever_changes_carry_exactly_nothing():
    family = torch.linspace(-2, 3, 50).expand(3, 40, -1)
    assert (lockstep.held_out(family, torch.tensor([[0, 1], [2, 0]]), folds(40), 1.0) == 0).all()


def test_a_pair_among_others_is_fitted_as_by_itself():
    """Easy and hard pairs side by side, some done long before the others."""
    near, far, fold = family_of(60, 80, 0.02), family_of(60, 80, 2.0), folds(60)
    family, pairs = torch.cat([near[:2], far[:2]]), torch.tensor([[0, 1], [2, 3], [0, 3], [2, 2], [1, 0]])
    together = lockstep.held_out(family, pairs, fold, 1.0)
    for pair, f in zip(pairs, together, strict=True):
        by_itself = lockstep.held_out(family[pair], torch.tensor([[0, 1]]), fold, 1.0)[0]
        if by_itself.any():
            assert_alike(f, by_itself, fold)
        else:
            assert not f.any()


@pytest.mark.parametrize(
    ("images", "pixels", "chosen"),
    [
        (50, 784, True),
        (200, 196, True),
        (20, 784, False),  # so few rows are turned at once
        (500, 36, False),  # and so few pixels
        (50, 112**2, False),  # so large that few go side by side
    ],
)
def test_lockstep_is_chosen_where_much_is_shared(images, pixels, chosen):
    plan, way = plan_of(torch.arange(images), torch.arange(images), Rng(0, []), 3, 1, 0, None), learner("logistic", 1.0)
    alone = holding_out.portion_of(plan, pixels).pairs
    assert bool(holding_out._in_lockstep(plan, pixels, way)) == chosen
    abreast = holding_out.pairs_abreast(plan, pixels, way)
    assert abreast == (holding_out._in_lockstep(plan, pixels, way) if chosen else alone)


def test_a_pair_is_fitted_alone_as_among_others():
    """Each is fitted in the same way, and to the same margins but for what the optimum is known to."""
    family = family_of(60, 80, 0.3)
    plan = plan_of(torch.arange(60), torch.arange(60), Rng(0, []), 3, 1, 0, None)
    portion, answer = holding_out.portion_of(plan, 80), torch.arange(120)[None] >= 60

    def margins(maps, pairs):
        places = torch.tensor(pairs)
        return holding_out.margins_of_held_out(maps, places, plan, 0, answer, learner("logistic", 1.0), portion)

    for (a, b), among in zip(PAIRS, margins(family, PAIRS), strict=True):
        assert_alike(margins(family[[a, b]], [(0, 1)])[0, 0], among[0], plan.fold[0])


def test_small_maps_and_other_classifiers_do_not_go_in_lockstep(monkeypatch):
    monkeypatch.setattr(lockstep, "held_out", lambda *_: pytest.fail("in lockstep"))
    given = {"label": torch.zeros(40).long(), "groups": torch.arange(40), "rng": Rng(0, range(40)), "permutations": 0}
    for pixels, options in ((40, {}), (900, {"classifier": "lda"}), (900, {"c": "cross_validated", "folds": 2})):
        a, b = family_of(40, pixels, 2.0, models=2)
        assert separability(a, b, **given, **options).value.isfinite().all()
