"""P1, P2, P3: typed request and reply, against a plain nats-py echo and against FastStream."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import nats

import codec
from benchmarks.bench import ROOT, Bench, ready
from benchmarks.contract import ECHO, EIGHT_FIELDS
from benchmarks.load import Samples, closed_loop
from benchmarks.report import Line
from subjects import cache

IN_FLIGHT = 64
PEER_HEADERS = {
    "Content-Type": "application/msgpack",
    "X-User-ID": "bench",
    "X-Scopes": "*",
    "X-Correlation-ID": "0195a0c27c1e7b449a544b8f6f0a7d11",
    "X-Request-ID": "0195a0c27c1e7b449a544b8f6f0a7d12",
    "Deadline": "1790000000000",
}
FASTSTREAM = "faststream[nats]>=0.7,<0.8"
Ask = Callable[[], Awaitable[object]]


async def p1(bench: Bench) -> list[Line]:
    lines = []
    for count in (1, 2):
        ours, theirs = await _side_by_side(bench, IN_FLIGHT, count)
        what = f"typed request/reply, {IN_FLIGHT} in flight, {count} worker process{'es' * (count > 1)}"
        lines.append(Line("P1", what, ours.rate, theirs.rate, "/s", at_least=0.8))
        p99 = ours.percentile(0.99) * 1e3, theirs.percentile(0.99) * 1e3
        lines.append(Line("P1", "  p99", *p99, "ms", at_most=1.5))
    return lines


async def p3(bench: Bench) -> list[Line]:
    ours, theirs = await _side_by_side(bench, 1, 1)
    p50 = ours.percentile(0.5) * 1e3, theirs.percentile(0.5) * 1e3
    return [Line("P3", "typed request/reply, one in flight, p50", *p50, "ms", at_most=1.25)]


async def p1_cache(bench: Bench) -> list[Line]:
    """cache.get does real work (a round trip to Valkey), so it has no target of its own here."""

    async def ask() -> object:
        return await bench.client.call(cache.GET, cache.Get(key="bench"), identity=bench.identity)

    async with bench.process("-m", "cli", "worker", "cache"), _nats_echo(bench, 1) as echo:
        await ready(ask)
        message = cache.Set(key="bench", value=EIGHT_FIELDS.model_dump())
        await bench.client.call(cache.SET, message, identity=bench.identity)
        ours, theirs = await _turns(bench, IN_FLIGHT, ask, echo)
    return [Line("P1", f"cache.get with its Valkey, {IN_FLIGHT} in flight", ours.rate, theirs.rate, "/s")]


async def p2(bench: Bench) -> list[Line]:
    python = await _faststream(bench.home)
    if python is None:
        print(f"P2   {FASTSTREAM} could not be installed: not measured", file=sys.stderr)
        return []
    script, url = str(ROOT / "benchmarks/peers/faststream_rpc.py"), bench.settings.nats_url
    ours, theirs = Samples(), Samples()

    async def load(seconds: float) -> list[float]:
        args = (python, script, "load", url, "peer.faststream", str(seconds), str(IN_FLIGHT))
        child = await asyncio.create_subprocess_exec(*args, stdout=asyncio.subprocess.PIPE)
        out, _ = await child.communicate()
        found: list[float] = json.loads(out)
        return found

    server = bench.process(python, script, "serve", url, "peer.faststream")
    async with bench.process("-m", "benchmarks.worker"), server:
        await ready(lambda: _ours(bench))
        await ready(lambda: bench.connection.request("peer.faststream", b"{}", timeout=1))
        for _ in range(bench.rounds):
            await closed_loop(ours, lambda: _ours(bench), in_flight=IN_FLIGHT, seconds=bench.seconds)
            theirs.add(await load(bench.seconds), bench.seconds)
    what = f"typed request/reply, {IN_FLIGHT} in flight, against FastStream RPC"
    return [Line("P2", what, ours.rate, theirs.rate, "/s", at_least=2.0)]


async def _ours(bench: Bench) -> object:
    return await bench.client.call(ECHO, EIGHT_FIELDS, identity=bench.identity)


async def _side_by_side(bench: Bench, in_flight: int, count: int) -> tuple[Samples, Samples]:
    async with bench.process("-m", "benchmarks.worker", count=count), _nats_echo(bench, count) as echo:
        await ready(lambda: _ours(bench), among=count)
        return await _turns(bench, in_flight, lambda: _ours(bench), echo)


async def _turns(bench: Bench, in_flight: int, our_ask: Ask, their_ask: Ask) -> tuple[Samples, Samples]:
    ours, theirs = Samples(), Samples()
    for _ in range(bench.rounds):
        await closed_loop(ours, our_ask, in_flight=in_flight, seconds=bench.seconds)
        await closed_loop(theirs, their_ask, in_flight=in_flight, seconds=bench.seconds)
    return ours, theirs


@asynccontextmanager
async def _nats_echo(bench: Bench, count: int) -> AsyncIterator[Ask]:
    """So many plain nats-py echo processes and a plain nats-py client; gives the function that asks."""
    url, payload = bench.settings.nats_url, codec.encode(EIGHT_FIELDS)
    async with bench.process("-m", "benchmarks.peers.nats_echo", url, "peer.echo", count=count):
        connection = await nats.connect(url)

        async def ask() -> object:
            return await connection.request("peer.echo", payload, timeout=5, headers=PEER_HEADERS)

        try:
            await ready(ask, among=count)
            yield ask
        finally:
            await connection.close()


async def _faststream(home: Path) -> str | None:
    """The Python of an environment that has FastStream; None when it cannot be had."""
    folder = home / "faststream"
    python = str(folder / "bin" / "python")
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        (uv, "venv", "--quiet", "--python", sys.executable, str(folder)),
        (uv, "pip", "install", "--quiet", "--python", python, FASTSTREAM, "uvloop"),
    ):
        child = await asyncio.create_subprocess_exec(*command)
        if await child.wait() != 0:
            return None
    return python
