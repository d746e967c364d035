"""Header blocks of NATS messages as bytes: built without detours, read within bounds."""

from __future__ import annotations

from collections.abc import Mapping

from subjects.contract import Code, Fault

LINE = b"NATS/1.0\r\n"
CRLF = b"\r\n"
STATUS, DESCRIPTION = "Status", "Description"  # where nats-py puts the words of the status line
NO_RESPONDERS = b"NATS/1.0 503"
MAX_BLOCK_BYTES = 64 * 1024
MAX_LINES = 512

_NEW_LINES = str.maketrans({"\r": " ", "\n": " ", "\0": " "})


def lines(headers: Mapping[str, str]) -> bytes:
    """`Name: value` lines without the version line and without the empty line that ends a block.

    Line breaks in a value become spaces, so that a value can never begin another header or another command.
    Raises ValueError on a name that is not printable ASCII without spaces and colons.
    """
    made = []
    for name, value in headers.items():
        if not name or not name.isascii() or not name.isprintable() or " " in name or ":" in name:
            raise ValueError("a header's name must be printable ASCII without spaces and colons")
        if not value.isprintable():
            value = value.translate(_NEW_LINES)
        made.append(f"{name}: {value}\r\n")
    return "".join(made).encode("utf-8", "replace")


def block(headers: Mapping[str, str]) -> bytes:
    """A whole block. Raises ValueError as lines() does."""
    return LINE + lines(headers) + CRLF


def as_block(headers: Mapping[str, str] | None) -> bytes:
    """A whole block, or nothing for no headers. Raises Fault(INVALID) on a name that is not allowed."""
    if not headers:
        return b""
    try:
        return block(headers)
    except ValueError as error:
        raise Fault(Code.INVALID, str(error)) from error


def parse(raw: bytes) -> dict[str, str]:
    """The headers of a received block; the last of equal names wins; a line without a colon is skipped.

    Raises ValueError when it is no header block, or larger than 64 KiB or 512 lines.
    """
    if len(raw) > MAX_BLOCK_BYTES or raw[:8] != b"NATS/1.0":
        raise ValueError("not a header block")
    first, *rest = raw.decode("utf-8", "replace").split("\r\n", MAX_LINES)
    if not rest or (rest[-1] and len(rest) == MAX_LINES):
        raise ValueError("a header block that does not end")
    found: dict[str, str] = {}
    if len(first) > 8:
        _status(first, found)
    for line in rest:
        name, colon, value = line.partition(":")
        if colon and name and " " not in name and "\t" not in name:
            found[name] = value.strip()
    return found


def _status(first: str, found: dict[str, str]) -> None:
    """`NATS/1.0 503 No Responders`. A status line that is not ASCII is nothing that a server writes."""
    if first[8] != " " or not first.isascii():
        raise ValueError("not a status line")
    code, _, description = first[9:].strip().partition(" ")
    if code.isdigit():
        found[STATUS] = code
    if description:
        found[DESCRIPTION] = description
