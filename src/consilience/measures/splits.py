"""Who is learnt from, who is asked, and whose maps are exchanged: drawn for each group, so that none is ever split."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from consilience.rng import Rng, generator

INNER_FOLDS = 3


class Plan(NamedTuple):
    """Who is learnt from and who is asked in one class, and which groups' maps are exchanged."""

    image: Int[Tensor, " m"]
    group: Int[Tensor, " m"]
    fold: Int[Tensor, "repeats m"]
    inner: Int[Tensor, "repeats m"]
    """The fold within a training part, by which the strength is chosen."""
    exchanged: Bool[Tensor, "labellings m"]
    """First nobody's: the maps as they are."""

    def only(self, kept: Bool[Tensor, " m"]) -> "Plan":
        """The same without some images; the others stay where they were."""
        return Plan(*(part[..., kept] for part in self))


def plan_of(
    image: Tensor, groups: Tensor, rng: Rng, folds: int, repeats: int, permutations: int, count: int | None
) -> Plan:
    """Draws keyed by the group: whatever the order of the examples, the pair and the other groups' number."""
    names, position = np.unique(groups[image].numpy(), return_inverse=True)

    def draw(what: str, times: int) -> np.ndarray:
        streams = (generator(rng.seed, *rng.node, what, int(name)).bit_generator for name in names)
        return np.array([stream.random_raw(times) for stream in streams], dtype=np.uint64).reshape(len(names), times)

    placed = draw("fold", 1 + repeats)
    chosen = np.argsort(np.argsort(placed[:, 0])) < (len(names) if count is None else count)
    names, placed = names[chosen], placed[chosen, 1:]
    rank = np.argsort(np.argsort(placed, axis=0), axis=0).T
    kept = chosen[position]
    position = (np.cumsum(chosen) - 1)[position[kept]]
    exchanged = np.vstack([np.zeros(len(names), dtype=bool), draw("exchange", permutations).T >> np.uint64(63) > 0])
    parts = (rank % folds, rank // folds % INNER_FOLDS, exchanged)
    return Plan(image[kept], torch.as_tensor(position), *(torch.as_tensor(part[:, position]) for part in parts))


def suffices(plan: Plan, turn: int, nested: bool) -> bool:
    """Whether every split leaves two groups to learn from, and where ``nested``, something to choose by within it."""
    fold, inner, group = (part.numpy() for part in (plan.fold[turn], plan.inner[turn], plan.group))
    first = np.unique(group, return_index=True)[1]
    held = np.zeros((int(fold.max(initial=0)) + 1, INNER_FOLDS), dtype=int)
    np.add.at(held, (fold[first], inner[first]), 1)
    learnt = held.sum(0) - held[held.sum(1) > 0]  # groups outside each fold, by inner fold
    if not nested:
        return len(learnt) > 0 and bool((learnt.sum(1) >= 2).all())
    return len(learnt) > 0 and bool((learnt >= 1).all() and (learnt.sum(1, keepdims=True) - learnt >= 2).all())
