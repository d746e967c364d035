"""A scripted OpenAI-compatible upstream: stands in for a paid model, fails as told, counts hits, sees clients leave.

The model's name says what happens: `ok` and unknown names answer, the others are in MODES. Streams only, as the
gateway always asks for one, and embeddings.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

WORDS = ("Paris", " is", " the", " capital", ".")
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "total_tokens": 25,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
LONG_CHUNKS = 500
LONG_PAUSE_S = 0.02
MAX_BODY_BYTES = 8 * 1024 * 1024
DIMENSIONS = 8
SECRET = "sk-upstream-canary"
"""Stands in every error body: it must appear nowhere else."""

Json = dict[str, Any]


class Upstream:
    """`async with Upstream() as upstream:` then OPENAI_BASE_URL=upstream.url."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.requests: defaultdict[str, list[Json]] = defaultdict(list)
        self.left: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """By model: set when a client went away before its answer was complete."""
        self.sent: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path, body = await _read(reader)
            model = str(body.get("model"))
            self.hits[model] += 1
            self.requests[model].append(body)
            if path.endswith("/embeddings"):
                _json(writer, 200, _vectors(body))
            else:
                await self._unless_left(MODES.get(model, ok), model, reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _unless_left(
        self, mode: Mode, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        reply = Reply(writer, lambda: self.sent.update([model]))
        answering = asyncio.create_task(_run(mode, reply))
        watching = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.left[model].set()
            else:
                answering.result()
        finally:
            answering.cancel()
            watching.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)


class Reply:
    """What a mode can do to its client."""

    def __init__(self, writer: asyncio.StreamWriter, count: Callable[[], None]) -> None:
        self._writer = writer
        self._count = count

    def status(self, status: int, **headers: str) -> None:
        _json(self._writer, status, {"error": {"message": f"said with {SECRET}", "type": "x", "code": None}}, **headers)

    def raw(self, content_type: str, data: bytes) -> None:
        _head(self._writer, 200, content_type, [f"Content-Length: {len(data)}"])
        self._writer.write(data)

    def stream(self) -> None:
        _head(self._writer, 200, "text/event-stream", ["Transfer-Encoding: chunked"])

    async def event(self, data: str) -> None:
        await self.piece(f"data: {data}\n\n".encode())

    async def piece(self, data: bytes) -> None:
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()

    async def words(self, *words: str) -> None:
        for word in words:
            await self.event(_chunk({"role": "assistant", "content": word}))
            self._count()

    async def finish(self, reason: str = "stop", usage: Json | None = USAGE) -> None:
        await self.event(_chunk({}, reason))
        if usage is not None:
            await self.event(json.dumps({**json.loads(_chunk({})), "choices": [], "usage": usage}))
        await self.event("[DONE]")
        self.end()

    def end(self) -> None:
        """A clean end of the body."""
        self._writer.write(b"0\r\n\r\n")

    def reset(self) -> None:
        self._writer.transport.abort()


Mode = Callable[[Reply], Awaitable[None] | None]


async def ok(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS)
    await reply.finish()


async def no_usage(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS)
    await reply.finish(usage=None)


async def hang(reply: Reply) -> None:
    await asyncio.sleep(3600)


async def stall(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await asyncio.sleep(3600)


async def reset(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await asyncio.sleep(0.05)
    reply.reset()


async def truncated(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await reply.piece(b'data: {"choices":[{"del')
    reply.end()


async def bad_json(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await reply.event("{not json " + SECRET)
    await reply.finish()


async def error_chunk(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await reply.event(json.dumps({"error": {"message": f"overloaded, said with {SECRET}", "type": "server_error"}}))
    await reply.finish()


async def no_finish(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    reply.end()


async def no_finish_but_done(reply: Reply) -> None:
    reply.stream()
    await reply.words(*WORDS[:2])
    await reply.event("[DONE]")
    reply.end()


async def empty(reply: Reply) -> None:
    reply.stream()
    reply.end()


async def long(reply: Reply) -> None:
    reply.stream()
    for number in range(LONG_CHUNKS):
        await reply.words(f"{number} ")
        await asyncio.sleep(LONG_PAUSE_S)
    await reply.finish()


async def tool(reply: Reply) -> None:
    reply.stream()
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    await reply.event(_chunk({"role": "assistant", "tool_calls": [first]}))
    for part in ('{"city":', '"Oslo"}'):
        await reply.event(_chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}))
    await reply.finish("tool_calls")


MODES: dict[str, Mode] = {
    "ok": ok,
    "no-usage": no_usage,
    "429": lambda reply: reply.status(429, **{"Retry-After": "7"}),
    "500": lambda reply: reply.status(500),
    "503": lambda reply: reply.status(503),
    "401": lambda reply: reply.status(401),
    "400": lambda reply: reply.status(400),
    "404": lambda reply: reply.status(404),
    "html": lambda reply: reply.raw("text/html", b"<html><body>Bad gateway " + SECRET.encode() + b"</body></html>"),
    "cut-json": lambda reply: reply.raw("application/json", b'{"id": "x", "choices": [{"mess'),
    "hang": hang,
    "stall": stall,
    "reset": reset,
    "truncated": truncated,
    "bad-json": bad_json,
    "error-chunk": error_chunk,
    "no-finish": no_finish,
    "no-finish-but-done": no_finish_but_done,
    "empty": empty,
    "long": long,
    "tool": tool,
}


async def _run(mode: Mode, reply: Reply) -> None:
    result = mode(reply)
    if result is not None:
        await result


async def _read(reader: asyncio.StreamReader) -> tuple[str, Json]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    sizes = [line.partition(":")[2] for line in head if line.lower().startswith("content-length:")]
    body = json.loads(await reader.readexactly(min(int(sizes[0]), MAX_BODY_BYTES))) if sizes else {}
    return head[0].split(" ")[1], body


def _json(writer: asyncio.StreamWriter, status: int, body: Json, **headers: str) -> None:
    data = json.dumps(body).encode()
    more = [f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in headers.items())]
    _head(writer, status, "application/json", more)
    writer.write(data)


def _head(writer: asyncio.StreamWriter, status: int, content_type: str, more: list[str]) -> None:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "Connection: close", *more, "", ""]
    writer.write("\r\n".join(lines).encode())


def _chunk(delta: Json, reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return json.dumps(
        {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x", "choices": [choice]}
    )


def _vectors(body: Json) -> Json:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    rows = [{"object": "embedding", "index": n, "embedding": [float(len(t))] * DIMENSIONS} for n, t in enumerate(texts)]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": body["model"], "data": rows[::-1], "usage": usage}
