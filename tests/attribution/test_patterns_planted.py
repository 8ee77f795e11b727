"""Signal and distractor: what patterns are for, on the published stress tests, with patterns by their definition."""

import numpy as np
import pytest
import torch
from torch import nn

from consilience.attribution.gradient import gradient
from consilience.attribution.path import integrated_gradients
from consilience.attribution.patterns import (
    pattern_attribution,
    pattern_guided_integrated_gradients,
    pattern_net,
    patterns_from_weights,
)
from consilience.attribution.scores import logit, value


def slow_pattern(x, y, w, mask):
    """Kindermans et al. 2018, section 4: of the two-component estimator, a_+; E[y] is over all examples."""
    correlated, mean = np.zeros(len(w)), np.zeros(len(w))
    for example, output in zip(x[mask], y[mask], strict=True):
        correlated += example * output / mask.sum()
        mean += example / mask.sum()
    numerator = correlated - mean * y.mean()
    return numerator / (w @ numerator)


def hand_made(model, x, *patterns):
    """Patterns that are known, in the order of the calls."""
    given = iter(patterns)
    return patterns_from_weights(
        model, x[:1], lambda _, weight: torch.as_tensor(next(given)).to(weight).view_as(weight)
    )


def affine(weight, bias=0.0):
    layer = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.fill_(bias)
    return layer


def row(*layers):
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def signal_and_distractor():
    """The data of the published stress tests: signal (1, 0) times z, distractor (1, 1) times noise."""
    z = np.arange(-2, 2, 0.01)
    noise = np.random.RandomState(42).normal(0, 0.3, len(z))
    return z, np.stack([z + noise, noise], 1)


W = np.array([1.0, -1.0])  # the only filter that reads z whatever the noise


def test_the_pattern_is_the_signal_and_not_the_filter():
    z, x = signal_and_distractor()
    everywhere = np.ones(len(z), dtype=bool)
    linear = slow_pattern(x, x @ W, W, everywhere)
    np.testing.assert_allclose(linear, [1.01802636, 0.01802636], atol=1e-8)  # as the authors' notebook prints
    np.testing.assert_allclose(linear, [np.cov(column, z, bias=True)[0, 1] / z.var() for column in x.T], rtol=1e-9)
    positive = slow_pattern(x, x @ W, W, z > 0)
    np.testing.assert_allclose(positive, [1.01835493, 0.01835493], atol=1e-8)

    model, pixels = row(nn.Flatten(), affine([[1.0, -1.0]])), torch.tensor(x).view(-1, 1, 1, 2)
    patterns, target = hand_made(model, pixels, positive), torch.ones(len(x), dtype=torch.long)
    signal = pattern_net(model, pixels, target, patterns).flatten(1)
    torch.testing.assert_close(signal, torch.tensor(z[:, None] * positive))
    assert (signal[:, 1].abs() < 0.04).all()
    counts = pattern_attribution(model, pixels, target, patterns).flatten(1)
    torch.testing.assert_close(counts, torch.tensor(z[:, None] * positive * W))
    torch.testing.assert_close(counts.sum(1), torch.tensor(z))
    slope = gradient(model, pixels, target, score=value).flatten(1)
    torch.testing.assert_close(slope[:, 1], torch.tensor(-z))  # as much for the distractor as for the signal


def stressed(pattern):
    """Maps of 1 - ReLU(1 - w.x), which is flat for w.x > 1, seeded with one as published."""
    z, x = signal_and_distractor()
    model, pixels = row(nn.Flatten(), affine([[-1.0, 1.0]], 1.0), nn.ReLU(), affine([[-1.0]], 1.0)), torch.tensor(x)
    pixels, target = pixels.view(-1, 1, 1, 2), torch.ones(len(x), dtype=torch.long)
    patterns = hand_made(model, pixels, pattern, [-1.0])
    plain = integrated_gradients(model, pixels, target, steps=100)
    alone = pattern_attribution(model, pixels, target, patterns, score=logit)
    guided = pattern_guided_integrated_gradients(model, pixels, target, patterns, steps=100, score=logit)
    return z > 1, *(maps.flatten(1).numpy() for maps in (plain, alone, guided))


def test_only_guided_integrated_gradients_pass_both_stress_tests():
    _, x = signal_and_distractor()
    hidden = 1 - x @ W
    pattern = slow_pattern(x, hidden, -W, hidden > 0)
    np.testing.assert_allclose(pattern, [-1.01620905, -0.01620905], atol=1e-8)
    flat, plain, alone, guided = stressed(pattern)
    assert flat.sum() == 100
    assert np.abs(plain[flat, 0]).mean() > 0.9  # IG passes saturation
    assert np.abs(plain[:, 1]).mean() > 0.15  # and fails noise
    assert (alone[flat] == 0).all()  # PatternAttribution fails saturation
    np.testing.assert_allclose(alone[~flat], np.broadcast_to(pattern * -W, (300, 2)))  # and passes noise
    assert np.abs(alone[~flat, 1]).max() < 0.02
    np.testing.assert_allclose(guided[flat, 0].mean(), 1, atol=0.05)
    assert np.abs(plain[:, 1]).mean() / np.abs(guided[:, 1]).mean() > 50


@pytest.mark.parametrize(
    ("printed", "published"),
    [
        ([-1.00329617, -0.00329617], lambda x, h, on: x[on].mean(0) / (-W @ x[on].mean(0))),
        ([-1.01706753, -0.01706753], lambda x, h, on: slow_pattern(x, np.where(on, h, h.clip(0)), -W, on)),
    ],
    ids=["the product of means for the mean of products", "the mean behind the rectifier"],
)
def test_the_published_mistakes_make_other_patterns(printed, published):
    _, x = signal_and_distractor()
    hidden = 1 - x @ W
    np.testing.assert_allclose(published(x, hidden, hidden > 0), printed, atol=1e-8)
    assert abs(printed[0] - slow_pattern(x, hidden, -W, hidden > 0)[0]) > 5e-4


def test_two_models_that_compute_the_same_have_other_maps():
    """Schwarzenberg et al. 2020, addendum: ReLU(ReLU(w.x) - 1) and ReLU(w.x - 1)."""
    draw = np.random.RandomState(42)
    first = draw.normal(0, 0.7, 5000)
    x, w = np.stack([first, first * draw.choice([-1, 1], 5000)], 1), np.array([1.0, 2.0])
    patterns = [slow_pattern(x, x @ w - shift, w, x @ w > shift) for shift in (0, 1)]
    deep = row(nn.Flatten(), affine([[1.0, 2.0]]), nn.ReLU(), affine([[1.0]], -1.0), nn.ReLU())
    flat = row(nn.Flatten(), affine([[1.0, 2.0]], -1.0), nn.ReLU())
    pixels, target = torch.full((1, 1, 1, 2), 3.0, dtype=torch.float64), torch.tensor([1])
    maps = [
        pattern_attribution(deep, pixels, target, hand_made(deep, pixels, patterns[0], [1.0])),
        pattern_attribution(flat, pixels, target, hand_made(flat, pixels, patterns[1])),
    ]
    assert float(deep(pixels)) == float(flat(pixels)) == 8
    for one in maps:
        torch.testing.assert_close(one.sum(), torch.tensor(8.0, dtype=torch.float64))
    assert (maps[0] - maps[1]).abs().max() > 0.1
