"""The laws themselves: each fails for a method that breaks it."""

import pytest
import torch
from tests.laws import laws

from consilience.attribution.gradient import gradient
from consilience.measures.agreement import cosine


def draws_globally(model, x, target):
    return gradient(model, x, target) + torch.randn_like(x)


def draws_by_position(model, x, target):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return gradient(model, x, target) + noise


def reseeds(model, x, target):
    torch.manual_seed(0)
    return gradient(model, x, target)


def keeps_a_hook(model, x, target):
    next(iter(model.modules())).register_forward_hook(lambda *_: None)
    return gradient(model, x, target)


def keeps_a_hook_when_the_model_fails(model, x, target):
    handle = next(iter(model.modules())).register_forward_hook(lambda *_: None)
    maps = gradient(model, x, target)
    handle.remove()
    return maps


def scales_by_the_batch(model, x, target):
    maps = gradient(model, x, target)
    return maps / maps.abs().max()


def explains_in_training_mode(model, x, target):
    model.train()
    maps = gradient(model, x, target)
    model.eval()
    return maps


def leaves_gradients(model, x, target):
    for parameter in model.parameters():
        parameter.requires_grad_()
    model(x).sum().backward()
    return gradient(model, x, target)


def changes_the_image(model, x, target):
    maps = gradient(model, x, target)
    x[:, :, 0] = 0
    return maps


def forgets_a_channel(model, x, target):
    return gradient(model, x, target)[:, 0]


def sums_over_the_batch(model, x, target):
    return gradient(model, x, target) + 0 * x.sum()


@pytest.mark.parametrize(
    ("law", "method"),
    [
        (laws.draws_are_keyed, draws_globally),
        (laws.leaves_no_trace, draws_globally),
        (laws.alike_in_any_batch, draws_by_position),
        (laws.leaves_no_trace, reseeds),
        (laws.leaves_no_trace, keeps_a_hook),
        (laws.leaves_no_trace_when_the_model_fails, keeps_a_hook_when_the_model_fails),
        (laws.alike_in_any_batch, scales_by_the_batch),
        (laws.alike_in_any_batch, explains_in_training_mode),
        (laws.leaves_no_trace, explains_in_training_mode),
        (laws.leaves_no_trace_when_the_model_fails, explains_in_training_mode),
        (laws.leaves_no_trace, leaves_gradients),
        (laws.leaves_no_trace, changes_the_image),
        (laws.one_map_an_image, forgets_a_channel),
        (laws.undefined_stays_alone, sums_over_the_batch),
    ],
)
def test_a_law_fails_for_a_method_that_breaks_it(law, method):
    laws.broken(law, method)


def test_a_hook_that_goes_with_the_call_is_allowed():
    laws.leaves_no_trace(keeps_a_hook_when_the_model_fails)


def clipped_to_zero(maps, other):
    return cosine(maps, other).nan_to_num()


def relative_to_the_batch(maps, other):
    values = cosine(maps, other)
    return values / values.nan_to_num().abs().max()


def scales_in_place(maps, other):
    maps *= 2
    return cosine(maps, other)


def by_position(maps, other):
    return cosine(maps, other) * torch.arange(len(maps))


@pytest.mark.parametrize(
    ("law", "measure"),
    [
        (laws.undefined_is_nan, clipped_to_zero),
        (laws.measured_alike_alone, relative_to_the_batch),
        (laws.measuring_changes_nothing, scales_in_place),
        (laws.order_moves_with_examples, by_position),
    ],
)
def test_a_law_fails_for_a_measure_that_breaks_it(law, measure):
    laws.broken(law, measure, ["maps", "other"])
