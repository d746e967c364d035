"""The local models as a child process: `python -m stack.models`, an OpenAI-compatible address on loopback."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from stack import ports
from stack.process import Program, Report, Server

PORT = 8089
START_LIMIT_S = 180.0
"""The first start converts the embedding model into its faster graph."""
PROBE_LIMIT_S = 2.0
SOURCE = Path(__file__).resolve().parent.parent


def server(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """The model server on this port or a free one; not yet started."""
    chosen = ports.choose(port)
    cache = home / "models"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = (sys.executable, "-m", "stack.models", "--port", str(chosen), "--cache-dir", str(cache))

    async def ready() -> bool:
        return await _healthy(chosen)

    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    program = Program("models", argv, ready, env=env, start_limit_s=START_LIMIT_S)
    return Server(program, f"http://{ports.LOOPBACK}:{chosen}", home=home, report=report)


async def start(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """Start it and wait until both models are loaded."""
    started = server(home, port=port, report=report)
    await started.start()
    return started


async def _healthy(port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection(ports.LOOPBACK, port)
            try:
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    return False
