"""From artifacts to numbers: what a measure asks for is bound to what the store and the data hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from consilience.errors import DataError, SpecError, unknown
from consilience.experiment.desk import Desk, labels
from consilience.experiment.specs import (
    Activate,
    Condition,
    Data,
    Entry,
    Explain,
    Measure,
    Predict,
    Subject,
    Summary,
    Train,
)
from consilience.pairs import Maps, Pairs, over_family
from consilience.rng import Rng
from consilience.signature import Component
from consilience.tensors import Row, Table, prepare, rows_per_chunk, slices

BLOCK_BYTES = 32 * 2**20  # of all twins' maps in float64, of the examples that are measured at a time


def measured(group: Sequence[Measure], desk: Desk) -> Iterator[tuple[Measure, dict[str, Tensor]]]:
    """The columns of each spec of a group, in the group's order; a family's pairs share their work."""
    component, function = group[0].measure.component, group[0].measure.build()
    for what in ("activations", "weights"):
        if what in component.roles:
            yield from _of_models(group, what, function, desk)
            return
    if not {"maps", "other"} <= set(component.roles):
        for spec in group:
            yield spec, columns(component, function(**_asked(spec, desk)), spec, desk)
        return
    family, pairs = _family(group)
    alone = all(belongs.startswith("n") for belongs in component.columns.values())
    shared = _asked(group[0], desk, but=("maps", "other"))
    if shared or not alone or "measured_alike_alone" in component.breaks:  # a value may depend on other examples
        results = over_family(function, _maps_of(family, desk), pairs, **shared)
    else:
        results = _in_blocks(function, family, pairs, desk)
    for spec, result in zip(group, results, strict=True):
        yield spec, columns(component, result, spec, desk)


def _asked(spec: Measure, desk: Desk, but: Sequence[str] = ()) -> dict[str, Any]:
    """What flows into a measure.

    Of the roles that have a default, those that something nested in it needs; where nothing is, those that there are.
    """
    choice, found = spec.measure, dict[str, Any]()
    needed = {role for one in choice.nest for role, needs in one.component.roles.items() if needs}
    for role in choice.component.roles:
        if role in but or (role not in needed and choice.component.nested):
            continue
        try:
            found[role] = fetch(role, spec, desk)
        except (SpecError, _Unmasked):
            if role in needed:
                raise
    return found


def _of_models(
    group: Sequence[Measure], what: str, function: Callable[..., Any], desk: Desk
) -> Iterator[tuple[Measure, dict[str, Tensor]]]:
    """A measure of what two models are made of, or answer inside, of every pair."""
    sides = {_named(side): side for spec in group for side in (spec.of, spec.other)}
    position, found = {name: index for index, name in enumerate(sides)}, list(sides.values())
    pairs = [(position[_named(spec.of)], position[_named(spec.other)]) for spec in group]
    _part(what, found[0], group[0], desk)  # a name that nobody has is found here, and not amid the measure
    family = Maps(len(found), lambda index: _part(what, found[index], group[0], desk))
    for spec, result in zip(group, over_family(function, family, pairs), strict=True):
        yield spec, columns(group[0].measure.component, result, spec, desk)


def _named(side: Any) -> bytes:
    return msgspec.json.encode(side, order="deterministic")


def _part(what: str, of: Any, spec: Measure, desk: Desk) -> Tensor:
    """The activations or weights of one model.

    Raises:
        SpecError: The spec names none, or one that the model has not.
    """
    if what == "activations" and isinstance(of, Activate):
        return desk.here(desk.store.tensors(of)["activations"])
    if what == "weights" and isinstance(of, Subject):
        weights = desk.model(of).state_dict()
        if spec.tensor not in weights:
            raise SpecError(f"{spec.measure.label}: {unknown('tensor', str(spec.tensor), weights)}")
        chosen: Tensor = weights[spec.tensor]
        return chosen
    raise SpecError(f"{spec.measure.label}: expected {what} of two models, found {type(of).__name__}; compare models")


def _in_blocks(
    function: Callable[..., Any], family: Sequence[tuple[Explain, Measure]], pairs: Pairs, desk: Desk
) -> Iterator[Any]:
    """A measure of every pair, some examples after the others, so that memory does not grow with examples and twins."""
    examples = len(desk.examples(family[0][0].data))
    one = _maps(*family[0], desk, slice(0, 1)).numel() * torch.finfo(torch.float64).bits // 8
    parts: list[list[Any]] = [[] for _ in pairs]
    for rows in slices(examples, max(1, BLOCK_BYTES // max(1, one * len(family)))):
        results = over_family(function, _maps_of(family, desk, rows), pairs)
        for part, result in zip(parts, results, strict=True):
            part.append(result)
    for part in parts:
        yield (
            type(part[0])(*map(torch.cat, zip(*part, strict=True))) if hasattr(part[0], "_fields") else torch.cat(part)
        )


def _family(group: Sequence[Measure]) -> tuple[list[tuple[Explain, Measure]], list[tuple[int, int]]]:
    """Everybody, each once, and the pairs as positions among them."""
    members: dict[str, tuple[Explain, Measure]] = {}
    digests = []
    for spec in group:
        if not isinstance(spec.of, Explain) or not isinstance(spec.other, Explain):
            raise SpecError(f"{spec.measure.label}: expected two sets of maps, found other artifacts; compare maps")
        members.setdefault(spec.of.digest, (spec.of, spec))
        members.setdefault(spec.other.digest, (spec.other, spec))
        digests.append((spec.of.digest, spec.other.digest))
    position = {digest: index for index, digest in enumerate(members)}
    pairs = [(position[of], position[other]) for of, other in digests]
    return list(members.values()), pairs


def _maps_of(family: Sequence[tuple[Explain, Measure]], desk: Desk, rows: slice = slice(None)) -> Maps:
    """Everybody's maps, read when they are asked for."""
    return Maps(len(family), lambda i: _maps(*family[i], desk, rows))


def _maps(explain: Explain, how: Measure, desk: Desk, rows: slice = slice(None)) -> Tensor:
    return prepare(desk.here(desk.store.maps(explain, rows)), how.channels, how.normalise, how.pool)


def fetch(role: str, spec: Measure, desk: Desk) -> Any:
    """What flows into a measure under a role's name.

    Raises:
        SpecError: The spec has nothing under that name.
        DataError: The data have no masks.
    """
    try:
        if role not in FETCH:
            raise _Absent
        return FETCH[role](spec, desk)
    except _Absent:
        raise SpecError(
            f"{spec.measure.label}: expected '{role}', found nothing of the kind in a measure of "
            f"{type(spec.of).__name__}; use the measure where it has what it needs"
        ) from None


class _Unmasked(DataError):
    """Examples have no masks: what a measure may do without, unlike data that are damaged."""


class _Absent(Exception):
    """A spec has nothing under a role's name; never leaves this file."""


def _explained(spec: Measure) -> Explain:
    if not isinstance(spec.of, Explain):
        raise _Absent
    return spec.of


def _data(spec: Measure) -> Data:
    if isinstance(spec.of, Subject):
        raise _Absent
    return spec.of.data


def _subject(spec: Measure) -> Subject:
    return spec.of if isinstance(spec.of, Subject) else spec.of.subject


def _source(spec: Measure, desk: Desk) -> Any:
    source = _subject(spec).source
    if not isinstance(source, Train):
        raise _Absent
    return desk.source(source)


def _examples(spec: Measure, desk: Desk, part: str) -> Tensor:
    examples = desk.examples(_data(spec))
    value: Tensor | None = getattr(examples.batch(range(len(examples))), part)
    if value is None:
        raise _Unmasked(f"{_data(spec).label}: expected masks, found none; use data with boxes or masks")
    return desk.here(value)


def _logits(spec: Measure, desk: Desk) -> Tensor:
    if not isinstance(spec.of, Predict):
        raise _Absent
    return desk.here(desk.store.tensors(spec.of)["logits"])


def _output(spec: Measure, desk: Desk) -> Callable[[Tensor, Tensor], Tensor]:
    """The very score that the method explained, in chunks and without a graph."""
    model = desk.model(_subject(spec))
    method = _explained(spec).method
    scores = [choice.option("score") for choice in method.nest if choice.option("score") is not None]
    if not scores:
        raise _Absent
    score = scores[0].build()

    def output(x: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [score(model(x[rows]), target[rows]) for rows in slices(len(x), rows_per_chunk(model, x))]
        return torch.cat(parts)

    return output


FETCH: dict[str, Callable[[Measure, Desk], Any]] = {
    "maps": lambda spec, desk: _maps(_explained(spec), spec, desk),
    "label": lambda spec, desk: desk.here(labels(desk.examples(_data(spec)))),
    "groups": lambda spec, desk: _examples(spec, desk, "groups"),
    "mask": lambda spec, desk: _examples(spec, desk, "mask"),
    "x": lambda spec, desk: _examples(spec, desk, "x"),
    "target": lambda spec, desk: desk.target(_explained(spec)),
    "logits": _logits,
    "model": lambda spec, desk: desk.model(_subject(spec)),
    "source": _source,
    "explain": lambda spec, desk: desk.method(_explained(spec)),
    "output": _output,
    "baseline": lambda spec, desk: _explained(spec).method.option("baseline"),
    "rng": lambda spec, desk: Rng(spec.seed or 0, range(len(desk.examples(_data(spec))))),
}


def columns(component: Component, result: Any, spec: Measure, desk: Desk) -> dict[str, Tensor]:
    """A measure's result as named columns, in float64, with the example's id where a row is an example.

    Raises:
        SpecError: The measure returned something else than its annotation says.
    """
    named = component.columns
    values = result._asdict() if hasattr(result, "_asdict") else {"value": result}
    table = {name: torch.as_tensor(value).cpu().double() for name, value in values.items()}
    if list(table) != list(named):
        raise SpecError(f"{component.name}: expected the columns {list(named)}, found {list(table)}; mend its result")
    if isinstance(spec.of, Explain | Predict):
        n = len(desk.examples(spec.of.data))
        for name, belongs in named.items():
            if belongs.split(" ")[0] == "n" and len(table[name]) != n:
                raise SpecError(f"{component.name}: expected {n} values of '{name}', found {len(table[name])}")
        table["example"] = torch.arange(n)
    return table


def summarised(spec: Summary, desk: Desk) -> Sequence[Row]:
    """The rows of a summary."""
    given: dict[str, Callable[[], Any]] = {
        "table": lambda: table_of(spec.table, desk, spec.where),
        "floor": lambda: table_of(spec.floor, desk, spec.where),
        "wrong_image": lambda: table_of(spec.wrong_image, desk, spec.where),
        "null": lambda: table_of(spec.table, desk, spec.where, "null"),
        "p": lambda: torch.stack([desk.store.tensors(entry.measure)["p"] for entry in spec.table]),
        "rng": lambda: Rng(spec.seed or 0, []),
        "better": lambda: next((entry.measure.measure.better for entry in spec.table), None) or "higher",
    }
    rows: Sequence[Row] = spec.summary.build()(**{role: given[role]() for role in spec.summary.component.roles})
    return rows


def table_of(entries: Sequence[Entry], desk: Desk, where: Condition = "all", column: str = "value") -> Table:
    """One column of a family's pairs, side by side; NaN for the examples that do not meet the condition."""
    values = [_where(desk.store.tensors(entry.measure)[column], entry, where, desk) for entry in entries]
    if not entries:
        return Table((), (), (), torch.empty(0), torch.empty(0), torch.empty(0, 0))
    of = entries[0].measure.of
    label = labels(desk.examples(of.data)) if isinstance(of, Explain | Predict) else torch.empty(0)
    return Table(
        tuple(entry.a for entry in entries),
        tuple(entry.b for entry in entries),
        tuple(entry.differs for entry in entries),
        torch.arange(values[0].shape[0]),
        label,
        torch.stack(values),
    )


def _where(value: Tensor, entry: Entry, where: Condition, desk: Desk) -> Tensor:
    """The values of a pair, undefined where the two models did not answer as the condition says."""
    if where == "all":
        return value
    one, other = (desk.store.tensors(answer)["logits"].argmax(1) for answer in entry.answers)
    meets = one == other
    if where == "both_right":
        meets &= one == labels(desk.examples(entry.answers[0].data))
    return value.masked_fill(~meets, torch.nan)
