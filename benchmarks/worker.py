"""Serve the component that is measured, as `faas worker` would: `python -m benchmarks.worker`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from benchmarks.contract import ECHO, NOOP, Echo
from runtime import telemetry
from runtime.settings import Settings
from subjects.contract import Empty
from workers.serving import Context, Host, Worker, serve
from workers.serving.boot import run


@asynccontextmanager
async def lifespan(_host: Host) -> AsyncIterator[None]:
    yield None


async def echo(_ctx: Context[None], message: Echo) -> Echo:
    return message


async def noop(_ctx: Context[None], _message: Echo) -> Empty:
    return Empty()


WORKER = Worker("bench", lifespan, serves=[serve(ECHO, echo), serve(NOOP, noop)])

if __name__ == "__main__":
    settings = Settings.load()
    telemetry.configure(settings, "bench")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run([WORKER], settings))
