"""What a measure asks for is fetched, or said not to be there."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from consilience.component import measure
from consilience.errors import DataError, SpecError
from consilience.experiment.desk import Desk, Place
from consilience.experiment.specs import Given, Predict, Prepared, Subject, comparison, explanation
from consilience.experiment.store import Store
from consilience.experiment.values import FETCH, fetch, measured


@pytest.mark.parametrize(
    ("role", "of"),
    [
        ("maps", "answers"), ("target", "answers"), ("output", "answers"), ("baseline", "answers"),
        ("logits", "maps"), ("logits", "model"), ("label", "model"), ("x", "model"),
        ("output", "maps of a method that explains no score"), ("source", "a model that is no training's"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_not_to_be(tiny, made, role, of):
    subject = Subject(source=tiny.base)
    what = {
        "answers": Predict(subject=subject, data=tiny.examples),
        "maps": explanation(subject, tiny.methods[0], tiny.examples, 0),
        "model": subject,
        "maps of a method that explains no score": explanation(subject, tiny.controls[0], tiny.examples, 0),
        "a model that is no training's": Subject(source=Given(weights="w", module="m", answers="a")),
    }[of]
    with pytest.raises(SpecError, match=f"expected '{role}', found nothing of the kind"):
        fetch(role, comparison(Prepared(measure=measure.choose("accuracy")), what), Desk(Store(made), Place()))


def test_a_fault_inside_is_not_taken_for_something_absent(tiny, made, monkeypatch):
    def broken(desk, spec):
        raise KeyError("a fault")

    monkeypatch.setattr(Desk, "target", broken)
    maps = explanation(Subject(source=tiny.base), tiny.methods[0], tiny.examples, 0)
    spec = comparison(Prepared(measure=measure.choose("accuracy")), maps)
    with pytest.raises(KeyError, match="a fault"):
        fetch("target", spec, Desk(Store(made), Place()))


def seen(
    maps: Tensor, other: Tensor, x: Tensor | None = None, mask: Tensor | None = None, logits: Tensor | None = None
) -> Float[Tensor, " n"]:
    """Which of its optional roles were filled, as a number."""
    return torch.full((len(maps),), float(sum(2**i for i, role in enumerate((x, mask, logits)) if role is not None)))


def test_a_role_with_a_default_is_filled_where_there_is_something(tiny, made, monkeypatch):
    monkeypatch.setitem(measure._found, "seen", measure.read(seen)._replace(version=1))
    maps = explanation(Subject(source=tiny.base), tiny.methods[0], tiny.examples, 0)
    spec = comparison(Prepared(measure=measure.choose("seen")), maps, maps)
    ((_, found),) = measured([spec], Desk(Store(made), Place()))
    assert (found["value"] == 1).all(), "the images, but no masks and no logits, which there are not"


def test_damaged_data_are_no_role_that_is_not_there(tiny, made, monkeypatch):
    def damaged(spec, desk):
        raise DataError("damaged")

    monkeypatch.setitem(measure._found, "seen", measure.read(seen)._replace(version=1))
    monkeypatch.setitem(FETCH, "x", damaged)
    maps = explanation(Subject(source=tiny.base), tiny.methods[0], tiny.examples, 0)
    spec = comparison(Prepared(measure=measure.choose("seen")), maps, maps)
    with pytest.raises(DataError, match="damaged"):
        list(measured([spec], Desk(Store(made), Place())))
