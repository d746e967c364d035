"""What a measurement stands on: servers of its own, child processes, one connection."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from codec import headers as h
from runtime import headers
from runtime.client import Client
from runtime.connection import Connection
from runtime.identity import Identity
from runtime.settings import Settings
from subjects import grammar

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Bench:
    """One run. seconds is the length of a round; ours and theirs take turns, rounds times."""

    settings: Settings
    connection: Connection
    client: Client
    identity: Identity
    home: Path
    seconds: float
    rounds: int

    @asynccontextmanager
    async def process(self, *command: str, count: int = 1, **environ: str) -> AsyncIterator[list[psutil.Process]]:
        """So many processes of a Python command line, ended when the block ends."""
        env = {**os.environ, "LOG_LEVEL": "warning", **environ}
        python = () if command[0].startswith("/") else (sys.executable,)
        children = [
            await asyncio.create_subprocess_exec(
                *python, *command, cwd=ROOT, env=env, stdout=asyncio.subprocess.DEVNULL
            )
            for _ in range(count)
        ]
        try:
            yield [psutil.Process(child.pid) for child in children]
        finally:
            for child in children:
                with suppress(ProcessLookupError):
                    child.terminate()
            for child in children:
                try:
                    await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
                except TimeoutError:
                    child.kill()
                    await child.wait()


async def ready(ask: Callable[[], Awaitable[object]], *, among: int = 1) -> None:
    """Until it answers; with several processes, often enough that each has been there."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    answered = 0
    while answered < 10 * among:
        try:
            await asyncio.wait_for(ask(), 2)
            answered += 1
        except Exception:  # whatever it was, it is not ready yet
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    if among > 1:
        await asyncio.sleep(2)  # the first may have answered all of them


async def served(bench: Bench, component: str) -> None:
    """Raises RuntimeError unless a worker of this component listens."""
    subject = grammar.request(bench.identity.tenant, component, "is-there")
    reply = await bench.connection.requests.ask(subject, b"\x80", headers.block({h.SCOPES: ""}), 1.0)
    if reply.no_responders:
        raise RuntimeError(f"no worker of {component} is there")


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU seconds of these processes so far, user and system."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
