"""P7, P8: jobs accepted against bare JetStream publishing; jobs finished against bare inserts."""

from __future__ import annotations

import asyncio
import time
import uuid

import asyncpg
import nats

import codec
from benchmarks.bench import Bench
from benchmarks.contract import EIGHT_FIELDS, NOOP
from benchmarks.load import Samples, closed_loop
from benchmarks.report import Line
from runtime import streams
from runtime.identity import Identity

PUBLISHERS = 64
INSERTERS = 16
JOBS_A_ROUND = 3000
FINISH_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.05
PLAIN = "CREATE TABLE IF NOT EXISTS bench_plain (id text PRIMARY KEY, tenant_id text, body bytea, at timestamptz)"


async def p7(bench: Bench) -> list[Line]:
    plain = await nats.connect(bench.settings.nats_url)
    js, payload = plain.jetstream(), codec.encode(EIGHT_FIELDS)
    ours, theirs = Samples(), Samples()

    async def submit() -> None:
        await bench.client.submit(NOOP, EIGHT_FIELDS, identity=bench.identity)

    async def publish() -> None:  # the same stream, as many subjects
        await js.publish(f"job.bench.peer.noop.{uuid.uuid4().hex}", payload)

    for _ in range(bench.rounds):
        await closed_loop(ours, submit, in_flight=PUBLISHERS, seconds=bench.seconds)
        await closed_loop(theirs, publish, in_flight=PUBLISHERS, seconds=bench.seconds)
    await js.purge_stream(streams.JOBS)
    await plain.close()
    return [Line("P7", f"jobs accepted, {PUBLISHERS} in flight", ours.rate, theirs.rate, "/s", at_least=0.8)]


async def p8(bench: Bench) -> list[Line]:
    owner = await asyncpg.connect(bench.settings.database_owner_url)
    await owner.execute(f"{PLAIN}; GRANT ALL ON bench_plain TO faas_app")
    await owner.close()
    pool = await asyncpg.create_pool(bench.settings.database_url, min_size=INSERTERS, max_size=INSERTERS)
    ours, theirs, body = Samples(), Samples(), codec.encode(EIGHT_FIELDS)

    async def insert() -> None:  # one statement is one transaction
        statement = "INSERT INTO bench_plain VALUES ($1, 'bench', $2, now())"
        await pool.execute(statement, uuid.uuid4().hex, body)

    for _ in range(bench.rounds):
        ours.rates.append(await _finished_a_second(bench, pool))
        await closed_loop(theirs, insert, in_flight=INSERTERS, seconds=bench.seconds)
    await pool.close()
    return [
        Line("P8", "no-op jobs finished, one worker, against bare inserts", ours.rate, theirs.rate, "/s", at_least=0.5)
    ]


async def _finished_a_second(bench: Bench, pool: asyncpg.Pool) -> float:
    """Submit many, then let one worker begin: from its first finished job to its last."""
    identity = Identity.new(f"bench{uuid.uuid4().hex[:8]}")
    todo = iter(range(JOBS_A_ROUND))

    async def submit() -> None:
        for _ in todo:
            await bench.client.submit(NOOP, EIGHT_FIELDS, identity=identity)

    await asyncio.gather(*(submit() for _ in range(PUBLISHERS)))
    async with bench.process("-m", "benchmarks.worker"), pool.acquire() as connection:
        began_at, began_with = 0.0, 0
        deadline = time.monotonic() + FINISH_TIMEOUT_S
        while time.monotonic() < deadline:
            async with connection.transaction():
                await connection.execute("SELECT set_config('app.tenant', $1, true)", identity.tenant)
                done = await connection.fetchval("SELECT count(*) FROM jobs WHERE status = 'succeeded'")
            now = time.perf_counter()
            if done and not began_at:
                began_at, began_with = now, done
            if done == JOBS_A_ROUND:
                return float(done - began_with) / (now - began_at)
            await asyncio.sleep(LOOK_EVERY_S)
    raise TimeoutError(f"{JOBS_A_ROUND} jobs did not finish within {FINISH_TIMEOUT_S:g} s")
