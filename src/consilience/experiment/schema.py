"""What an experiment file may say, before its components are looked up."""

from typing import Annotated, Any

import msgspec

from consilience.experiment.families import Family
from consilience.experiment.specs import Condition
from consilience.tensors import Channels

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
    keep: tuple[Count, ...] = ()
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
