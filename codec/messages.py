"""Contracts to and from bytes: the two functions that every process calls for every message."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from codec import reading, writing
from codec.formats import JSON, MSGPACK, PROTOBUF, content_type_of, invalid
from codec.strictness import validator
from subjects.contract import Code, Fault, FieldError

M = TypeVar("M", bound=BaseModel)

_NESTED = (BaseModel, list, dict)

MAX_ERRORS = 50
BRIEF_FROM_BYTES = 16 * 1024  # a larger message names only the first bad item of each list
MAX_PATH = 200
MAX_MESSAGE = 300


def encode(message: BaseModel, content_type: str = MSGPACK) -> bytes:
    """Raises Fault(INVALID) for a value that the wire cannot carry (half a surrogate pair, 2^64)."""
    if content_type == MSGPACK:
        return writing.write_msgpack(message.model_dump())
    return encode_plain(message.model_dump(), content_type, type(message))


def encode_plain(value: Any, content_type: str = MSGPACK, model: type[BaseModel] | None = None) -> bytes:
    """The same for what is no model: JSON-like values, and bytes. Protobuf needs the model that they are values of."""
    kind = content_type_of(content_type)
    if kind == JSON:
        return writing.write_json(value)
    if kind == PROTOBUF:
        from codec.protobuf import write_protobuf  # late: who never meets protobuf does not load it

        return write_protobuf(value, _needed(model))
    return writing.write_msgpack(value)


def decode_plain(data: bytes, content_type: str | None = MSGPACK, model: type[BaseModel] | None = None) -> Any:
    """JSON-like values (and bytes, from msgpack and protobuf). Protobuf does not say what it is: without the model
    that is refused. Raises Fault(INVALID)."""
    return _plain(data, content_type_of(content_type), model)


def decode(data: bytes, model: type[M], content_type: str | None = MSGPACK) -> M:
    """The message, checked against its contract. Raises Fault(INVALID); errors names each bad field."""
    kind = content_type_of(content_type)
    value = reading.parse_msgpack(data) if kind == MSGPACK else _plain(data, kind, model)
    check = validator(model, base64_bytes=kind == JSON, first_error=len(data) > BRIEF_FROM_BYTES)
    try:
        return check.validate_python(value)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise refused(error) from error


def _plain(data: bytes, kind: str, model: type[BaseModel] | None) -> Any:
    if kind == JSON:
        return reading.parse_json(data)
    if kind == PROTOBUF:
        from codec.protobuf import read_protobuf

        return read_protobuf(data, _needed(model))
    return reading.parse_msgpack(data)


def _needed(model: type[BaseModel] | None) -> type[BaseModel]:
    if model is None:
        raise invalid(f"{PROTOBUF} can be read only by who knows which message it is")
    return model


def refused(error: ValidationError) -> Fault:
    """The Fault(INVALID) that tells which fields were bad, without repeating what stood in them."""
    if error.error_count() > MAX_ERRORS:
        return Fault(Code.INVALID, f"the message does not match its contract in {error.error_count()} places")
    found = [
        FieldError(path=".".join(map(str, each["loc"]))[:MAX_PATH], message=each["msg"][:MAX_MESSAGE])
        for each in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    named = ", ".join(each.path for each in found[:5] if each.path)
    return Fault(
        Code.INVALID, f"the message does not match its contract: {named or found[0].message}"[:500], errors=found
    )


def digest(message: BaseModel) -> str:
    """SHA-256 (hex) of the message as canonical JSON: sorted keys, no spaces, UTF-8, without unset fields.

    A field that is null, or a list or map that is empty (and could not be null), counts as unset: protobuf cannot say
    these, and a message has one digest whatever it was written in.
    """
    return hashlib.sha256(writing.write_json(_said(message), canonical=True)).hexdigest()


def _said(value: Any) -> Any:
    """What was said, with everything that protobuf can say."""
    if isinstance(value, BaseModel):
        many, found = _many(type(value)), {}
        for name in value.model_fields_set:
            each = getattr(value, name)
            if each or (each is not None and name not in many):
                found[name] = _said(each)
        return found
    if type(value) is list:
        return [_said(each) for each in value] if value and isinstance(value[0], _NESTED) else value
    if type(value) is dict:
        return {key: _said(each) for key, each in value.items()}
    return value


@cache
def _many(model: type[BaseModel]) -> frozenset[str]:
    """The fields that are lists or maps."""
    return frozenset(name for name, each in model.model_fields.items() if get_origin(each.annotation) in (list, dict))
