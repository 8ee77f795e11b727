import functools
from copy import deepcopy

import pytest
import torch
from torch import nn

from consilience import tensors
from consilience.attribution import adaptive
from consilience.attribution.adaptive import adaptive_integrated_gradients, integrated_gradients_with_error
from consilience.attribution.affine import Diverged, Prefix
from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.attribution.scores import log_probability, logit, probability
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


def section(model, x, target, number, parts):
    """A section's part of one image's map by the trapezoid rule, node by node, and what the nodes count."""
    total = weight = 0.0
    for k in range(parts + 1):
        u = (number + k / parts) / 4
        count = 1.5 * u**0.5 / (4 * parts) * (0.5 if k in (0, parts) else 1)
        total, weight = total + count * gradient(model, u**1.5 * x, target), weight + count
    return x * total, weight


def by_hand(model, x, target, tolerance, most):
    """One image's map, error and nodes: sections are halved one by one, in plain Python."""
    parts, steps, todo = [1] * 4, [0.0] * 4, {0, 1, 2, 3}
    while todo:
        for i in todo:
            step = section(model, x, target, i, 2 * parts[i])[0] - section(model, x, target, i, parts[i])[0]
            square = float(step.square().sum())
            steps[i] = square if parts[i] == 1 else (square + steps[i] / 4) / 2
            parts[i] *= 2
        each = [section(model, x, target, i, parts[i]) for i in range(4)]
        maps = sum(
            part * (((i + 1) / 4) ** 1.5 - (i / 4) ** 1.5) / weight for i, (part, weight) in enumerate(each)
        )  # each at its true length
        error = 0.75 * (sum(steps) / float(maps.square().sum())) ** 0.5
        left, used, todo = sum(steps), sum(parts), set()
        enough = left * (tolerance / error) ** 2
        best = max(steps[i] / parts[i] for i in range(4))
        for i in sorted(range(4), key=lambda i: -steps[i] / parts[i]):
            used += parts[i]
            if error > tolerance and left > enough and steps[i] / parts[i] >= best / 16 and used <= most:
                todo.add(i)
            left -= 0.75 * steps[i]
    return maps, error, sum(parts)


@pytest.mark.parametrize(("tolerance", "most"), [(0.03, 512), (0.01, 512), (1e-9, 50)])
def test_sections_are_halved_as_they_are_by_hand(model, tolerance, most):
    maps, error, nodes = integrated_gradients_with_error(model, X, T, tolerance=tolerance, most=most)
    assert len(nodes.unique()) > 1
    for row in range(N):
        planted, its_error, its_nodes = by_hand(model, X[row : row + 1], T[row : row + 1], tolerance, most)
        torch.testing.assert_close(maps[row], planted[0], atol=1e-12, rtol=1e-10)
        assert float(error[row]) == pytest.approx(its_error, rel=1e-6)
        assert int(nodes[row]) == its_nodes


def test_nodes_go_where_the_slope_changes(monkeypatch):
    bend = chain(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        bend[1].weight.fill_(1.0)
        bend[1].bias.copy_(torch.tensor([-0.36, -0.42, -0.51, -0.62]) * 64)  # an image of ones passes them in the third
    asked, on_line = [], adaptive.mean_on_line

    def watched(plain, model, x, start, target, at, *rest):
        asked.append(at.flatten() ** (2 / 3))
        return on_line(plain, model, x, start, target, at, *rest)

    monkeypatch.setattr(adaptive, "mean_on_line", watched)
    adaptive_integrated_gradients(bend, torch.ones(1, 1, 8, 8, dtype=torch.float64), T[:1], tolerance=0.005)
    later = torch.cat(asked[2:])  # after the ends and the middles
    inside = (later > 0.5) & (later < 0.75)
    assert inside.sum() > 4
    assert inside.double().mean() > 0.7


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


def test_where_slopes_are_smooth_the_estimate_is_an_upper_bound():
    smooth = chain(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    maps, error, _ = integrated_gradients_with_error(smooth, X, T, tolerance=1e-3)
    truth = integrated_gradients(smooth, X, T, nodes="gauss_legendre", steps=40)
    assert (share(maps, truth) < error).all()


@pytest.mark.parametrize("baseline", [0.25, (0.7,), Blurred(1.0)], ids=str)
def test_maps_of_a_linear_model_are_exact(linear, baseline):
    maps, error, nodes = integrated_gradients_with_error(linear, X, T, baseline=baseline)
    planted = linear[1].weight[T].view_as(X) * (X - tensors.start_of(X, baseline, linear))
    torch.testing.assert_close(maps, planted, atol=1e-14, rtol=1e-12)
    assert (error <= 0.02).all()  # of the rule itself, which is not exact before its sections have their length
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
        taken.append(arguments[5].numel())
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
    for name in ("find_prefix", "sum_on_lines"):  # none was found, or the model left it
        with monkeypatch.context() as patch:
            patch.setattr(adaptive, name, lambda *anything: None)
            streamed = adaptive_integrated_gradients(model, X, T)
        torch.testing.assert_close(shared, streamed, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("explain", [adaptive_integrated_gradients, integrated_gradients])
@pytest.mark.parametrize(
    ("place", "trouble"),
    [("before", torch.OutOfMemoryError), ("after", torch.OutOfMemoryError), ("after", Diverged), ("after", None)],
)
def test_where_sharing_fails_slopes_are_streamed(explain, place, trouble, model, monkeypatch):
    """Three rows go through, so that the layers are found; more find no memory, another way, or something undefined."""
    work, failed = getattr(Prefix, place), []

    def failing(*given):
        if len(given[-1]) <= 3:
            return work(*given)
        failed.append(place)
        if trouble is None:
            return work(*given) * torch.nan
        raise trouble

    expected = explain(model, X, T)
    monkeypatch.setattr(Prefix, place, failing)
    torch.testing.assert_close(explain(model, X, T), expected, atol=1e-12, rtol=1e-10)
    assert failed


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


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, -80), (torch.float32, 80), (torch.float64, -500)])
def test_the_scale_of_the_output_changes_neither_nodes_nor_error(model, dtype, power):
    """1e-24 in single precision, whose square it does not know, nor that of 1e24."""
    scaled = deepcopy(model.to(dtype))
    for parameter in scaled[-1].parameters():
        parameter *= 2.0**power
    expected, found = (integrated_gradients_with_error(one, X.to(dtype), T) for one in (model, scaled))
    assert (expected.nodes > 8).any()
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.error, expected.error)
    torch.testing.assert_close(found.maps / 2.0**power, expected.maps)


def test_the_stated_error_holds_for_a_probability_that_is_next_to_none(model):
    """At log-odds of -50 the slopes of the probability are 1e-22 in length."""
    unlikely, of = deepcopy(model), functools.partial(gradient, score=probability)
    unlikely[-1].bias.sub_(50 * torch.eye(4)[0].double())
    truth = integrated_gradients(unlikely, X, T * 0, of=of, steps=4096)
    maps, error, nodes = integrated_gradients_with_error(unlikely.float(), X.float(), T * 0, score=probability)
    assert (truth.flatten(1).norm(dim=1) < 1e-21).all()
    assert (nodes > 8).any()
    assert ((error > 0) & (error <= 0.02)).all()
    assert (share(maps, truth) <= 0.02).double().mean() >= 0.9


def test_half_precision_does_not_claim_to_be_exact(model):
    for parameter in model[-1].parameters():
        parameter /= 100
    maps, error, nodes = integrated_gradients_with_error(model.half(), X.half(), T)
    truth = integrated_gradients(model.double(), X.half().double(), T, steps=1024)
    assert maps.dtype == error.dtype == torch.float16
    assert (error > 0.001).all()
    assert (nodes > 8).any()
    assert (share(maps.double(), truth) <= 2 * error).double().mean() >= 0.8  # what it rounds is not counted


def test_the_error_is_nan_where_no_precision_has_the_squares(model):
    for parameter in model[-1].parameters():
        parameter *= 1e-200
    maps, error, _ = integrated_gradients_with_error(model, X, T)
    assert maps.flatten(1).any(1).all()
    assert error.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lengths_are_those_of_double_precision_in_any(dtype):
    most = torch.finfo(dtype).max / 2 if dtype is not torch.float64 else 1e100
    maps = (X[:4] * torch.tensor([most, 1.0, 1e-6, 0.0]).double()[:, None, None, None]).to(dtype)
    torch.testing.assert_close(adaptive._lengths(maps), maps.double().flatten(1).norm(dim=1), atol=0, rtol=1e-6)


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
