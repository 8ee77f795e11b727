"""Measures written once for a family and a list of its pairs."""

import functools
import inspect
from collections.abc import Iterator, Sequence

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.pairs import Maps, Pairs, over_family, over_pairs

prepared: list[int] = []


@over_pairs
def product(
    family: Sequence[Float[Tensor, "n d"]], pairs: Pairs, label: Int[Tensor, " n"], *, power: float = 1.0
) -> Iterator[Float[Tensor, " n"]]:
    """Product of two rows.

    Args:
        power: Of the product.
    """
    ready = []
    for index, maps in enumerate(family):
        prepared.append(index)
        ready.append(maps.double())
    for a, b in pairs:
        yield (ready[a] * ready[b]).sum(1) ** power + label


FAMILY = [torch.full((2, 3), float(k)) for k in range(1, 5)]
LABEL = torch.tensor([0, 10])


def test_called_with_two_sets_of_maps_it_is_the_plain_measure():
    assert product(FAMILY[1], FAMILY[2], LABEL).tolist() == [18, 28]
    assert product(FAMILY[1], FAMILY[2], LABEL, power=2.0).tolist() == [324, 334]


def test_sets_of_maps_of_other_shapes_are_refused():
    words = r"product: expected two sets of maps of the same examples, found \[2, 3\] and \[1, 3\]"
    with pytest.raises(SpecError, match=words):
        product(FAMILY[0], FAMILY[1][:1], LABEL)


@over_pairs
def widths(activations: Sequence[Float[Tensor, "n ..."]], pairs: Pairs, *, more: int = 0) -> Iterator[int]:
    """How many neurons two models have together.

    Args:
        more: To be added.
    """
    for a, b in pairs:
        yield activations[a].shape[1] + activations[b].shape[1] + more


def test_a_family_of_something_else_than_maps_may_differ_in_width():
    assert list(inspect.signature(widths).parameters) == ["activations", "other_activations", "more"]
    assert widths(torch.ones(4, 3), torch.ones(4, 2)) == 5
    assert widths(activations=torch.ones(4, 3), other_activations=torch.ones(4, 2), more=1) == 6
    assert list(over_family(widths, [torch.ones(4, d) for d in (1, 2, 3)], [(0, 2), (1, 1)])) == [4, 4]
    words = r"widths: expected activations with equally many rows of both models, found \[4, 3\] and \[5, 3\]; give"
    with pytest.raises(SpecError, match=words):
        widths(torch.ones(4, 3), torch.ones(5, 3))


def test_its_signature_is_the_plain_measure_s():
    assert str(inspect.signature(product)).startswith("(maps: ")
    assert list(inspect.signature(product).parameters) == ["maps", "other", "label", "power"]
    component = measure.read(product)
    assert list(component.roles) == ["maps", "other", "label"]
    assert component.columns == {"value": "n"}


def test_a_family_is_prepared_once_a_model():
    prepared.clear()
    pairs = [(0, 1), (0, 2), (1, 2), (3, 0)]
    values = list(over_family(functools.partial(product, power=2.0), FAMILY, pairs, label=LABEL))
    assert prepared == [0, 1, 2, 3]
    assert [value.tolist() for value in values] == [
        product(FAMILY[a], FAMILY[b], LABEL, power=2.0).tolist() for a, b in pairs
    ]


def test_a_plain_measure_is_called_pair_by_pair():
    def difference(maps, other, *, scale=1.0):
        return (maps - other).sum(1) * scale

    values = over_family(functools.partial(difference, scale=2.0), FAMILY, [(0, 1), (3, 0)])
    assert [value.tolist() for value in values] == [[-6, -6], [18, 18]]


def test_maps_are_fetched_when_they_are_asked_for_and_not_kept():
    asked = []
    family = Maps(4, lambda i: asked.append(i) or FAMILY[i])
    assert len(family) == 4
    assert asked == []
    assert family[-1] is FAMILY[3]
    assert family[-1] is FAMILY[3]
    assert asked == [3, 3]
    part = family[1:3]
    assert len(part) == 2
    assert part[1] is FAMILY[2]
