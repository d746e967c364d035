"""What stands below the connection: a socket whose closing is bounded, and a parser that notes when bytes came in."""

from __future__ import annotations

import asyncio
from typing import Protocol
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

CLOSE_WITHIN_S = 2.0


class Heard(Protocol):
    heard_at: float


class BoundedTransport(TcpTransport):
    """Closing a link whose other end is frozen waits for ever to flush it: this one waits 2 s."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()
        await super().connect(uri, buffer_size, connect_timeout)

    async def wait_closed(self) -> None:
        if self._io_writer is None:
            return
        try:
            await asyncio.wait_for(self._io_writer.wait_closed(), CLOSE_WITHIN_S)
        except TimeoutError:
            self._io_writer.transport.abort()


class ListeningParser(Parser):
    """Notes when bytes came in: a connection that hears nothing, not even its PONGs, is not healthy."""

    nc: Heard

    async def parse(self, data: bytes = b"") -> None:
        if data:
            self.nc.heard_at = asyncio.get_running_loop().time()
        await super().parse(data)
