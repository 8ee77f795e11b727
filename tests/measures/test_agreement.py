"""Agreement of two models' maps: slow definitions, SciPy, and planted truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from scipy.stats import rankdata, spearmanr

from consilience.measures import agreement
from consilience.measures.agreement import cosine, mean_ranks, next_of_class, spearman, wrong_image
from consilience.measures.parts import on_mask, on_part


def maps(seed: int, n: int = 5, values: int | None = None) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(0, values, (n, 6, 7), generator=chance).float()
    return torch.randn(n, 6, 7, generator=chance)


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), values=integers(1, 5))
def test_ranks_are_those_of_scipy_with_ties_and_without(seed, values):
    for rows in (maps(seed, values=values).flatten(1), maps(seed).flatten(1)):
        np.testing.assert_array_equal(mean_ranks(rows), rankdata(rows, axis=1))


@settings(deadline=None, max_examples=30)
@given(seed=integers(0, 2**31), values=integers(2, 5))
def test_spearman_is_that_of_scipy_with_ties_and_without(seed, values):
    for one, two in [(maps(seed), maps(seed + 1)), (maps(seed, values=values), maps(seed + 1, values=values))]:
        expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(one, two, strict=True)]
        np.testing.assert_allclose(spearman(one, two), expected, atol=1e-12)


def test_cosine_is_its_definition():
    one, two = maps(0), maps(1)
    expected = [
        sum(float(p) * float(q) for p, q in zip(a.flatten(), b.flatten(), strict=True))
        / (sum(float(p) ** 2 for p in a.flatten()) ** 0.5 * sum(float(q) ** 2 for q in b.flatten()) ** 0.5)
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(cosine(one, two), expected, atol=1e-12)


@pytest.mark.parametrize("measure", [cosine, spearman])
def test_a_map_agrees_with_itself_and_not_with_its_opposite(measure):
    np.testing.assert_allclose(measure(maps(0), maps(0)), 1, atol=1e-12)
    np.testing.assert_allclose(measure(maps(0), -maps(0)), -1, atol=1e-12)


@pytest.mark.parametrize("measure", [cosine, spearman])
def test_scale_does_not_matter(measure):
    torch.testing.assert_close(measure(maps(0) * 1000, maps(1)), measure(maps(0), maps(1)))


def test_monotone_changes_leave_ranks_alone():
    torch.testing.assert_close(spearman(maps(0).exp(), maps(1)), spearman(maps(0), maps(1)))


@pytest.mark.parametrize(("measure", "flat"), [(cosine, 0.0), (spearman, 3.0)])
def test_a_map_without_direction_is_undefined(measure, flat):
    one = maps(0)
    one[1] = flat
    one[3, 0, 0] = torch.nan
    value = measure(one, maps(1))
    assert value.isnan().tolist() == [False, True, False, True, False]


def test_the_other_image_is_the_next_of_the_class():
    label = torch.tensor([3, 1, 3, 2, 1, 3])
    assert next_of_class(label).tolist() == [2, 4, 5, 3, 1, 0]


def test_the_baseline_compares_other_images_and_is_undefined_for_an_only_child():
    label = torch.tensor([0, 1, 0, 1, 2])
    one, two = maps(0), maps(1)
    value = wrong_image(one, two, label)
    expected = cosine(one, two[[2, 3, 0, 1, 4]])
    torch.testing.assert_close(value[:4], expected[:4])
    assert value[4].isnan()


def test_the_baseline_takes_any_agreement():
    label = torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(
        wrong_image(maps(0), maps(1), label, of=spearman), spearman(maps(0), maps(1).roll(-1, 0))
    )


@pytest.mark.parametrize("images_at_once", [1, 2, 5])
@pytest.mark.parametrize("of", [on_part, on_mask])
def test_a_part_of_the_image_is_that_of_the_first_map_s_image(of, images_at_once, monkeypatch):
    monkeypatch.setattr(agreement, "BLOCK", images_at_once * 2 * 6 * 7)
    label, partner = torch.tensor([0, 1, 0, 1, 0]), [2, 3, 4, 1, 0]
    one, two, mask = maps(0), maps(1), maps(2) > 0.3
    role, images = ("x", mask[:, None].float()) if of is on_part else ("mask", mask)
    expected = [cosine(one[i][mask[i]][None], two[j][mask[i]][None]) for i, j in enumerate(partner)]
    torch.testing.assert_close(wrong_image(one, two, label, of=of, **{role: images}), torch.cat(expected))


def test_images_are_handed_on_to_what_asks_for_them_only():
    label = torch.zeros(5, dtype=torch.long)
    given = {"x": torch.rand(5, 1, 6, 7), "mask": maps(2) > 0}
    torch.testing.assert_close(wrong_image(maps(0), maps(1), label, **given), wrong_image(maps(0), maps(1), label))
    torch.testing.assert_close(
        wrong_image(maps(0), maps(1), label, of=on_mask, **given),
        wrong_image(maps(0), maps(1), label, of=on_mask, mask=given["mask"]),
    )


def test_unrelated_maps_agree_as_little_as_maps_of_other_images():
    """Maps that share a template of their class agree, whatever the image: the baseline shows it."""
    template, label = torch.ones(200, 6, 7), torch.zeros(200, dtype=torch.long)
    one, two = maps(0, 200) + template, maps(1, 200) + template
    assert cosine(one, two).mean() == pytest.approx(0.5, abs=0.03)
    assert wrong_image(one, two, label).mean() == pytest.approx(float(cosine(one, two).mean()), abs=0.03)
