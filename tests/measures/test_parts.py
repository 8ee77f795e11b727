"""Agreement on a part of the images: pixel by pixel gathered by hand, and planted truth."""

import functools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import parts
from consilience.measures.agreement import cosine, spearman, wrong_image
from consilience.measures.disagreement import l2, pairwise_rank_agreement, rank_agreement
from consilience.measures.distributions import wasserstein
from consilience.measures.parts import on_mask, on_part
from consilience.measures.separability import separability
from consilience.measures.similarity import ssim, top_k_agreement
from consilience.measures.summaries import calibrated_similarity
from consilience.pairs import Maps, over_family
from consilience.rng import Rng
from consilience.tensors import Table

PER_IMAGE = [cosine, spearman, l2, rank_agreement, pairwise_rank_agreement, top_k_agreement]


def maps(seed: int, n: int = 7, shape: tuple[int, ...] = (6, 5)) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def images(n: int = 7, channels: int = 2) -> torch.Tensor:
    return torch.rand(n, channels, 6, 5, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("of", PER_IMAGE)
@pytest.mark.parametrize("part", ["foreground", "background"])
def test_the_part_is_measured_as_if_there_were_no_other_pixels(of, part):
    x, one, two = images(), maps(0), maps(1)
    found = on_part(one, two, x, of=of, part=part, above=0.6)
    for i in range(7):
        chosen = x[i].max(0).values > 0.6
        chosen = chosen if part == "foreground" else ~chosen
        alone = of(one[i][chosen][None], two[i][chosen][None])
        torch.testing.assert_close(found[[i]], alone)


def test_ranks_are_those_among_the_part():
    x, one, two = images(), maps(0), maps(1)
    expected = [
        spearmanr(a[m.amax(0) > 0.5], b[m.amax(0) > 0.5]).statistic for m, a, b in zip(x, one, two, strict=True)
    ]
    np.testing.assert_allclose(on_part(one, two, x, of=spearman, above=0.5), expected, atol=1e-12)


def test_a_mask_is_the_part():
    mask = images()[:, 0] > 0.5
    one, two = maps(0), maps(1)
    torch.testing.assert_close(on_mask(one, two, mask), on_part(one, two, mask[:, None].float(), above=0.5))
    torch.testing.assert_close(on_mask(one, two, mask, part="background"), on_mask(one, two, ~mask))


def test_channels_that_are_kept_are_all_taken():
    x, one, two = images(), maps(0, shape=(3, 6, 5)), maps(1, shape=(3, 6, 5))
    found = on_part(one, two, x, above=0.6)
    for i in range(7):
        chosen = x[i].amax(0) > 0.6
        torch.testing.assert_close(found[[i]], cosine(one[i][:, chosen][None], two[i][:, chosen][None]))
    torch.testing.assert_close(on_part(one[:, :1], two[:, :1], x), on_part(one[:, 0], two[:, 0], x))


def test_twins_that_agree_about_the_object_alone():
    """The same values on the object, and independent ones around it."""
    mask = torch.zeros(300, 6, 5, dtype=torch.bool)
    mask[:, 1:4, 1:4] = True
    own = maps(0, 300), maps(1, 300)
    one, two = (torch.where(mask, maps(2, 300), noise) for noise in own)
    np.testing.assert_allclose(on_mask(one, two, mask), 1, atol=1e-6)
    assert on_mask(one, two, mask, part="background").mean() == pytest.approx(0, abs=0.05)
    assert 0.1 < cosine(one, two).mean() < 0.9


@pytest.mark.parametrize(("of", "better"), [(cosine, "higher"), (spearman, "higher"), (l2, "lower")])
@pytest.mark.parametrize(("part", "place"), [("foreground", 1), ("background", 0)])
def test_on_the_scale_twins_that_agree_about_the_object_alone_are_alike_there_and_nowhere_else(of, better, part, place):
    """Around the object, the twins' maps of an image are no more alike than maps of different images."""
    mask = torch.rand(400, 6, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    label = torch.arange(400) % 3
    one, two = (torch.where(mask, maps(2, 400), maps(seed, 400)) for seed in (0, 1))
    agreement = functools.partial(on_mask, of=of, part=part)
    found = {
        "table": agreement(one, two, mask),
        "floor": agreement(one, one, mask),
        "wrong_image": wrong_image(one, two, label, mask=mask, of=agreement),
    }
    tables = {
        name: Table((0,), (1,), (("init",),), torch.arange(400), label, value[None]) for name, value in found.items()
    }
    (row, _) = calibrated_similarity(**tables, rng=Rng(0, []), better=better, draws=100)
    assert row.estimate == pytest.approx(place, abs=0.05)
    assert row.low <= row.estimate <= row.high


def test_fewer_than_two_pixels_are_no_part():
    mask = torch.zeros(4, 6, 5, dtype=torch.bool)
    mask[1, 0, 0] = True
    mask[2, 0, :2] = True
    mask[3] = True
    one, two = maps(0, 4), maps(1, 4)
    assert on_mask(one, two, mask).isnan().tolist() == [True, True, False, False]
    assert on_mask(one, two, mask, part="background").isnan().tolist() == [False, False, False, True]
    torch.testing.assert_close(on_mask(one, two, mask)[3:], cosine(one[3:], two[3:]))


def test_what_is_undefined_on_the_part_stays_so():
    one, two, mask = maps(0), maps(1), images()[:, 0] > 0.3
    one[2] = torch.where(mask[2], 0.0, one[2])
    assert on_mask(one, two, mask).isnan().nonzero().tolist() == [[2]]
    assert not on_mask(one, two, mask, part="background").isnan().any()


def test_a_pixel_at_the_threshold_is_background():
    x = torch.full((1, 1, 6, 5), 0.5)
    x[0, 0, 0] = 0.75
    one, two = maps(0, 1), maps(1, 1)
    torch.testing.assert_close(on_part(one, two, x, above=0.5), cosine(one[:, 0], two[:, 0]))


@pytest.mark.parametrize("of", [cosine, functools.partial(top_k_agreement, share=0.4)])
def test_a_few_images_of_a_family_at_a_time_give_the_same(of, monkeypatch):
    family, x = [maps(seed) for seed in range(3)], images()
    pairs = [(0, 1), (2, 0), (1, 1)]
    whole = list(over_family(on_part, family, pairs, x=x, of=of, above=0.7))
    monkeypatch.setattr(parts, "BLOCK", 2 * 3 * 30)
    lazy = Maps(3, lambda i: family[i])
    for one, other in zip(over_family(on_part, lazy, pairs, x=x, of=of, above=0.7), whole, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (
            ssim,
            r"on_part\.of: expected a measure that takes pixels in any arrangement, found ssim, which needs the pla",
        ),
        (functools.partial(ssim, window=3), r"found ssim, which needs the plane; choose one such as 'spearman'"),
        (wrong_image, r"on_part\.of: expected a measure of two maps of an image, found wrong_image, which asks for "),
        (separability, r"found separability, which asks for \['maps', 'other', 'label', 'groups', 'rng'\]; choose"),
        (wasserstein, r"on_part\.of: expected a measure with a number for each image, found wasserstein; choose one "),
    ],
)
def test_what_does_not_take_a_part_is_refused(of, said):
    with pytest.raises(SpecError, match=said):
        on_part(maps(0), maps(1), images(), of=of)


def test_maps_of_another_size_than_the_image_are_refused():
    with pytest.raises(SpecError, match=r"on_part: expected maps of the 7 images, as large as they are, \[6, 5\], fou"):
        on_part(maps(0, shape=(3, 3)), maps(1, shape=(3, 3)), images())
    with pytest.raises(SpecError, match=r"on_mask: expected maps of the 7 images, .* found \[7, 6, 5\]; compare maps "):
        on_mask(maps(0), maps(1), images()[:, 0, :5] > 0.5)


def test_it_is_configured_as_any_measure():
    choice = measure.choose({"use": "on_part", "of": "spearman", "part": "background", "above": 0.2})
    assert choice.label == "on_part(above=0.2, of=spearman, part=background)"
    with pytest.raises(SpecError, match="Invalid enum value 'middle'"):
        measure.choose({"use": "on_mask", "part": "middle"})


def test_no_image_has_no_value():
    assert on_part(maps(0)[:0], maps(1)[:0], images()[:0]).shape == (0,)
