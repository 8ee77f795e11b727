"""Agreement on a part of the images: pixel by pixel gathered by hand, and planted truth."""

import functools

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures import parts, similarity
from consilience.measures.agreement import cosine, spearman, wrong_image
from consilience.measures.disagreement import l2, pairwise_rank_agreement, rank_agreement
from consilience.measures.distributions import jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon
from consilience.measures.parts import distribution_on_part, on_mask, on_part, refused, separability_on_part
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


def slow_ssim(one: torch.Tensor, two: torch.Tensor, chosen: torch.Tensor, window: int) -> float:
    """Pixel by pixel, the whole window around each chosen one."""
    edge, found, one, two = window // 2, [], one.double(), two.double()
    low, high = min(one.min(), two.min()), max(one.max(), two.max())
    c1, c2 = ((share * float(high - low)) ** 2 for share in (0.01, 0.03))
    for i in range(edge, chosen.shape[0] - edge):
        for j in range(edge, chosen.shape[1] - edge):
            for a, b in zip(one.view(-1, *chosen.shape), two.view(-1, *chosen.shape), strict=True):
                p, q = (m[i - edge : i + edge + 1, j - edge : j + edge + 1].flatten().numpy() for m in (a, b))
                (v, c), (_, w) = np.cov(p, q)
                similar = (2 * p.mean() * q.mean() + c1) * (2 * c + c2)
                similar /= (p.mean() ** 2 + q.mean() ** 2 + c1) * (v + w + c2)
                found += [similar] * bool(chosen[i, j])
    return float(np.mean(found))


@pytest.mark.parametrize("part", ["foreground", "background"])
@pytest.mark.parametrize("shape", [(9, 8), (2, 9, 8)])
def test_structural_similarity_is_the_mean_over_the_windows_around_the_part(part, shape):
    mask = torch.rand(5, 9, 8, generator=torch.Generator().manual_seed(4)) > 0.6
    one, two = maps(0, 5, shape), maps(1, 5, shape)
    found = on_mask(one, two, mask, of=functools.partial(ssim, window=5), part=part)
    chosen = mask if part == "foreground" else ~mask
    expected = [slow_ssim(one[i], two[i], chosen[i], 5) for i in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_structural_similarities_of_the_part_and_the_rest_make_up_that_of_the_map():
    mask = torch.rand(5, 12, 11, generator=torch.Generator().manual_seed(4)) > 0.6
    one, two, inner = maps(0, 5, (12, 11)), maps(1, 5, (12, 11)), mask[:, 3:-3, 3:-3].flatten(1).double().mean(1)
    there, around = (on_mask(one, two, mask, of=ssim, part=part) for part in ("foreground", "background"))
    torch.testing.assert_close(inner * there + (1 - inner) * around, ssim(one, two))
    same = on_mask(one, one, mask, of=ssim)
    torch.testing.assert_close(same, torch.ones_like(same))


def test_structural_similarity_needs_two_windows_around_the_part_and_maps_that_differ_within():
    mask = torch.zeros(5, 9, 9, dtype=torch.bool)
    mask[0, :3] = True  # 27 pixels, all too near to the edge
    mask[1, 3, 3] = mask[2, 3, 3:5] = mask[3, 3, 3:5] = mask[4] = True
    one, two = maps(0, 5, (9, 9)), maps(1, 5, (9, 9))
    one[3, 0, 0] = torch.nan
    one[4], two[4] = 1.0, 1.0
    assert on_mask(one, two, mask, of=ssim).isnan().tolist() == [True, True, False, True, True]


def test_structural_similarity_of_few_images_at_a_time_is_the_same(monkeypatch):
    family, mask = [maps(seed, 7, (12, 11)) for seed in range(3)], maps(5, 7, (12, 11)) > 0
    pairs = [(0, 1), (2, 0), (1, 1)]
    whole = list(over_family(on_mask, family, pairs, mask=mask, of=ssim))
    monkeypatch.setattr(parts, "BLOCK", 5 * 3 * 132)
    monkeypatch.setattr(similarity, "PIXELS", 2 * 132)
    for one, other in zip(over_family(on_mask, family, pairs, mask=mask, of=ssim), whole, strict=True):
        torch.testing.assert_close(one, other)


def classes(n: int) -> dict[str, object]:
    return {"label": torch.arange(n) % 2, "groups": torch.arange(n), "rng": Rng(0, range(n))}


@pytest.mark.parametrize("part", ["foreground", "background"])
def test_maps_are_told_apart_by_the_part_alone(part):
    """It is what maps get that are zero elsewhere."""
    x, one, two, given = images(24, 1), maps(0, 24), maps(1, 24) + 1.5, classes(24)
    chosen = (x[:, 0] > 0.6) == (part == "foreground")
    found = separability_on_part(one, two, x, **given, part=part, above=0.6)
    for column, expected in zip(found, separability(one * chosen, two * chosen, **given), strict=True):
        torch.testing.assert_close(column, expected)
    assert found.value.mean() > 0.3


def test_maps_that_differ_in_the_background_alone_are_the_same_in_the_foreground():
    x, one, given = images(24, 1), maps(0, 24), classes(24)
    two = torch.where(x[:, 0] > 0.6, one, one + 3)
    own = functools.partial(separability, permutations=19)
    assert separability_on_part(one, two, x, **given, of=own, above=0.6).value.tolist() == [0.0] * 24
    assert separability_on_part(one, two, x, **given, of=own, part="background", above=0.6).value.mean() > 0.9


def test_an_image_without_the_part_is_neither_judged_nor_learnt_from():
    x, one, two, given = images(24, 1), maps(0, 24), maps(1, 24) + 1.5, classes(24)
    x[3] = 0.0
    x[3, 0, 0, 0] = 1.0  # one pixel is not enough
    found = separability_on_part(one, two, x, **given, above=0.6)
    assert found.value.isnan().nonzero().tolist() == [[3]]
    one[3] = torch.nan
    lacking = separability(one * (x[:, 0] > 0.6), two * (x[:, 0] > 0.6), **given)
    torch.testing.assert_close(found.value, lacking.value, equal_nan=True)


def slow_distances(of, one, two, chosen):
    """Pixel by pixel of those images that have it in the part, and of all values there."""
    one, two, chosen = (values.flatten(1) for values in (one, two, chosen))
    each = [
        of(one[chosen[:, d], d][:, None], two[chosen[:, d], d][:, None]).value
        for d in range(one.shape[1])
        if chosen[:, d].sum() >= 2
    ]
    return torch.stack(each).mean(), of(one[chosen][:, None], two[chosen][:, None]).value


@pytest.mark.parametrize("of", [jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon])
@pytest.mark.parametrize("part", ["foreground", "background"])
def test_distributions_are_of_the_values_in_the_part(of, part):
    x, one, two = images(9, 1), maps(0, 9), maps(1, 9) + 0.5
    x[:, 0, 0, 0] = torch.tensor([1.0, *[0.0] * 8])  # of one image in the part: no distribution
    chosen = (x[:, 0] > 0.6) == (part == "foreground")
    found = distribution_on_part(one, two, x, of=of, part=part, above=0.6)
    torch.testing.assert_close(tuple(found), slow_distances(of, one, two, chosen))
    assert distribution_on_part(one, one, x, of=of, part=part, above=0.6) == (0, 0)


def test_distances_where_all_is_in_the_part_are_those_of_the_maps():
    one, two = maps(0), maps(1)
    found = distribution_on_part(one, two, torch.ones(7, 2, 6, 5), of=wasserstein)
    torch.testing.assert_close(tuple(found), tuple(wasserstein(one, two)))


def test_distances_of_channels_that_are_kept_are_of_all_channels():
    x, one, two = images(9, 1), maps(0, 9, (3, 6, 5)), maps(1, 9, (3, 6, 5))
    found = distribution_on_part(one, two, x, of=wasserstein, above=0.6)
    torch.testing.assert_close(tuple(found), slow_distances(wasserstein, one, two, (x > 0.6).expand(-1, 3, -1, -1)))


def test_a_family_of_distances_leaves_out_of_each_pair_what_is_undefined_in_its_part(monkeypatch):
    family, x = [maps(seed, 9) for seed in range(3)], images(9, 1)
    inside = x[:, 0] > 0.6
    family[0][2] = torch.nan
    family[1][4] = torch.where(inside[4], family[1][4], torch.inf)  # outside the part it does not matter
    pairs, kept = [(2, 0), (0, 1), (1, 2), (1, 1)], torch.arange(9) != 2
    monkeypatch.setattr(parts, "BLOCK", 9 * 3 * 4)
    found = list(over_family(distribution_on_part, family, pairs, x=x, of=wasserstein, above=0.6))
    expected = [
        slow_distances(wasserstein, family[2][kept], family[0][kept], inside[kept]),
        slow_distances(wasserstein, family[0][kept], family[1][kept], inside[kept]),
        slow_distances(wasserstein, family[1], family[2], inside),
        (torch.zeros((), dtype=torch.float64),) * 2,
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(tuple(one), other)
    assert list(over_family(distribution_on_part, family, [], x=x)) == []


def test_fewer_than_two_values_have_no_distribution():
    x = torch.zeros(9, 1, 6, 5)
    assert all(number.isnan() for number in distribution_on_part(maps(0, 9), maps(1, 9), x))
    x[0, 0, 0, 0] = 1
    assert all(number.isnan() for number in distribution_on_part(maps(0, 9), maps(1, 9), x))
    x[0, 0, 0, 1] = 1
    found = distribution_on_part(maps(0, 9), maps(1, 9), x)
    assert (found.value.isnan(), found.pooled.isnan()) == (True, False)


@pytest.mark.parametrize(
    ("measured", "of", "said"),
    [
        (
            separability_on_part,
            cosine,
            r"separability_on_part\.of: expected separability, found cosine; choose 'on_part",
        ),
        (
            distribution_on_part,
            functools.partial(ssim, window=3),
            r"_part\.of: expected a distance of two sets, found ss",
        ),
        (
            distribution_on_part,
            cosine,
            r"choose one of jensen_shannon, kolmogorov_smirnov, wasserstein, wilcoxon, or 'on",
        ),
    ],
)
def test_what_is_no_such_measure_is_refused(measured, of, said):
    given = classes(7) if measured is separability_on_part else {}
    with pytest.raises(SpecError, match=said):
        measured(maps(0), maps(1), images(), **given, of=of)


def test_why_a_choice_is_refused_can_be_asked_before_there_are_maps():
    """What is refused is what cannot be measured, of every measure there is."""
    taken = {name for name in measure.names() if refused(measure.choose(name)) is None}
    assert taken == {
        name
        for name in measure.names()
        if list(measure.get(name).roles) == ["maps", "other"] and measure.get(name).columns == {"value": "n"}
    }
    assert refused(measure.get("ssim")) is refused(functools.partial(ssim, window=3)) is None
    reason = refused(measure.choose({"use": "jensen_shannon", "bins": 8}))
    assert reason == (
        "expected a measure with a number for each image, found jensen_shannon; choose 'distribution_on_part'"
    )


def needs_the_plane(maps: Float[torch.Tensor, "n h w"], other: Float[torch.Tensor, "n h w"]) -> torch.Tensor:
    return maps[:, 0, 0] - other[:, 0, 0]


def says_nothing(maps, other):
    return torch.zeros(())


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (needs_the_plane, r"takes pixels in any arrangement, found needs_the_plane, which needs the plane; choose one"),
        (
            says_nothing,
            r"on_part\.of: expected a measure with a number for each image, found says_nothing; choose one ",
        ),
        (wrong_image, r"on_part\.of: expected a measure of two maps of an image, found wrong_image, which asks for "),
        (separability, r"found separability, which asks for \['maps', 'other', 'label', 'groups', 'rng'\]; choose 's"),
        (wasserstein, r"on_part\.of: expected a measure with a number for each image, found wasserstein; choose 'dist"),
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
