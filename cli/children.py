"""The Python processes of the platform: which there are, what each is told, and when it is ready."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import workers as package
from stack.ports import LOOPBACK, choose, free_port
from stack.process import Program, Report, Server

GATEWAY = "gateway"
"""Always a process of its own: it alone imports litellm and holds provider keys."""
KEEPER = "jobs"
"""The component whose process gets the keeper's role."""
PROVIDER_KEY_ENDINGS = ("_API_KEY", "_API_BASE")
NOT_INHERITED = frozenset({"SERVICE_PORT", "SERVICE_NAME", "PROBE_PORT", "DATABASE_OWNER_URL", "DATABASE_KEEPER_URL"})
START_LIMIT_S = 60.0
STOP_GRACE_S = 5.0
PROBE_LIMIT_S = 3.0
SHUTDOWN_GRACE_S = "3"
"""How long a child may drain, so that Ctrl-C ends everything within 10 s."""
SOURCE = Path(__file__).resolve().parent.parent


def components() -> list[str]:
    """Every component that has a worker, in alphabetical order."""
    return sorted(path.parent.name for path in Path(package.__path__[0]).glob("*/worker.py"))


def groups(components: list[str], *, split: bool) -> list[list[str]]:
    """The components of each worker process."""
    if split:
        return [[name] for name in components]
    others = [name for name in components if name != GATEWAY]
    return [group for group in ([GATEWAY] if GATEWAY in components else [], others) if group]


def worker(
    components: list[str], environ: Mapping[str, str], *, home: Path, keeper_url: str, report: Report | None = None
) -> Server:
    """A process that serves these components."""
    port = free_port()
    told = _environment(environ, provider_keys=GATEWAY in components)
    told["PROBE_PORT"] = str(port)
    if KEEPER in components:
        told["DATABASE_KEEPER_URL"] = keeper_url
    name = f"worker-{components[0]}" if len(components) == 1 else "worker"
    return _server(name, ["worker", *components], told, port=port, home=home, report=report)


def bridge(
    components: list[str], environ: Mapping[str, str], *, home: Path, port: int, report: Report | None = None
) -> Server:
    """The HTTP bridge on this port, ready when every component is."""
    told = _environment(environ, provider_keys=False)
    told |= {"BRIDGE_PORT": str(port), "READY_REQUIRES": ",".join(components)}
    return _server("bridge", ["bridge"], told, port=port, home=home, report=report)


def bridge_port(wanted: int) -> int:
    """The wanted port when it is free, else a free one; 0 = a free one."""
    return choose(wanted)


def _environment(environ: Mapping[str, str], *, provider_keys: bool) -> dict[str, str]:
    told = {
        name: value
        for name, value in {"SHUTDOWN_GRACE_S": SHUTDOWN_GRACE_S, **os.environ, **environ}.items()
        if name not in NOT_INHERITED and (provider_keys or not name.endswith(PROVIDER_KEY_ENDINGS))
    }
    return told | {"PYTHONUNBUFFERED": "1"}


def _server(
    name: str, arguments: list[str], environ: dict[str, str], *, port: int, home: Path, report: Report | None
) -> Server:
    async def ready() -> bool:
        return await _answers_ready(port)

    program = Program(
        name,
        (*_faas(), *arguments),
        ready,
        env=environ,
        cwd=SOURCE,
        stop_grace_s=STOP_GRACE_S,
        start_limit_s=START_LIMIT_S,
        poll_s=0.1,
    )
    return Server(program, f"http://{LOOPBACK}:{port}", home=home, report=report)


def _faas() -> tuple[str, ...]:
    """So that a list of processes says `faas worker rag`: the installed command, else this package."""
    script = Path(sys.executable).with_name("faas")
    return (sys.executable, str(script)) if script.exists() else (sys.executable, "-m", "cli")


async def _answers_ready(port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    return False
