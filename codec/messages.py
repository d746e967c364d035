"""Contracts to and from bytes: the two functions that every process calls for every message."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from codec import formats
from codec.formats import JSON, MSGPACK
from subjects.contract import Code, Fault, FieldError

M = TypeVar("M", bound=BaseModel)

MAX_ERRORS = 50
MAX_PATH = 200
MAX_MESSAGE = 300


def encode(message: BaseModel, content_type: str = MSGPACK) -> bytes:
    """Raises Fault(INVALID) for a value that the wire cannot carry (half a surrogate pair, 2^64)."""
    return encode_plain(message.model_dump(), content_type)


def encode_plain(value: Any, content_type: str = MSGPACK) -> bytes:
    """The same for what is no model: JSON-like values, and bytes."""
    if content_type == MSGPACK:
        return formats.write_msgpack(value)
    if formats.content_type_of(content_type) == JSON:
        return formats.write_json(value)
    return formats.write_msgpack(value)


def decode_plain(data: bytes, content_type: str | None = MSGPACK) -> Any:
    """JSON-like values (and bytes, from msgpack). Raises Fault(INVALID)."""
    if formats.content_type_of(content_type) == JSON:
        return formats.parse_json(data)
    return formats.parse_msgpack(data)


def decode(data: bytes, model: type[M], content_type: str | None = MSGPACK) -> M:
    """The message, checked against its contract. Raises Fault(INVALID); errors names each bad field."""
    try:
        if formats.content_type_of(content_type) == JSON:
            value = formats.parse_json(data)
            if _has_bytes(model):
                return model.__pydantic_validator__.validate_json(data)  # type: ignore[no-any-return]
            return model.__pydantic_validator__.validate_python(value)  # type: ignore[no-any-return]
        return model.__pydantic_validator__.validate_python(formats.parse_msgpack(data))  # type: ignore[no-any-return]
    except ValidationError as error:
        raise refused(error) from error


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
    """SHA-256 (hex) of the message as canonical JSON: sorted keys, no spaces, UTF-8, without unset fields."""
    return hashlib.sha256(formats.write_json(message.model_dump(exclude_unset=True), canonical=True)).hexdigest()


@cache
def _has_bytes(model: type[BaseModel]) -> bool:
    return "'binary'" in str(model.model_json_schema()) or "'base64url'" in str(model.model_json_schema())
