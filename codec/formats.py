"""Bytes to and from plain values in each format, bounded: nothing but Fault(INVALID) comes out, whatever goes in."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

import msgpack  # type: ignore[import-untyped]

from subjects.contract import Code, Fault

MSGPACK = "application/msgpack"
JSON = "application/json"
CONTENT_TYPES = (MSGPACK, JSON)

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_ITEMS = 100_000
MAX_INT, MIN_INT = 2**63 - 1, -(2**63)

# msgpack reserves room for the length that an array header claims. Up to this size the claims cannot sum to more than
# 33 MB (1,024 nested headers, the parser's own limit); above it they are checked against the bytes first.
_TRUSTED_CLAIMS_BYTES = 4096
_NUMBER_TO_CHECK = re.compile(rb"[0-9]{19}|[0-9][eE]")
_JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # the last quote is optional: always linear


def invalid(detail: str) -> Fault:
    return Fault(Code.INVALID, detail)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice in one map")
    return found


# ---- msgpack


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not allowed")


def parse_msgpack(data: bytes) -> Any:
    """Raises Fault(INVALID)."""
    if len(data) > MAX_BYTES:
        raise invalid(f"the message is over {MAX_BYTES} bytes")
    try:
        if len(data) > _TRUSTED_CLAIMS_BYTES:
            _check_claims(data)
        value = msgpack.unpackb(
            data,
            object_pairs_hook=_unique,
            list_hook=None if len(data) <= MAX_ITEMS else _Counter().list,
            ext_hook=_no_ext,
            max_array_len=min(len(data), MAX_ITEMS),
            max_map_len=min(len(data), MAX_ITEMS),
        )
        check_plain(value)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise invalid(f"not a msgpack message: {_reason(error)}") from error
    return value


class _Counter:
    """Stops the parser while it builds, before a million little containers exist."""

    def __init__(self) -> None:
        self._items = 0

    def list(self, items: list[Any]) -> list[Any]:
        self._items += len(items) + 1
        if self._items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return items


def _check_claims(data: bytes) -> None:
    """Walk the bytes without building anything: afterwards every claimed length is backed by bytes that are there."""
    reader = msgpack.Unpacker(max_buffer_size=MAX_BYTES)
    reader.feed(data)
    try:
        reader.skip()
    except msgpack.OutOfData:
        raise ValueError("it ends too early") from None
    if reader.tell() != len(data):
        raise ValueError("bytes after its end")


def check_plain(value: Any) -> None:
    """Depth, number of items, and each leaf of a built value. Raises ValueError."""
    level = [value]
    items = depth = 0
    while level:
        items += len(level)
        depth += 1
        if items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                if "\0" in item:
                    raise ValueError("a NUL character")
            elif kind is dict:
                for key in item:
                    if type(key) is not str or "\0" in key:
                        raise ValueError("a key that is not text")
                below.extend(item.values())
            elif kind is int:
                if not MIN_INT <= item <= MAX_INT:
                    raise ValueError("an integer outside 64 bits")
            elif kind is list:
                below.extend(item)
            elif kind is float and not math.isfinite(item):
                raise ValueError("NaN or an infinity")
        # A scalar is no level of its own: depth counts containers.
        if depth > MAX_DEPTH and below:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        level = below


# ---- json


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _bounded_int(text: str) -> int:
    if len(text) > 20 or not MIN_INT <= (value := int(text)) <= MAX_INT:
        raise ValueError("an integer outside 64 bits")
    return value


def _finite_float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError("a number too large")
    return value


_fast_json = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_careful_json = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_bounded_int, parse_float=_finite_float
)


def parse_json(data: bytes) -> Any:
    """Raises Fault(INVALID)."""
    if len(data) > MAX_BYTES:
        raise invalid(f"the message is over {MAX_BYTES} bytes")
    try:
        openings = data.count(b"[") + data.count(b"{")
        if openings + data.count(b",") > MAX_ITEMS:
            _check_marks(data)
        decoder = _careful_json if _NUMBER_TO_CHECK.search(data) else _fast_json
        value = decoder.decode(data.decode())
        # Only an escape can spell a NUL or half a surrogate pair, only brackets make levels and items.
        if b"\\u" in data:
            check_plain(value)
            _check_surrogates(value)
        elif openings > MAX_DEPTH:
            check_plain(value)
    except (ValueError, RecursionError) as error:
        raise invalid(f"not a JSON message: {_reason(error)}") from error
    return value


def _check_marks(data: bytes) -> None:
    """Count what makes items, outside strings, before anything is built. An empty container counts twice here."""
    bare = _JSON_STRING.sub(b"", data)
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > 2 * MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair") from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError | msgpack.StackError):
        return f"more than {MAX_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return "text that is not UTF-8"
    if isinstance(error, msgpack.FormatError):
        return "a byte that starts no value"
    if isinstance(error, msgpack.ExtraData):
        return "bytes after its end"
    return str(error)[:200] or type(error).__name__


# ---- writing


def _iso(value: datetime) -> str:
    """ISO 8601 in UTC; a naive datetime is taken as UTC."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat().replace("+00:00", "Z")


def _as_text(value: Any) -> Any:
    """What neither format has of its own."""
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
    return _as_text(value)


_pack: Callable[..., bytes] = msgpack.packb
_json_writer = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_json)
_canonical_writer = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True, default=_as_json
)


def write_msgpack(value: Any) -> bytes:
    """Raises Fault(INVALID) for what the wire cannot carry."""
    try:
        return _pack(value, default=_as_text)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise invalid(f"the message cannot be written: {_reason(error)}") from error


def write_json(value: Any, *, canonical: bool = False) -> bytes:
    """Raises Fault(INVALID) for what the wire cannot carry."""
    try:
        return (_canonical_writer if canonical else _json_writer).encode(value).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid(f"the message cannot be written: {_reason(error)}") from error


# ---- content types


def content_type_of(value: str | None, default: str = MSGPACK) -> str:
    """The format that a Content-Type names; without its parameters. Raises Fault(INVALID) for others."""
    if value is None or value in CONTENT_TYPES:
        return value or default
    bare = value.partition(";")[0].strip().lower()
    if bare in CONTENT_TYPES:
        return bare
    raise invalid(f"Content-Type must be {MSGPACK} or {JSON}")


def negotiate(accept: str | None, default: str) -> str:
    """The format for a reply: the best of ours that Accept names, else default."""
    if accept is None or accept in CONTENT_TYPES:
        return accept or default
    best, best_quality = default, 0.0
    for part in accept[:1024].split(","):
        name, _, parameters = part.partition(";")
        bare = name.strip().lower()
        if bare in CONTENT_TYPES and (quality := _quality(parameters)) > best_quality:
            best, best_quality = bare, quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
