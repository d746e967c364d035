"""Bytes to plain values, bounded: nothing but Fault(INVALID) comes out, whatever goes in."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import msgpack  # type: ignore[import-untyped]

from codec.formats import MAX_BYTES, MAX_DEPTH, MAX_INT, MAX_ITEMS, MAX_KEYS, MIN_INT, invalid

# msgpack reserves room for the length that an array header claims. Up to this size the claims sum to 3 MB at worst;
# above it they are checked against the bytes first.
_TRUSTED_CLAIMS_BYTES = 1024


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys in one map")
    if len(found) != len(pairs):
        raise ValueError("the same key twice in one map")
    return found


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not allowed")


def parse_msgpack(data: bytes) -> Any:
    """Raises Fault(INVALID)."""
    if len(data) > MAX_BYTES:
        raise invalid(f"the message is over {MAX_BYTES} bytes")
    try:
        if len(data) > _TRUSTED_CLAIMS_BYTES:
            _check_claims(data)
        counter = _Counter() if len(data) > MAX_ITEMS else None  # a shorter message cannot hold too many
        value = msgpack.unpackb(
            data,
            object_pairs_hook=counter.count_map if counter else _unique,
            list_hook=counter.count_list if counter else None,
            ext_hook=_no_ext,
            max_array_len=min(len(data), MAX_ITEMS),
            max_map_len=min(len(data), MAX_KEYS),
        )
        check_plain(value)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise invalid(f"not a msgpack message: {_reason(error)}") from error
    return value


class _Counter:
    """Stops the parser while it builds, before a million little containers exist."""

    def __init__(self) -> None:
        self._items = 0

    def count_list(self, items: list[Any]) -> list[Any]:
        self._items += len(items) + 1
        if self._items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return items

    def count_map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self._items += len(pairs) + 1
        if self._items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return _unique(pairs)


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


def check_plain(value: Any, levels: int = MAX_DEPTH) -> int:
    """Depth, number of items, and each leaf of a built value. Gives how many items there are. Raises ValueError."""
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
                if depth > levels:
                    raise ValueError(f"more than {MAX_DEPTH} levels")
                for key in item:
                    if type(key) is not str or "\0" in key:
                        raise ValueError("a key that is not text")
                below.extend(item.values())
            elif kind is int:
                if not MIN_INT <= item <= MAX_INT:
                    raise ValueError("an integer outside 64 bits")
            elif kind is list:
                if depth > levels:
                    raise ValueError(f"more than {MAX_DEPTH} levels")
                below.extend(item)
            elif kind is float and not math.isfinite(item):
                raise ValueError("NaN or an infinity")
        level = below
    return items


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


_json_reader = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_bounded_int, parse_float=_finite_float
)


def parse_json(data: bytes, levels: int = MAX_DEPTH) -> Any:
    """levels: how deep it may be. Raises Fault(INVALID)."""
    if len(data) > MAX_BYTES:
        raise invalid(f"the message is over {MAX_BYTES} bytes")
    try:
        openings = data.count(b"[") + data.count(b"{")
        if openings + data.count(b",") > MAX_ITEMS:
            _check_marks(data)
        value = _json_reader.decode(data.decode())
        # Only an escape can spell a NUL or half a surrogate pair, only brackets make levels and items.
        if b"\\u" in data:
            check_plain(value, levels)
            _check_surrogates(value)
        elif openings > levels:
            check_plain(value, levels)
    except (ValueError, RecursionError) as error:
        raise invalid(f"not a JSON message: {_reason(error)}") from error
    return value


def _check_marks(data: bytes) -> None:
    """Count what makes items, outside strings, before anything is built. An empty container counts twice here."""
    if b"\\" in data:  # stands only inside strings: without its pairs every quote begins or ends a string
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    bare = b"".join(data.split(b'"')[::2])
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
