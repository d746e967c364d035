"""Plain values to bytes: datetimes as ISO 8601 in UTC, UUIDs and decimals as text, bytes as bin or base64."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgpack  # type: ignore[import-untyped]

from codec.formats import invalid


def _iso(value: datetime) -> str:
    """ISO 8601 in UTC; a naive datetime is taken as UTC."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat().replace("+00:00", "Z")


def as_text(value: Any) -> Any:
    """What no format has of its own. Raises TypeError for what is no value of a contract."""
    if isinstance(value, datetime):
        return _iso(value)
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written")


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    return as_text(value)


_pack: Callable[..., bytes] = msgpack.packb
_json_writer = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_json)
_canonical_writer = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, default=_as_json
)


def write_msgpack(value: Any) -> bytes:
    """Raises Fault(INVALID) for what the wire cannot carry."""
    try:
        return _pack(value, default=as_text)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise invalid(f"the message cannot be written: {str(error)[:200]}") from error


def write_json(value: Any, *, canonical: bool = False) -> bytes:
    """Raises Fault(INVALID) for what the wire cannot carry."""
    try:
        return (_canonical_writer if canonical else _json_writer).encode(value).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid(f"the message cannot be written: {str(error)[:200]}") from error
