"""T1, T2: what counting and recording cost. P1's work with telemetry's hooks taken out, as it is, and with a collector.

Told as requests a CPU-second of asker and worker together: a few percent cannot be seen in a rate that the machine's
other work disturbs. The ratio is the median of the rounds, each against the round beside it.
`python -m benchmarks.observed serve|ask NAME` are the two processes of each; NAME is also the component's.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median

import psutil
import uvloop

from benchmarks.bench import ROOT, TRACEPARENT, Bench, cpu_s, ready
from benchmarks.contract import ECHO, EIGHT_FIELDS, TENANT, Echo
from benchmarks.report import Line
from benchmarks.worker import echo, lifespan
from runtime import telemetry, tracing
from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from runtime.otlp import exporting
from runtime.settings import Settings
from stack.ports import free_port
from subjects.contract import Call
from workers.serving import Worker, serve
from workers.serving.boot import run
from workers.serving.stats import Tally

IN_FLIGHT = 64
WARM_UP_S = 2.0
BARE, COUNTED, RECORDED = "bench-bare", "bench-counted", "bench-recorded"
LEAST_COUNTED, LEAST_RECORDED = 0.97, 0.90
MORE_ROUNDS = 3  # times the usual number, each as much shorter: a few percent are to be seen in what is noisy


@dataclass
class Pair:
    """A worker, and an asker that waits to be told how long to ask."""

    worker: list[psutil.Process]
    asker: asyncio.subprocess.Process

    async def round(self, seconds: float) -> float:
        """Requests a CPU-second."""
        assert self.asker.stdin is not None
        assert self.asker.stdout is not None
        both = [*self.worker, psutil.Process(self.asker.pid)]
        before = cpu_s(both)
        self.asker.stdin.write(f"{seconds}\n".encode())
        return float(await self.asker.stdout.readline()) / (cpu_s(both) - before)


async def observed(bench: Bench) -> list[Line]:
    url = f"http://127.0.0.1:{free_port()}"
    environ: dict[str, dict[str, str]] = {BARE: {}, COUNTED: {}, RECORDED: {"OTEL_EXPORTER_OTLP_ENDPOINT": url}}
    rates: dict[str, list[float]] = {name: [] for name in environ}
    async with AsyncExitStack() as stack:
        port = url.rpartition(":")[2]
        await stack.enter_async_context(bench.process("-m", "benchmarks.peers.otlp_sink", port))
        pairs = {name: await stack.enter_async_context(_pair(bench, name, environ[name])) for name in environ}
        for pair in pairs.values():
            await pair.round(WARM_UP_S)  # the SDK is imported now
        for number in range(bench.rounds * MORE_ROUNDS):
            for name in sorted(pairs, reverse=bool(number % 2)):
                rates[name].append(await pairs[name].round(bench.seconds / MORE_ROUNDS))
    what = f"P1's requests, {IN_FLIGHT} in flight, a CPU-second;"
    return [
        _line("T1", f"{what} counted", rates[COUNTED], rates[BARE], LEAST_COUNTED),
        _line("T2", f"{what} recorded", rates[RECORDED], rates[BARE], LEAST_RECORDED),
    ]


def _line(row: str, what: str, ours: list[float], theirs: list[float], at_least: float) -> Line:
    ratio, rate = median(one / other for one, other in zip(ours, theirs, strict=True)), median(theirs)
    return Line(row, what, rate * ratio, rate, "/s", at_least=at_least)


@asynccontextmanager
async def _pair(bench: Bench, name: str, environ: dict[str, str]) -> AsyncIterator[Pair]:
    pipe = asyncio.subprocess.PIPE
    async with bench.process("-m", "benchmarks.observed", "serve", name, count=1, **environ) as worker:
        await ready(lambda: bench.client.call(_echo(name), EIGHT_FIELDS, identity=bench.identity))
        asker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.observed", "ask", name, cwd=ROOT, stdin=pipe, stdout=pipe,
            env={**os.environ, "LOG_LEVEL": "warning", **environ},
        )  # fmt: skip
        try:
            yield Pair(worker, asker)
        finally:
            assert asker.stdin is not None
            asker.stdin.close()
            await asker.wait()


def _echo(name: str) -> Call[Echo, Echo]:
    return replace(ECHO, component=name)


async def _serve(name: str, settings: Settings) -> None:
    await run([Worker(name, lifespan, serves=[serve(_echo(name), echo)])], settings)


async def _ask(name: str, settings: Settings) -> None:
    """A round for each line of standard input."""
    connection = await connect(settings, name="bench")
    client, call = Client(connection, settings, source="bench"), _echo(name)
    # Each request of the recorded one begins a trace, as each of a program would that has none.
    trace = None if name == RECORDED else f"{TRACEPARENT[:-2]}00"
    identity = replace(Identity.new(TENANT, "bench"), traceparent=trace)
    async with exporting(settings, "bench"):
        while line := await asyncio.to_thread(sys.stdin.readline):
            end, asked = time.perf_counter() + float(line), 0

            async def one_after_another(end: float) -> None:
                nonlocal asked
                while time.perf_counter() < end:
                    await client.call(call, EIGHT_FIELDS, identity=identity)
                    asked += 1

            await asyncio.gather(*(one_after_another(end) for _ in range(IN_FLIGHT)))
            print(asked, flush=True)
    await connection.close()


def _without_hooks() -> None:
    def nothing(*_: object, **__: object) -> None:
        return None

    for owner, name in ((Tally, "ended"), (Client, "_ended")):
        setattr(owner, name, nothing)
    for name in ("sampled", "is_recording", "root_if_recording"):
        setattr(tracing, name, nothing)


if __name__ == "__main__":
    role, name = sys.argv[1:]
    if name == BARE:
        _without_hooks()
    settings = Settings.load()
    telemetry.configure(settings, name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run((_serve if role == "serve" else _ask)(name, settings))
