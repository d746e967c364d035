"""A broker of a test's own, to freeze and kill; a raw socket that says what polite clients refuse to; a proxy."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

from runtime.connection import Connection
from runtime.settings import Settings
from stack import nats
from stack.process import Server

ANY_FREE_PORT = 0


@asynccontextmanager
async def own_broker() -> AsyncIterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="faas-b-", dir="/tmp"))
    server = await nats.start(home, port=ANY_FREE_PORT)
    try:
        yield server
    finally:
        await server.stop()
        shutil.rmtree(home, ignore_errors=True)


def settings_of(url: str) -> Settings:
    return Settings(nats_url=url, job_ack_wait_s=2)


class RawSocket:
    """Speaks NATS without manners."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> RawSocket:
        address = urlparse(url)
        raw = cls(*await asyncio.open_connection(address.hostname, address.port))
        await raw._reader.readline()
        raw._writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"protocol":1}\r\n')
        await raw.settled()
        return raw

    async def publish(self, subject: bytes, payload: bytes, *, reply: bytes = b"", block: bytes | None = None) -> None:
        """block: whatever should stand where headers stand."""
        if block is None:
            line = b"PUB %s %s %d\r\n" % (subject, reply, len(payload))
        else:
            line = b"HPUB %s %s %d %d\r\n" % (subject, reply, len(block), len(block) + len(payload))
        self._writer.write(line + (block or b"") + payload + b"\r\n")
        await self.settled()

    async def settled(self) -> None:
        """The broker has read everything so far."""
        self._writer.write(b"PING\r\n")
        while not (await asyncio.wait_for(self._reader.readline(), 5)).startswith(b"PONG"):
            pass

    def close(self) -> None:
        self._writer.close()


class Proxy:
    """Forwards to a broker, or any server. While stalled, links that are open pass nothing on, in either direction; new
    ones do."""

    def __init__(self, url: str) -> None:
        self._target = urlparse(url)
        self._passing = [asyncio.Event()]
        self._passing[0].set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"{self._target.scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stall(self) -> None:
        """The links that are open now say nothing more, for ever."""
        self._passing[-1].clear()
        self._passing.append(asyncio.Event())
        self._passing[-1].set()

    def cut(self) -> None:
        """Reset the links that are open now."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing = self._passing[-1]
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, back}
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(source, sink, passing))
            self._tasks.add(task)

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        with suppress(ConnectionError):  # cut
            while data := await source.read(65536):
                await passing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


async def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for a condition. Fails the test when it does not come true in time."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - any condition, not one of ours to signal
            await asyncio.sleep(0.02)


async def answers(connection: Connection, subject: str, within_s: float = 10.0) -> bool:
    """Ask again and again until somebody answers."""
    from subjects.contract import Fault

    async with asyncio.timeout(within_s):
        while True:
            try:
                reply = await connection.requests.ask(subject, b"", b"", 0.5)
                if not reply.no_responders:
                    return True
            except Fault:
                pass
            await asyncio.sleep(0.05)


async def serve_echo(connection: Connection, subject: str) -> None:
    def echo(_subject: bytes, reply: bytes, data: bytes, _block: bytes | None) -> None:
        connection.write(reply.decode(), data)

    await connection.listen(subject, echo)
