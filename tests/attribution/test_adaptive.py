import functools

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.attribution import adaptive
from consilience.attribution.adaptive import adaptive_integrated_gradients, integrated_gradients_with_error
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import log_probability, logit
from consilience.errors import ModelError, SpecError
from consilience.tensors import Blurred

N = 20  # enough for the affine layers to be shared
X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 4


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def chain(*layers):
    made = [layer() if isinstance(layer, type) else layer for layer in layers]
    return nn.Sequential(*made).double().eval().requires_grad_(False)


@pytest.fixture
def model():
    return chain(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 32), nn.ReLU(), nn.Linear(32, 4)
    )


@pytest.fixture
def linear():
    return chain(nn.Flatten(), nn.Linear(64, 4))


def share(maps, truth):
    """Length of the error, as a share of the truth."""
    return (maps - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def trapezoid(model, x, target, parts):
    """The rule in the root of the line, node by node."""
    total = torch.zeros_like(x)
    for k in range(1, parts + 1):
        u = k / parts
        total += 2 * u / parts * (0.5 if k == parts else 1) * gradient(model, u**2 * x, target)
    return x * total


def test_maps_are_the_trapezoid_rule_of_as_many_nodes_as_were_taken(model):
    maps, _, nodes = integrated_gradients_with_error(model, X, T, tolerance=0.03)
    assert len(nodes.unique()) > 1
    for count in nodes.unique().tolist():
        rows = nodes == count
        by_hand = trapezoid(model, X[rows], T[rows], count)
        torch.testing.assert_close(maps[rows], by_hand, atol=1e-12, rtol=1e-10)


def test_the_estimate_is_a_share_of_the_last_step_and_of_half_the_one_before(model):
    coarse, middle, fine = (trapezoid(model, X, T, parts) for parts in (4, 8, 16))
    first, second = share(coarse, middle), share(middle, fine)
    for most, expected in ((8, first), (16, ((second**2 + (first / 2) ** 2) / 2).sqrt())):
        _, error, nodes = integrated_gradients_with_error(model, X, T, tolerance=1e-9, most=most)
        assert (nodes == most).all()
        torch.testing.assert_close(error, 0.75 * expected)


@pytest.mark.parametrize("tolerance", [0.1, 0.02, 0.005])
@pytest.mark.parametrize(
    "options", [{}, {"score": log_probability}, {"baseline": 0.4}], ids=["plain", "log_probability", "baseline"]
)
def test_the_stated_error_holds(model, tolerance, options):
    maps, error, nodes = integrated_gradients_with_error(model, X, T, tolerance=tolerance, most=4096, **options)
    of = functools.partial(gradient, score=options.get("score", logit))
    truth = integrated_gradients(model, X, T, of=of, baseline=options.get("baseline", 0.0), steps=4096)
    assert (error <= tolerance).all()
    assert (share(maps, truth) <= tolerance).double().mean() >= 0.9
    assert (share(maps, truth) <= error).double().mean() >= 0.8  # of nine in ten, with 20 examples
    assert nodes.double().mean() < 4 / tolerance


def test_where_slopes_are_smooth_the_estimate_is_too_large():
    smooth = chain(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    maps, error, _ = integrated_gradients_with_error(smooth, X, T, tolerance=1e-3)
    truth = integrated_gradients(smooth, X, T, nodes="gauss_legendre", steps=40)
    assert (share(maps, truth) < 0.5 * error).all()


@pytest.mark.parametrize("baseline", [0.25, (0.7,), Blurred(1.0)], ids=str)
def test_of_a_linear_model_the_first_two_maps_agree_and_are_exact(linear, baseline):
    maps, error, nodes = integrated_gradients_with_error(linear, X, T, baseline=baseline)
    planted = linear[1].weight[T].view_as(X) * (X - tensors.start_of(X, baseline, linear))
    torch.testing.assert_close(maps, planted, atol=1e-14, rtol=1e-12)
    assert error.max() < 1e-14
    assert (nodes == 8).all()


def test_where_nothing_depends_on_the_image_maps_are_zero_without_error(linear):
    linear[1].weight.zero_()
    maps, error, nodes = integrated_gradients_with_error(linear, X, T)
    assert not maps.any()
    assert not error.any()
    assert (nodes == 8).all()


def test_only_what_is_unfinished_is_refined(model, monkeypatch):
    taken = []

    def counted(*arguments):
        taken.append(len(arguments[2]) * len(arguments[5]))
        return plain(*arguments)

    plain = adaptive.mean_on_line
    monkeypatch.setattr(adaptive, "mean_on_line", counted)
    monkeypatch.setattr(adaptive, "find_prefix", lambda *anything: None)
    _, _, nodes = integrated_gradients_with_error(model, X, T, tolerance=0.03)
    assert len(nodes.unique()) > 1
    assert sum(taken) == nodes.sum()


@pytest.mark.parametrize("most", [8, 20, 40])
def test_no_example_gets_more_than_the_most(model, most):
    maps, error, nodes = integrated_gradients_with_error(model, X, T, tolerance=1e-6, most=most)
    assert (nodes <= most).all()
    assert (nodes > most / 2 - 1).all()
    assert (error > 1e-6).all()  # and it says so
    assert maps.isfinite().all()


def test_layers_that_are_shared_change_nothing(model, monkeypatch):
    shared = adaptive_integrated_gradients(model, X, T)
    for name in ("find_prefix", "shared_by"):  # none was found, or the model left it
        with monkeypatch.context() as patch:
            patch.setattr(adaptive, name, lambda *anything: None)
            streamed = adaptive_integrated_gradients(model, X, T)
        torch.testing.assert_close(shared, streamed, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("budget", [1, 30_000, 10**8])
def test_an_example_is_explained_alike_in_any_batch_and_chunk(model, budget, monkeypatch):
    expected = integrated_gradients_with_error(model, X, T)
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    monkeypatch.setattr(adaptive, "BLOCK", 3)
    rows = [5, 0, 2, 19, 7]
    for found, wanted in zip(integrated_gradients_with_error(model, X, T), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-9)
    for found, wanted in zip(integrated_gradients_with_error(model, X[rows], T[rows]), expected, strict=True):
        torch.testing.assert_close(found, wanted[rows], atol=1e-12, rtol=1e-9)


def test_what_is_undefined_is_nan_and_stays_alone(model):
    spoilt = X.clone()
    spoilt[3, 0, 2, 2] = torch.nan
    maps, error, nodes = integrated_gradients_with_error(model, spoilt, T)
    expected = integrated_gradients_with_error(model, X, T)
    others = torch.arange(N) != 3
    assert maps[3].isnan().all()
    assert error[3].isnan()
    assert nodes[3] == 8  # more of them would not mend it
    torch.testing.assert_close(maps[others], expected.maps[others], atol=1e-12, rtol=1e-10)
    assert torch.equal(nodes[others], expected.nodes[others])


def test_single_precision_stays_single(model):
    maps, error, _ = integrated_gradients_with_error(model.float(), X.float(), T)
    assert maps.dtype == error.dtype == torch.float32
    assert (error <= 0.02).all()


def test_no_examples_give_no_maps(model):
    maps, error, nodes = integrated_gradients_with_error(model, X[:0], T[:0])
    assert maps.shape == (0, 1, 8, 8)
    assert error.shape == nodes.shape == (0,)


def test_too_few_nodes_for_two_estimates_are_refused(model):
    with pytest.raises(SpecError, match="most: expected at least 8 nodes, found 7"):
        integrated_gradients_with_error(model, X, T, most=7)


def test_a_class_that_the_model_does_not_know_is_refused(model):
    with pytest.raises(ModelError, match="the model does not know them"):
        adaptive_integrated_gradients(model, X, T + 1)
