"""A scripted HTTP server: answers each request with the next thing on its list, the last one again and again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Answer = Callable[[asyncio.StreamWriter], Awaitable[None] | None]


@dataclass(frozen=True)
class Request:
    """What came in. at: monotonic seconds."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


class Scripted:
    """`async with Scripted(answer, ...) as server:` then server.url; server.requests is what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[Request] = []
        self.left = asyncio.Event()
        """Set when a client went away before its answer was complete."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def script(self, *answers: Answer) -> None:
        """From now on."""
        self._answers = list(answers)
        self.requests.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append(await _read(reader))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            answering = asyncio.ensure_future(_run(answer, writer))
            watching = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.left.set()
            finally:
                answering.cancel()
                watching.cancel()
                await asyncio.gather(answering, watching, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _run(answer: Answer, writer: asyncio.StreamWriter) -> None:
    result = answer(writer)
    if result is not None:
        await result
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Request:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
        while headers.get("transfer-encoding") == "chunked":
            size = int(await reader.readline(), 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if not size:
                break
    return Request(method, path, headers, body, time.monotonic())


def answer(
    status: int = 200,
    body: Any = None,
    *,
    declared: int | None = None,
    kind: str = "application/json",
    retry_after: str = "",
) -> Answer:
    """A whole answer. body: bytes as they are, else JSON. declared: another length than it has."""

    def write(writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = len(data) if declared is None else declared
        given = {"Content-Type": kind, "Content-Length": str(size), "Connection": "close"}
        given |= {"Retry-After": retry_after} if retry_after else {}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + data)

    return write


def problem(status: int, code: str, *, retryable: bool, retry_after: str = "") -> Answer:
    body = {"status": status, "code": code, "detail": "as scripted", "retryable": retryable, "request_id": "r1"}
    return answer(status, body, kind="application/problem+json", retry_after=retry_after)


def events(data: bytes, *, end: bool = True, location: str = "") -> Answer:
    """An event stream that says data, and then ends its body, or hangs until the client leaves."""

    async def write(writer: asyncio.StreamWriter) -> None:
        given = {"Content-Type": "text/event-stream; charset=utf-8", "Connection": "close", "Location": location}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        writer.write(f"HTTP/1.1 200 OK\r\n{lines}Transfer-Encoding: chunked\r\n\r\n".encode())
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
        if not end:
            await asyncio.Event().wait()
        writer.write(b"0\r\n\r\n")

    return write


async def hang(_writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def reset(writer: asyncio.StreamWriter) -> None:
    """The head and half a body, then gone."""
    answer(200, b'{"a":', declared=100)(writer)
    writer.transport.abort()
