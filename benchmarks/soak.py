"""P12: `make soak [MINUTES=30]`. A whole `faas up` at half of what it can do; whether anything grows or is lost.

Exit code 1 when the memory of a process grows, when tasks, subscriptions, consumers, connections or files do, or when
accepted != effects + dead letters + cancelled. benchmarks/README.md tells the rules.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter

import asyncpg

from benchmarks.bench import ROOT
from benchmarks.http import free_port
from benchmarks.platform_up import Up, new_home, up
from benchmarks.soak_load import Load
from benchmarks.soak_watch import Slope, Watch
from cli.tokens import sign
from client import ClientConfig, ServiceClientManager
from runtime import streams
from runtime.connection import connect

TENANT = "soak"
CAPACITY_S = 15.0
PART_OF_CAPACITY = 0.5
WARM_UP_S = 60.0
QUIET_S = 12.0
"""Before counting: requests are answered, cancelled streams ended, connections idle."""
MAX_MB_MIN = 1.0
SURE_MB_MIN = 0.5
LONG_MINUTES = 10.0
INTERRUPTED = 130
FILLS = "nats-server"
FILLS_MINUTES = streams.OUT_AGE_S / 60 + 1
"""It keeps OUT in memory, with an overhead a message that it does not tell: judged once as much leaves as comes."""
SLACK = {"tasks": 3, "open files": 8, "threads": 8, "connections": 6, "clients": 6, "subscriptions": 3}
"""Pools may hold one or two connections more than before; nothing of this may follow the number of requests."""


async def soak(minutes: float, seed: int) -> bool:
    model_port, monitor_port = free_port(), free_port()
    environ = {
        "NATS_MONITOR_PORT": str(monitor_port), "LLM_DEFAULT_MODEL": "local/smollm2", "OPENAI_API_KEY": "sk-none",
        "OPENAI_API_BASE": f"http://127.0.0.1:{model_port}/v1",
    }  # fmt: skip
    model = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.peers.slow_model", str(model_port), "20", cwd=ROOT
    )
    try:
        async with new_home("faas-soak-") as home, up(home, **environ) as platform:
            return await _measured(platform, monitor_port, minutes, seed)
    finally:
        model.terminate()
        await model.wait()


async def _measured(platform: Up, monitor_port: int, minutes: float, seed: int) -> bool:
    settings = platform.settings()
    connection = await connect(settings, name="soak")
    config = ClientConfig(base_url=settings.bridge_url, token=sign(settings, TENANT))
    watch = Watch(platform, settings, connection, monitor_port)
    async with (
        ServiceClientManager(config) as services,
        ServiceClientManager(ClientConfig(base_url=settings.bridge_url, token="not-a-token")) as strangers,
    ):
        load = Load(services, strangers, random.Random(seed))
        await load.paced(3.0, 10.0)  # what is imported and opened at first use
        capacity = await load.closed(CAPACITY_S)
        rate = capacity * PART_OF_CAPACITY
        print(f"seed {seed}; capacity {capacity:.0f}/s; soaking at {rate:.0f}/s for {minutes:g} min", flush=True)
        async with asyncio.TaskGroup() as together:  # when nothing can be watched any more, the load ends too
            sampling = together.create_task(watch.sample_for_ever(), name="watch")
            await load.paced(WARM_UP_S, rate)
            await asyncio.sleep(QUIET_S)
            before, began = await watch.counts(), time.monotonic()
            await load.paced(minutes * 60, rate)
            slopes = watch.slopes(began)
            if minutes > FILLS_MINUTES:
                slopes[FILLS] = watch.slopes(began + FILLS_MINUTES * 60)[FILLS]
            await asyncio.sleep(QUIET_S)
            after = await watch.counts()
            sampling.cancel()
        ended = await load.settled()
    good = [_told_memory(slopes, watch, minutes), _told_counts(before, after), await _told_law(platform, load, ended)]
    await connection.close()
    return all(good)


def _told_memory(slopes: dict[str, Slope], watch: Watch, minutes: float) -> bool:
    print(f"\n{'process':22} {'own MB, then':>12} {'now':>8} {'MB/min':>8} {'+-':>6}")
    good = True
    for name, found in slopes.items():
        word = _verdict(found, minutes)
        if name == FILLS and minutes <= FILLS_MINUTES and word != "ok":
            word = f"not judged: OUT fills for {FILLS_MINUTES:.0f} min"
        good = good and word != "GROWS"
        samples = watch.memory[name]
        print(f"{name:22} {samples[0][1]:12.1f} {samples[-1][1]:8.1f} {found.mb_min:8.2f} {found.margin:6.2f}  {word}")
    return good


def _verdict(found: Slope, minutes: float) -> str:
    if found.mb_min < MAX_MB_MIN:
        return "ok"
    if found.mb_min - found.margin > SURE_MB_MIN or minutes >= LONG_MINUTES:
        return "GROWS"
    return "unclear: soak longer"


def _told_counts(before: dict[str, int], after: dict[str, int]) -> bool:
    print(f"\n{'at rest':40} {'before':>8} {'after':>8}")
    good = True
    for name in sorted(before | after):
        was, now = before.get(name, 0), after.get(name, 0)
        slack = next((most for what, most in SLACK.items() if name.endswith(what)), 0)
        grows = now - was > slack
        good = good and not grows
        print(f"{name:40} {was:8} {now:8}  {'GROWS' if grows else ''}".rstrip())
    return good


async def _told_law(platform: Up, load: Load, ended: Counter[str]) -> bool:
    settings = platform.settings()
    database = await asyncpg.connect(settings.database_url)
    try:
        async with database.transaction():
            await database.execute("SELECT set_config('app.tenant', $1, true)", TENANT)
            effects = int(await database.fetchval("SELECT count(*) FROM rag_documents"))
    finally:
        await database.close()
    connection = await connect(settings, name="soak")
    info = await connection.jetstream().stream_info(streams.DLQ, subjects_filter=f"dlq.{TENANT}.>")
    await connection.close()
    letters = sum((info.state.subjects or {}).values())
    accepted, cancelled = len(load.accepted), ended["cancelled"]
    print(f"\ndone {sum(load.done.values())}: {dict(load.done.most_common())}")
    print(f"failed {sum(load.failed.values())}: {dict(load.failed.most_common())}; not asked {load.skipped}")
    holds = accepted == effects + letters + cancelled and ended["succeeded"] == effects and ended["failed"] == letters
    print(
        f"accepted {accepted} = effects {effects} + dead letters {letters} + cancelled {cancelled}: "
        f"{'holds' if holds else 'BROKEN'} (jobs by status: {dict(ended)})"
    )
    return holds


async def _until_stopped(minutes: float, seed: int) -> bool:
    """SIGINT and SIGTERM end the platform too, also where a shell lets them be ignored."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await soak(minutes, seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = parser.parse_args()
    try:
        good = asyncio.run(_until_stopped(given.minutes, given.seed))
    except asyncio.CancelledError:
        return INTERRUPTED
    print("soak passed" if good else "soak FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
