"""Small networks with fixed weights, as people write them: what every method must be right on.

Each builder takes the channels of an image of 16 x 16 pixels and the number of classes, and gives a model in
evaluation mode with frozen weights, float32, always the same. They stand in a package beside the tests of the
architectures, since a file ``tests/models.py`` could not be imported next to a folder of that name.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Build = Callable[[int, int], nn.Module]
SIDE = 16


def batch(n: int = 3, channels: int = 3, classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images of [0, 1] and a target for each, always the same."""
    x = torch.rand(n, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return x.to(dtype), torch.arange(n) % classes


def fixed(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model with weights of this seed, and batch norms that have learnt something; chance stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # torch's own start lets the images fade
            if isinstance(module, nn.BatchNorm2d):
                learn(module, least=0.3)
    return model.eval().requires_grad_(False)


def learn(model: nn.Module, least: float = 0.5) -> None:
    """Give every batch norm of a model drawn statistics, scales and shifts, as if it had learnt something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, least, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)


class Call(nn.Module):
    """A network written as a function of its layers: ``run(layers, x)``."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


# Convolutional


def plain(channels: int = 3, classes: int = 4) -> nn.Module:
    """Modules in a row, each used once."""
    return fixed(lambda: nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, classes),
    ))  # fmt: skip


def residual(channels: int = 3, classes: int = 4) -> nn.Module:
    """Two blocks with ``x += y``, a projection, batch norms, and one in-place ReLU for all, as a ResNet has it."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.relu(m.bn0(m.stem(x)))
        y = m.bn2(m.conv2(m.relu(m.bn1(m.conv1(x)))))
        y += x
        x = m.relu(y)
        y = m.bn4(m.conv4(m.relu(m.bn3(m.conv3(x)))))
        y += m.bn5(m.project(x))
        return m.fc(torch.flatten(m.pool(m.relu(y)), 1))

    return fixed(lambda: Call(
        run, stem=_conv(channels, 6), bn0=nn.BatchNorm2d(6), relu=nn.ReLU(inplace=True),
        conv1=_conv(6, 6), bn1=nn.BatchNorm2d(6), conv2=_conv(6, 6), bn2=nn.BatchNorm2d(6),
        conv3=_conv(6, 8, stride=2), bn3=nn.BatchNorm2d(8), conv4=_conv(8, 8), bn4=nn.BatchNorm2d(8),
        project=nn.Conv2d(6, 8, 1, stride=2, bias=False), bn5=nn.BatchNorm2d(8),
        pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(8, classes),
    ))  # fmt: skip


def dense(channels: int = 3, classes: int = 4) -> nn.Module:
    """Concatenated layers, each of batch norm, ReLU and convolution in this order, as a DenseNet has it."""

    def run(m: Any, x: Tensor) -> Tensor:
        found = [m.stem(x)]
        for norm, conv in ((m.bn1, m.conv1), (m.bn2, m.conv2)):
            found.append(conv(F.relu(norm(torch.cat(found, 1)), inplace=True)))
        x = m.pool(m.conv3(m.relu(m.bn3(torch.cat(found, 1)))))
        x = F.relu(m.bn4(x), inplace=True)
        return m.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))

    return fixed(lambda: Call(
        run, stem=_conv(channels, 6), bn1=nn.BatchNorm2d(6), conv1=_conv(6, 4), bn2=nn.BatchNorm2d(10),
        conv2=_conv(10, 4), relu=nn.ReLU(inplace=True), bn3=nn.BatchNorm2d(14),
        conv3=nn.Conv2d(14, 8, 1, bias=False), pool=nn.AvgPool2d(2), bn4=nn.BatchNorm2d(8), fc=nn.Linear(8, classes),
    ))  # fmt: skip


def inception(channels: int = 3, classes: int = 4) -> nn.Module:
    """Parallel branches with functional ReLUs and a functional average pooling."""

    def unit(m: Any, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(m, f"{name}_bn")(getattr(m, name)(x)), inplace=True)

    def run(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(unit(m, "stem", x), kernel_size=3, stride=2)
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        x = torch.cat([unit(m, "one", x), unit(m, "three", unit(m, "before", x)), unit(m, "pooled", pooled)], 1)
        return m.fc(torch.flatten(m.dropout(m.pool(x)), 1))

    convolutions = {"stem": (channels, 6, 3), "one": (6, 4, 1), "before": (6, 3, 1), "three": (3, 4, 3),
                    "pooled": (6, 4, 1)}  # fmt: skip

    def build() -> nn.Module:
        layers: dict[str, nn.Module] = {}
        for name, (before, after, size) in convolutions.items():
            layers[name] = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
            layers[f"{name}_bn"] = nn.BatchNorm2d(after)
        tail = {"pool": nn.AdaptiveAvgPool2d(1), "dropout": nn.Dropout(0.5), "fc": nn.Linear(12, classes)}
        return Call(run, **layers, **tail)

    return fixed(build)


def depthwise(channels: int = 3, classes: int = 4) -> nn.Module:
    """An inverted residual with a convolution of each channel by itself and ReLU6, as a MobileNet has it."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.fc((x + m.block(x)).mean([2, 3]))

    return fixed(lambda: Call(run, stem=_unit(channels, 6, 3), block=_inverted(), fc=nn.Linear(6, classes)))


def squeeze_excitation(channels: int = 3, classes: int = 4) -> nn.Module:
    """Channels weighted by a gate that depends on all of them: a product of two activations."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.relu(m.conv(x))
        gate = torch.sigmoid(m.up(m.relu(m.down(x.mean((2, 3), keepdim=True)))))
        return m.fc((x * gate).mean((2, 3)))

    return fixed(lambda: Call(
        run, conv=_conv(channels, 8, bias=True), relu=nn.ReLU(), down=nn.Conv2d(8, 2, 1), up=nn.Conv2d(2, 8, 1),
        fc=nn.Linear(8, classes),
    ))  # fmt: skip


def overlapping_pool(channels: int = 3, classes: int = 4) -> nn.Module:
    """Max-pools of 3 with stride 2 and a border, whose windows share pixels."""
    return fixed(lambda: nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(54, classes),
    ))  # fmt: skip


def global_max(channels: int = 3, classes: int = 4) -> nn.Module:
    """The largest value of each map, then one linear layer."""
    return fixed(lambda: nn.Sequential(*_trunk(channels), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, classes)))


def global_average(channels: int = 3, classes: int = 4) -> nn.Module:
    """The mean of each map, then one linear layer: the network of class activation maps."""
    return fixed(lambda: nn.Sequential(*_trunk(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)))


def tied(channels: int = 3, classes: int = 4) -> nn.Module:
    """One convolution used twice, and a last layer whose weights another layer has, transposed."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.conv(F.relu(m.conv(F.relu(m.stem(x))))))
        x = F.relu(m.down(F.avg_pool2d(x, 4).flatten(1)))
        return m.fc(F.linear(F.relu(F.linear(x, m.fc.weight)), m.fc.weight.t()))

    return fixed(lambda: Call(
        run, stem=_conv(channels, 6, bias=True), conv=_conv(6, 6, bias=True), down=nn.Linear(96, 6),
        fc=nn.Linear(6, classes),
    ))  # fmt: skip


def checkpointed(channels: int = 3, classes: int = 4) -> nn.Module:
    """A block that is calculated again on the way back."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = checkpoint(m.block, m.stem(x), use_reentrant=False)
        return m.fc(x.flatten(1))

    return fixed(lambda: Call(
        run, stem=nn.Conv2d(channels, 6, 3), block=nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()),
        fc=nn.Linear(576, classes),
    ))  # fmt: skip


def log_softmax(channels: int = 3, classes: int = 4) -> nn.Module:
    """Logarithms of probabilities instead of logits."""
    return fixed(lambda: nn.Sequential(*plain(channels, classes), nn.LogSoftmax(1)))


def single_logit(channels: int = 3) -> nn.Module:
    """One logit for two classes ``[n, 1]``."""
    return plain(channels, 1)


# Activations


def smooth(activation: str, channels: int = 3, classes: int = 4) -> nn.Module:
    """Two convolutions and a linear layer with one of ``SMOOTH`` between them."""
    return _activated(SMOOTH[activation], channels, classes)


def relus(channels: int = 3, classes: int = 4) -> dict[str, nn.Module]:
    """The same network, with the same weights and outputs, for each of the ways in which one writes a ReLU."""
    return {name: _activated(act, channels, classes) for name, act in _written().items()}


def unseen_relus(channels: int = 3, classes: int = 4) -> dict[str, nn.Module]:
    """That network again, with a ReLU that no list of ReLUs holds."""
    acts = {"product": lambda x: x * (x > 0), "where": lambda x: torch.where(x > 0, x, 0.0), "scripted": scripted_relu}
    return {name: _activated(act, channels, classes) for name, act in acts.items()}


def _statement(x: Tensor) -> Tensor:
    x.relu_()
    return x


def scripted_relu(x: Tensor) -> Tensor:
    """A ReLU inside TorchScript."""
    return _scripted(nn.ReLU())(x)


def _written() -> dict[str, Callable[[Tensor], Tensor] | list[nn.Module]]:
    return {
        "nn.ReLU": [nn.ReLU(), nn.ReLU(), nn.ReLU()],
        "nn.ReLU reused": nn.ReLU(),
        "nn.ReLU in place": [nn.ReLU(inplace=True), nn.ReLU(inplace=True), nn.ReLU(inplace=True)],
        "nn.ReLU reused in place": nn.ReLU(inplace=True),
        "F.relu": F.relu,
        "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
        "F.relu_": F.relu_,
        "torch.relu": torch.relu,
        "torch.relu_": torch.relu_,
        "x.relu()": lambda x: x.relu(),
        "x.relu_()": lambda x: x.relu_(),
        "x.relu_() as a statement": _statement,
        "clamp(min=0)": lambda x: x.clamp(min=0),
        "clamp_(0)": lambda x: x.clamp_(0),
        "clamp_min(0)": lambda x: torch.clamp_min(x, 0),
        "clip(min=0)": lambda x: torch.clip(x, min=0),
        "maximum(x, 0)": lambda x: torch.maximum(x, x.new_zeros(())),
    }


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu, "softplus": F.softplus,
    "elu": F.elu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
}  # fmt: skip


def _activated(act: Any, channels: int, classes: int) -> nn.Module:
    """Convolutions and linear layers with the activation, or with one of three, after all but the last."""
    own = nn.ModuleList(act if isinstance(act, list) else [act] if isinstance(act, nn.Module) else [])
    acts = (list(own) * 3)[:3] if len(own) else [act] * 3

    def run(m: Any, x: Tensor) -> Tensor:
        x = F.avg_pool2d(acts[0](m.conv1(x)), 2)
        x = acts[1](m.conv2(x)).flatten(1)
        return m.fc2(acts[2](m.fc1(x)))

    return fixed(lambda: Call(
        run, conv1=nn.Conv2d(channels, 6, 3), conv2=nn.Conv2d(6, 4, 3), fc1=nn.Linear(100, 10),
        fc2=nn.Linear(10, classes), acts=own,
    ))  # fmt: skip


# Attention


def transformer(channels: int = 3, classes: int = 4, *, pooled: bool = False) -> nn.Module:
    """Two blocks of self-attention over 4 x 4 patches; its class token decides, or the mean of all patches."""

    def run(m: Any, x: Tensor) -> Tensor:
        tokens = m.patch(x).flatten(2).transpose(1, 2)
        if not pooled:
            tokens = torch.cat([m.token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + m.position
        for block in m.blocks:
            y = block["norm1"](tokens)
            tokens = tokens + block["attention"](y, y, y, need_weights=False)[0]
            tokens = tokens + block["mlp"](block["norm2"](tokens))
        tokens = m.norm(tokens)
        return m.fc(tokens.mean(1) if pooled else tokens[:, 0])

    def build() -> nn.Module:
        model = Call(run, patch=nn.Conv2d(channels, 8, 4, stride=4), norm=nn.LayerNorm(8), fc=nn.Linear(8, classes))
        model.blocks = nn.ModuleList(_block() for _ in range(2))
        model.token = nn.Parameter(torch.randn(1, 1, 8))
        model.position = nn.Parameter(0.5 * torch.randn(1, 16 if pooled else 17, 8))
        return model

    return fixed(build)


def pooled_transformer(channels: int = 3, classes: int = 4) -> nn.Module:
    """The transformer without a class token."""
    return transformer(channels, classes, pooled=True)


def _block() -> nn.ModuleDict:
    return nn.ModuleDict({
        "norm1": nn.LayerNorm(8), "attention": nn.MultiheadAttention(8, 2, batch_first=True),
        "norm2": nn.LayerNorm(8), "mlp": nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
    })  # fmt: skip


# What must be refused, or be undefined


def tuple_of_outputs(channels: int = 3, classes: int = 4) -> nn.Module:
    """Logits and features, one after the other."""
    return fixed(lambda: Call(lambda m, x: (m.net(x), m.net[:6](x)), net=plain(channels, classes)))


def dict_of_outputs(channels: int = 3, classes: int = 4) -> nn.Module:
    """Logits and features by name."""
    run = lambda m, x: {"logits": m.net(x), "features": m.net[:6](x)}  # noqa: E731
    return fixed(lambda: Call(run, net=plain(channels, classes)))


def scripted(channels: int = 3, classes: int = 4) -> nn.Module:
    """The plain network as TorchScript."""
    return _scripted(plain(channels, classes))


def partly_scripted(channels: int = 3, classes: int = 4) -> nn.Module:
    """A plain network of which one block is TorchScript."""
    layers = list(plain(channels, classes))
    return nn.Sequential(*layers[:3], _scripted(nn.Sequential(*layers[3:6])), *layers[6:]).eval()


def _scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # models of that kind are still about
        return torch.jit.script(model)


def constant(channels: int = 3, classes: int = 4) -> nn.Module:
    """The same logits for every image, through all pixels: the slope is zero."""
    return Call(lambda m, x: 0 * x.sum((1, 2, 3))[:, None] + torch.arange(classes).to(x)).eval()


def unconnected(channels: int = 3, classes: int = 4) -> nn.Module:
    """The same logits for every image, without looking at it: there is no graph to it."""
    return Call(lambda m, x: torch.arange(classes).to(x).repeat(len(x), 1)).eval()


def not_a_number(channels: int = 3, classes: int = 4) -> nn.Module:
    """NaN for every image."""
    return fixed(lambda: Call(lambda m, x: m.net(x) * torch.nan, net=plain(channels, classes)))


def _conv(before: int, after: int, stride: int = 1, bias: bool = False) -> nn.Module:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)


def _unit(before: int, after: int, size: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6(inplace=True))


def _inverted() -> nn.Sequential:
    narrow = (nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
    return nn.Sequential(_unit(6, 12, 1), _unit(12, 12, 3, groups=12), *narrow)


def _trunk(channels: int) -> list[nn.Module]:
    first = [nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return [*first, nn.Conv2d(6, 8, 3), nn.ReLU()]


CONVOLUTIONAL: dict[str, Build] = {
    "plain": plain, "residual": residual, "dense": dense, "inception": inception, "depthwise": depthwise,
    "squeeze_excitation": squeeze_excitation, "overlapping_pool": overlapping_pool, "global_max": global_max,
    "global_average": global_average, "tied": tied, "log_softmax": log_softmax,
}  # fmt: skip
ATTENTION: dict[str, Build] = {"transformer": transformer, "pooled_transformer": pooled_transformer}
ALL: dict[str, Build] = {**CONVOLUTIONAL, **ATTENTION, "checkpointed": checkpointed}
PIECEWISE_LINEAR: dict[str, Build] = {
    name: build for name, build in CONVOLUTIONAL.items() if name not in ("squeeze_excitation", "log_softmax")
}
