"""Sharing changes nothing but the cost: whatever the model does, maps equal those of the plain streaming."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from consilience.attribution import line
from consilience.attribution.gradient import gradient
from consilience.attribution.line import find_prefix, shared_line_gradient
from consilience.attribution.path import integrated_gradients, midpoints
from consilience.attribution.scores import logit
from consilience.errors import ModelError
from consilience.models.split import normalised

N = 6
X = torch.rand(N, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.arange(N) % 3


class Net(nn.Module):
    """Layers to build models of; each model below uses them in its own way."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.same = nn.Conv2d(2, 2, 3, padding=1)
        self.strided = nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.relu, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)
        self.dense, self.out = nn.Linear(128, 4), nn.Linear(4, 3)
        self.weight = nn.Parameter(torch.randn(128, 4) / 10)
        self.calls = 0

    def forward(self, x):
        return self.way(self, x)

    def end(self, h):
        return self.fc(torch.tanh(h).mean((2, 3)))


class Reversed(torch.autograd.Function):
    """The identity, with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return -slope.clamp(min=0)


class Inside(torch.autograd.Function):
    """A convolution inside a function with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx, slope):
        return F.conv_transpose2d(slope, ctx.saved_tensors[0], padding=1).abs(), None


def in_place(net, x):
    return net.end(net.again(net.inplace(net.conv(x))))


def functional(net, x):
    h = F.linear(((x - 0.3) / 0.7).reshape(x.shape[0], -1), net.dense.weight, net.dense.bias)
    return net.out(F.dropout(F.relu(h), 0.5, training=net.training))


def functional_in_place(net, x):
    h = F.batch_norm(F.conv2d(x, net.conv.weight), net.norm.running_mean, net.norm.running_var)
    return net.end(F.relu(h, inplace=True))


def residual(net, x):
    return net.end(F.pad(x, (0, 0, 0, 0, 1, 1)) + net.conv(x).relu())


def residual_after(net, x):
    h = net.conv(x)
    return net.end(net.again(net.norm(h).relu()) + h)


def reused(net, x):
    return net.end(net.conv(net.same(net.same(x).relu()).relu()))


def reads_shape(net, x):
    assert x.ndim == 4
    assert len(x) == x.size(0)
    return functional(net, x.view(x.shape[0], *x.shape[1:]))


def reads_mean(net, x):
    return net.end(net.conv(x)) * x.mean()


def decides(net, x):
    return net.end(net.conv(x if x.sum() > 0 else -x).relu())


def two_branches(net, x):
    return net.end(torch.cat([net.conv(x), net.conv(x * 2)], 1)[:, ::2].relu())


def channels_first(net, x):
    rows = x.permute(0, 2, 3, 1).contiguous().matmul(net.conv.weight[:, :, 0, 0].T)
    return net.end(rows.permute(0, 3, 1, 2).relu())


def counts(net, x):
    net.calls += 1  # after two calls that look for the prefix and one that asks for its memory, another way
    return net.end(net.conv(x).relu() if net.calls <= 3 else net.strided(x).relu())


def detaches(net, x):
    return net.end(net.conv(x).relu() + net.conv(x.detach()))


def own_backward(net, x):
    return net.end(net.conv(Reversed.apply(x)).relu())


def own_backward_inside(net, x):
    return net.end(Inside.apply(x, net.conv.weight).relu())


def own_backward_after(net, x):
    return net.end(Reversed.apply(net.conv(x)).relu())


def checkpointed(net, x):
    return net.end(checkpoint(lambda y: net.conv(y).relu(), x, use_reentrant=False))


def turned(net, x):
    h = net.same(x).transpose(0, 1).transpose(0, 1)
    return net.end(net.conv(h.relu()))


SHARED = {
    "in place": (in_place, "conv2d"),
    "functional": (functional, "sub div reshape linear"),
    "functional, in place": (functional_in_place, "conv2d batch_norm"),
    "residual after": (residual_after, "conv2d"),
    "reused": (reused, "conv2d"),
    "reads the shape": (reads_shape, "view sub div reshape linear"),
    "matmul": (lambda net, x: net.out((x.flatten(1) @ net.weight).relu()), "flatten matmul"),
    "batch norm": (lambda net, x: net.end(net.norm(net.conv(x)).relu()), "conv2d batch_norm"),
    "stride and padding": (lambda net, x: net.end(net.strided(net.drop(x)).relu()), "dropout pad conv2d"),
    "pooled first": (lambda net, x: net.end(net.conv(F.avg_pool2d(x, 2)).relu_()), "avg_pool2d conv2d"),
    "two layers": (lambda net, x: net.end(net.again(net.conv(1 - x)).exp()), "__rsub__ conv2d conv2d"),
    "affine to the end": (lambda net, x: net.out(net.dense(x.flatten(1))), "flatten linear linear"),
    "channels last": (channels_first, "permute contiguous matmul permute"),
    "own backward after": (own_backward_after, "conv2d"),
    "turned": (turned, "conv2d"),
}
NOT_SHARED = {
    "residual": residual,
    "reads the mean": reads_mean,
    "decides by its input": decides,
    "two branches": two_branches,
    "detaches": detaches,
    "own backward": own_backward,
    "own backward inside": own_backward_inside,
    "starts with a nonlinearity": lambda net, x: net.end(net.conv(x.exp())),
    "squares": lambda net, x: net.end(net.conv(x * x)),
    "rounds": lambda net, x: net.end(net.conv(torch.div(x, 0.1, rounding_mode="floor") + x)),
    "no layer": lambda net, x: net.end((x * 2).exp().repeat(1, 2, 1, 1)),
    "one by one": lambda net, x: torch.cat([net.end(net.conv(row[None]).relu()) for row in x]),
    "only looks affine": lambda net, x: net.end(net.conv(x + torch.rand_like(x) * 0).relu()),
    "batch norm in training": lambda net, x: net.end(F.batch_norm(net.conv(x), None, None, training=True)),
}


def made(way):
    torch.manual_seed(0)
    return Net(way).double().eval()


def streamed(model, x, target):
    return gradient(model, x, target)


def steps_of(model):
    prefix = find_prefix(model, X, torch.zeros_like(X), T, logit)
    return None if prefix is None else " ".join(step.function.__name__ for step in prefix.steps)


def assert_alike(model, x=X, **options):
    shared = integrated_gradients(model, x, T, **options)
    plain = integrated_gradients(model, x, T, of=streamed, **options)
    assert plain.abs().max() > 0
    torch.testing.assert_close(shared, plain, atol=1e-10 * float(plain.abs().max()), rtol=1e-10)


@pytest.mark.parametrize("name", SHARED)
def test_affine_layers_are_shared_exactly(name):
    way, expected = SHARED[name]
    assert steps_of(made(way)) == expected
    assert_alike(made(way), baseline=0.1)


@pytest.mark.parametrize("name", NOT_SHARED)
def test_what_cannot_be_shared_is_streamed(name):
    model = made(NOT_SHARED[name])
    assert steps_of(model) is None
    assert_alike(model)


def test_a_model_that_takes_another_way_later_is_streamed():
    assert shared_line_gradient(made(counts), X, X * 0, T, midpoints(100).to(X), logit) is None


def test_a_checkpointed_model_is_explained_alike():
    assert_alike(made(checkpointed))


def test_the_wrapped_models_normalisation_is_part_of_what_is_shared():
    model = normalised(made(in_place), [0.4, 0.6], [0.2, 0.3])
    assert steps_of(model) == "sub div conv2d"
    assert_alike(model, baseline="mean")


def test_a_users_hook_acts_in_both_ways():
    model, seen = made(in_place), []
    model.conv.register_forward_hook(lambda module, args, out: out * 2 + 1)
    model.again.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    assert steps_of(model) == "conv2d mul add"
    assert_alike(model)
    assert sum(seen) > 2 * N * 50
    assert len(model.conv._forward_hooks) == 1


def test_a_users_backward_hook_acts_in_both_ways():
    for layer in ("conv", "relu", "again"):
        model = made(lambda net, x: net.end(net.again(net.relu(net.conv(x)))))
        getattr(model, layer).register_full_backward_hook(lambda module, into, out: tuple(g * g.sign() for g in into))
        assert_alike(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_is_streamed():
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    assert steps_of(plain) == "conv2d"
    assert steps_of(torch.jit.script(plain)) is None
    assert steps_of(nn.Sequential(torch.jit.script(plain), nn.Identity())) is None
    assert_alike(torch.jit.script(plain))


def test_a_compiled_model_is_streamed():
    assert steps_of(torch.compile(made(in_place), backend="eager")) is None


def test_half_of_a_model_in_training_is_streamed():
    model = made(functional)
    model.train()
    before = torch.get_rng_state()
    assert steps_of(model) is None
    torch.set_rng_state(before)


def test_few_points_are_not_worth_it(monkeypatch):
    monkeypatch.setattr(line, "find_prefix", lambda *anything: pytest.fail("searched"))
    integrated_gradients(made(in_place), X, T, steps=3)


def test_nothing_is_left_behind_also_when_the_model_fails():
    def fails(net, x):
        h = net.conv(x)
        if net.calls:
            net.calls -= 1
            return net.end(h)
        raise ValueError("halfway")

    for calls in (0, 1, 2, 5):
        model, x = made(fails), X.clone()
        model.calls = calls
        weights, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        with pytest.raises(ValueError, match="halfway"):
            integrated_gradients(model, x, T, steps=400)
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
        assert torch.equal(chance, torch.get_rng_state())
        assert torch.equal(x, X)
        assert not x.requires_grad
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
        assert not torch.overrides._get_current_function_mode_stack()


@pytest.mark.parametrize(
    "flatten", [lambda h: h.view(len(h), -1), lambda h: h.view(-1, 4).view(len(h), -1), lambda h: h.flatten(1)]
)
def test_a_model_that_needs_its_own_layout_keeps_it(flatten):
    torch.manual_seed(0)
    model = Net(lambda net, x: net.out(net.dense(flatten(F.max_pool2d(net.wide(x).relu(), 2)).tanh())))
    model.wide = nn.Conv2d(2, 8, 3, padding=1)
    model, x = model.float().eval(), X.float()
    shared = shared_line_gradient(model, x, torch.zeros_like(x), T, midpoints(50).to(x), logit)
    assert shared is not None
    plain = sum(gradient(model, a * x, T) for a in midpoints(50).to(x)) / 50
    torch.testing.assert_close(shared, plain, atol=1e-5 * float(plain.abs().max()), rtol=1e-4)


def test_what_the_model_refuses_is_refused_in_its_own_words():
    with pytest.raises(ModelError, match="expected logits"):
        integrated_gradients(made(lambda net, x: net.conv(x)), X, T)


@pytest.mark.parametrize("score", [logit, lambda logits, target: logit(logits, target) ** 2])
def test_any_score_and_any_nodes(score):
    model, start = made(in_place), X.flip(0)
    nodes = midpoints(50).to(X) ** 3
    shared = shared_line_gradient(model, X, start, T, nodes, score)
    of = functools.partial(gradient, score=score)
    plain = sum(of(model, start + a * (X - start), T) for a in nodes) / 50
    torch.testing.assert_close(shared, plain, atol=1e-12, rtol=1e-10)


def test_single_precision_is_shared_too():
    for name, (way, expected) in SHARED.items():
        model = made(way).float()
        prefix = find_prefix(model, X.float(), torch.zeros_like(X).float(), T, logit)
        assert prefix is not None, name
        assert len(prefix.steps) == len(expected.split())
