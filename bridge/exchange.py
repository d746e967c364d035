"""One HTTP request and its answer: headers, bounded body, response. Everything of ASGI that routes see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from functools import cache
from typing import Any

from codec import JSON, encode, negotiate
from codec import headers as h
from codec.formats import content_type_of
from codec.problem import PROBLEM_JSON, Problem, retry_after, to_problem
from runtime.identity import Identity, new_id
from runtime.tracing import Span
from subjects.contract import Code, Fault

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 1024 * 1024
BODY_WITHIN_S = 30.0  # of a body up to 1 MiB; later it is a 408
WRITE_WITHIN_S = 30.0  # a client that does not read for so long is gone
DRAIN_WITHIN_S = 2.0  # what a refused client still sends is read so long, so that it gets to read the refusal
DRAIN_BYTES = 64 * 1024 * 1024
MAX_ID_CHARS = 256
BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})  # a body has no meaning there, and is not waited for

# Headers that say who asks and for what: said twice they would say two things.
_ONCE = frozenset(
    name.lower().encode()
    for name in (h.TENANT, h.CONTENT_TYPE, h.CONTENT_LENGTH, h.IDEMPOTENCY_KEY, h.REQUEST_ID, h.CORRELATION_ID,
                 h.REQUEST_TIMEOUT, h.LAST_EVENT_ID, h.TRACEPARENT)
)  # fmt: skip
AUTHORIZATION = h.AUTHORIZATION.lower().encode()


class Gone(Exception):
    """The client has left: there is nobody to answer."""


class SlowBody(Exception):
    """The body did not come in time: 408, which is none of our codes because it is none of our failures."""


class Exchange:
    """Made for each request. identity is set once the token was checked; params are the path's."""

    __slots__ = (
        "_accept", "_length", "_receive", "_send", "body_read", "correlation_id", "headers", "identity", "method",
        "params", "path", "query", "raw_path", "repeated", "request_id", "span", "started", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope.get("raw_path") or self.path.encode()
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = {}
        self.repeated: set[bytes] = set()
        for name, value in scope["headers"]:
            if name in self.headers:
                self.repeated.add(name)
            self.headers[name] = value
        self._receive = receive
        self._send = send
        self._accept: str | None = None
        self.request_id = _ident(self.headers.get(b"x-request-id")) or new_id()
        self.correlation_id = _ident(self.headers.get(b"x-correlation-id")) or new_id()
        self.identity: Identity | None = None
        self.params: dict[str, str] = {}
        self.body_read = False
        self.started = False
        self.status = 0
        self.span: Span | None = None

    # -- the request ----------------------------------------------------------------------------------------------

    def header(self, name: str) -> str | None:
        """A header's value; None when it is absent. Raises Fault(INVALID) when it is not ASCII."""
        value = self.headers.get(_wire(name))
        if value is None:
            return None
        try:
            return value.decode("ascii")
        except UnicodeDecodeError:
            raise Fault(Code.INVALID, f"the header {name} must be ASCII") from None

    def check_headers(self) -> None:
        """Raises Fault(INVALID) when a header that may stand once stands twice, or an id cannot be one."""
        if self.repeated and not _ONCE.isdisjoint(self.repeated):
            raise Fault(Code.INVALID, "a header that may be given once was given twice")
        for name in (h.REQUEST_ID, h.CORRELATION_ID):
            value = self.headers.get(_wire(name))
            if value and _ident(value) is None:
                raise Fault(Code.INVALID, f"{name} must be at most {MAX_ID_CHARS} printable ASCII characters")

    def who(self) -> Identity:
        if self.identity is None:
            raise Fault(Code.UNAUTHENTICATED, "a token is needed")
        return self.identity

    @property
    def content_type(self) -> str:
        """The format of the body; JSON when nothing is said. Raises Fault(INVALID) on one that we do not read."""
        return content_type_of(self.header(h.CONTENT_TYPE), JSON)

    @property
    def accept(self) -> str:
        """The format of the answer: what Accept names, else that of the body."""
        if self._accept is None:
            try:
                self._accept = negotiate(self.header(h.ACCEPT), self.content_type)
            except Fault:
                self._accept = JSON
        return self._accept

    @property
    def wants_events(self) -> bool:
        return self.method != "HEAD" and b"text/event-stream" in self.headers.get(b"accept", b"").lower()

    def declared_length(self, limit: int) -> None:
        """Raises Fault(TOO_LARGE) when the client says that its body is over the limit, before any of it is read."""
        value = self.header(h.CONTENT_LENGTH)
        if value is not None and (len(value) > 15 or not value.isdecimal() or int(value) > limit):
            raise _too_large(limit)

    async def body(self) -> bytes:
        """All of it. Raises Fault(TOO_LARGE) over 1 MiB, SlowBody after 30 s, Gone."""
        self.declared_length(MAX_BODY_BYTES)
        message = await self._first_piece()
        if not message.get("more_body"):
            self.body_read = True
            whole: bytes = message.get("body", b"")
            if len(whole) > MAX_BODY_BYTES:
                raise _too_large(MAX_BODY_BYTES)
            return whole
        pieces = bytearray(message.get("body", b""))
        try:
            async with asyncio.timeout(BODY_WITHIN_S):
                async for piece in self.pieces(MAX_BODY_BYTES - len(pieces)):
                    pieces += piece
        except TimeoutError:
            raise SlowBody from None
        return bytes(pieces)

    async def _first_piece(self) -> MutableMapping[str, Any]:
        # A body in one piece, with its headers, is what nearly every request is: no timer for it.
        if self.headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in self.headers:
            self.body_read = True
            return {"body": b"", "more_body": False}
        try:
            async with asyncio.timeout(BODY_WITHIN_S):
                message = await self._receive()
        except TimeoutError:
            raise SlowBody from None
        if message["type"] == "http.disconnect":
            raise Gone
        return message

    async def pieces(self, limit: int, *, idle_s: float = BODY_WITHIN_S) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises Fault(TOO_LARGE), SlowBody when nothing comes for idle_s, Gone."""
        left = limit
        while not self.body_read:
            try:
                message = await asyncio.wait_for(self._receive(), idle_s)
            except TimeoutError:
                raise SlowBody from None
            if message["type"] == "http.disconnect":
                raise Gone
            piece: bytes = message.get("body", b"")
            self.body_read = not message.get("more_body")
            left -= len(piece)
            if left < 0:
                raise _too_large(limit)
            yield piece

    async def left(self) -> None:
        """Return when the client has left. Only after the whole body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # -- the answer -----------------------------------------------------------------------------------------------

    async def respond(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.started, self.status = True, status
        given = self._head(content_type, headers)
        given.append((b"content-length", b"%d" % len(body)))
        if not self.body_read and self.method not in BODILESS:
            await self._refuse(status, body, given)
            return
        await self._send({"type": "http.response.start", "status": status, "headers": given})
        await self._send({"type": "http.response.body", "body": body})

    async def _refuse(self, status: int, body: bytes, given: list[tuple[bytes, bytes]]) -> None:
        """Answer first, then read for a while what still comes: closing at once would destroy the answer."""
        given.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": status, "headers": given})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        try:
            async with asyncio.timeout(DRAIN_WITHIN_S):
                async for _ in self.pieces(DRAIN_BYTES):
                    pass
        except (TimeoutError, Fault, SlowBody, Gone):
            pass
        await self._send({"type": "http.response.body", "body": b""})

    async def problem(self, fault: Fault, *, status: int | None = None, headers: dict[str, str] | None = None) -> None:
        """Answer with a problem document in the client's format."""
        document = to_problem(fault, self.request_id, self.correlation_id)
        if status is not None:
            document = document.model_copy(update={"status": status})
        given = dict(headers or {})
        if fault.retry_after_s is not None:
            given[h.RETRY_AFTER] = retry_after(fault.retry_after_s)
        elif fault.code in (Code.EXHAUSTED, Code.UNAVAILABLE):
            given[h.RETRY_AFTER] = "1"
        if fault.code is Code.UNAUTHENTICATED:
            given[h.WWW_AUTHENTICATE] = "Bearer"
        await self.respond(document.status, *self._written(document), given)

    def _written(self, document: Problem) -> tuple[bytes, str]:
        if self.accept == JSON:
            return encode(document, JSON), PROBLEM_JSON
        return encode(document, self.accept), self.accept

    async def start_stream(self, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Begin an answer whose length is not known; proxies are told not to hold it back."""
        self.started, self.status = True, 200
        given = self._head(content_type, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        await self._send({"type": "http.response.start", "status": 200, "headers": given})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the stream. Waits while the client does not read; raises Gone after 30 s of that."""
        try:
            async with asyncio.timeout(WRITE_WITHIN_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            raise Gone from None

    def _head(self, content_type: str, headers: dict[str, str] | None) -> list[tuple[bytes, bytes]]:
        given = [
            (b"content-type", content_type.encode()),
            (b"x-request-id", self.request_id.encode()),
            (b"x-correlation-id", self.correlation_id.encode()),
        ]
        if headers:
            given += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        return given


@cache
def _wire(name: str) -> bytes:
    """A header's name as ASGI gives it. The names are constants, so the cache is as small as their list."""
    return name.lower().encode()


def _ident(value: bytes | None) -> str | None:
    """The id, if it may be one."""
    if not value or len(value) > MAX_ID_CHARS:
        return None
    text = value.decode("latin-1")
    return text if text.isascii() and text.isprintable() else None


def _too_large(limit: int) -> Fault:
    return Fault(Code.TOO_LARGE, f"the body is over {limit} bytes")
