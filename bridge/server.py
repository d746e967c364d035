"""The HTTP server: uvicorn with bounds on slow and endless headers, and a stop that open streams do not hold up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bridge.app import opened
from bridge.auth import MAX_TOKEN_BYTES
from bridge.exchange import AUTHORIZATION
from runtime import telemetry
from runtime.connection import Connection, connect
from runtime.otlp import exporting
from runtime.settings import Settings
from subjects.contract import Code, Fault
from subjects.registry import Registry

HEADERS_WITHIN_S = 10.0
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_HEAD_BYTES = 2 * 1024 * 1024  # as they come: one header without an end is not seen before it has one
KEEP_ALIVE_S = 75
BACKLOG = 1024

_log = telemetry.get_logger(__name__)


class Protocol(HttpToolsProtocol):
    """As uvicorn's, but a request's line and headers must come within 10 s and be at most 100 and 32 KiB: else 431."""

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADERS_WITHIN_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:  # the headers are not complete
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse()
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._head_bytes = 0
        if self._timer is None:
            self._timer = self.loop.call_later(HEADERS_WITHIN_S, self.transport.close)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(value) > MAX_TOKEN_BYTES and name.lower() == AUTHORIZATION:
            value = value[: MAX_TOKEN_BYTES + 1]  # the door refuses it with its own 401, like any other wrong token
        self._count(len(name) + len(value))
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse()

    def _refuse(self) -> None:
        if self._refused:
            return
        self._refused = True
        body = (
            b'{"type":"urn:motadata-faas:fault:too_large","title":"Too large","status":431,'
            b'"detail":"the request headers are too large","code":"TOO_LARGE","retryable":false,'
            b'"request_id":null,"correlation_id":null,"errors":[]}'
        )
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """Leaves signals to serve(): uvicorn would raise them again when it is done, and the exit code would not be 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, *, connection: Connection | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the broker connection has ended for good.

    Raises Fault(UNAVAILABLE): no broker, no usable JWT_SECRET or JWT_JWKS_URL, the port is taken, the connection ended.
    """
    async with exporting(settings, "faas-bridge"):
        await _serve(settings, connection)


async def _serve(settings: Settings, connection: Connection | None) -> None:
    closed, stop = asyncio.Event(), asyncio.Event()

    def ended() -> None:
        closed.set()
        stop.set()

    ours = connection is None
    used = connection or await connect(settings, name="bridge", on_closed=ended)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with running(settings, used):
            gc.freeze()  # what was imported stays: no collection need look at it again
            await stop.wait()
            _log.info("bridge_stops")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if ours:
            await used.close()
    if closed.is_set():
        raise Fault(Code.UNAVAILABLE, "the connection to NATS has ended")


@asynccontextmanager
async def running(
    settings: Settings, connection: Connection, *, contracts: Registry | None = None
) -> AsyncIterator[str]:
    """Serves within the block; yields the URL. Leaving it ends what can be joined again at once, and waits at most the
    grace period for the rest. contracts: other than those of `subjects`, for a program that embeds the bridge.

    Raises Fault(UNAVAILABLE): no usable JWT_SECRET or JWT_JWKS_URL, the port is taken.
    """
    listening = _listen(settings)
    async with opened(settings, connection, contracts) as (application, bridge, probes):
        server = Server(_config(settings, application))
        serving = asyncio.create_task(server.serve([listening]), name="http server")
        host, port = listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        probes.started()
        _log.info("bridge_serves", url=url)
        try:
            yield url
        finally:
            probes.stopping()
            bridge.stopping.set()
            server.should_exit = True
            await serving


def _config(settings: Settings, application: Any) -> uvicorn.Config:
    wrapped = application
    if settings.cors_origins:
        from starlette.middleware.cors import CORSMiddleware

        wrapped = CORSMiddleware(
            application,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Location", "Preference-Applied", "Retry-After", "X-Correlation-ID", "X-Request-ID"],
        )
    return uvicorn.Config(
        wrapped,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_s)),
        backlog=BACKLOG,
    )


def _listen(settings: Settings) -> socket.socket:
    """Bind before anything is opened: a taken port is an error at once. BRIDGE_PORT=0 takes a free one."""
    family = socket.AF_INET6 if ":" in settings.bridge_host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.bridge_host, settings.bridge_port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Fault(
            Code.UNAVAILABLE, f"cannot listen on {settings.bridge_host}:{settings.bridge_port}: {error.strerror}"
        ) from error
    listening.setblocking(False)
    return listening
