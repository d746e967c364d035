"""What a contract is in protobuf: message types with typed fields, derived from the models. No numbers, no bytes."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

SHARED = "shared"  # models of the vocabulary itself: FieldError, Problem, Empty
VALUE, ITEMS = "value", "items"  # the only field of a box
_AS_TEXT = (datetime, date, time, UUID, Decimal)


@dataclass(frozen=True)
class Scalar:
    """written: what its values are written as; text = by codec.writing's rules for datetimes, UUIDs, decimals, enums;
    json = a string of JSON text."""

    type: Literal["string", "int64", "double", "bool", "bytes"]
    written: Literal["as is", "text", "json"] = "as is"


@dataclass(frozen=True)
class Repeated:
    item: Scalar | Message


@dataclass(frozen=True)
class Map:
    value: Scalar | Message


Form = Union["Scalar", "Message", "Repeated", "Map"]

STRING, TEXT, JSON_TEXT = Scalar("string"), Scalar("string", "text"), Scalar("string", "json")
_SCALARS: dict[Any, Scalar] = {
    str: STRING, int: Scalar("int64"), float: Scalar("double"), bool: Scalar("bool"), bytes: Scalar("bytes"),
}  # fmt: skip
_MEMBERS = {"string": "text", "int64": "integer", "double": "number", "bool": "flag", "bytes": "data"}


@dataclass(frozen=True)
class Field:
    """nullable: None is said by leaving it out. tags: the discriminator's values that choose this member."""

    name: str
    form: Form
    nullable: bool = False
    required: bool = False
    doc: str = ""
    tags: tuple[str, ...] = ()


class Message:
    """A model; a choice, which is a union with one oneof; or a box, where protobuf needs a message around a value.

    name: `rag.Answer`; what a field needs of its own stands inside: `gateway.Message.Content`. discriminator: of a
    choice between models.
    """

    def __init__(
        self,
        name: str,
        kind: Literal["model", "choice", "box"],
        fields: Callable[[Message], tuple[Field, ...]],
        *,
        doc: str = "",
        discriminator: str | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.doc = doc
        self.discriminator = discriminator
        self._make = fields

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Made when they are asked for: a model may hold itself."""
        return self._make(self)

    def __repr__(self) -> str:
        return f"Message({self.name})"


@cache
def message_of(model: type[BaseModel]) -> Message:
    """The message type of a model, base classes flattened. Its fields raise TypeError when one has no form."""
    doc = vars(model).get("__doc__") or ""
    return Message(name_of(model), "model", lambda message: _fields(message, model), doc=doc)


def name_of(model: type[BaseModel]) -> str:
    """`<component>.<Model>`, where the model is defined."""
    package, _, module = model.__module__.partition(".")
    if model.__module__ in ("subjects.contract", "codec.problem"):
        module = SHARED
    elif package != "subjects":
        module = model.__module__
    return f"{re.sub('[^a-z0-9_]', '_', module.lower())}.{re.sub('[^A-Za-z0-9_]', '_', model.__qualname__)}"


def _fields(message: Message, model: type[BaseModel]) -> tuple[Field, ...]:
    found = []
    for name, field in model.model_fields.items():
        form, nullable = _form(field.annotation, message.name, _pascal(name), field.discriminator)
        if nullable and isinstance(form, Repeated | Map):
            form = _box(message.name, _pascal(name), form)
        found.append(Field(name, form, nullable, field.is_required(), field.description or ""))
    return tuple(found)


def _form(annotation: Any, owner: str, label: str, discriminator: Any = None) -> tuple[Form, bool]:
    """The form and whether None is allowed. label: what a message of its own would be called inside its owner."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = [each.discriminator for each in args[1:] if isinstance(each, FieldInfo)]
        return _form(args[0], owner, label, next(filter(None, named), discriminator))
    if annotation is JsonValue:
        return JSON_TEXT, True
    if origin in (Union, types.UnionType):
        members = [each for each in args if each is not type(None)]
        nullable = len(members) < len(args)
        if len(members) == 1:
            form, also = _form(members[0], owner, label, discriminator)
            return form, nullable or also
        return _choice(members, owner, label, discriminator), nullable
    if origin is list:
        return Repeated(_single(args[0], owner, label + "Item")), False
    if origin is dict:
        if args[1] is JsonValue:
            return JSON_TEXT, False
        return Map(_single(args[1], owner, label + "Item")), False
    if origin is Literal:
        values = {type(value.value if isinstance(value, Enum) else value) for value in args}
        return (TEXT if values == {str} else _SCALARS[values.pop()]), False
    if isinstance(annotation, type):
        if annotation in _SCALARS:
            return _SCALARS[annotation], False
        if issubclass(annotation, BaseModel):
            return message_of(annotation), False
        if issubclass(annotation, _AS_TEXT) or (issubclass(annotation, Enum) and issubclass(annotation, str)):
            return TEXT, False
    raise TypeError(f"{owner}.{label}: {annotation} has no form in protobuf")


def _single(annotation: Any, owner: str, label: str) -> Scalar | Message:
    """The form of an item of a list or map: what cannot be repeated there, or may be None, gets a box."""
    form, nullable = _form(annotation, owner, label)
    if isinstance(form, Repeated | Map):
        return _box(owner, label, form)
    return _box(owner, label, form) if nullable and form is not JSON_TEXT else form


def _box(owner: str, label: str, form: Form) -> Message:
    suffix, name = {Repeated: ("List", ITEMS), Map: ("Map", ITEMS)}.get(type(form), ("Value", VALUE))
    return Message(f"{owner}.{label}{suffix}", "box", lambda _: (Field(name, form),))


def _choice(members: list[Any], owner: str, label: str, discriminator: Any) -> Message:
    found: dict[str, Field] = {}
    for each in members:
        form, _ = _form(each, owner, label)
        tags = _tags(form, each, discriminator) if isinstance(discriminator, str) else ()
        name = _member(form, tags)
        if isinstance(form, Repeated | Map):
            form = _box(owner, label, form)
        if name in found and found[name].form != form:
            if STRING not in (found[name].form, form):
                raise TypeError(f"{owner}.{label}: two members of the union cannot be told apart")
            form = TEXT
        found[name] = Field(name, form, tags=tags)
    chosen = discriminator if isinstance(discriminator, str) else None
    return Message(f"{owner}.{label}", "choice", lambda _: tuple(found.values()), discriminator=chosen)


def _tags(form: Form, annotation: Any, discriminator: str) -> tuple[str, ...]:
    model = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if not isinstance(form, Message) or not isinstance(model, type) or not issubclass(model, BaseModel):
        raise TypeError(f"{annotation}: only models are told apart by a discriminator")
    values = get_args(model.model_fields[discriminator].annotation)
    return tuple(value.value if isinstance(value, Enum) else value for value in values)


def _member(form: Form, tags: tuple[str, ...]) -> str:
    """What a member of a oneof is called: after its tag, else after its kind."""
    if tags:
        return re.sub("[^a-z0-9_]", "_", tags[0].lower())
    if isinstance(form, Message):
        return re.sub("(?<!^)(?=[A-Z])", "_", form.name.rpartition(".")[2]).lower()
    if isinstance(form, Scalar):
        return "json" if form.written == "json" else _MEMBERS[form.type]
    return "list" if isinstance(form, Repeated) else "map"


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def inside(message: Message) -> list[Message]:
    """The message types that its fields use."""
    found = []
    for field in message.fields:
        form = field.form.item if isinstance(field.form, Repeated) else field.form
        form = form.value if isinstance(form, Map) else form
        if isinstance(form, Message):
            found.append(form)
    return found


def reachable(models: list[type[BaseModel]]) -> dict[str, Message]:
    """Every message type that these models need, by name."""
    found: dict[str, Message] = {}
    waiting = [message_of(model) for model in models]
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = message
            waiting += inside(message)
    return dict(sorted(found.items()))
