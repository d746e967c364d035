"""Protobuf to and from plain values. The bytes are read one message at a time, so that hostile ones stay small.

Each message type gets a runtime class in which a field of another message type is `bytes`: the same on the wire, and
the parser builds one level only. So a million empty submessages are counted before any of them exists, depth is ours
to bound, and recursion needs no care. Of a singular field said twice the last counts, as protobuf has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, EncodeError
from pydantic import BaseModel

from codec import fieldlock
from codec.formats import MAX_BYTES, MAX_DEPTH, invalid
from codec.protofields import Budget, putter, taker
from codec.shapes import Map, Message, Repeated, Scalar, message_of

MESSAGE_ITEMS = 5  # what a message counts for beside its fields: reading it takes as long

_Proto = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Proto.TYPE_STRING, "int64": _Proto.TYPE_INT64, "double": _Proto.TYPE_DOUBLE,
    "bool": _Proto.TYPE_BOOL, "bytes": _Proto.TYPE_BYTES,
}  # fmt: skip
_KINDS: dict[type, tuple[str, ...]] = {
    bool: ("flag",), int: ("integer", "number"), float: ("number",), bytes: ("data",), list: ("list",), str: ("text",),
}  # fmt: skip


def read_protobuf(data: bytes, model: type[BaseModel]) -> dict[str, Any]:
    """Plain values of the message's fields, as msgpack would give them. Raises Fault(INVALID)."""
    if len(data) > MAX_BYTES:
        raise invalid(f"the message is over {MAX_BYTES} bytes")
    try:
        plain: dict[str, Any] = _runtime(message_of(model)).read(data, Budget(), 0)
    except (DecodeError, ValueError, RecursionError) as error:
        raise invalid(f"not a protobuf message: {_reason(error)}") from error
    return plain


def write_protobuf(plain: Any, model: type[BaseModel]) -> bytes:
    """Plain values, or those of a model's dump. Raises Fault(INVALID) for what the wire cannot carry."""
    try:
        return _runtime(message_of(model)).write(plain)
    except (EncodeError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise invalid(f"the message cannot be written: {str(error)[:200]}") from error


class _Runtime:
    """Reads and writes the bytes of one message type."""

    def __init__(self, message: Message) -> None:
        self._cls: Any = _class(message)
        self._parse: Callable[[bytes], Any] = self._cls.FromString
        by_name = self._cls.DESCRIPTOR.fields_by_name
        self._takes = {
            by_name[field.name]: (field.name, taker(field.form, field.name, _runtime)) for field in message.fields
        }
        self._puts = [(field.name, putter(field.form, _runtime)) for field in message.fields]

    def write(self, value: Any) -> bytes:
        raise NotImplementedError

    def read(self, data: bytes, budget: Budget, level: int) -> Any:
        raise NotImplementedError


class _Model(_Runtime):
    def __init__(self, message: Message) -> None:
        super().__init__(message)
        # Protobuf has no way to say None or an empty list; where the contract wants to hear it, absence says it.
        lists = [field.name for field in message.fields if field.required and isinstance(field.form, Repeated)]
        maps = [field.name for field in message.fields if field.required and isinstance(field.form, Map)]
        nulls = [field.name for field in message.fields if field.required and field.nullable]
        self._absent: list[tuple[str, Callable[[], Any]]] = [
            *((name, list) for name in lists),
            *((name, dict) for name in maps),
            *((name, lambda: None) for name in nulls),
        ]

    def write(self, value: Mapping[str, Any]) -> bytes:
        given = {}
        for name, put in self._puts:
            each = value.get(name)
            if each is not None:
                given[name] = each if put is None else put(each)
        data: bytes = self._cls(**given).SerializeToString()
        return data

    def read(self, data: bytes, budget: Budget, level: int) -> dict[str, Any]:
        if level >= MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        plain = {}
        if data:
            takes = self._takes
            found = self._parse(data).ListFields()
            budget.spend(len(found) + MESSAGE_ITEMS)
            for field, value in found:
                name, take = takes[field]
                plain[name] = value if take is None else take(value, budget, level + 1)
        for name, absent in self._absent:
            if name not in plain:
                plain[name] = absent()
        return plain


class _Box(_Runtime):
    """A message around one value: a list in a list, a list or map that may be None, an item that may be None."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        (field,) = message.fields
        self._empty: Callable[[], Any] = {Repeated: list, Map: dict}.get(type(field.form), lambda: None)

    def write(self, value: Any) -> bytes:
        ((name, put),) = self._puts
        given = {} if value is None else {name: value if put is None else put(value)}
        data: bytes = self._cls(**given).SerializeToString()
        return data

    def read(self, data: bytes, budget: Budget, level: int) -> Any:
        for field, value in self._parse(data).ListFields():
            _, take = self._takes[field]
            return value if take is None else take(value, budget, level)
        return self._empty()


class _Choice(_Runtime):
    """A union: one oneof."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self._by_name = dict(self._puts)
        self._discriminator = message.discriminator
        self._tags = {field.name: field.tags for field in message.fields}
        self._by_tag = {tag: field.name for field in message.fields for tag in field.tags}
        models = [field.name for field in message.fields if isinstance(field.form, Message)]
        self._for_maps = next((name for name in models if name not in ("list", "map")), "map")

    def write(self, value: Any) -> bytes:
        name = self._name(value)
        put = self._by_name[name]
        data: bytes = self._cls(**{name: value if put is None else put(value)}).SerializeToString()
        return data

    def _name(self, value: Any) -> str:
        if self._discriminator is not None:
            tag = value[self._discriminator]
            return self._by_tag[getattr(tag, "value", tag)]
        wanted = (self._for_maps,) if isinstance(value, dict) else _KINDS.get(type(value), ("text",))
        for name in (*wanted, "json"):
            if name in self._by_name:
                return name
        raise ValueError(f"no member of the union takes {type(value).__name__}")

    def read(self, data: bytes, budget: Budget, level: int) -> Any:
        for field, value in self._parse(data).ListFields():
            name, take = self._takes[field]
            found = value if take is None else take(value, budget, level)
            if (
                self._discriminator is not None
                and found.setdefault(self._discriminator, self._tags[name][0]) not in (self._tags[name])
            ):
                raise ValueError(f"{self._discriminator} says another kind than {name}")
            return found
        return None


@cache
def _runtime(message: Message) -> _Runtime:
    return {"model": _Model, "box": _Box, "choice": _Choice}[message.kind](message)


def _class(message: Message) -> Any:
    """The parser's class: all fields as the .proto file has them, but messages as bytes."""
    file = descriptor_pb2.FileDescriptorProto(
        name="message.proto", syntax="editions", edition=descriptor_pb2.EDITION_2023
    )
    made = file.message_type.add(name="M")
    if message.kind == "choice":
        made.oneof_decl.add(name="kind")
    given = fieldlock.numbers(message, fieldlock.committed())
    for field in message.fields:
        form = field.form
        own = made.field.add(name=field.name, number=given[field.name], label=_Proto.LABEL_OPTIONAL)
        if isinstance(form, Map):
            own.label, own.type, own.type_name = _Proto.LABEL_REPEATED, _Proto.TYPE_MESSAGE, f".M.{field.name}Entry"
            entry = made.nested_type.add(name=f"{field.name}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=_Proto.TYPE_STRING, label=_Proto.LABEL_OPTIONAL)
            entry.field.add(name="value", number=2, type=_wire_type(form.value), label=_Proto.LABEL_OPTIONAL)
            continue
        if isinstance(form, Repeated):
            own.label, form = _Proto.LABEL_REPEATED, form.item
        own.type = _wire_type(form)
        if message.kind == "choice":
            own.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("M"))


def _wire_type(form: Scalar | Message) -> Any:
    return _Proto.TYPE_BYTES if isinstance(form, Message) else _TYPES[form.type]


def _reason(error: Exception) -> str:
    return "its bytes are no fields, or text is not UTF-8" if isinstance(error, DecodeError) else str(error)[:200]
