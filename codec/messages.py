"""Contracts to and from bytes: the two functions that every process calls for every message."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from codec import reading, writing
from codec.formats import JSON, MSGPACK, content_type_of
from codec.strictness import validator
from subjects.contract import Code, Fault, FieldError

M = TypeVar("M", bound=BaseModel)

MAX_ERRORS = 50
BRIEF_FROM_BYTES = 16 * 1024  # a larger message names only the first bad item of each list
MAX_PATH = 200
MAX_MESSAGE = 300


def encode(message: BaseModel, content_type: str = MSGPACK) -> bytes:
    """Raises Fault(INVALID) for a value that the wire cannot carry (half a surrogate pair, 2^64)."""
    return encode_plain(message.model_dump(), content_type)


def encode_plain(value: Any, content_type: str = MSGPACK) -> bytes:
    """The same for what is no model: JSON-like values, and bytes."""
    if content_type == MSGPACK:
        return writing.write_msgpack(value)
    if content_type_of(content_type) == JSON:
        return writing.write_json(value)
    return writing.write_msgpack(value)


def decode_plain(data: bytes, content_type: str | None = MSGPACK) -> Any:
    """JSON-like values (and bytes, from msgpack). Raises Fault(INVALID)."""
    if content_type_of(content_type) == JSON:
        return reading.parse_json(data)
    return reading.parse_msgpack(data)


def decode(data: bytes, model: type[M], content_type: str | None = MSGPACK) -> M:
    """The message, checked against its contract. Raises Fault(INVALID); errors names each bad field."""
    json = content_type_of(content_type) == JSON
    value = reading.parse_json(data) if json else reading.parse_msgpack(data)
    check = validator(model, base64_bytes=json, first_error=len(data) > BRIEF_FROM_BYTES)
    try:
        return check.validate_python(value)  # type: ignore[no-any-return]
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
    return hashlib.sha256(writing.write_json(message.model_dump(exclude_unset=True), canonical=True)).hexdigest()
