"""Records and specs: what identity is made of. What is equal to its default, and what is no field, is left out."""

import hashlib
from collections.abc import Iterator
from functools import cached_property

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """A part of a spec that is no artifact by itself. A field at its default is left out of every digest."""

    def __post_init__(self) -> None:
        """Take the default itself for what equals it: msgspec leaves out what is the same object, not what is equal."""
        defaults = self.__struct_defaults__
        for name, default in zip(self.__struct_fields__[-len(defaults) :] if defaults else (), defaults, strict=True):
            value = getattr(self, name)
            if value is not default and value == default:
                msgspec.structs.force_setattr(self, name, default)

    @property
    def inputs(self) -> "tuple[Spec, ...]":
        """The specs directly inside, each once, in the order of the fields."""
        found = {spec.digest: spec for value in msgspec.structs.astuple(self) for spec in _specs_in(value)}
        return tuple(found.values())


class Spec(Record, frozen=True, kw_only=True, omit_defaults=True, dict=True, tag_field="kind", tag=str.lower):
    """What one artifact holds."""

    @property
    def stage(self) -> str:
        """The kind of artifact, a folder of the store."""
        return type(self).__name__.lower()

    @cached_property
    def canonical(self) -> bytes:
        """The JSON of which the digest is taken."""
        return msgspec.json.encode(self, order="deterministic")

    @cached_property
    def digest(self) -> str:
        """The artifact's name: BLAKE2b of the canonical JSON, 32 hexadecimal digits."""
        return hashlib.blake2b(self.canonical, digest_size=16).hexdigest()


def _specs_in(value: object) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
    elif isinstance(value, Record):
        yield from value.inputs
    elif isinstance(value, tuple):
        for one in value:
            yield from _specs_in(one)
