"""P4: a request through the bridge, token checked, against a plain FastAPI echo on the same server."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from benchmarks.bench import Bench, cpu_s, ready
from benchmarks.contract import EIGHT_FIELDS, TENANT
from benchmarks.load import Samples, closed_loop
from benchmarks.report import Line
from cli.tokens import sign
from codec import JSON, encode
from subjects import cache

CONNECTIONS = 64
_END = b"\r\n\r\n"


@dataclass(eq=False)
class Connections:
    """Keep-alive HTTP/1.1 connections that send one prepared request again and again."""

    port: int
    request: bytes
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]

    @classmethod
    def to(cls, port: int, path: str, body: bytes, token: str = "") -> Connections:
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}", *([f"Authorization: Bearer {token}"] if token else [])]
        return cls(port, "\r\n".join(lines).encode() + _END + body, [])

    async def ask(self) -> None:
        """One request. Raises RuntimeError when the answer is not 200."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.request)
        head = await reader.readuntil(_END)
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            writer.close()
            raise RuntimeError(f"{head[:40]!r} {body[:200]!r}")
        self.idle.append((reader, writer))

    def close(self) -> None:
        for _, writer in self.idle:
            writer.close()


async def p4(bench: Bench) -> list[Line]:
    our_port, their_port = free_port(), free_port()
    token = sign(bench.settings, TENANT)
    ours = Connections.to(our_port, "/api/v1/cache/get", b'{"key": "bench"}', token)
    theirs = Connections.to(their_port, "/echo", encode(EIGHT_FIELDS, JSON))
    our_bridge = bench.process("-m", "cli", "bridge", BRIDGE_PORT=str(our_port), BRIDGE_HOST="127.0.0.1")
    their_server = bench.process("-m", "benchmarks.peers.fastapi_echo", str(their_port))
    ours_found, theirs_found, ours_cpu_s, theirs_cpu_s = Samples(), Samples(), 0.0, 0.0
    async with bench.process("-m", "cli", "worker", "cache"), our_bridge as bridge, their_server as echo:
        message = cache.Set(key="bench", value=EIGHT_FIELDS.model_dump())
        await ready(lambda: bench.client.call(cache.SET, message, identity=bench.identity))
        await ready(ours.ask)
        await ready(theirs.ask)
        for _ in range(bench.rounds):
            before = cpu_s(bridge)
            await closed_loop(ours_found, ours.ask, in_flight=CONNECTIONS, seconds=bench.seconds)
            ours_cpu_s += cpu_s(bridge) - before
            before = cpu_s(echo)
            await closed_loop(theirs_found, theirs.ask, in_flight=CONNECTIONS, seconds=bench.seconds)
            theirs_cpu_s += cpu_s(echo) - before
    ours.close()
    theirs.close()
    a_cpu_s = len(ours_found.latencies) / ours_cpu_s, len(theirs_found.latencies) / theirs_cpu_s
    return [
        Line(
            "P4", f"POST cache/get, {CONNECTIONS} connections", ours_found.rate, theirs_found.rate, "/s", at_least=0.5
        ),
        Line("P4", "  requests per CPU second of the HTTP process", *a_cpu_s, "/s"),
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
