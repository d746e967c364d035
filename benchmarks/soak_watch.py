"""What the soak watches: memory of each process, tasks, subscriptions, consumers, connections; and whether it grows."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt

import asyncpg
import httpx
import psutil
from redis.asyncio import Redis

from benchmarks.platform_up import Up
from runtime import streams
from runtime.connection import Connection
from runtime.settings import Settings

SAMPLE_S = 3.0
MB = 1e6
STREAMS = (streams.JOBS, streams.EVENTS, streams.DLQ, streams.OUT, streams.FILES_STREAM)
_TASKS = re.compile(r"^asyncio_tasks (\d+)", re.MULTILINE)
_T95 = 2.0


@dataclass(frozen=True)
class Slope:
    """MB a minute by least squares, and half the width of its 95 % interval (neighbouring samples are alike, so their
    number is reduced by their first autocorrelation)."""

    mb_min: float
    margin: float


def slope(at_s: Sequence[float], mb: Sequence[float]) -> Slope:
    n = len(at_s)
    if n < 4:
        return Slope(0.0, float("inf"))
    mean_x, mean_y = sum(at_s) / n, sum(mb) / n
    spread = sum((x - mean_x) ** 2 for x in at_s)
    steep = sum((x - mean_x) * (y - mean_y) for x, y in zip(at_s, mb, strict=True)) / spread
    rest = [y - mean_y - steep * (x - mean_x) for x, y in zip(at_s, mb, strict=True)]
    squares = sum(r * r for r in rest)
    alike = sum(a * b for a, b in pairwise(rest)) / squares if squares else 0.0
    independent = max(3.0, n * (1 - max(0.0, alike)) / (1 + max(0.0, alike)))
    error = sqrt(squares / n / max(1.0, independent - 2) / (spread / n)) if spread else float("inf")
    return Slope(steep * 60, _T95 * error * 60)


@dataclass
class Watch:
    """Samples while it runs. memory: by process, (seconds, own MB); own is RSS without what is shared or mapped from
    files. counts: everything that must not grow, as it is now."""

    platform: Up
    settings: Settings
    connection: Connection
    monitor_port: int
    memory: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    held_mb: dict[str, float] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)

    async def sample_for_ever(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(SAMPLE_S)

    async def sample(self) -> None:
        now = time.monotonic()
        await self._see_held()
        found: defaultdict[str, list[float]] = defaultdict(list)
        for process in self.platform.tree():
            try:
                info = process.memory_info()
                found[group(process)].append((info.rss - info.shared) / MB)
            except psutil.NoSuchProcess:
                continue
        for name, each_mb in found.items():
            # As many as at first: how many connections there are is counted elsewhere, and is not memory that grows.
            own_mb = sum(each_mb) / len(each_mb) * self.processes.setdefault(name, len(each_mb))
            self.memory[name].append((now, own_mb - self.held_mb.get(name, 0.0)))

    def slopes(self, since: float) -> dict[str, Slope]:
        """Of each process, from a moment (monotonic seconds) on."""
        found = {}
        for name, samples in sorted(self.memory.items()):
            late = [(at, mb) for at, mb in samples if at >= since]
            if late:
                found[name] = slope([at for at, _ in late], [mb for _, mb in late])
        return found

    async def _see_held(self) -> None:
        """nats-server holds OUT in memory on purpose (15 min, 256 MiB), Valkey its values: that is not a leak."""
        js = self.connection.jetstream()
        self.held_mb["nats-server"] = (await js.stream_info(streams.OUT)).state.bytes / MB
        redis = Redis.from_url(self.settings.redis_url)
        try:
            self.held_mb["valkey"] = float((await redis.info("memory"))["used_memory"]) / MB
        finally:
            await redis.aclose()

    async def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        async with httpx.AsyncClient(timeout=10) as http:
            varz = (await http.get(f"http://127.0.0.1:{self.monitor_port}/varz")).json()
            found["NATS subscriptions"], found["NATS connections"] = varz["subscriptions"], varz["connections"]
            for process in self.platform.tree():
                name, port = group(process), _probe_port(process)
                if port is None:
                    continue
                told = _TASKS.search((await http.get(f"http://127.0.0.1:{port}/metrics")).text)
                found[f"{name}: tasks"] = int(told[1]) if told else -1
                found[f"{name}: open files"] = process.num_fds()
                found[f"{name}: threads"] = process.num_threads()
        js = self.connection.jetstream()
        for name in STREAMS:
            found[f"{name}: consumers"] = (await js.stream_info(name)).state.consumer_count
        found["Postgres connections"] = await self._postgres()
        redis = Redis.from_url(self.settings.redis_url)
        try:
            found["Valkey clients"] = int((await redis.info("clients"))["connected_clients"])
        finally:
            await redis.aclose()
        return found

    async def _postgres(self) -> int:
        connection = await asyncpg.connect(self.settings.database_url)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL"))
        finally:
            await connection.close()


def group(process: psutil.Process) -> str:
    """What a process is called here. Postgres' many, and the children of a worker's pool, are one each."""
    try:
        words = process.cmdline()
        name = process.name()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return "gone"
    text = " ".join(words)
    if "nats-server" in text:
        return "nats-server"
    if "valkey" in text or "redis-server" in text:
        return "valkey"
    if "postgres" in text or name.startswith("postgres"):
        return "postgres"
    if "stack.models" in text:
        return "models"
    if "worker" in words:
        rest = words[words.index("worker") + 1 :]
        return f"worker {rest[0]}" if len(rest) == 1 else "worker of the others"
    if "bridge" in words:
        return "bridge"
    return "faas up" if "up" in words else "pool's children"


def _probe_port(process: psutil.Process) -> str | None:
    if not group(process).startswith(("worker", "bridge")):
        return None
    environ = process.environ()
    return environ.get("BRIDGE_PORT") if group(process) == "bridge" else environ.get("PROBE_PORT")
