"""Server-sent events: the pieces of one output, each with its place as id, written to one client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bridge.context import Bridge
from bridge.exchange import Exchange, Gone
from codec import JSON, decode_plain, encode_plain
from runtime.output import OutputItem
from subjects.contract import Fault

HEARTBEAT_S = 15.0
HEARTBEAT = b": still there\n\n"
RETRY = b"retry: 1000\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


class EventStream:
    """One client of one output. ident: the output id or job id that its event ids begin with."""

    def __init__(self, bridge: Bridge, exchange: Exchange, ident: str, headers: dict[str, str] | None = None) -> None:
        self._bridge = bridge
        self._exchange = exchange
        self._ident = ident
        self._headers = headers
        self._written_at = 0.0
        self.gone = False

    @property
    def started(self) -> bool:
        return self._exchange.started

    async def open(self) -> None:
        """Send the head, once."""
        if not self.started:
            await self._exchange.start_stream(EVENT_STREAM, self._headers)
            self._written_at = asyncio.get_running_loop().time()

    async def send(self, item: OutputItem) -> None:
        """Raises Gone when the client has left, or does not read for 30 s."""
        await self.open()
        head = f"id: {self._ident}.{item.attempt}.{item.n}\nevent: {item.kind}\ndata: ".encode()
        await self._write(head + _as_json(item) + b"\n\n", last=item.kind in ("done", "error"))

    async def beat(self) -> None:
        """A comment, when nothing was written for 15 s; proxies close what is silent."""
        if self.started and asyncio.get_running_loop().time() - self._written_at >= HEARTBEAT_S:
            await self._write(HEARTBEAT)

    async def interrupt(self) -> None:
        """This process stops: the client shall come back, to another one."""
        await self.open()
        await self._write(RETRY, last=True)

    @property
    def interrupted(self) -> bool:
        return self._bridge.stopping.is_set()

    def check(self) -> None:
        """Raises Gone when the client has left."""
        if self.gone:
            raise Gone

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        self.check()
        await self._exchange.write(data, last=last)
        self._written_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def watched(self, wake: Callable[[], None]) -> AsyncIterator[None]:
        """Within the block, call wake() when the client leaves and when this process is told to stop."""

        async def left() -> None:
            await self._exchange.left()
            self.gone = True
            wake()

        async def stopping() -> None:
            await self._bridge.stopping.wait()
            wake()

        tasks = [asyncio.create_task(left(), name="client gone?"), asyncio.create_task(stopping(), name="stopping?")]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def _as_json(item: OutputItem) -> bytes:
    """A piece as one line of JSON, whatever its worker wrote it in."""
    if item.kind == "restart":
        return b"{}"
    try:
        return encode_plain(decode_plain(item.data, item.content_type), JSON)
    except Fault:
        return b"null"  # not written by a worker of ours
