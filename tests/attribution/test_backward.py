"""How signal flows back: which calls a rule sees, what it refuses, what stays."""

import threading

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F

from consilience.attribution.backward import Rules, plain_rule
from consilience.attribution.gradient import gradient
from consilience.attribution.guided import deconvolution_rule, guided_rule
from consilience.attribution.operations import RELU
from consilience.errors import ModelError

X = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0, 2, 1])


class Net(nn.Module):
    """Two convolutions with something between."""

    def __init__(self, between=F.relu):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.one, self.two, self.last = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(16, 3)
        self.between = between
        self.double().eval()

    def forward(self, x):
        x = self.between(self.one(x))
        return self.last(self.between(self.two(x)).flatten(1))


def stack() -> list:
    return torch.overrides._get_current_function_mode_stack()


def test_the_plain_rule_changes_nothing():
    torch.testing.assert_close(gradient(Net(), X, T, rule=plain_rule), gradient(Net(), X, T), atol=0, rtol=0)


@pytest.mark.parametrize("rule", [guided_rule, deconvolution_rule])
def test_a_rule_that_finds_nothing_is_refused(rule):
    with pytest.raises(ModelError, match=r"found none among \['tanh'\]; this method would be the plain gradient"):
        gradient(Net(torch.tanh), X, T, rule=rule)
    assert not stack()


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, X), torch.compile])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_whose_calls_cannot_be_seen_is_refused(make):
    model = nn.Sequential(nn.Conv2d(2, 3, 6), make(nn.ReLU()))
    with pytest.raises(ModelError, match="'1' is scripted, traced or compiled"):
        guided_rule(model)


def test_no_rule_stays_on_when_the_model_fails():
    def failing(x):
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        gradient(Net(failing), X, T, rule=guided_rule)
    assert not stack()
    assert gradient(Net(), X, T, rule=guided_rule).isfinite().all()


def test_two_rules_at_once_are_refused_and_the_first_stays_usable():
    model = Net()
    with guided_rule(model) as first:
        with pytest.raises(ModelError, match="expected no other rule to be on, found guided_rule"):
            gradient(model, X, T, rule=deconvolution_rule)
        model(X.clone().requires_grad_())
    assert first.bound == {"relu": 2}
    assert not stack()


def test_a_rule_is_on_in_its_own_thread_only():
    model, found = Net(), []
    with guided_rule(model):
        other = threading.Thread(target=lambda: found.append(gradient(model, X, T)))
        other.start()
        other.join()
        model(X.clone().requires_grad_())
    torch.testing.assert_close(found[0], gradient(model, X, T))


class Threaded(Net):
    """Calculates its rectifier where no mode sees it."""

    def forward(self, x):
        x, out = F.relu(self.one(x)), []
        worker = threading.Thread(target=lambda: out.append(F.relu(self.two(x))))
        worker.start()
        worker.join()
        return self.last(out[0].flatten(1))


def test_a_call_that_escapes_to_another_thread_is_found():
    with pytest.raises(ModelError, match="found ReluBackward0 that no call"):
        gradient(Threaded(), X, T, rule=guided_rule)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_refused(reentrant):
    def between(x):
        return torch.utils.checkpoint.checkpoint(F.relu, F.relu(x), use_reentrant=reentrant)

    with pytest.raises(ModelError, match="found a checkpoint"):
        gradient(Net(between), X, T, rule=guided_rule)


def test_a_strict_rule_names_what_it_does_not_know():
    def rule(model):
        return Rules("strict", model, {f: lambda call: call.plain() for f in RELU}, strict=True)

    with pytest.raises(ModelError, match=r"strict: expected operations that the rule knows, found sigmoid"):
        gradient(Net(lambda x: x.relu() * 2 + x.sigmoid()), X, T, rule=rule)
    gradient(Net(), X, T, rule=rule)


def test_a_product_of_two_unknowns_is_no_linear_operation():
    model = Net(lambda x: x.relu() * x)
    with guided_rule(model) as rules:
        model(X.clone().requires_grad_())
    assert rules.passed == {"mul": 2}


def test_calls_are_numbered_in_the_order_of_the_model():
    seen = []

    def note(call):
        seen.append((call.number, call.args[0].shape[1]))
        return call.plain()

    model = Net()
    with Rules("note", model, dict.fromkeys(RELU, note)):
        model(X.clone().requires_grad_())
    assert seen == [(0, 5), (1, 4)]


def test_logits_that_do_not_depend_on_the_pixels_are_refused():
    with pytest.raises(ModelError, match="no gradient reaches them"):
        gradient(Net(lambda x: F.relu(x).detach()).requires_grad_(False), X, T)
    with pytest.raises(ModelError, match="no gradient reaches them"):
        gradient(Net(lambda x: F.relu(x).detach()), X, T)


def test_where_the_score_is_not_finite_the_map_is_nan_and_the_others_are_as_ever():
    class Overflowing(Net):
        def forward(self, x):
            return super().forward(x) + torch.tensor([[0.0], [torch.inf], [torch.nan]], dtype=x.dtype)[: len(x)]

    maps = gradient(Overflowing(), X, T)
    assert maps[1:].isnan().all()
    torch.testing.assert_close(maps[0], gradient(Net(), X, T)[0])
