"""Laws of every edit in the registry, and that each law fails for an edit that breaks it."""

import pytest
import torch
from tests.laws import laws
from torch import nn

from consilience.component import edit
from consilience.models.edits import randomise
from consilience.rng import Rng, takes_rng
from consilience.tensors import Coverage


def trained():
    """The laws' network as training leaves it: no weight at the value it starts from, some frozen, modes mixed."""
    model = laws.convolutional()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.linspace(0.1, 0.5, parameter.numel()).view_as(parameter))
    model[0].weight.requires_grad_(True)
    model[4].train()
    return model


def edited(function, seed=0):
    """A copy of the trained model after the edit, and what the edit says of it."""
    model = trained()
    given = {"rng": Rng(seed, []), "x": laws.examples()[0], "source": laws.convolutional}
    wanted = edit.get(function.__name__).roles if function.__name__ in edit.names() else {"rng": takes_rng(function)}
    return model, function(model, **{role: value for role, value in given.items() if wanted.get(role)})


def coverage_partitions_the_state_dict(function):
    """Every name is in exactly one list, in the order of the state dict."""
    model, coverage = edited(function)
    assert isinstance(coverage, Coverage)
    changed = set(coverage.changed)
    assert len(coverage.changed) + len(coverage.kept) == len(model.state_dict())
    assert list(coverage.changed) == [name for name in model.state_dict() if name in changed]
    assert list(coverage.kept) == [name for name in model.state_dict() if name not in changed]


def coverage_is_true(function):
    """What is listed as changed differs, what is listed as kept is bit-equal, and something changed."""
    model, coverage = edited(function)
    before, after = trained().state_dict(), model.state_dict()
    assert coverage.changed
    assert not any(torch.equal(before[name], after[name]) for name in coverage.changed)
    assert all(torch.equal(before[name], after[name]) for name in coverage.kept)
    assert all(value.isfinite().all() for value in after.values())


def edits_are_keyed(function):
    """The same seed gives the same weights whatever was drawn before; another gives others, where any are drawn."""
    first, _ = edited(function)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again, _ = edited(function)
    other, _ = edited(function, seed=1)
    one, two, three = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert takes_rng(function) != all(torch.equal(one[name], three[name]) for name in one)


def only_weights_change(function):
    """Slopes, frozen flags, modes, attributes, hooks, shapes, types and random states are as before."""
    x = laws.examples()[0]
    before = laws._trace(trained(), x)
    model, _ = edited(function)
    after = laws._trace(model, x)
    weights, new = before.pop("weights"), after.pop("weights")
    laws._compare(before, after)
    assert {k: (v.shape, v.dtype) for k, v in weights.items()} == {k: (v.shape, v.dtype) for k, v in new.items()}


LAWS = [coverage_partitions_the_state_dict, coverage_is_true, edits_are_keyed, only_weights_change]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", edit.names())
def test_every_edit_keeps_the_laws(name, law):
    component = edit.get(name)
    if law.__name__ in component.breaks:
        laws.broken(law, component.function)
    else:
        law(component.function)


def forgets_a_name(model, rng):
    coverage = randomise(model, rng)
    return coverage._replace(changed=coverage.changed[1:])


def says_too_much(model, rng):
    coverage = randomise(model, rng, layers=("6",))
    return Coverage((*coverage.kept, *coverage.changed), ())


def says_too_little(model, rng):
    coverage = randomise(model, rng)
    return Coverage(coverage.changed[:1], coverage.changed[1:])


def draws_globally(model, rng):
    nn.init.uniform_(model[6].weight)
    return randomise(model, rng, layers=("0",))


def draws_by_a_seed_of_its_own(model, rng):
    return randomise(model, Rng(5, []))


def thaws(model, rng):
    coverage = randomise(model, rng)
    model.requires_grad_(True)
    return coverage


def leaves_training_mode_on(model, rng):
    coverage = randomise(model, rng)
    model.train()
    return coverage


@pytest.mark.parametrize(
    ("law", "function"),
    [
        (coverage_partitions_the_state_dict, forgets_a_name),
        (coverage_is_true, says_too_much),
        (coverage_is_true, says_too_little),
        (edits_are_keyed, draws_globally),
        (edits_are_keyed, draws_by_a_seed_of_its_own),
        (only_weights_change, draws_globally),
        (only_weights_change, thaws),
        (only_weights_change, leaves_training_mode_on),
    ],
)
def test_a_law_fails_for_an_edit_that_breaks_it(law, function):
    laws.broken(law, function)
