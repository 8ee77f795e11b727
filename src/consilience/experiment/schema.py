"""What an experiment file may say, before its components are looked up."""

import functools
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import inspect

from consilience.errors import unknown
from consilience.experiment.families import Family
from consilience.experiment.specs import Condition
from consilience.tensors import Channels, Normalisation

Count = Annotated[int, msgspec.Meta(ge=1)]


class TrainTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``[train]``: the recipe of the base."""

    data: Any
    model: Any
    epochs: Count
    batch_size: Count = 64
    optimizer: Any = "adadelta"
    objective: Any = "cross_entropy"
    augmentation: Any = None
    keep: tuple[int, ...] = ()
    average_from: Count | None = None
    shuffle: bool = True
    weights: str | None = None
    select: "SelectTable | None" = None


class SelectTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``train.select``: of each training, the kept epoch whose answers to held-out data are best."""

    data: Any
    by: Any = "accuracy"


class ExamplesTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``[examples]``: what is explained."""

    data: Any
    count: Count | None = None


class HowTable(msgspec.Struct, kw_only=True):
    """How maps are prepared for a measure: the keys beside its own options."""

    channels: Channels
    normalise: Normalisation = "none"
    pool: Count | None = None


class RepresentTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[represent]``: the models themselves compared, layer by layer and tensor by tensor."""

    measures: tuple[Any, ...] = ()
    layers: tuple[str, ...] = ()
    places: Count | None = None
    weights: tuple[Any, ...] = ()
    tensors: tuple[str, ...] = ()


class LearntTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``[explanation_accuracy]``: whose maps a fresh network learns to read, and for how long."""

    data: Any
    count: Count | None = None
    epochs: Count


class File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An experiment file, before its components are looked up."""

    name: str
    train: TrainTable
    examples: ExamplesTable
    background: ExamplesTable | None = None
    explain: list[Any]
    controls: list[Any] = []
    compare: list[Any] = []
    judge: list[Any] = []
    summarise: tuple[Any, ...] = ("calibrated_similarity", "consistency")
    channels: Channels = "sum"
    conditions: tuple[Condition, ...] = ("all",)
    represent: RepresentTable = RepresentTable()
    explanation_accuracy: LearntTable | None = None
    family: list[Family] = []
    profile: dict[str, dict[str, Any]] = {}


def explained(error: msgspec.ValidationError) -> str:
    """What a table cannot say, with the key or the value that was probably meant, or those that there are."""
    text, known = str(error), _names()
    if "unknown field" in text:
        return f"{text} ({unknown('key', text.split('`')[1], known)})"
    key = text.rpartition("$.")[2].rstrip("`").rpartition(".")[2].partition("[")[0]
    if text.startswith("Invalid") and known.get(key):
        return f"{text} ({unknown('value', text.split(chr(39))[1], known[key])})"
    return text


@functools.cache
def _names() -> dict[str, tuple[str, ...]]:
    """Every key of every table, with the names that may stand there if only some may."""
    found: dict[str, tuple[str, ...]] = {}
    for table in _inside(inspect.type_info(File), inspect.type_info(HowTable)):
        if isinstance(table, inspect.StructType):
            tag = (str(table.tag),) if table.tag_field else ()
            found[table.tag_field or ""] = found.get(table.tag_field or "", ()) + tag
            for field in table.fields:
                named = [one.values for one in _inside(field.type) if isinstance(one, inspect.LiteralType)]
                if named or field.name not in found:
                    found[field.name] = tuple(str(value) for values in named for value in values)
    return {name: values for name, values in found.items() if name}


def _inside(*types: inspect.Type) -> Iterator[inspect.Type]:
    """The types, and those that their fields and items have."""
    for one in types:
        yield one
        fields = [field.type for field in one.fields] if isinstance(one, inspect.StructType) else []
        several = one.types if isinstance(one, inspect.UnionType) else ()
        items = [getattr(one, name) for name in ("item_type", "key_type", "value_type") if hasattr(one, name)]
        yield from _inside(*fields, *several, *items)
