"""Factors: in what trainings can differ, how one is varied, and which of them two models differ in."""

from typing import Any, Literal

import msgspec

from consilience.component import architecture, dataset
from consilience.data.views import fold_fingerprint, subset_fingerprint
from consilience.errors import SpecError
from consilience.experiment.specs import Data, Select, Subject, Train
from consilience.measures.resampling import CHANCES

Factor = Literal["init", "order", "noise", "augment", "dropout_rate", "subset", "shuffle", "everything", "nothing"]
"""What twins may differ in: ``shuffle`` is 1 or 0, ``everything`` is all four chances at once, ``nothing`` is
the same training run again."""


def varied(base: Train, factor: str, value: Any, whole: Data | None = None, share: float = 0.8) -> Train:
    """The training with another value of one factor; a subset is a share of the whole.

    Raises:
        SpecError: The value is none that the factor takes.
    """
    if factor == "dropout_rate":
        options = {**base.model.options, "dropout": float(value)}
        chosen = architecture.choose({"use": base.model.use, **options}, "dropout_rate")
        return msgspec.structs.replace(base, model=chosen)
    if not isinstance(value, int) or value < 0:
        raise SpecError(f"factor '{factor}': expected seeds, whole numbers from 0 on, found {value}; give others")
    if factor == "subset":
        return trained_on(base, whole or base.data, "subset", value, share)
    if factor == "shuffle":
        if value not in (0, 1):
            raise SpecError(
                f"factor 'shuffle': expected 1, every epoch in an order of its own, or 0, always the data set's, found "
                f"{value}; give these two"
            )
        return msgspec.structs.replace(base, shuffle=bool(value))
    fields = {"everything": CHANCES, "nothing": ("run",)}.get(factor, (factor,))
    return msgspec.structs.replace(base, **dict.fromkeys(fields, value))


def trained_on(base: Train, whole: Data, part: Literal["subset", "fold"], value: int, of: float | int) -> Train:
    """The training on a part of some examples."""
    if whole.choice is None:
        raise SpecError(f"factor '{part}': expected a data set that can be divided, found examples in memory; name one")
    if part == "subset":
        chosen: dict[str, Any] = {"use": "random_subset", "of": whole.choice, "share": of, "seed": value}
        mark = subset_fingerprint(whole.fingerprint, of, value)
    else:
        chosen = {"use": "without_fold", "of": whole.choice, "folds": of, "fold": value}
        mark = fold_fingerprint(whole.fingerprint, int(of), value)
    return msgspec.structs.replace(base, data=Data(choice=dataset.choose(chosen, part), fingerprint=mark))


def differences(a: Subject, b: Subject) -> tuple[str, ...]:
    """In what two specs differ: names of factors, or of fields where no factor is named after them."""
    if isinstance(a.source, Select) and isinstance(b.source, Select):  # of trainings, the best epoch of each
        return differences(a.source.candidates[-1], b.source.candidates[-1])
    if a.source == b.source:
        return tuple(name for name in ("epoch", "edit", "edit_seed") if getattr(a, name) != getattr(b, name))
    if not isinstance(a.source, Train) or not isinstance(b.source, Train):
        return ("source",)
    found = []
    for field in msgspec.structs.fields(Train):
        one, two = getattr(a.source, field.name), getattr(b.source, field.name)
        if one != two:
            found += _inside(one, two) if field.name == "model" else [_called(field.name, one, two)]
    return tuple(found)


def _called(field: str, one: Any, two: Any) -> str:
    """The factor after which a field is named."""
    if field == "data" and all(data.choice and data.choice.use == "random_subset" for data in (one, two)):
        return "subset"
    return {"run": "nothing"}.get(field, field)


def _inside(one: Any, two: Any) -> list[str]:
    """In which options two architectures differ; the rate of dropout is a factor of its own."""
    if one.use != two.use:
        return ["model"]
    names = [name for name in {*one.options, *two.options} if one.option(name) != two.option(name)]
    return sorted("dropout_rate" if name == "dropout" else f"model.{name}" for name in names)
