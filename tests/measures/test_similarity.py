"""Similarity of two models' maps: scikit-image, slow definitions, and planted truth."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, sampled_from
from skimage.metrics import structural_similarity

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import similarity
from consilience.measures.agreement import wrong_image
from consilience.measures.similarity import ssim, top_k_agreement
from consilience.pairs import over_family


def maps(seed: int, n: int = 5, values: int | None = None, shape: tuple[int, ...] = (12, 9)) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(-values, values + 1, (n, *shape), generator=chance).float()
    return torch.randn(n, *shape, generator=chance)


def library_ssim(a, b, window=7, data_range=None):
    a, b = a.double().numpy(), b.double().numpy()
    both = max(a.max(), b.max()) - min(a.min(), b.min())
    return structural_similarity(
        a, b, win_size=window, data_range=data_range or both, channel_axis=0 if a.ndim == 3 else None
    )


def slow_ssim(a, b, window):
    """Wang et al. 2004, equation 13, place by place."""
    a, b = a.double(), b.double()
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    c1, c2, found = (0.01 * span) ** 2, (0.03 * span) ** 2, []
    for i, j in itertools.product(range(a.shape[0] - window + 1), range(a.shape[1] - window + 1)):
        x, y = (m[i : i + window, j : j + window].flatten() for m in (a, b))
        cov = torch.cov(torch.stack([x, y]))
        above = (2 * x.mean() * y.mean() + c1) * (2 * cov[0, 1] + c2)
        found.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(sum(found) / len(found))


def slow_top_k(a, b, k):
    """Krishna et al. 2022, feature agreement: the k most important features of each, and how many they share."""
    first, second = (set(sorted(range(len(m)), key=lambda i: -abs(m[i]))[:k]) for m in (a.tolist(), b.tolist()))
    return len(first & second) / k


@settings(deadline=None, max_examples=30)
@given(
    seed=integers(0, 2**31), window=sampled_from([3, 5, 7, 9]), scale=floats(1e-6, 1e6), offset=floats(-3, 3),
    height=integers(9, 20), width=integers(9, 20),
)  # fmt: skip
def test_ssim_is_that_of_scikit_image(seed, window, scale, offset, height, width):
    one, two = (maps(seed + i, 3, shape=(height, width)) * scale + offset * scale for i in range(2))
    expected = [library_ssim(a, b, window) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(ssim(one, two, window=window), expected, atol=1e-10)


def test_ssim_is_its_definition():
    one, two = maps(0), maps(0) + maps(1)
    for window in (3, 7):
        expected = [slow_ssim(a, b, window) for a, b in zip(one, two, strict=True)]
        np.testing.assert_allclose(ssim(one, two, window=window), expected, atol=1e-12)


def test_channels_that_are_kept_are_averaged_under_one_range():
    one, two = maps(0, shape=(3, 11, 10)), maps(1, shape=(3, 11, 10))
    one[:, 1] *= 20
    expected = [library_ssim(a, b) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(ssim(one, two), expected, atol=1e-10)
    torch.testing.assert_close(ssim(one[:, :1], two[:, :1]), ssim(one[:, 0], two[:, 0]))


def test_a_stated_range_holds_for_all_images():
    one, two = maps(0), maps(1)
    expected = [library_ssim(a, b, data_range=1.5) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(ssim(one, two, data_range=1.5), expected, atol=1e-10)


def test_a_map_as_large_as_the_window_is_one_place():
    one, two = maps(0, shape=(7, 7)), maps(1, shape=(7, 7))
    np.testing.assert_allclose(ssim(one, two), [slow_ssim(a, b, 7) for a, b in zip(one, two, strict=True)], atol=1e-12)


def test_a_large_offset_costs_no_digits():
    """A map of variance 1 around a million: products of the uncentred values would lose twelve digits."""
    one, two = maps(0).double() + 1e6, maps(1).double() + 1e6
    expected = [slow_ssim(a, b, 7) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(ssim(one, two), expected, atol=1e-9)


def test_more_images_than_fit_at_once_are_measured_alike(monkeypatch):
    family = [maps(seed, 7) for seed in range(3)]
    whole = list(over_family(ssim, family, [(0, 1), (2, 1)]))
    monkeypatch.setattr(similarity, "PIXELS", 2 * family[0][0].numel())
    for one, other in zip(over_family(ssim, family, [(0, 1), (2, 1)]), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-15)


def test_structure_falls_with_noise_and_turns_around_a_common_level():
    clear = maps(0)
    values = [ssim(clear, clear + share * maps(1)).mean().item() for share in (0.0, 0.3, 1.0, 3.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 0.5
    assert ssim(5 + clear, 5 - clear).max() < -0.5


def test_two_opposite_signs_make_a_window_of_a_signed_map_look_alike():
    """As the docstring warns: each window's mean and structure are opposite, and the two minus signs cancel."""
    slope = torch.linspace(-1, 1, 12).expand(1, 9, 12)
    assert ssim(slope, -slope) > 0.2


def test_ssim_is_undefined_only_where_there_is_no_structure_at_all():
    one, two = maps(0, 6), maps(1, 6)
    one[1], two[1] = 2.0, 2.0
    one[2], two[2] = 1.0, -1.0
    one[3, 0, 0] = torch.nan
    two[4, 11, 8] = torch.inf
    one[5] = 0.5
    assert ssim(one, two).isnan().tolist() == [False, True, True, True, True, False]
    assert ssim(one, two, data_range=4.0).isnan().tolist() == [False, True, True, True, True, False]
    assert ssim(one, two)[5] == pytest.approx(library_ssim(one[5], two[5]), abs=1e-10)


@pytest.mark.parametrize(
    ("shape", "window", "said"),
    [
        ((9, 6), 7, r"ssim: expected maps of at least 7 by 7 pixels, found \[9, 6\]; choose a smaller window"),
        ((9, 9), 4, r"ssim\.window: expected an odd number of pixels, found 4; take 3"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(shape, window, said):
    with pytest.raises(SpecError, match=said):
        ssim(maps(0, shape=shape), maps(1, shape=shape), window=window)


@pytest.mark.parametrize(
    "options",
    [{"use": "ssim", "window": 1}, {"use": "ssim", "data_range": 0.0}, {"use": "top_k_agreement", "share": 0.0},
     {"use": "top_k_agreement", "share": 1.1}],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(SpecError, match=r"Expected `(int|float( \| null)?)` (>|<)=? "):
        measure.choose(options)


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), share=floats(0.001, 1))
def test_top_k_is_the_papers_feature_agreement_where_nothing_is_tied(seed, share):
    one, two = maps(seed), maps(seed + 1)
    k = max(1, round(share * 108))
    expected = [slow_top_k(a.flatten(), b.flatten(), k) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(top_k_agreement(one, two, share=share), expected, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), values=integers(1, 5), share=floats(0.01, 1))
def test_no_order_among_tied_pixels_is_made_up(seed, values, share):
    """Pixels may be permuted, the same way in both maps, and maps may be exchanged."""
    one, two = maps(seed, values=values).flatten(1), maps(seed + 1, values=values).flatten(1)
    order = torch.randperm(one.shape[1], generator=torch.Generator().manual_seed(seed))
    value = top_k_agreement(one, two, share=share)
    torch.testing.assert_close(top_k_agreement(one[:, order], two[:, order], share=share), value, equal_nan=True)
    torch.testing.assert_close(top_k_agreement(two, one, share=share), value, equal_nan=True)
    assert ((value >= 0) & (value <= 1)).all()


def test_all_pixels_tied_at_the_last_place_are_in_and_zeros_are_not():
    one = torch.tensor([[9.0, -3.0, 3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    two = torch.tensor([[5.0, 4.0, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]])
    agreement = functools.partial(top_k_agreement, one, two)
    assert agreement(share=0.1).tolist() == [1]  # {0}, {0}
    assert agreement(share=0.2).tolist() == pytest.approx([2 / 3])  # {0, 1, 2} since 1 and 2 are tied, {0, 1}
    assert agreement(share=0.5).tolist() == pytest.approx([4 / 5])  # {0, 1, 2, 4}: the fifth would be a zero
    assert agreement(share=1.0).tolist() == pytest.approx([4 / 5])


def test_sparse_maps_that_share_nothing_but_their_zeros_do_not_agree():
    one, two = torch.zeros(2, 1, 100)
    one[:, :5], two[:, 5:10] = 1.0, 1.0
    assert top_k_agreement(one, two, share=0.2).tolist() == [0]


def test_unrelated_maps_agree_by_chance_on_the_share_itself():
    value = top_k_agreement(maps(0, 2000), maps(1, 2000), share=0.25)
    assert value.mean() == pytest.approx(0.25, abs=0.01)


def test_top_k_is_undefined_where_a_map_marks_nothing():
    one, two = maps(0), maps(1)
    one[1], two[2, 3, 3], two[3] = 0.0, torch.nan, 0.0
    assert top_k_agreement(one, two).isnan().tolist() == [False, True, True, True, False]


def test_sign_and_scale_do_not_matter_to_top_k():
    torch.testing.assert_close(top_k_agreement(maps(0) * -1000, maps(1)), top_k_agreement(maps(0), maps(1)))


def test_a_common_factor_does_not_matter_to_ssim():
    torch.testing.assert_close(ssim(maps(0) * 1000, maps(1) * 1000), ssim(maps(0), maps(1)))


@pytest.mark.parametrize("agreement", [ssim, top_k_agreement])
@pytest.mark.parametrize("values", [None, 2])
def test_a_map_agrees_with_itself_and_both_ways_alike(agreement, values):
    one, two = maps(0, values=values), maps(1, values=values)
    np.testing.assert_allclose(agreement(one, one), 1, atol=1e-12)
    torch.testing.assert_close(agreement(one, two), agreement(two, one))


@pytest.mark.parametrize("agreement", [ssim, top_k_agreement])
def test_the_baseline_takes_them(agreement):
    label = torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(
        wrong_image(maps(0), maps(1), label, of=agreement), agreement(maps(0), maps(1).roll(-1, 0))
    )
