import copy
import functools
import importlib
import warnings

import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

from consilience.attribution import deep_lift as chapter
from consilience.attribution.deep_lift import deep_lift, deep_lift_shap
from consilience.attribution.scores import log_probability, logit, probability, value
from consilience.errors import ModelError, SpecError
from consilience.models.split import normalised
from consilience.tensors import Blurred, blurred

X, T = models.batch(4)
BACKGROUND = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def quietly(name):
    """A third party, whose import warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def small(*layers, **options):
    """Convolution, the layers, and a linear layer, on images [2, 8, 8]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.get("seed", 0))
        net = nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3)).double().eval()
        net(torch.rand(1, 2, 8, 8, dtype=torch.float64))
    return net.requires_grad_(False)


SMALL = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OTHERS = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 2])


def assert_complete(maps, difference, tolerance):
    """Each map adds up to its difference of scores, to so much of what stands in it."""
    gap = (maps.sum((1, 2, 3)) - difference).abs()
    assert (gap <= tolerance * maps.abs().sum((1, 2, 3))).all(), gap


def differences(model, x, target, references, score=logit):
    """``score(x)`` minus the mean score of the references, of the same target."""
    mean = [score(model(references), t.expand(len(references))).mean() for t in target]
    return score(model(x), target) - torch.stack(mean)


# Completeness, on models as people write them


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*models.CONVOLUTIONAL, "checkpointed"])
def test_maps_are_complete(name, kind):
    model, x = models.ALL[name](3, 4).to(kind), X.to(kind)
    tolerance = 1e-5 if kind == torch.float32 else 1e-10
    maps = deep_lift(model, x, T, baseline=0.2)
    assert_complete(maps, differences(model, x, T, torch.full_like(x[:1], 0.2)), tolerance)
    maps = deep_lift_shap(model, x, T, BACKGROUND.to(kind))
    assert maps.dtype == kind
    assert_complete(maps, differences(model, x, T, BACKGROUND.to(kind)), tolerance)


@pytest.mark.parametrize("name", models.SMOOTH)
def test_maps_through_smooth_activations_are_complete(name):
    model = models.smooth(name).double()
    assert_complete(deep_lift_shap(model, X, T, BACKGROUND), differences(model, X, T, BACKGROUND), 1e-10)


@pytest.mark.parametrize("name", models.relus())
def test_however_a_relu_is_written_the_maps_are_equal(name):
    one, two = (models.relus()[key].double() for key in ("nn.ReLU", name))
    torch.testing.assert_close(
        deep_lift_shap(one, X, T, BACKGROUND), deep_lift_shap(two, X, T, BACKGROUND), atol=1e-15, rtol=1e-12
    )


@pytest.mark.parametrize(
    "score",
    [
        log_probability,
        probability,
        value,
        functools.partial(probability, head="sigmoid"),
        lambda logits, target: logit(logits, target) - logits.mean(1),
        lambda logits, target: (logits.exp() / logits.exp().sum(1, keepdim=True)).gather(1, target[:, None])[:, 0],
    ],
)
def test_maps_are_complete_in_any_score(score):
    model = models.plain().double()
    black = torch.zeros_like(X[:1])
    assert_complete(deep_lift(model, X, T, score=score), differences(model, X, T, black, score), 1e-10)
    found = deep_lift_shap(model, X, T, BACKGROUND, score=score)
    assert_complete(found, differences(model, X, T, BACKGROUND, score), 1e-10)


def test_a_single_logit_is_that_of_class_one():
    model, target = models.single_logit().double(), torch.tensor([0, 1, 0, 1])
    maps = deep_lift_shap(model, X, target, BACKGROUND)
    assert_complete(maps, differences(model, X, target, BACKGROUND), 1e-10)
    torch.testing.assert_close(maps, -deep_lift_shap(model, X, 1 - target, BACKGROUND))


# What is known


@pytest.mark.parametrize("baseline", [0.0, 0.3, (0.1, 0.9), Blurred(1.5)])
def test_of_a_linear_model_maps_are_weights_times_the_way(baseline):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    start = {0.0: 0.0, 0.3: 0.3, (0.1, 0.9): torch.tensor([0.1, 0.9], dtype=torch.float64).view(1, 2, 1, 1)}.get(
        baseline
    )
    start = blurred(SMALL, 1.5) if start is None else start
    expected = linear[1].weight.detach()[CLASSES].view_as(SMALL) * (SMALL - start)
    torch.testing.assert_close(deep_lift(linear, SMALL, CLASSES, baseline=baseline), expected, atol=1e-15, rtol=1e-12)
    expected = linear[1].weight.detach()[CLASSES].view_as(SMALL) * (SMALL - OTHERS.mean(0))
    torch.testing.assert_close(deep_lift_shap(linear, SMALL, CLASSES, OTHERS), expected, atol=1e-14, rtol=1e-12)


def test_the_mean_pixel_is_the_zero_behind_the_normalisation():
    model = normalised(small(nn.ReLU()), [0.4, 0.6], [0.2, 0.3]).double()
    plain = model[-1] if isinstance(model, nn.Sequential) else small(nn.ReLU())
    maps = deep_lift(model, SMALL, CLASSES, baseline="mean")
    mean, sd = (torch.tensor(v).double().view(1, 2, 1, 1) for v in ([0.4, 0.6], [0.2, 0.3]))
    torch.testing.assert_close(maps, deep_lift(plain, (SMALL - mean) / sd, CLASSES), atol=1e-6, rtol=1e-5)


def slow_two_layers(model, image, reference, target):
    """The rescale rule of a network linear, ReLU, linear, in the paper's words: one unit after the other."""
    first, second = model[1], model[3]
    x, b = image.flatten(), reference.flatten()
    share = torch.zeros_like(x)
    for unit in range(first.out_features):
        z, z_b = (first.weight[unit] @ p + first.bias[unit] for p in (x, b))
        multiplier = (z.clamp(min=0) - z_b.clamp(min=0)) / (z - z_b)
        share += second.weight[target, unit] * multiplier * first.weight[unit] * (x - b)
    return share.view_as(image).detach()


def test_two_layers_are_the_papers_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    black = torch.zeros_like(SMALL[0])
    expected = [slow_two_layers(model, x, black, t) for x, t in zip(SMALL, CLASSES, strict=True)]
    torch.testing.assert_close(deep_lift(model, SMALL, CLASSES), torch.stack(expected), atol=1e-14, rtol=1e-10)
    expected = [
        torch.stack([slow_two_layers(model, x, b, t) for b in OTHERS]).mean(0)
        for x, t in zip(SMALL, CLASSES, strict=True)
    ]
    found = deep_lift_shap(model, SMALL, CLASSES, OTHERS)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-14, rtol=1e-10)


def slow_pool(model, image, reference, target, size, stride):
    """Max pooling and a linear layer: each window's difference goes to the place of the larger maximum."""
    channels, height, _ = image.shape
    weight = model[2].weight[target].view(channels, (height - size) // stride + 1, -1)
    share = torch.zeros_like(image)
    for c, row, column in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)).tolist():
        at = (c, slice(row * stride, row * stride + size), slice(column * stride, column * stride + size))
        window, other = image[at], reference[at]
        winner = window if window.max() >= other.max() else other
        place = int(winner.reshape(-1).argmax())
        share[at][place // size, place % size] += weight[c, row, column] * (window.max() - other.max())
    return share.detach()


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_max_pooling_is_its_formula(size, stride):
    torch.manual_seed(0)
    model = nn.Sequential(nn.MaxPool2d(size, stride), nn.Flatten(), nn.LazyLinear(3)).double()
    model(SMALL)
    expected = [
        torch.stack([slow_pool(model, x, b, t, size, stride) for b in OTHERS]).mean(0)
        for x, t in zip(SMALL, CLASSES, strict=True)
    ]
    found = deep_lift_shap(model, SMALL, CLASSES, OTHERS)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-14, rtol=1e-10)


def test_of_a_product_each_factor_gets_the_others_mean():
    def gate(x):
        return (x[:, 0] * x[:, 1]).flatten(1)

    a, b = SMALL, OTHERS[:1]
    weight = torch.arange(64 * 3).view(3, 64).double()
    found = deep_lift_shap(models.Call(lambda m, x: gate(x) @ weight.T), a, CLASSES, b)
    way, middle = a - b, (a + b) / 2
    expected = way * middle.flip(1) * weight[CLASSES].view(-1, 1, 8, 8)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", [*models.CONVOLUTIONAL, "gelu", "elu", "sigmoid"])
def test_an_image_that_is_its_own_reference_has_a_map_of_zeros(name):
    model = models.smooth(name).double() if name in models.SMOOTH else models.ALL[name](3, 4).double()
    for same in (X[:1], torch.full_like(X[:1], 0.5), torch.zeros_like(X[:1])):
        assert torch.equal(deep_lift_shap(model, same, T[:1], same), torch.zeros_like(same))
    assert torch.equal(deep_lift(model, X * 0, T), torch.zeros_like(X))


def test_maps_are_the_mean_over_the_background():
    model = models.dense().double()
    each = [deep_lift_shap(model, X, T, b[None]) for b in BACKGROUND]
    torch.testing.assert_close(deep_lift_shap(model, X, T, BACKGROUND), torch.stack(each).mean(0))
    torch.testing.assert_close(deep_lift(model, X, T), deep_lift_shap(model, X, T, torch.zeros_like(X[:1])))


# Third parties, where they are right


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU])
def test_maps_are_captums(act):
    captum = quietly("captum.attr")
    model = small(act(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2), act())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = captum.DeepLift(model).attribute(SMALL, torch.zeros_like(SMALL), target=CLASSES)
        many = captum.DeepLiftShap(model).attribute(SMALL, OTHERS, target=CLASSES)
    torch.testing.assert_close(deep_lift(model, SMALL, CLASSES), one.detach(), atol=1e-12, rtol=1e-8)
    torch.testing.assert_close(deep_lift_shap(model, SMALL, CLASSES, OTHERS), many.detach(), atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_maps_are_shaps_also_behind_max_pooling(pool):
    shap = quietly("shap")
    model = small(nn.ReLU(), nn.Conv2d(4, 5, 2), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(7), nn.ReLU()).float()
    x, background = SMALL.float(), OTHERS.float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = torch.tensor(shap.DeepExplainer(model, background).shap_values(x)).float()
    expected = torch.stack([every[i, ..., t] for i, t in enumerate(CLASSES)])
    found = deep_lift_shap(model, x, CLASSES, background)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


# However it is calculated


@pytest.mark.parametrize("baseline", [0.1, Blurred(2.0)])
@pytest.mark.parametrize(("least", "pair_bytes"), [(2, 1), (3, 10**5), (5, 10**4), (64, 10**9)])
def test_chunks_change_nothing(monkeypatch, least, pair_bytes, baseline):
    model = models.inception().double()
    one, many = deep_lift(model, X, T, baseline=baseline), deep_lift_shap(model, X, T, BACKGROUND)
    monkeypatch.setattr(chapter, "rows_per_chunk", lambda model, x: least)
    monkeypatch.setattr(chapter, "LEAST_ROWS", 1)
    monkeypatch.setattr(chapter, "PAIR_BYTES", pair_bytes)
    torch.testing.assert_close(deep_lift(model, X, T, baseline=baseline), one, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(deep_lift_shap(model, X, T, BACKGROUND), many, atol=1e-14, rtol=1e-10)


def test_each_image_and_each_reference_is_run_once():
    model, seen = models.plain().double(), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(len(out)))
    deep_lift_shap(model, X, T, BACKGROUND)
    assert sorted(seen) == [1, len(X) + len(BACKGROUND)]  # one to learn what a pass takes
    seen.clear()
    deep_lift(model, X, T)
    assert sorted(seen) == [1, len(X) + 1]


def test_halves_that_fit_are_explained_alike(monkeypatch):
    model, tape = models.plain().double(), chapter.Tape

    def short_of_memory(name, x, *others):
        if len(x) > 2 + len(BACKGROUND):
            raise torch.OutOfMemoryError
        return tape(name, x, *others)

    expected = deep_lift_shap(model, X, T, BACKGROUND)
    monkeypatch.setattr(chapter, "Tape", short_of_memory)
    torch.testing.assert_close(deep_lift_shap(model, X, T, BACKGROUND), expected, atol=1e-14, rtol=1e-10)


def test_live_weights_and_no_grad_change_nothing():
    model = models.residual().double()
    expected = deep_lift_shap(model, X, T, BACKGROUND)
    model.requires_grad_(True)
    with torch.no_grad():
        assert torch.equal(deep_lift_shap(model, X, T, BACKGROUND), expected)
    maps = deep_lift_shap(model, X.clone().requires_grad_(), T, BACKGROUND)
    assert torch.equal(maps, expected)
    assert not maps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_users_hooks_act():
    model = models.plain().double()
    scaled = copy.deepcopy(model)
    model[0].register_forward_hook(lambda module, args, out: out * 2 + 1)
    model[3].register_full_backward_hook(lambda module, into, out: tuple(g * 3 for g in into))
    scaled[0].weight.mul_(2)
    scaled[0].bias.mul_(2).add_(1)
    torch.testing.assert_close(deep_lift(model, X, T), deep_lift(scaled, X, T), atol=1e-13, rtol=1e-10)


# Undefined, and refused


def test_a_reference_without_a_score_leaves_no_map_defined():
    model = models.plain().double()
    spoilt = BACKGROUND.clone()
    spoilt[1, 0, 4, 4] = torch.nan
    assert deep_lift_shap(model, X, T, spoilt).isnan().all()
    assert deep_lift(models.not_a_number().double(), X, T).isnan().all()


def test_a_score_that_is_not_finite_leaves_only_its_own_map_undefined():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double().requires_grad_(False)
    linear[1].bias[1] = torch.inf
    maps = deep_lift(linear, SMALL, CLASSES)
    assert maps.isnan().all((1, 2, 3)).tolist() == (CLASSES == 1).tolist()
    assert maps[CLASSES != 1].isfinite().all()


def test_a_model_that_ignores_the_image_by_its_weights_has_maps_of_zeros():
    assert torch.equal(deep_lift(models.constant().double(), X, T), torch.zeros_like(X))


def in_training(model):
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout | nn.BatchNorm2d)
    return model


def attention(m, x):
    tokens = x.flatten(2).transpose(1, 2)
    return m.fc(m.attention(tokens, tokens, tokens)[0].mean(1))


def recurrent(m, x):
    return m.fc(m.lstm(x.flatten(2).transpose(1, 2))[0].mean(1))


LAYERS = {
    "fc": nn.Linear(3, 4),
    "attention": nn.MultiheadAttention(3, 1, batch_first=True),
    "lstm": nn.LSTM(3, 3, batch_first=True),
}


def ending(run):
    return models.Call(lambda m, x: m.fc(run(x).mean((2, 3))), fc=nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (lambda: models.Call(attention, **LAYERS), "'multi_head_attention_forward'"),
        (lambda: models.Call(recurrent, **LAYERS), "'lstm'"),
        (lambda: ending(lambda x: x * (x > 0.5)), "'gt'"),
        (lambda: ending(lambda x: x.sort(1)[0]), "'sort'"),
        (lambda: ending(lambda x: x * x.round()), "'round'"),
        (lambda: ending(lambda x: x.amax(1, keepdim=True).expand(-1, 3, -1, -1)), "'amax'"),
        (lambda: ending(lambda x: x.max(1, keepdim=True)[0].expand(-1, 3, -1, -1)), "'max'"),
        (lambda: ending(lambda x: F.threshold(x, 0.5, 0.0)), "'threshold' that jumps"),
        (lambda: ending(lambda x: torch.div(x, 0.3, rounding_mode="floor")), "'div' that rounds"),
        (lambda: ending(lambda x: x**x), "'pow' whose exponent"),
        (lambda: ending(lambda x: F.prelu(x, x.mean((0, 2, 3)))), "'mean', which folds the batch"),
        (lambda: ending(lambda x: F.conv2d(x, x[:1, :, :3, :3].expand(3, -1, -1, -1))), "which folds the batch"),
        (lambda: ending(lambda x: x - x.mean(0)), "'mean', which folds the batch"),
        (lambda: ending(lambda x: x.view(-1, 4, 16).tanh().view(x.shape)), "'view', which folds the batch"),
        (lambda: ending(lambda x: x.flip(0)), "'flip', which mixes the images"),
        (lambda: ending(lambda x: x + x.roll(1, 0)), "'roll', which mixes the images"),
        (lambda: ending(lambda x: x.cumsum(0)), "'cumsum', which mixes the images"),
        (lambda: ending(lambda x: x.softmax(0)), "'softmax' over the images"),
        (lambda: ending(lambda x: x * torch.arange(len(x)).view(-1, 1, 1, 1)), "'mul' with another constant for each"),
        (
            lambda: ending(lambda x: x.masked_fill((torch.arange(len(x)) < 1).view(-1, 1, 1, 1), 0)),
            "with another const",
        ),
        (lambda: ending(lambda x: x if x.mean() > 0 else -x), "'__bool__', which reads numbers"),
        (lambda: ending(lambda x: x * x.max().item()), "'item', which reads numbers"),
        (lambda: ending(lambda x: torch.from_numpy(x.detach().numpy() * 2)), "'numpy', which reads numbers"),
        (lambda: ending(models.scripted_relu), "code that hides its calls"),
        (lambda: ending(torch.func.vmap(torch.relu)), "code that hides its calls"),
        (lambda: in_training(models.residual()), "'batch_norm' in training mode"),
        (lambda: in_training(models.inception()), "in training mode; call model.eval()|in training mode, which mixes"),
        (models.scripted, "'RecursiveScriptModule' is scripted"),
        (models.partly_scripted, "'3' is scripted"),
        (models.unconnected, "no operation leads to them"),
        (models.tuple_of_outputs, "expected logits .*a tuple of"),
        (models.dict_of_outputs, "expected logits .*a dict of"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_has_no_rule_is_refused(model, found):
    with pytest.raises(ModelError, match=found):
        deep_lift(model().double(), X, T)
    with pytest.raises(ModelError, match=found):
        deep_lift_shap(model().double(), X, T, BACKGROUND)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_that_hides_completely_is_found_by_the_sum():
    def hides(x):
        with torch.no_grad():
            return x + models.scripted_relu(x.sin())

    with pytest.raises(ModelError, match="add up to the difference of the scores"):
        deep_lift(ending(hides).double(), X, T)


def test_what_has_no_rule_is_let_be_where_it_does_not_matter():
    def looks(m, x):
        m.seen = x.std()
        m.sorted = x.sort(1)
        return m.net(x)

    net = models.plain().double()
    maps = deep_lift(models.Call(looks, net=net), X, T)
    torch.testing.assert_close(maps, deep_lift(net, X, T), atol=0, rtol=0)


def test_bad_input_is_refused():
    model = models.plain().double()
    with pytest.raises(SpecError, match="background: expected at least one image"):
        deep_lift_shap(model, X, T, BACKGROUND[:0])
    with pytest.raises(SpecError, match="background: expected at least one image"):
        deep_lift_shap(model, X, T, BACKGROUND[:, :1])
    with pytest.raises(ModelError, match="target: expected classes from 0 to 3"):
        deep_lift(model, X, T + 4)
