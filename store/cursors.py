"""Cursors of lists: where the next page begins, in a form that says nothing to its reader and is checked on return."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime

from subjects.contract import Code, Fault

Part = str | int | datetime

MAX_CURSOR_CHARS = 512
MAX_TEXT_CHARS = 300
MAX_NUMBER = 2**63 - 1
EARLIEST, LATEST = 1970, 9000  # years: what the database takes in every time zone


def make(*parts: Part) -> str:
    """Text that may stand in a query as it is."""
    plain = [part.isoformat() if isinstance(part, datetime) else part for part in parts]
    return base64.urlsafe_b64encode(json.dumps(plain, separators=(",", ":")).encode()).decode().rstrip("=")


def read(cursor: str, *kinds: type[Part]) -> list[Part]:
    """The parts that make() was given, of these kinds. Raises Fault(INVALID) for whatever else was sent."""
    try:
        if len(cursor) > MAX_CURSOR_CHARS:
            raise ValueError("too long")
        text = cursor.encode("ascii")
        plain = json.loads(base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if not isinstance(plain, list) or len(plain) != len(kinds):
            raise ValueError("not as many parts")
        return [_part(value, kind) for value, kind in zip(plain, kinds, strict=True)]
    except (ValueError, binascii.Error, RecursionError) as error:
        raise Fault(Code.INVALID, "the cursor is not one that this list gave; begin without one") from error


def number(cursor: str) -> int:
    """The part of a cursor that is one number. Raises Fault(INVALID)."""
    [value] = read(cursor, int)
    assert isinstance(value, int)
    return value


def _part(value: object, kind: type[Part]) -> Part:
    if kind is int and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER:
        return value
    if kind is str and isinstance(value, str) and len(value) <= MAX_TEXT_CHARS and value.isprintable():
        return value
    if kind is datetime and isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None and EARLIEST <= moment.year <= LATEST:
            return moment
    raise ValueError(f"a part is no {kind.__name__}")
