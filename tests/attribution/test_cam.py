import functools
import threading
import warnings
from collections import Counter

import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

from consilience import tensors
from consilience.attribution.cam import element_grad_cam, grad_cam, guided_grad_cam
from consilience.attribution.guided import guided_backprop
from consilience.attribution.scores import log_probability, logit
from consilience.errors import ModelError, SpecError
from consilience.models.cnn import cnn
from consilience.models.split import normalised

CAMS = [grad_cam, element_grad_cam]
WHOLE = [*CAMS, guided_grad_cam]
X, T = models.batch(5)
NETS = {  # with the layer that is to be found
    "plain": "4",
    "residual": "relu",
    "overlapping_pool": "5",
    "global_average": "4",
    "global_max": "4",
    "checkpointed": None,
    "dense": None,
    "inception": None,
    "depthwise": None,
    "squeeze_excitation": None,
    "tied": None,
    "log_softmax": None,
    "transformer": "blocks.1.norm1",
    "pooled_transformer": "norm",
}


def net(name):
    return getattr(models, name)().double()


def quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports, on some versions of torch
        return pytest.importorskip(name)


def slow(model, x, target, layer, *, averaged, score=logit):
    """Selvaraju et al. 2017, equations 1 and 2, image by image, number by number; or without the mean of equation 1."""
    maps = []
    for image, chosen in zip(x, target, strict=True):
        seen = {}
        handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out, seen=seen: seen.update(a=out))
        pixels = image[None].clone().requires_grad_()
        answer = score(model(pixels), chosen[None])
        handle.remove()
        (slope,) = torch.autograd.grad(answer.sum(), seen["a"])
        _, k, h, w = slope.shape
        total = torch.zeros(h, w, dtype=x.dtype)
        for channel in range(k):
            alpha = slope[0, channel].sum() / (h * w) if averaged else slope[0, channel]
            total += alpha * seen["a"][0, channel].detach()
        maps.append(total.clamp(min=0))
    return torch.stack(maps)[:, None]


def pooled(*layers, fc):
    """Layers, their mean over the plane, and a linear head."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)


def functional():
    """No module gives maps: all is written as functions, in place, and the pixels are normalised."""

    def run(m, x):
        x = (x - 0.5) / 0.25
        y = F.relu_(F.conv2d(x, m.first.weight, m.first.bias))
        y = F.relu(F.conv2d(y, m.second.weight), inplace=True)
        return F.linear(y.mean((2, 3)), m.fc.weight)

    return models.fixed(lambda: models.Call(
        run, first=nn.Conv2d(3, 6, 3), second=nn.Conv2d(6, 8, 3, bias=False), fc=nn.Linear(8, 4, bias=False),
    )).double()  # fmt: skip


# Oracles


@pytest.mark.parametrize("score", [logit, log_probability])
@pytest.mark.parametrize(("cam", "averaged"), [(grad_cam, True), (element_grad_cam, False)])
@pytest.mark.parametrize(("name", "layer"), [("plain", "3"), ("plain", "2"), ("global_max", "4"), ("log_softmax", "3")])
def test_maps_are_their_definition(name, layer, cam, averaged, score):
    model = net(name)
    maps = cam(model, X, T, layer=layer, resize="none", score=score)
    expected = slow(model, X, T, layer, averaged=averaged, score=score)
    assert maps.count_nonzero()
    torch.testing.assert_close(maps, expected, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize(("name", "layer"), [(n, la) for n, la in NETS.items() if la and "former" not in n])
def test_the_found_layer_gives_captums_maps(name, layer):
    model, attr = net(name), quietly("captum.attr")
    if name == "residual":  # its ReLU is called again and again, which captum does not take
        model.relu, model.last = nn.ReLU(), nn.Identity()
        model.pool = nn.Sequential(model.last, model.pool)
        layer = "last"
    theirs = attr.LayerGradCam(model, model.get_submodule(layer)).attribute(X, T, relu_attributions=True)
    ours = grad_cam(net(name), X, T, resize="none")
    assert ours.count_nonzero()
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-14, rtol=1e-10)


def test_maps_up_to_their_scale_are_those_of_pytorch_grad_cam():
    package, model = quietly("pytorch_grad_cam"), net("plain").float().requires_grad_()
    x = X.float()
    for ours, theirs in ((grad_cam, package.GradCAM), (element_grad_cam, package.HiResCAM)):
        with theirs(model=model, target_layers=[model[4]]) as explain:
            chosen = [quietly("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(int(t)) for t in T]
            expected = torch.from_numpy(explain(x, targets=chosen))
        maps = ours(model, x, T)[:, 0]
        low, high = maps.flatten(1).aminmax(dim=1)
        scaled = (maps - low[:, None, None]) / (high - low)[:, None, None]
        torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)


def test_guided_maps_are_captums():
    model, attr = net("plain"), quietly("captum.attr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it sets hooks
        theirs = attr.GuidedGradCam(model, model[4]).attribute(X, T)
    ours = guided_grad_cam(net("plain"), X, T, resize="nearest")
    assert ours.count_nonzero()
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
def test_guided_maps_are_guided_backpropagation_where_the_layer_speaks_for_the_class(resize):
    model = net("residual")
    coarse = F.interpolate(grad_cam(model, X, T, resize="none"), (16, 16), mode=resize)
    torch.testing.assert_close(guided_grad_cam(model, X, T, resize=resize), guided_backprop(model, X, T) * coarse)


# What is known beforehand


@pytest.mark.parametrize("cam", CAMS)
def test_behind_a_global_average_all_are_the_class_activation_map(cam):
    model = pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), fc=nn.Linear(8, 4)).double()
    activation = model[:2](X).detach()
    planted = torch.einsum("nk,nkij->nij", model[4].weight[T], activation)[:, None].relu()
    planted = planted.detach() / 14**2  # the slope of a mean
    torch.testing.assert_close(cam(model, X, T, resize="none"), planted)
    torch.testing.assert_close(cam(model, X, T), F.interpolate(planted, (16, 16), mode="bilinear", align_corners=False))


def test_behind_a_global_maximum_the_variants_differ_and_one_is_sparse():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).double()  # fmt: skip
    activation = model[:2](X).detach()
    dense = torch.einsum("nk,nkij->nij", model[4].weight[T].detach(), activation)[:, None].relu() / 14**2
    torch.testing.assert_close(grad_cam(model, X, T, resize="none"), dense)
    sparse = element_grad_cam(model, X, T, resize="none")
    top, where = activation.flatten(2).max(2)
    planted = torch.zeros(5, 14 * 14, dtype=X.dtype)
    planted.scatter_add_(1, where, model[4].weight[T].detach() * top)
    torch.testing.assert_close(sparse, planted.relu().view(5, 1, 14, 14))
    assert 0 < sparse.flatten(1).count_nonzero(1).max() <= 8


@pytest.mark.parametrize("cam", WHOLE)
def test_what_depends_on_one_corner_is_explained_by_that_corner(cam):
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)]
    model = models.fixed(lambda: nn.Sequential(*layers)).double()
    with torch.no_grad():
        model[0].weight.abs_()
        seen = torch.zeros(4, 16, 16, dtype=torch.bool)
        seen[:, :4, 12:] = True
        model[3].weight.abs_().mul_(seen.flatten())
    maps = cam(model, X, T)
    corner = maps[..., :5, 11:].abs().sum((1, 2, 3))
    if cam is not grad_cam:  # whose mean over the plane makes every place answer for the corner
        torch.testing.assert_close(corner, maps.abs().sum((1, 2, 3)))
    assert (corner > 0).all()


def test_without_relu_the_maps_of_a_linear_head_sum_to_the_score():
    model = net("plain")[:7].append(nn.Linear(72, 4, bias=False)).double()
    maps = element_grad_cam(model, X, T, resize="none", relu=False)
    assert (maps < 0).any()
    torch.testing.assert_close(maps.sum((1, 2, 3)), logit(model(X), T).detach())


@pytest.mark.parametrize("cam", CAMS)
def test_negative_evidence_is_cut_before_the_resize(cam):
    model = net("plain")
    signed = cam(model, X, T, resize="none", relu=False)
    assert (signed < 0).any()
    planted = F.interpolate(signed.relu(), (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cam(model, X, T), planted)


@pytest.mark.parametrize("cam", CAMS)
def test_where_nothing_speaks_for_the_class_the_map_is_zero(cam):
    model = pooled(nn.Conv2d(3, 4, 3), nn.ReLU(), fc=nn.Linear(4, 4)).double()
    with torch.no_grad():
        model[4].weight.abs_().neg_()
    assert torch.equal(cam(model, X, T), torch.zeros(5, 1, 16, 16, dtype=torch.float64))


# Which layer


@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layer in NETS.items() if layer])
def test_the_found_layer_is_the_last_with_a_plane(name, layer, cam):
    named, found = (cam(net(name), X, T, layer=chosen) for chosen in (layer, None))
    assert named.count_nonzero()
    torch.testing.assert_close(found, named)


@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize("build", [functional, *(functools.partial(net, name) for name in NETS)])
def test_with_and_without_the_graph_below_the_layer_maps_are_alike(build, cam):
    maps = cam(build(), X, T)
    assert maps.count_nonzero()
    torch.testing.assert_close(maps, cam(build(), X, T, create_graph=True).detach(), atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("cam", CAMS)
def test_a_model_without_modules_is_explained_all_the_same(cam):
    model = functional()
    body = pooled(model.first, nn.ReLU(), model.second, nn.ReLU(), fc=model.fc)
    maps = cam(model, X, T)
    assert maps.count_nonzero()
    torch.testing.assert_close(maps, cam(body, (X - 0.5) / 0.25, T, layer="3"))


@pytest.mark.parametrize("cam", CAMS)
def test_a_split_model_is_explained_at_its_seam(cam):
    model = cnn((3, 16, 16), 4).double().eval()
    maps = cam(model, X, T)
    torch.testing.assert_close(maps, cam(model, X, T, layer="dropout1"))
    wrapped = normalised(model, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]).double()
    torch.testing.assert_close(cam(wrapped, X, T), cam(model, wrapped.normalise(X), T))


@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_behind_the_datas_mean_layers_keep_their_names(name):
    model, layer = net(name), NETS[name]
    wrapped = normalised(model, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]).double()
    expected = grad_cam(model, wrapped.normalise(X), T, layer=layer)
    for chosen in (layer, f"model.{layer}", None):
        torch.testing.assert_close(grad_cam(wrapped, X, T, layer=chosen), expected)


def test_two_branches_are_explained_where_they_have_met():
    def run(m, x):
        x = m.stem(x)
        return m.fc(torch.cat([m.left(x).relu(), m.right(x).relu()], 1).mean((2, 3)))

    model = models.fixed(lambda: models.Call(
        run, stem=nn.Conv2d(3, 4, 3), left=nn.Conv2d(4, 3, 1), right=nn.Conv2d(4, 5, 1), fc=nn.Linear(8, 4)
    )).double()  # fmt: skip
    x = model.stem(X)
    both = torch.cat([model.left(x).relu(), model.right(x).relu()], 1)
    planted = torch.einsum("nk,nkij->nij", model.fc.weight[T], both)[:, None].relu() / 14**2
    torch.testing.assert_close(grad_cam(model, X, T, resize="none"), planted)


def test_of_a_layer_called_twice_the_last_call_counts():
    def run(m, x):
        return m.fc(m.conv(m.conv(x).relu()).relu().mean((2, 3)))

    model = models.fixed(lambda: models.Call(run, conv=nn.Conv2d(3, 3, 3), fc=nn.Linear(3, 4))).double()
    second = pooled(model.conv, nn.ReLU(), model.conv, nn.ReLU(), fc=model.fc)
    for cam, averaged in ((grad_cam, True), (element_grad_cam, False)):
        maps = cam(model, X, T, layer="conv", resize="none")
        assert maps.shape[2:] == (12, 12)
        torch.testing.assert_close(maps, slow(second, X, T, "2", averaged=averaged))


def test_another_threads_calls_of_the_layer_do_not_count():
    def run(m, x):
        y = m.conv(x)
        other = threading.Thread(target=lambda: m.conv(0 * x))
        other.start()
        other.join()
        return m.fc(y.relu().mean((2, 3)))

    model = models.fixed(lambda: models.Call(run, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4))).double()
    alone = pooled(model.conv, nn.ReLU(), fc=model.fc)
    torch.testing.assert_close(grad_cam(model, X, T, layer="conv"), grad_cam(alone, X, T, layer="0"))


# Activations as people write them


def overwritten(m, x):
    """The layer's output is gone when the pass ends."""
    y = m.conv(x)
    F.relu_(y)
    return m.fc(y.mean((2, 3)))


def unassigned(m, x):
    """The in-place layer's result is not taken up."""
    y = m.first(x)
    m.relu(y)
    return m.fc(m.conv(y).relu().mean((2, 3)))


def shared(m, x):
    """What goes around the block is what the in-place layer overwrote."""
    y = m.first(x)
    return m.fc((m.conv(m.relu(y)) + y).relu().mean((2, 3)))


def viewed(m, x):
    """The same through another view of the memory."""
    y = m.first(x)
    z = y.flatten(2)
    return m.fc((m.conv(m.relu(y)).flatten(2) + z).relu().mean(2))


@pytest.mark.parametrize(("cam", "averaged"), [(grad_cam, True), (element_grad_cam, False)])
@pytest.mark.parametrize(
    ("run", "layer"),
    [(overwritten, "conv"), (unassigned, "relu"), (shared, "relu"), (viewed, "relu"), (shared, "first")],
)
def test_what_is_written_in_place_is_explained_as_it_came_out(run, layer, cam, averaged):
    def build(inplace):
        return models.fixed(lambda: models.Call(
            run, first=nn.Conv2d(3, 8, 1), relu=nn.ReLU(inplace), conv=nn.Conv2d(3 if run is overwritten else 8, 8, 1),
            fc=nn.Linear(8, 4),
        )).double()  # fmt: skip

    def apart(m, x):
        """The same numbers, with nothing in place, and the layer's output kept."""
        if run is overwritten:
            return m.fc(m.keep(m.conv(x)).relu().mean((2, 3)))
        if layer == "first":
            y = m.keep(m.first(x)).relu()
            return m.fc((m.conv(y) + y).relu().mean((2, 3)))
        y = m.keep(m.first(x).relu())
        return m.fc((m.conv(y) + (0 if run is unassigned else y)).relu().mean((2, 3)))

    model, plain = build(inplace=True), build(inplace=False)
    plain.keep, plain.run = nn.Identity(), apart
    torch.testing.assert_close(model(X), plain(X))
    maps = cam(model, X, T, layer=layer, resize="none")
    assert maps.count_nonzero()
    torch.testing.assert_close(maps, slow(plain, X, T, "keep", averaged=averaged))
    again = cam(model, X, T, layer=layer, resize="none", create_graph=True).detach()
    torch.testing.assert_close(maps, again)


def test_a_frozen_body_run_without_gradients_is_explained_at_its_end():
    def run(m, x):
        with torch.no_grad():
            y = m.body(x)
        return m.fc(y.mean((2, 3)))

    model = models.fixed(lambda: models.Call(run, body=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4))).double()
    maps = grad_cam(model, X, T, layer="body", resize="none")
    planted = torch.einsum("nk,nkij->nij", model.fc.weight[T], model.body(X))[:, None].relu() / 14**2
    torch.testing.assert_close(maps, planted)
    with pytest.raises(ModelError, match="expected logits that depend on the pixels"):
        grad_cam(model, X, T)


# Tokens


def tokens_of(model, layer, x, target):
    """Output of a layer and slope in it, [n, tokens, channels]."""
    seen = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: seen.update(a=out))
    answer = logit(model(x.clone().requires_grad_()), target).sum()
    handle.remove()
    return seen["a"].detach(), torch.autograd.grad(answer, seen["a"])[0]


@pytest.mark.parametrize(("name", "lead"), [("transformer", 1), ("pooled_transformer", 0)])
def test_tokens_become_the_patches_that_they_stand_for(name, lead):
    model = net(name)
    output, slope = (t[:, lead:] for t in tokens_of(model, NETS[name], X, T))
    maps = grad_cam(model, X, T, resize="none")
    elements = element_grad_cam(model, X, T, resize="none")
    assert maps.shape == (5, 1, 4, 4)
    for row in range(4):
        for column in range(4):
            token = 4 * row + column
            planted = (slope.mean(1) * output[:, token]).sum(1).relu()
            torch.testing.assert_close(maps[:, 0, row, column], planted)
            planted = (slope[:, token] * output[:, token]).sum(1).relu()
            torch.testing.assert_close(elements[:, 0, row, column], planted)


@pytest.mark.parametrize("layer", ["blocks.1.mlp", "blocks.1.attention", "norm"])
def test_where_the_class_token_is_alone_no_map_is_made(layer):
    with pytest.raises(ModelError, match="found that it depends on the class token alone"):
        grad_cam(net("transformer"), X, T, layer=layer)


@pytest.mark.parametrize(("side", "patch"), [((16, 16), 4), ((24, 16), 4), ((16, 40), 8), ((18, 18), 4)])
@pytest.mark.parametrize("lead", [0, 1, 2, 5])
@pytest.mark.parametrize("first", [False, True])
def test_grids_follow_the_images_proportion(side, patch, lead, first):
    """One attention over patches that are no square, with leading tokens, with the tokens or the images first."""

    def run(m, x):
        tokens = m.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([m.lead.expand(len(x), -1, -1), tokens], 1) + 0
        if first:
            tokens = tokens.transpose(0, 1)
        y = m.norm(tokens)
        y = m.attention(y, y, y, need_weights=False)[0]
        return m.fc(y.mean(0 if first else 1))

    model = models.fixed(lambda: models.Call(
        run, patch=nn.Conv2d(3, 8, patch, patch), norm=nn.LayerNorm(8), fc=nn.Linear(8, 4),
        attention=nn.MultiheadAttention(8, 2, batch_first=not first),
    )).double()  # fmt: skip
    model.lead = nn.Parameter(torch.randn(1, lead, 8, dtype=torch.float64), requires_grad=False)
    x = torch.rand(3, 3, *side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid = (side[0] // patch, side[1] // patch)
    named, found = (grad_cam(model, x, T[:3], layer=layer, resize="none") for layer in ("norm", "attention"))
    assert named.shape == found.shape == (3, 1, *grid)
    assert grad_cam(model, x, T[:3], resize="none").shape == (3, 1, *grid)
    output, slope = tokens_of(model, "norm", x, T[:3])
    if first:
        output, slope = output.transpose(0, 1), slope.transpose(0, 1)
    output, slope = output[:, lead:], slope[:, lead:]
    planted = (slope.mean(1, keepdim=True) * output).sum(2).relu().view(3, 1, *grid)
    torch.testing.assert_close(named, planted)


@pytest.mark.parametrize("layer", [None, "norm"])
def test_planes_with_their_channels_last_are_turned(layer):
    def run(m, x):
        return m.fc(m.norm(m.conv(x).permute(0, 2, 3, 1)).tanh().mean((1, 2)))

    def turned(m, x):
        return m.fc(m.keep(m.norm(m.conv(x).permute(0, 2, 3, 1)).tanh().permute(0, 3, 1, 2)).mean((2, 3)))

    layers = {"conv": nn.Conv2d(3, 30, 3), "norm": nn.LayerNorm(30), "fc": nn.Linear(30, 4), "keep": nn.Identity()}
    model = models.fixed(lambda: models.Call(run, **layers)).double()
    maps = grad_cam(model, X, T, layer=layer, resize="none")
    assert maps.shape == (5, 1, 14, 14)
    if layer is None:
        model.run = turned
        torch.testing.assert_close(maps, slow(model, X, T, "keep", averaged=True))


# Twice differentiable


@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize(("name", "layer"), [("transformer", None), ("tied", None), ("smooth", "conv2")])
def test_maps_can_be_differentiated_in_pixels_and_weights(cam, name, layer):
    model = models.smooth("gelu").double() if name == "smooth" else net(name)
    weights = [w for n, w in model.named_parameters() if n.endswith("weight") and w.ndim > 1][:1]
    x, target = X[:2].clone().requires_grad_(), T[:2]
    sample = torch.randn(weights[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def of(pixels, along):
        moved = {n: w + along * sample if w is weights[0] else w for n, w in model.named_parameters()}
        explain = _Bound(model, moved)
        return cam(
            explain, pixels, target, layer=None if layer is None else f"model.{layer}", relu=False, create_graph=True
        )

    along = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, (x, along), eps=1e-6, atol=1e-6, fast_mode=True)


class _Bound(nn.Module):
    """A model with other weights."""

    def __init__(self, model, weights):
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, x):
        return torch.func.functional_call(self.model, self.weights, (x,))


@pytest.mark.parametrize("cam", CAMS)
def test_a_loss_of_the_maps_moves_the_weights(cam):
    model = net("plain").requires_grad_()
    cam(model, X, T, create_graph=True).square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    step, weight = 1e-6, model[0].weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += step
        more = cam(model, X, T).square().sum()
        weight[0, 0, 0, 0] -= 2 * step
        less = cam(model, X, T).square().sum()
    torch.testing.assert_close(weight.grad[0, 0, 0, 0], (more - less) / (2 * step), rtol=1e-5, atol=1e-10)


# Cost and traces


@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize("budget", [1, 300_000, 10**9])
@pytest.mark.parametrize("name", ["plain", "transformer", "shared"])
def test_an_example_is_explained_alike_in_any_chunk(name, cam, budget, monkeypatch):
    model, layer = (_shared(), "relu") if name == "shared" else (net(name), None)
    expected = torch.cat([cam(model, X[[i]], T[[i]], layer=layer) for i in range(5)])
    monkeypatch.setattr(tensors, "CHUNK_BYTES", budget)
    torch.testing.assert_close(cam(model, X, T, layer=layer), expected, atol=1e-14, rtol=1e-10)


def _shared():
    return models.fixed(lambda: models.Call(
        shared, first=nn.Conv2d(3, 8, 1), relu=nn.ReLU(inplace=True), conv=nn.Conv2d(8, 8, 1), fc=nn.Linear(8, 4)
    )).double()  # fmt: skip


def test_chunks_that_do_not_fit_are_halved():
    class Small(nn.Sequential):
        def forward(self, x):
            if len(x) > 1:
                raise torch.OutOfMemoryError
            return super().forward(x)

    torch.testing.assert_close(grad_cam(Small(*net("plain")), X, T), grad_cam(net("plain"), X, T))


@pytest.mark.parametrize("layer", [None, "4"])
def test_each_example_runs_once(layer):
    model, seen = net("plain"), []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    grad_cam(model, X, T, layer=layer)
    assert sum(seen) == 5


@pytest.mark.parametrize("layer", [None, "4"])
def test_below_the_layer_no_graph_is_kept(layer, monkeypatch):
    model, kept = net("plain").requires_grad_(), Counter()

    def run(size):
        def count(tensor):
            kept[size] += tensor.nbytes
            return tensor

        x, target = X.repeat(size, 1, 1, 1), T.repeat(size)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            grad_cam(model, x, target, layer=layer)

    run(1), run(2)
    above = 5 * (8 * 49 + 72 + 12 + 12 + 8) * 8  # of pooling, linear layers, ReLU and score, for five images more
    assert 0 < kept[2] - kept[1] <= above < 5 * 6 * 14 * 14 * 8


@pytest.mark.parametrize("cam", WHOLE)
@pytest.mark.parametrize("layer", [None, "4", "1"])
def test_nothing_is_left_on_the_model(cam, layer):
    class Failing(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("the model failed")

    x, model = X.clone(), Failing(*net("plain"))
    with pytest.raises(RuntimeError, match="the model failed"):
        cam(model, x, T, layer=layer)
    sound = net("plain")
    with torch.no_grad():
        maps = cam(sound, x, T, layer=layer)
    assert not maps.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (*model.modules(), *sound))
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert all(p.grad is None for p in sound.parameters())


@pytest.mark.parametrize("cam", WHOLE)
def test_maps_have_the_type_of_the_images(cam):
    assert cam(net("plain").float(), X.float(), T).dtype == torch.float32
    assert cam(net("plain"), X[:0], T[:0]).shape[::2] == (0, 16)


# Undefined and refused


@pytest.mark.parametrize("cam", WHOLE)
def test_a_score_that_is_not_a_number_has_no_map(cam):
    model, x = net("global_average"), X.clone()
    x[2, 0, 15, 15] = torch.nan  # one corner, and a head whose slope would not know of it
    maps = cam(model, x, T)
    assert maps[2].isnan().all()
    torch.testing.assert_close(maps[[0, 1, 3, 4]], cam(model, X, T)[[0, 1, 3, 4]])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.1.nrom1", "did you mean 'blocks.1.norm1'"),
        ("features", "there are: .*blocks.*fc.*norm, patch"),
        ("", "no layer"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused_with_near_names(layer, message):
    with pytest.raises(SpecError, match=message):
        grad_cam(net("transformer"), X, T, layer=layer)
    with pytest.raises(SpecError, match=message):
        grad_cam(normalised(net("transformer"), [0.5] * 3, [0.5] * 3), X[:0], T[:0], layer=layer)


@pytest.mark.parametrize("cam", WHOLE)
@pytest.mark.parametrize("layer", ["7", "9", "6"])
def test_a_layer_without_a_plane_is_refused(cam, layer):
    with pytest.raises(ModelError, match=rf"layer '{layer}': expected an output with a plane.*found \[1, "):
        cam(net("plain"), X, T, layer=layer)


def test_tokens_that_form_no_plane_are_refused():
    layers = [nn.Conv2d(3, 15, 3), nn.Flatten(2), nn.Linear(196, 7), nn.Flatten(), nn.Linear(105, 4)]
    with pytest.raises(ModelError, match=r"that form one, found \[1, 15, 7\]"):
        grad_cam(nn.Sequential(*layers).double(), X, T, layer="2")


@pytest.mark.parametrize("cam", WHOLE)
def test_a_model_without_planes_is_refused(cam):
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    for model in (mlp, normalised(mlp, [0.5] * 3, [0.5] * 3)):
        with pytest.raises(ModelError, match="expected a layer with a plane through which everything goes"):
            cam(model, X, T)


def test_a_layer_that_is_not_called_is_refused():
    model = net("plain")
    model.spare = nn.Conv2d(3, 3, 3)
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    with pytest.raises(ModelError, match="layer 'spare': expected one that the model calls, found that it does not"):
        grad_cam(model, X, T, layer="spare")


def test_a_layer_that_does_not_matter_is_refused():
    def run(m, x):
        m.idle(x)
        return m.fc(m.conv(x).mean((2, 3)))

    model = models.fixed(lambda: models.Call(
        run, idle=nn.Conv2d(3, 8, 3), conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4)
    )).double()  # fmt: skip
    with pytest.raises(ModelError, match="layer 'idle': expected one on which the score depends"):
        grad_cam(model, X, T, layer="idle")


@pytest.mark.parametrize("build", [models.constant, models.unconnected, models.tuple_of_outputs, models.scripted])
def test_what_cannot_be_explained_is_refused(build):
    with pytest.raises(ModelError):
        grad_cam(build().double(), X, T)


@pytest.mark.parametrize("cam", WHOLE)
def test_a_class_that_the_model_does_not_know_is_refused(cam):
    with pytest.raises(ModelError, match="the model does not know them"):
        cam(net("plain"), X, T + 1)
