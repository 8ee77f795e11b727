import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

from consilience.attribution.deep_lift import deep_lift_shap
from consilience.attribution.rescale import RULES
from consilience.attribution.slopes import bend, divided, exponential, softmax_weights
from consilience.errors import ModelError

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
REFERENCES = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
T = torch.tensor([0, 2, 1])
A, B = 3 * torch.randn(2, 400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

ACTIVATIONS = {
    "relu": F.relu, "relu_": lambda x: x.relu_(), "relu6": lambda x: F.relu6(4 * x), "hardtanh": F.hardtanh,
    "hardtanh in place": lambda x: F.hardtanh(x, -0.5, 0.7, inplace=True), "clamp": lambda x: x.clamp(-0.3, 0.6),
    "clamp max": lambda x: x.clamp(max=0.2), "clamp_max": lambda x: x.clamp_max(0.2), "clip": lambda x: x.clip(0.1),
    "clamp a number": lambda x: x.clamp(min=torch.tensor(0.1)), "threshold": lambda x: F.threshold(x, 0.2, 0.2),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "leaky_relu in place": lambda x: F.leaky_relu_(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 1.5, -0.3, 0.0]).to(x)),
    "prelu of one": lambda x: F.prelu(x, torch.tensor([0.1]).to(x)), "abs": torch.abs, "abs()": abs,
    "elu": lambda x: F.elu(x, 0.7), "elu in place": lambda x: F.elu(x, inplace=True), "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.4), "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "silu in place": nn.SiLU(inplace=True),
    "mish": F.mish, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "tanh_": lambda x: x.tanh_(), "F.tanh": nn.Tanh(),
    "softplus": F.softplus, "logsigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "exp": torch.exp, "exp_": lambda x: x.exp_(), "sin": torch.sin, "erf": torch.erf, "square": torch.square,
    "x ** 2": lambda x: x**2, "x ** 3": lambda x: x**3, "sqrt": lambda x: (x.abs() + 0.01).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.01).rsqrt(), "log": lambda x: (x.abs() + 0.01).log(),
    "pow": lambda x: torch.pow(x.abs(), 1.5), "1 / x": lambda x: 1 / (2 + x.sin()), "log1p": lambda x: x.abs().log1p(),
    "reciprocal": lambda x: (2 + x.sin()).reciprocal(), "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x, torch.tensor(0.3)), "minimum": lambda x: torch.minimum(x, x.new_full((6,), 0.2)),
    "x * x": lambda x: x * x, "x * sigmoid(x)": lambda x: x * x.sigmoid(),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_operation_of_one_number_has_the_slope_between_the_two(name):
    act, weight = ACTIVATIONS[name], torch.arange(1, 4 * 36 + 1).view(4, 6, 6) / 36
    model = models.Call(lambda m, x: (act(x + 0) * weight).flatten(1).sum(1, keepdim=True).expand(-1, 3))
    for x, b in ((X, REFERENCES), (X, X[:1] + 1e-9), (X, X[:1].flip(3))):
        expected = torch.zeros_like(x)
        for reference in b:
            expected += (act(x.clone()) - act(reference.clone()[None])) * weight / len(b)
        torch.testing.assert_close(deep_lift_shap(model, x, T, b), expected, atol=1e-9, rtol=1e-8)


LAYERS = {
    "conv2d": nn.Conv2d(4, 5, 3), "strides": nn.Conv2d(4, 5, 3, stride=2), "odd rest": nn.Conv2d(4, 5, 2, stride=4),
    "padding": nn.Conv2d(4, 5, 3, padding=2), "dilation": nn.Conv2d(4, 5, 2, dilation=3, padding=1),
    "groups": nn.Conv2d(4, 6, 3, groups=2), "depthwise": nn.Conv2d(4, 8, (3, 2), stride=(2, 1), groups=4),
    "same": nn.Conv2d(4, 5, 3, padding="same"), "circular": nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"),
    "transposed": nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1, output_padding=1, dilation=2),
    "transposed groups": nn.ConvTranspose2d(4, 6, 3, groups=2), "avg_pool": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=3)), "linear of the last axis": nn.Linear(6, 3),
    "conv3d": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, 2)), "upsample": nn.Upsample(scale_factor=1.5),
    "adaptive": nn.AdaptiveAvgPool2d((4, 5)), "bilinear": nn.Upsample(9, mode="bilinear", align_corners=True),
    "batch norm": nn.BatchNorm2d(4), "batch norm without weights": nn.BatchNorm2d(4, affine=False),
    "batch norm of vectors": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(144)), "pixel shuffle": nn.PixelShuffle(2),
    "identity": nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d(inplace=True), nn.Flatten()),
    "few colours": nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 5, 3, stride=2, padding=2)), "pad": nn.ZeroPad2d(2),
    "mean": models.Call(lambda m, x: x.mean((2, 3)) + x.sum(1).flatten(1)[:, :4]),
    "parts": models.Call(lambda m, x: torch.cat([*x.chunk(2, 1), x.split([1, 2, 1], 1)[1]], 2)),
    "stack": models.Call(lambda m, x: torch.stack(x.unbind(2)[:3], 2)),
    "index": models.Call(lambda m, x: x[:, [0, 2, 2]][:, :, 1:4, ::2] + x[:, 1:, :3, :3] - x[:, 1:, 3:, 3:]),
    "matmul": models.Call(lambda m, x: x @ torch.arange(18).view(6, 3).to(x) + torch.arange(18).view(3, 6).to(x).t()),
    "einsum": models.Call(lambda m, x: torch.einsum("bchw,hd->bdcw", x, torch.arange(12).view(6, 2).to(x))),
    "arithmetic": models.Call(lambda m, x: 1 - (x - 0.3) / 0.7 + 2 * -x + torch.sub(x, x.flip(1), alpha=3) / 4),
    "in place": models.Call(lambda m, x: x.mul(2).add_(x, alpha=2).sub_(1).div_(3).neg_()),
    "into a constant": models.Call(lambda m, x: x.new_ones(x.shape).mul_(x).add_(x.new_ones(4, 1, 1))),
    "where": models.Call(lambda m, x: torch.where(torch.ones_like(x) > 0, x, x.flip(2))),
    "masked": models.Call(lambda m, x: x.masked_fill(torch.arange(6) < 2, 3)),
    "assigned": models.Call(lambda m, x: _assigned(x)), "turned": models.Call(lambda m, x: x.permute(0, 2, 3, 1).mT),
    "repeated": models.Call(lambda m, x: x.repeat(1, 2, 1, 1) + x[:, :1].expand(len(x), 8, -1, -1).type_as(x)),
    "detached": models.Call(lambda m, x: x.detach() + x.data + x.clone().contiguous()),
}  # fmt: skip


def _assigned(x):
    out = x.new_zeros(len(x), 4, 6, 7)
    out[:, :2, :, 1:] = x[:, :2]
    out[:, 2:, :, :6] = x[:, 2:] * 3
    out[:, 0, 0] = out[:, 3, 5]
    return out


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_operation_has_its_transpose(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.LazyLinear(3)
        model = nn.Sequential(models.Call(lambda m, x: x + 0), LAYERS[name], nn.Flatten(), head).double()
        model.train()(X)  # gives batch norm something to have learnt
        model.eval()
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).gather(1, T[:, None]).sum(), x)
    slope = 3 * slope if name == "detached" else slope
    for references in (REFERENCES, REFERENCES[:1]):
        expected = slope * (X - references.mean(0))
        torch.testing.assert_close(deep_lift_shap(model, X, T, references), expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), dilation=(2, 1), ceil_mode=True),
        nn.AdaptiveMaxPool2d((4, 1)), lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_pool2d(x, 2, None, 0, 1, False, True)[0], lambda x: torch.max_pool2d(x, 3),
        lambda x: F.max_pool1d(x.flatten(2), 5, 3), lambda x: F.max_pool3d(x[:, None], 2), F.max_pool2d,
        lambda x: F.max_pool2d(input=x, kernel_size=[2, 2]), lambda x: F.adaptive_max_pool1d(x.flatten(2), 7),
        lambda x: F.max_pool2d(x.relu(), 3, 1), lambda x: F.max_pool2d(x.mean(1), 2),
    ],
)  # fmt: skip
def test_pooling_is_complete_and_no_share_is_larger_than_its_difference(pool):
    pooled = (lambda x: F.max_pool2d(x, 2)) if pool is F.max_pool2d else pool
    model = models.Call(lambda m, x: pooled(x).flatten(1).sum(1, keepdim=True).expand(-1, 3))
    for b in REFERENCES:
        maps, way = deep_lift_shap(model, X, T, b[None]), X - b
        torch.testing.assert_close(maps.sum((1, 2, 3)), (model(X) - model(b[None]))[:, 0], atol=1e-10, rtol=1e-10)
        assert (maps * way > -1e-12).all()  # a maximum grows with every pixel


def gated(m, x):
    return m.fc(F.glu(x, 1).flatten(1)[:, :36] / (1.5 + x[:, 0].flatten(1).sin()))


def attends(m, x):
    tokens = x.flatten(2)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    one = F.scaled_dot_product_attention(tokens, tokens.flip(1), tokens * 2, attn_mask=mask)
    two = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True, scale=0.3)
    three = F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask.to(x))
    return m.fc((one + two + three).mean(1))


SEVERAL = {
    "gates": gated, "attention": attends, "maxout": lambda m, x: m.fc(torch.maximum(x[:, 0], x[:, 1]).flatten(1)),
    "minimum": lambda m, x: m.fc(torch.minimum(x[:, 0], x[:, 1:].mean(1)).flatten(1)),
    "einsum": lambda m, x: m.fc(torch.einsum("bij,bjk->bik", x[:, 0], x[:, 1]).flatten(1)),
    "bmm": lambda m, x: m.fc(torch.baddbmm(x[:, 2], x[:, 0], x[:, 1], alpha=0.3).flatten(1)),
    "addcmul": lambda m, x: m.fc(torch.addcmul(x[:, 0], x[:, 1], x[:, 2], value=2).flatten(1)),
    "broadcast product": lambda m, x: m.fc((x * x.mean((2, 3), keepdim=True).sigmoid() * x[:, :1]).mean(1).flatten(1)),
    "softmax": lambda m, x: m.fc(((3 * x).softmax(1) + x.flatten(2).softmax(2).view_as(x)).mean(1).flatten(1)),
    "log_softmax": lambda m, x: m.fc(x.mean(1).flatten(1)).mul(20).log_softmax(-1),
    "logsumexp": lambda m, x: m.fc(x.logsumexp(1).flatten(1)) + m.fc(x.logsumexp(2, keepdim=True).expand(-1, -1, 9, -1)
                                                                     .flatten(1)[:, :36]),
    "layer norm": lambda m, x: m.fc(F.layer_norm(x, (6, 6), x.new_ones(6, 6) * 2, x.new_ones(6, 6)).mean(1).flatten(1)),
    "group norm": lambda m, x: m.fc(F.group_norm(x, 2, x.new_ones(4) * 2, x.new_ones(4)).mean(1).flatten(1)),
    "instance norm": lambda m, x: m.fc(F.instance_norm(x).square().mean(1).flatten(1)),
    "rms norm": lambda m, x: m.fc(F.rms_norm(x, (6,), x.new_ones(6), 1e-5).mean(1).flatten(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SEVERAL)
def test_what_the_paper_has_no_rule_for_is_complete(name, kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Call(SEVERAL[name], fc=nn.Linear(36, 3)).to(kind).requires_grad_(False)
    x, references = X.to(kind), REFERENCES.to(kind)
    maps = deep_lift_shap(model, x, T, references)
    own, theirs = model(x).gather(1, T[:, None])[:, 0], model(references)[:, T].mean(0)
    gap = (maps.sum((1, 2, 3)) - (own - theirs)).abs()
    assert (gap <= (1e-5 if kind == torch.float32 else 1e-12) * maps.abs().sum((1, 2, 3))).all()


def test_values_that_are_written_out_are_those_of_torch():
    model = models.Call(lambda m, x: attends(m, x) + gated(m, x), fc=nn.Linear(36, 3)).double()
    seen = []
    probe = models.Call(lambda m, x: seen.append(model(x)) or seen[-1])
    deep_lift_shap(probe, X, T, REFERENCES)
    torch.testing.assert_close(seen[-1].detach(), model(torch.cat([X, REFERENCES])).detach(), atol=1e-12, rtol=1e-10)


# Slopes by themselves


def exactly(f, a, b):
    """The slope in double precision."""
    return ((f(a.double()) - f(b.double())) / (a.double() - b.double())).float()


@pytest.mark.parametrize("way", [10.0, 1.0, 1e-1, 1e-2, 4e-3, 1e-3, 1e-4])
@pytest.mark.parametrize("f", [torch.tanh, torch.sigmoid, F.gelu, F.softplus, torch.sin, F.mish])
def test_a_smooth_slope_loses_few_digits_however_close_the_points(f, way):
    a = A.float()
    b = a + way
    found = divided(f, a, b, f(a), f(b))
    torch.testing.assert_close(found, exactly(f, a, b), atol=1e-4, rtol=1e-4)  # the bare division: 1e-3 at 1e-4
    torch.testing.assert_close(found * (a - b), f(a) - f(b), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("f", [torch.log, torch.sqrt, torch.rsqrt, lambda x: x**3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_slope_that_is_steep_near_zero_is_as_close_at_any_scale(f, scale):
    a, b = (scale * (0.01 + v.abs()) for v in (A, B))
    expected = (f(a) - f(b)) / (a - b)
    torch.testing.assert_close(divided(f, a, b, f(a), f(b), relative=True), expected, atol=0, rtol=1e-8)


def test_two_zeros_under_a_root_change_nothing():
    zero = torch.zeros(3)
    assert torch.equal(divided(torch.sqrt, zero, zero, zero, zero, relative=True), zero)


def test_a_bend_is_its_division_and_a_share():
    expected = (A.relu() - B.relu()) / (A - B)
    torch.testing.assert_close(bend(A, B), expected, atol=1e-15, rtol=1e-12)
    close = torch.nextafter(A.float(), torch.tensor(torch.inf))
    assert torch.equal(bend(A.float(), close), (A > 0).float())  # no digit is lost
    assert bend(torch.zeros(1), torch.zeros(1)) == 0
    assert bend(torch.tensor(torch.nan), torch.tensor(1.0)).isnan()


def test_the_slope_of_exp_holds_from_close_to_far():
    for way in (0.0, 1e-12, 1e-6, 1.0, 80.0):
        high = A + way
        share = torch.where(high == A, 1, (high - A).expm1() / (high - A))
        torch.testing.assert_close(exponential(A, high), A.exp() * share, atol=0, rtol=1e-12)
    infinite = torch.tensor([-torch.inf])
    assert exponential(infinite, infinite) == 0


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-3, 1.0, 50.0, 1e4])
def test_weights_of_logits_are_positive_and_add_up(scale):
    a, b = A.view(40, 10), A.view(40, 10) + scale * B.view(40, 10)
    weights = softmax_weights(a, b, -1)
    assert (weights >= 0).all()
    expected = a.logsumexp(1) - b.logsumexp(1)
    torch.testing.assert_close((weights * (a - b)).sum(1), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(weights, softmax_weights(a + 1000, b + 1000, -1), atol=1e-9, rtol=1e-6)
    if scale == 0:
        torch.testing.assert_close(weights, a.softmax(1))
    if scale == 1:  # as exp, a sum and log have it, one after the other
        sums = a.exp().sum(1, keepdim=True), b.exp().sum(1, keepdim=True)
        slow = (a.exp() - b.exp()) / (a - b) * (sums[0].log() - sums[1].log()) / (sums[0] - sums[1])
        torch.testing.assert_close(weights, slow, atol=1e-12, rtol=1e-8)


def test_every_name_of_an_operation_has_its_rule():
    for names in ((F.relu, torch.relu, torch.Tensor.relu, torch.relu_, F.relu_, torch.Tensor.relu_),
                  (torch.clamp, torch.Tensor.clamp_, torch.clip, torch.Tensor.clamp),
                  (torch.tanh, torch.Tensor.tanh_, torch.Tensor.tanh)):  # fmt: skip
        assert len({RULES[name].back for name in names}) == 1


def test_attention_with_dropout_is_refused():
    model = models.Call(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1).mean((2, 3)))
    with pytest.raises(ModelError, match="expected no dropout"):
        deep_lift_shap(model, X, T, REFERENCES)
