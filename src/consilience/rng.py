"""Random draws that depend on the seed and on the example alone, never on its neighbours."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

R = TypeVar("R")


class Rng:
    """Draws for a batch: row *i* depends on the seed, on the id of example *i* and on the node, on nothing else.

    A draw has no memory: the same node draws the same numbers again. What a method draws several
    times (samples, steps, masks) it draws at several nodes: ``rng.at(sample).normal(shape)``.
    """

    def __init__(self, seed: int, ids: Sequence[int], node: tuple[int | str, ...] = ()) -> None:
        self.seed, self.ids, self.node = seed, tuple(int(i) for i in ids), node

    def at(self, node: int | str) -> "Rng":
        """The same examples' draws at another place of the calculation."""
        return Rng(self.seed, self.ids, (*self.node, node))

    def rows(self, rows: Sequence[int]) -> "Rng":
        """The draws of some of the batch's rows, in the order given; a row may stand several times."""
        return Rng(self.seed, [self.ids[row] for row in rows], self.node)

    def normal(self, *shape: int, device: torch.device | None = None) -> Tensor:
        """Standard normal numbers ``[n, *shape]``, float32."""
        return self._stack(lambda g: g.standard_normal(shape, dtype=np.float32), device)

    def uniform(self, *shape: int, device: torch.device | None = None) -> Tensor:
        """Numbers ``[n, *shape]`` uniform in [0, 1), float32."""
        return self._stack(lambda g: g.random(shape, dtype=np.float32), device)

    def integers(self, high: int, *shape: int, device: torch.device | None = None) -> Tensor:
        """Whole numbers ``[n, *shape]`` uniform in 0 to ``high - 1``, int64."""
        return self._stack(lambda g: g.integers(0, high, shape, dtype=np.int64), device)

    def common(self, name: str) -> np.random.Generator:
        """A generator for what is drawn once for all examples together."""
        return generator(self.seed, *self.node, name)

    def _stack(self, draw: Callable[[np.random.Generator], Any], device: torch.device | None) -> Tensor:
        rows = [torch.as_tensor(draw(generator(self.seed, *self.node, id_))) for id_ in self.ids]
        if not rows:  # keeps shape and type of an empty batch
            return torch.as_tensor(draw(generator(0)))[None][:0].to(device)
        return torch.stack(rows).to(device)


def generator(*key: int | str) -> np.random.Generator:
    """A generator whose stream is a function of the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def permutation(n: int, *key: int | str) -> np.ndarray:
    """An order of ``n`` things that is a function of the key, the same in every release of NumPy."""
    raw = generator(*key).bit_generator.random_raw(n)
    return np.argsort(raw, kind="stable")


def number(*key: int | str) -> int:
    """A 63-bit seed that is a function of the key, for generators that are not ours."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def takes_rng(function: Callable[..., Any]) -> bool:
    """Whether a component, configured or not, can be handed a source of randomness."""
    return "rng" in inspect.signature(function).parameters


def keyed(function: Callable[..., R], rng: Rng | None) -> Callable[..., R]:
    """The function with its draws taken from ``rng``; itself where there is none or it draws nothing."""
    if rng is None or not takes_rng(function):
        return function
    return functools.partial(function, rng=rng)
