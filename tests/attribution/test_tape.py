import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from consilience.attribution.calls import in_place
from consilience.attribution.tape import Tape
from consilience.errors import ModelError

X = torch.arange(24.0).view(4, 6) - 10
NONE = {}


def taped(function, x=X, keeps="xy", performs=NONE, unfolded=NONE):
    tape = Tape("method", x, lambda function, uses: keeps, performs, unfolded)
    return tape, tape.run(function)


def story(tape):
    """What was written down: operation, values in, values out."""
    return [(call.function.__name__, [s.node for s in call.sources], list(call.nodes)) for call in tape.calls]


def test_the_tape_says_which_call_made_which_value_of_which():
    def run(x):
        y = x * 2
        return torch.cat([y.relu(), x], 1) + torch.ones(12)

    tape, out = taped(run)
    assert story(tape) == [("mul", [0], [1]), ("relu", [1], [2]), ("cat", [2, 0], [3]), ("add", [3], [4])]
    assert tape.node(out) == 4
    assert torch.equal(out.detach(), run(X))
    assert tape.reasons == {}


def test_a_call_can_be_made_again_with_other_tensors():
    tape, _ = taped(lambda x: torch.cat([torch.zeros(4, 1), x, x * 3], dim=1))
    last = tape.calls[-1]
    one, two = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last.filled(one, two), torch.cat([torch.zeros(4, 1), one, two], 1))
    assert last.argument(1, "dim") == 1
    assert last.uses == 2


def test_one_tensor_in_two_places_is_one_source_used_twice():
    tape, _ = taped(lambda x: x * x)
    (call,) = tape.calls
    assert len(call.sources) == 1
    assert call.uses == 2
    assert torch.equal(call.filled(X), X * X)


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.relu_(), lambda y: F.relu(y, inplace=True), lambda y: F.relu(y, True), nn.ReLU(inplace=True),
        lambda y: torch.relu_(y), lambda y: y.clamp_(min=0), lambda y: y.__imul__((y > 0).detach()),
        lambda y: F.hardtanh_(y, 0.0, 1e9), lambda y: F.threshold(y, 0, 0, inplace=True),
    ],
)  # fmt: skip
def test_what_is_kept_survives_a_change_in_place(change):
    def run(x):
        y = x + 0
        before = y.tanh()
        change(y)
        return before + y.exp()

    tape, out = taped(run)
    assert torch.equal(out.detach(), X.tanh() + X.relu().exp())
    kept = {call.function.__name__: call for call in tape.calls}
    assert torch.equal(kept["tanh"].before[0].read(), X)
    assert torch.equal(kept["exp"].before[0].read(), X.relu())
    name = next(n for n in kept if n not in ("add", "tanh", "exp", "gt", "detach"))
    assert torch.equal(kept[name].before[0].read(), X)
    assert torch.equal(kept[name].after.read(), X.relu())
    assert kept["tanh"].sources != kept["exp"].sources


def test_an_addition_to_itself_in_place_is_written_down():
    def run(x):
        y = x.relu()
        y += x
        y += 1
        return y

    tape, out = taped(run)
    assert story(tape) == [("relu", [0], [1]), ("add_", [1, 0], [2]), ("add_", [2], [3])]
    assert tape.node(out) == 3


def test_a_constant_that_is_written_into_depends_on_the_pixels_from_then_on():
    def run(x):
        total = torch.full((4, 6), 2.0)
        total *= x
        return total

    tape, out = taped(run)
    (call,) = tape.calls
    assert torch.equal(call.filled(X), 2 * X)  # not what the constant became
    assert tape.node(out) == 1


def test_a_part_that_is_assigned_is_written_down():
    def run(x):
        out = torch.zeros(4, 8)
        out[:, 1:7] = x
        out[:, 0] = 3
        return out

    tape, out = taped(run)
    assert tape.node(out) == tape.calls[-1].nodes[0]
    assert torch.equal(tape.calls[0].filled(X)[:, 1:7], X)
    assert torch.equal(out.detach(), run(X))


@pytest.mark.parametrize(
    "run",
    [
        lambda x: (y := x + 0, y[:, :3].relu_(), y)[-1],
        lambda x: (y := x + 0, v := y.view(2, 12), y.relu_(), v.view(4, 6))[-1],
        lambda x: (y := x + 0, y.data.relu_(), y * 1)[-1],
        lambda x: (y := torch.zeros(4, 6), v := y.flatten(), v.add_(x.flatten()), y * 1)[-1],
    ],
)
def test_memory_that_is_written_into_behind_a_tensors_back_is_noticed(run):
    tape, out = taped(run)
    node = tape.node(out)
    assert "memory that another tensor shares" in tape.reasons[node]


def test_a_view_may_be_changed_where_only_the_view_goes_on():
    tape, out = taped(lambda x: (x + 0).flatten(1).relu_().view(4, 2, 3))
    assert tape.reasons == {}
    assert torch.equal(out.detach(), X.relu().view(4, 2, 3))


def test_a_kept_tensor_that_changed_unseen_is_refused():
    tape, _ = taped(lambda x: x.tanh())
    kept = tape.calls[0].before[0]
    assert torch.equal(kept.read(), X)
    tape.start.detach().zero_()
    with pytest.raises(ModelError, match="written into unseen"):
        kept.read()


def test_the_very_tensor_that_came_in_is_no_call():
    tape, out = taped(lambda x: F.dropout(x.contiguous().to(x.dtype).float(), training=False))
    assert tape.calls == []
    assert tape.node(out) == 0


def test_what_only_asks_is_no_call():
    def run(x):
        assert len(x) == x.shape[0] == x.size(0) == 4
        assert x.dim() == x.ndim == 2
        assert x.is_floating_point()
        assert x.is_leaf is False
        assert {x: 1}[x] == 1
        assert "tensor" in repr(x)
        return x + torch.zeros_like(x) + x.new_ones(6).to(x).expand_as(x)

    tape, _ = taped(run)
    assert [name for name, *_ in story(tape)] == ["add", "add"]


@pytest.mark.parametrize(
    ("read", "name"), [(bool, "__bool__"), (torch.Tensor.item, "item"), (lambda x: x.tolist(), "tolist")]
)
def test_numbers_that_are_read_out_are_refused(read, name):
    with pytest.raises(ModelError, match=f"'{name}', which reads numbers"):
        taped(lambda x: x if read(x[0, 0]) else -x)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda x: x.mean(0), "'mean', which folds the batch"),
        (lambda x: x.reshape(-1, 3).relu().view(4, 6), "'reshape', which folds the batch"),
        (lambda x: x.t().tanh(), "'t', which folds the batch"),
        (lambda x: x.T, "'T', which folds the batch"),
        (lambda x: x.argsort(1), "'argsort', which makes whole numbers"),
        (lambda x: (x > 0).float() * 2, "'gt', which makes whole numbers"),
    ],
)
def test_values_that_there_is_no_way_back_from_say_why(run, reason):
    tape, out = taped(run)
    assert tape.reasons[tape.node(out)].startswith(reason)


def test_an_unknown_operation_says_its_own_name():
    tape = Tape("method", X, lambda function, uses: None if function is torch.Tensor.sin else "", NONE, NONE)
    out = tape.run(lambda x: x.sin() + 1)
    assert tape.reasons[tape.node(out)] == "'sin'"


def in_thread(x):
    done = []
    thread = threading.Thread(target=lambda: done.append(x.sin()))
    thread.start()
    thread.join()
    return done[0]


@pytest.mark.parametrize("hides", [in_thread, torch.func.vmap(torch.sin)])
def test_what_hides_from_the_mode_is_found_by_its_graph(hides):
    tape, out = taped(lambda x: x + hides(x * 2))
    assert "code that hides its calls" in tape.reasons[tape.node(out)]


def test_constants_with_a_graph_of_their_own_are_constants():
    weight = torch.ones(6, requires_grad=True)
    tape, out = taped(lambda x: x * (weight * 2).exp() + F.normalize(weight, dim=0))
    assert [name for name, *_ in story(tape)] == ["mul", "add"]
    assert tape.reasons == {}
    assert tape.node(weight * 2) is None
    assert tape.node(torch.ones(4, 6)) is None
    assert tape.node(out) == 2


class Own(torch.autograd.Function):
    """A rectifier with a slope of its own, which is of no concern here."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, slope):
        return slope


@pytest.mark.parametrize(
    "run",
    [
        Own.apply, lambda x: checkpoint(torch.relu, x, use_reentrant=False),
        lambda x: checkpoint(torch.relu, x, use_reentrant=True), lambda x: torch.no_grad()(torch.relu)(x),
    ],
)  # fmt: skip
def test_calls_inside_others_are_seen(run):
    tape, out = taped(lambda x: run(x * 2) + 1)
    assert tape.reasons == {}
    assert [name for name, *_ in story(tape) if name != "view_as"] == ["mul", story(tape)[-2][0], "add"]
    assert torch.equal(out.detach(), (X * 2).relu() + 1)


def test_a_composite_is_written_down_as_what_it_is_made_of():
    tape, out = taped(lambda x: F.silu(x) * 2, unfolded={F.silu: lambda x, inplace: x * x.sigmoid()})
    assert [name for name, *_ in story(tape)] == ["sigmoid", "mul", "mul"]
    torch.testing.assert_close(out.detach(), F.silu(X) * 2)


def test_a_call_may_be_made_otherwise_and_remember():
    performs = {torch.Tensor.sin: lambda x: (x.cos(), {"was": "sin"})}
    tape, out = taped(lambda x: x.sin(), performs=performs)
    assert torch.equal(out.detach(), X.cos())
    assert tape.calls[0].memo == {"was": "sin"}


def test_nothing_is_held_that_was_not_asked_for():
    made = []

    def run(x):
        y = x * 2
        made.append(weakref.ref(y))
        return y.tanh()

    for keeps, held in (("", 0), ("x", 1)):
        made.clear()
        tape, _ = taped(run, keeps=keeps)
        gc.collect()
        assert made[0]() is None
        assert len(tape.calls[1].before) == held
    assert torch.equal(tape.calls[1].before[0].read(), X * 2)
    assert tape.largest == 6 * 4


def test_the_mode_is_left_also_when_the_model_fails():
    def fails(x):
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        taped(lambda x: fails(x * 2))
    assert _get_current_function_mode_stack() == []
    assert torch.is_grad_enabled()


def test_the_pixels_themselves_are_never_written_into():
    x = X.clone()
    taped(lambda y: y.mul_(0), x=x)
    assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("function", "args", "options", "expected"),
    [
        (F.relu, (X,), {}, False), (F.relu, (X, True), {}, True), (F.relu, (X,), {"inplace": True}, True),
        (F.relu, (X,), {"inplace": False}, False), (torch.relu_, (X,), {}, True), (torch.add, (X, X), {}, False),
        (torch.Tensor.__setitem__, (X, 0, 1), {}, True), (torch.Tensor.__getitem__, (X, 0), {}, False),
        (torch.Tensor.__rsub__, (X, 1), {}, False), (torch.Tensor.__iadd__, (X, 1), {}, True),
        (torch.Tensor.__invert__, (X,), {}, False), (F.hardtanh, (X, -1, 1, True), {}, True),
    ],
)  # fmt: skip
def test_it_is_known_which_calls_write_into_their_first_tensor(function, args, options, expected):
    assert in_place(function, args, options) is expected
