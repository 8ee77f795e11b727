"""The shared inverse against the matrix itself: of more pixels than rows for each fit, else of an assumed one."""

import pytest
import torch
from sklearn.preprocessing import StandardScaler

from consilience.measures.curvature import UNSURE, inverse_of

RIDGE = 0.7


def maps(n: int, d: int) -> torch.Tensor:
    """Correlated, of scales from 1 to 1e-3; one pixel never moves."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(n, d, generator=chance) @ torch.randn(d, d, generator=chance) * torch.logspace(0, -3, d)
    rows[:, 1] = 0.3
    return rows


def of_the_matrix(rows: torch.Tensor, share: float, slope: torch.Tensor) -> torch.Tensor:
    """The ridge, and what two models' standardised rows curve where each counts ``share``; pixels alone."""
    z = torch.as_tensor(StandardScaler().fit_transform(rows.double().numpy()))
    curvature = RIDGE * torch.eye(z.shape[1]).double() + 2 * share * z.T @ z
    return torch.linalg.solve(curvature, slope[:-1].double())


@pytest.mark.parametrize(("n", "d"), [(20, 60), (5, 200)])
def test_of_more_pixels_than_rows_each_fit_has_the_inverse_of_its_own_weight(n, d):
    slopes, shares = torch.randn(3, d + 1, generator=torch.Generator().manual_seed(1)), torch.tensor([0.25, 0.05, 0.0])
    found = inverse_of(maps(n, d), RIDGE)(slopes, shares[:, None])
    for slope, share, one in zip(slopes, shares.tolist(), found, strict=True):
        expected = of_the_matrix(maps(n, d), share, slope)
        torch.testing.assert_close(one[:-1].double(), expected, atol=1e-4 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize(("n", "d"), [(60, 20), (30, 30)])
def test_of_more_rows_than_pixels_it_is_that_of_an_unsure_fit(n, d):
    slopes = torch.randn(2, d + 1, generator=torch.Generator().manual_seed(1))
    found = inverse_of(maps(n, d), RIDGE)(slopes, torch.full((2, 1), 0.1))
    for slope, one in zip(slopes, found, strict=True):
        expected = of_the_matrix(maps(n, d), UNSURE, slope)
        torch.testing.assert_close(one[:-1].double(), expected, atol=1e-4 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize(("n", "d"), [(20, 60), (60, 20)])
def test_the_intercept_and_the_pixels_do_not_mix(n, d):
    slope, inverse = torch.zeros(1, d + 1), inverse_of(maps(n, d), RIDGE)
    slope[:, -1] = 5
    assert (inverse(slope, torch.full((1, 1), 0.2))[:, :-1] == 0).all()
