"""Layers of two models: textbook definitions, scikit-learn, and planted truth."""

import functools
import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers
from sklearn.cross_decomposition import CCA

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import representation
from consilience.measures.representation import arranged, cca, cka, pwcca, svcca
from consilience.pairs import Maps, over_family
from consilience.rng import Rng

ALL = [cka, cca, svcca, pwcca]
CANONICAL = [cca, svcca, pwcca]


def layer(seed: int, n: int = 60, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(seed: int, n: int = 60, d: int = 5, e: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers that share two directions, each with an offset and scales of its own."""
    shared = layer(seed, n, 2)
    one, other = (
        (layer(seed + i, n, k) + 2 * shared @ layer(seed + i + 10, 2, k)) * 1.5 ** torch.arange(k) + i
        for i, k in ((1, d), (2, e))
    )
    return one, other


def slow_cka(x, y):
    """Kornblith et al. 2019: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), with HSIC(K, L) = tr(K H L H) / (n - 1)^2."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, m = x @ x.T, y @ y.T

    def hsic(a, b):
        return np.trace(a @ h @ b @ h) / (n - 1) ** 2

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def slow_cca(x, y):
    """Hotelling: the maxima of correlation between X a and Y b, as S_xy S_yy^-1 S_yx a = rho^2 S_xx a."""
    x, y = x - x.mean(0), y - y.mean(0)
    xy = x.T @ y
    squares, a = scipy.linalg.eigh(xy @ np.linalg.inv(y.T @ y) @ xy.T, x.T @ x)
    largest = np.argsort(-squares)[: min(x.shape[1], y.shape[1])]
    return np.sqrt(squares[largest].clip(0)), x @ a[:, largest]


def slow_svcca(x, y, variance):
    """Raghu et al. 2017: the fewest principal directions that hold the share of variance, then CCA."""
    kept = []
    for z in (x, y):
        variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
        order = np.argsort(-variances)
        k = next(k for k in range(1, len(order) + 1) if variances[order[:k]].sum() >= variance * variances.sum())
        kept.append(z @ axes[:, order[:k]])
    return slow_cca(*kept)[0].mean()


def slow_pwcca(x, y):
    """Morcos et al. 2018: alpha_i = sum_j |<h_i, x_j>|, over the variates h_i and neurons x_j of the first layer."""
    rho, variates = slow_cca(x, y)
    x = x - x.mean(0)
    alpha = [sum(abs(h / np.linalg.norm(h) @ neuron) for neuron in x.T) for h in variates.T]
    return np.average(rho, weights=alpha)


@settings(deadline=None, max_examples=25)
@given(seed=integers(0, 2**31), d=integers(1, 9), e=integers(1, 9), n=integers(4, 40))
def test_cka_is_its_definition(seed, d, e, n):
    """With fewer rows than neurons and with more, so in both of its forms."""
    x, y = related(seed, n, d, e)
    assert cka(x, y).item() == pytest.approx(slow_cka(x.numpy(), y.numpy()), abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(seed=integers(0, 2**31), d=integers(1, 7), e=integers(1, 7), variance=floats(0.5, 0.999))
def test_canonical_correlations_are_the_generalised_eigenproblem(seed, d, e, variance):
    x, y = related(seed, 40, d, e)
    a, b = x.numpy(), y.numpy()
    assert cca(x, y).item() == pytest.approx(slow_cca(a, b)[0].mean(), abs=1e-6)
    assert pwcca(x, y).item() == pytest.approx(slow_pwcca(a, b), abs=1e-6)
    assert svcca(x, y, variance=variance).item() == pytest.approx(slow_svcca(a, b, variance), abs=1e-6)


def test_correlations_are_those_of_scikit_learn():
    x, y = related(3, 200, 4, 3)
    one, other = CCA(n_components=3, max_iter=5000, tol=1e-12).fit_transform(x.numpy(), y.numpy())
    expected = np.mean([np.corrcoef(one[:, i], other[:, i])[0, 1] for i in range(3)])
    assert cca(x, y).item() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=integers(0, 2**31), scale=floats(1e-6, 1e6), offset=floats(-100, 100))
def test_an_invertible_linear_map_of_a_layer_is_the_same_to_canonical_correlations(seed, scale, offset):
    x = layer(seed)
    mixing = torch.linalg.qr(layer(seed + 1, 5))[0] @ torch.diag(torch.tensor([1, 3, 0.1, 2, 30.0]).double())
    mapped = x @ mixing * scale + offset * scale
    assert cca(x, mapped).item() == pytest.approx(1, abs=1e-9)
    assert pwcca(x, mapped).item() == pytest.approx(1, abs=1e-9)
    assert svcca(x, mapped, variance=1.0).item() == pytest.approx(1, abs=1e-9)
    assert cka(x, mapped) < 0.99


@settings(deadline=None, max_examples=25)
@given(seed=integers(0, 2**31), scale=floats(1e-20, 1e20), n=integers(6, 30))
def test_a_rotated_and_scaled_layer_is_the_same_to_cka(seed, scale, n):
    x, y = layer(seed, n, 12), layer(seed + 1, n, 7)
    turned = x @ torch.linalg.qr(layer(seed + 2, 12, 12))[0] * scale + 7 * scale
    assert cka(x, turned).item() == pytest.approx(1, abs=1e-9)
    assert cka(turned, y).item() == pytest.approx(cka(x, y).item(), abs=1e-9)


def test_single_precision_is_enough_for_what_a_network_puts_out():
    x = layer(0, 500, 20).float()
    mixing = layer(1, 20, 20).float()
    for alike in (cca, pwcca):
        assert alike(x, x @ mixing + 5).item() == pytest.approx(1, abs=1e-5)
    assert cka(x, 30 * x + 100).item() == pytest.approx(1, abs=1e-5)


def test_layers_that_share_nothing_are_hardly_alike_given_many_rows():
    x, y = layer(0, 5000, 6), layer(1, 5000, 8)
    for alike in ALL:
        assert alike(x, y) < 0.1


def test_a_shared_part_is_found():
    """Two of three directions are shared without noise, so two correlations are 1 and one is near chance."""
    shared = layer(0, 4000, 2)
    x = torch.cat([shared, layer(1, 4000, 1)], 1) @ layer(3, 3, 3)
    y = torch.cat([shared, layer(2, 4000, 1)], 1) @ layer(4, 3, 3)
    assert cca(x, y).item() == pytest.approx(2 / 3, abs=0.02)


def test_directions_of_little_variance_count_for_cca_and_not_for_svcca():
    shared = layer(0, 2000, 2)
    x, y = (torch.cat([shared, 1e-3 * layer(seed, 2000, 3)], 1) @ layer(seed + 2, 5, 5) for seed in (1, 2))
    assert svcca(x, y) > 0.99
    assert cca(x, y) < 0.5
    torch.testing.assert_close(svcca(x, y, variance=1.0), cca(x, y))


def test_pwcca_asks_what_the_first_model_uses():
    """Both models know the shared number; only the second makes much of it."""
    shared, own = layer(0, 3000, 1), layer(1, 3000, 2)
    x = torch.cat([0.1 * shared, own[:, :1]], 1)
    y = torch.cat([10 * shared, own[:, 1:]], 1)
    assert pwcca(x, y) < 0.15
    assert pwcca(y, x) > 0.85
    torch.testing.assert_close(cca(x, y), cca(y, x))


@pytest.mark.parametrize("alike", [cka, cca, svcca])
def test_the_others_do_not_ask_which_model_is_the_first(alike):
    x, y = related(0)
    torch.testing.assert_close(alike(x, y), alike(y, x))


@pytest.mark.parametrize("alike", ALL)
def test_a_layer_is_like_itself_and_its_neurons_have_no_order(alike):
    x, y = related(0)
    assert alike(x, x).item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(alike(x[:, [3, 0, 4, 1, 2]], y), alike(x, y))
    assert 0 < alike(x, y) < 1


@pytest.mark.parametrize("alike", ALL)
@pytest.mark.parametrize("n", [6, 60])
def test_a_family_is_measured_as_its_pairs_are_and_prepared_once_a_model(alike, n, monkeypatch):
    layers = [layer(0, n, 3), *related(1, n, 9, 4), layer(4, n, 7)]
    prepare, prepared, pairs = representation._centred, [], [(1, 2), (2, 3), (3, 1), (2, 2)]
    monkeypatch.setattr(representation, "_centred", lambda rows: prepared.append(rows) or prepare(rows))
    found = list(over_family(alike, Maps(4, layers.__getitem__), pairs))
    assert [rows.shape[1] for rows in prepared] == [9, 4, 7]
    for (a, b), value in zip(pairs, found, strict=True):
        torch.testing.assert_close(value, alike(layers[a], layers[b]), equal_nan=True)
    assert list(over_family(alike, layers, [])) == []


@pytest.mark.parametrize("alike", CANONICAL)
def test_too_few_rows_to_tell_are_undefined(alike):
    """With no more rows than neurons, every correlation is 1, whatever the layers."""
    alike = functools.partial(alike, variance=1.0) if alike is svcca else alike
    for n, defined in ((5, False), (6, False), (7, True)):
        assert bool(alike(layer(0, n, 5), layer(1, n, 2)).isfinite()) is defined
    assert 0 < cka(layer(0, 5, 5), layer(1, 5, 2)) < 1


def test_what_few_rows_force_is_what_the_docstring_says():
    """Of 20 rows, 12 and 10 neurons: 12 + 10 - 20 + 1 correlations of exactly 1."""
    x, y = layer(0, 20, 12), layer(1, 20, 10)
    rho, _ = slow_cca(x.numpy(), y.numpy())
    assert (rho > 1 - 1e-6).sum() == 3


def test_few_directions_are_defined_with_fewer_rows_than_neurons():
    shared = layer(0, 30, 2)
    x, y = shared @ layer(1, 2, 50), shared @ layer(2, 2, 40)
    assert svcca(x, y).item() == pytest.approx(1)
    assert cca(x, y).item() == pytest.approx(1)


@pytest.mark.parametrize("alike", ALL)
@pytest.mark.parametrize("n", [3, 60])
def test_a_layer_that_says_nothing_is_undefined(alike, n):
    x, y = layer(0, n).float(), layer(1, n).float()
    for nothing in (torch.zeros(n, 5), torch.full((n, 5), 0.1), torch.full((n, 5), 1e6 / 3).double()):
        assert alike(x, nothing).isnan()
        assert alike(nothing, y).isnan()
    for value in (torch.nan, torch.inf):
        spoilt = x.clone()
        spoilt[2, 3] = value
        assert alike(spoilt, y).isnan()
        family = [x, y, spoilt]
        values = torch.stack(list(over_family(alike, family, list(itertools.combinations(range(3), 2)))))
        assert values[1:].isnan().all()
        torch.testing.assert_close(values[0], alike(x, y), equal_nan=True)
    for rows in (0, 1):
        assert alike(x[:rows], y[:rows]).isnan()
    assert alike(x[:, :0], y).isnan()


@pytest.mark.parametrize("alike", ALL)
def test_neurons_that_are_constant_or_repeated_change_no_correlation(alike):
    x, y = (side.float() for side in related(0))
    dead = torch.full((60, 3), 0.7)
    dead[::2] = dead[0].nextafter(torch.ones(3))  # rounding of a sum leaves such traces
    torch.testing.assert_close(alike(torch.cat([x, dead], 1), y), alike(x, y))
    if alike is cca:
        torch.testing.assert_close(alike(torch.cat([x, x @ torch.ones(5, 2)], 1), y), alike(x, y))


@pytest.mark.parametrize("alike", ALL)
def test_what_is_no_rows_is_refused(alike):
    name = alike.__name__
    with pytest.raises(SpecError, match=f"{name}: expected activations with equally many rows of both models"):
        alike(layer(0, 8), layer(0, 9))
    words = rf"{name}: expected activations \[n, d\] with the same n rows of every model, found \[8, 5\] and \[9, 5\]"
    with pytest.raises(SpecError, match=words):
        list(over_family(alike, [layer(0, 8), layer(0, 9)], [(0, 1)]))
    with pytest.raises(SpecError, match=r"found \[2, 3, 4, 4\] and \[2, 3, 4, 4\]; make rows of a layer with arranged"):
        alike(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("variance", [0.0, 1.1])
def test_a_share_of_variance_out_of_range_is_refused(variance):
    with pytest.raises(SpecError, match=r"svcca: Expected `float` (>|<)=? "):
        measure.choose({"use": "svcca", "variance": variance})


def planes(seed: int, n: int = 40, d: int = 4) -> torch.Tensor:
    return layer(seed, n, d * 12).view(n, d, 3, 4)


def test_channels_are_the_neurons_and_every_pixel_is_a_row():
    maps = planes(0)
    rows = arranged(maps)
    assert rows.shape == (480, 4)
    assert torch.equal(rows[12 * 7 + 4 * 2 + 3], maps[7, :, 2, 3])
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(arranged(tokens), rows)
    assert arranged(rows) is rows


def test_permuted_channels_are_the_same_layer_unless_they_are_mixed_with_places():
    """Published code reshapes without moving the channels, and then finds the same layer unlike itself."""
    maps = planes(0)
    permuted = maps[:, [2, 0, 3, 1]]
    for alike in ALL:
        assert alike(arranged(maps), arranged(permuted)).item() == pytest.approx(1)
    assert cca(maps.reshape(-1, 4), permuted.reshape(-1, 4)) < 0.9


def test_places_are_drawn_for_each_example_by_its_own_key():
    maps = torch.arange(40 * 12.0).view(40, 1, 3, 4).expand(-1, 2, -1, -1)
    rng = Rng(0, range(100, 140))
    rows = arranged(maps, 5, rng).view(40, 5, 2)
    for example, some in enumerate(rows[:, :, 0]):
        assert len(set(some.tolist())) == 5
        assert set(some.tolist()) <= set(maps[example, 0].flatten().tolist())
    assert len({tuple((some % 12).tolist()) for some in rows[:, :, 0]}) > 30, "examples have places of their own"
    some = [7, 3, 30]
    assert torch.equal(arranged(maps[some], 5, rng.rows(some)).view(3, 5, 2), rows[some])
    assert torch.equal(arranged(-maps, 5, Rng(0, range(100, 140))).view(40, 5, 2), -rows), "a twin has the same places"
    assert torch.equal(arranged(maps, 12, rng), arranged(maps))


@pytest.mark.parametrize(
    ("shape", "places", "rng", "said"),
    [
        ((4,), None, None, r"arranged: expected activations \[n, d\], .* found \[4\] and None"),
        ((4, 2, 3, 3, 3), None, None, r"found \[4, 2, 3, 3, 3\] and None; name another layer"),
        ((4, 2, 3, 3), 0, None, r"at least 1 place, found \[4, 2, 3, 3\] and 0"),
        ((4, 2, 3, 3), 2, None, r"arranged: expected draws for 4 examples, found none; give rng their ids"),
        ((4, 2, 3, 3), 2, Rng(0, [1]), r"expected draws for 4 examples, found 1;"),
    ],
)
def test_what_cannot_be_arranged_is_refused(shape, places, rng, said):
    with pytest.raises(SpecError, match=said):
        arranged(torch.ones(shape), places, rng)
