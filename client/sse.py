"""Server-sent events: the lines of a stream as typed events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from client.errors import ServiceError, from_event
from codec import JSON, decode_plain
from subjects.contract import Code, Fault

MAX_EVENT_BYTES = 2 * 1024 * 1024
MAX_RETRY_S = 60.0


@dataclass(frozen=True)
class Chunk:
    """A piece of the answer: the operation's chunk."""

    id: str
    data: Any


@dataclass(frozen=True)
class Restart:
    """The work began anew after a crash: forget the pieces so far."""

    id: str


@dataclass(frozen=True)
class Done:
    """The end. data: the whole answer, as without a stream."""

    id: str
    data: Any


@dataclass(frozen=True)
class Failed:
    """The end of a stream that failed. Whoever asks for a further event gets the error raised."""

    id: str
    error: ServiceError


Event = Chunk | Restart | Done | Failed


class Raw(NamedTuple):
    """As it stood in the stream. kind empty: nothing but a hint to come back after retry_s, or a heartbeat."""

    id: str
    kind: str
    data: bytes
    retry_s: float | None = None


@dataclass
class _Fields:
    ident: str = ""
    kind: str = ""
    data: list[bytes] = field(default_factory=list)
    retry_s: float | None = None
    size: int = 0


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[Raw]:
    """Each event of a body that comes in pieces, and an empty one for each piece without any.

    Split at CR, LF and CRLF alone (text may hold U+2028). Raises ServiceError(TOO_LARGE) over 2 MiB an event.
    """
    rest, found = b"", _Fields()
    async for piece in pieces:
        *lines, rest = _lines(rest + piece)
        if len(rest) > MAX_EVENT_BYTES:
            raise _too_large()
        some = False
        for line in lines:
            if line:
                _take(found, line)
            elif found.data or found.retry_s is not None:
                some = True
                yield Raw(found.ident, found.kind if found.data else "", b"\n".join(found.data), found.retry_s)
                found = _Fields()
        if not some:
            yield Raw("", "", b"")


def typed(raw: Raw) -> Event | None:
    """None for a kind that we do not know. Raises ServiceError(UPSTREAM) when the data is not JSON."""
    if raw.kind == "restart":
        return Restart(raw.id)
    if raw.kind == "error":
        return Failed(raw.id, from_event(raw.data))
    if raw.kind not in ("chunk", "done"):
        return None
    try:
        data = decode_plain(raw.data, JSON)
    except Fault as fault:
        raise ServiceError(Code.UPSTREAM, "an event of the stream is not JSON") from fault
    return Chunk(raw.id, data) if raw.kind == "chunk" else Done(raw.id, data)


def _lines(data: bytes) -> list[bytes]:
    """Split at line ends; a CR at the very end may be half of a CRLF and stays."""
    held = b"\r" if data.endswith(b"\r") else b""
    lines = data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    lines[-1] += held
    return lines


def _take(found: _Fields, line: bytes) -> None:
    name, _, value = line.partition(b":")
    value = value.removeprefix(b" ")
    if name == b"data":
        found.data.append(value)
        found.size += len(value)
        if found.size > MAX_EVENT_BYTES:
            raise _too_large()
    elif name == b"event":
        found.kind = value.decode("utf-8", "replace")
    elif name == b"id":
        found.ident = value.decode("utf-8", "replace")
    elif name == b"retry" and value.isdigit() and len(value) < 9:
        found.retry_s = min(int(value) / 1000, MAX_RETRY_S)


def _too_large() -> ServiceError:
    return ServiceError(Code.TOO_LARGE, f"an event of the stream is over {MAX_EVENT_BYTES} bytes", retryable=False)
