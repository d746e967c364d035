"""P10: the first token of a stream through bridge, NATS and gateway, and through a raw SSE proxy."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from statistics import median

from benchmarks.bench import Bench, ready, served
from benchmarks.contract import TENANT
from benchmarks.http import free_port
from benchmarks.report import Line
from cli.tokens import sign

UPSTREAM_MS = 40
MAX_ADDED_MS = 5.0
STREAMS_A_ROUND = 60
MODEL = "openai/slow"
PROMPT = "What is the capital of France?"
_HEAD_END, _BODY_END = b"\r\n\r\n", b"0\r\n\r\n"
_LINES = b"\n\n"
_TTFT = re.compile(rb'"ttft_ms":\s*([0-9.]+)')


@dataclass(eq=False)
class Streams:
    """Streams one after another over one keep-alive connection. token_ms: from the request to the first token."""

    port: int
    path: str
    body: bytes
    mark: bytes
    """What the first token's event begins with."""
    headers: str = ""
    token_ms: list[float] = field(default_factory=list)
    told_ms: list[float] = field(default_factory=list)
    """What the gateway says of itself: from asking litellm to its first piece."""
    _connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> float:
        """One stream, read to its end. Gives milliseconds. Raises RuntimeError when it is not 200."""
        reader, writer = self._connection or await asyncio.open_connection("127.0.0.1", self.port)
        self._connection = None
        began = time.perf_counter()
        writer.write(
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{self.headers}"
            f"Content-Length: {len(self.body)}\r\n\r\n".encode()
            + self.body
        )
        head = await reader.readuntil(_HEAD_END)
        if not head.startswith(b"HTTP/1.1 200"):
            writer.close()
            raise RuntimeError(f"{head[:40]!r}")
        first_s, said = 0.0, b""
        while not said.endswith(_BODY_END):
            if not (piece := await reader.read(65536)):
                raise RuntimeError("the stream was cut")
            said += piece
            if not first_s and _LINES in said.partition(self.mark)[2]:
                first_s = time.perf_counter() - began
        self._connection = reader, writer
        if (told := _TTFT.search(said)) is not None:
            self.told_ms.append(float(told[1]))
        return first_s * 1e3

    def close(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
        self._connection = None


async def p10(bench: Bench) -> list[Line]:
    bridge_port, proxy_port, model_port = free_port(), free_port(), free_port()
    upstream = f"http://127.0.0.1:{model_port}"
    openai = json.dumps({"model": "slow", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}).encode()
    given = f"Authorization: Bearer {sign(bench.settings, TENANT)}\r\nAccept: text/event-stream\r\n"
    ours = Streams(
        bridge_port, "/api/v1/gateway/generate", json.dumps({"model": MODEL, "prompt": PROMPT}).encode(),
        b"event: chunk\n", given,
    )  # fmt: skip
    theirs, direct = (
        Streams(port, "/v1/chat/completions", openai, b"data: ") for port in (proxy_port, model_port)
    )  # fmt: skip
    gateway = bench.process(
        "-m", "cli", "worker", "gateway", OPENAI_API_KEY="sk-none", OPENAI_API_BASE=f"{upstream}/v1"
    )
    async with (
        bench.process("-m", "benchmarks.peers.slow_model", str(model_port), str(UPSTREAM_MS)),
        bench.process("-m", "benchmarks.peers.sse_proxy", str(proxy_port), upstream),
        gateway,
        bench.process("-m", "cli", "bridge", BRIDGE_PORT=str(bridge_port), BRIDGE_HOST="127.0.0.1"),
    ):
        everyone = (direct, theirs, ours)
        await ready(lambda: served(bench, "gateway"))
        for each in everyone:
            await ready(each.ask)
            each.close()  # the others' idle time may close it
        for _ in range(bench.rounds * STREAMS_A_ROUND):
            for each in everyone:  # in turn, so that a disturbance hits all three
                each.token_ms.append(await each.ask())
        for each in everyone:
            each.close()
    own = median(direct.token_ms)
    added, proxied = median(ours.token_ms) - own, median(theirs.token_ms) - own
    ours_p95, theirs_p95 = (sorted(each.token_ms)[int(0.95 * len(each.token_ms))] - own for each in (ours, theirs))
    return [
        Line("P10", f"first token, added to the upstream's {own:.1f} ms, p50", added, proxied, "ms", most=MAX_ADDED_MS),
        Line("P10", "  of it litellm, from being asked to its first piece", median(ours.told_ms) - own, None, "ms"),
        Line("P10", "  p95", ours_p95, theirs_p95, "ms"),
    ]
