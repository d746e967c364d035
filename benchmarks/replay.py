"""P9: a replay's dry run against a bare pull consumer over the same stored jobs."""

from __future__ import annotations

import asyncio
import time
import uuid
from statistics import median

import nats
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.bench import Bench, ready
from benchmarks.report import Line
from runtime import streams
from runtime.identity import Identity
from subjects import jobs, rag

STORED_JOBS = 20_000
PUBLISHERS = 64
FETCHED_AT_ONCE = 256
FETCH_TIMEOUT_S = 5.0
TEXT = "The ferry leaves at nine, and the market is on Thursdays. " * 4


async def p9(bench: Bench) -> list[Line]:
    identity = Identity.new(f"bench{uuid.uuid4().hex[:8]}")
    await _store(bench, identity)
    plain = await nats.connect(bench.settings.nats_url)
    ours, theirs = [], []
    async with bench.process("-m", "cli", "worker", "jobs"):
        asked = jobs.ListJobs(limit=1)
        await ready(lambda: bench.client.call(jobs.LIST, asked, identity=identity))
        for _ in range(bench.rounds):
            ours.append(STORED_JOBS / await _counted(bench, identity))
            theirs.append(STORED_JOBS / await _pulled(plain, f"job.{identity.tenant}.rag.ingest.>"))
    await plain.jetstream().purge_stream(streams.JOBS)
    await plain.close()
    what = f"dry run of a replay of {STORED_JOBS:,} jobs"
    return [Line("P9", what, median(ours), median(theirs), "/s", at_least=0.5)]


async def _store(bench: Bench, identity: Identity) -> None:
    todo = iter(range(STORED_JOBS))

    async def submit() -> None:
        for number in todo:
            await bench.client.submit(rag.INGEST, rag.Ingest(text=f"{number}: {TEXT}"), identity=identity)

    await asyncio.gather(*(submit() for _ in range(PUBLISHERS)))


async def _counted(bench: Bench, identity: Identity) -> float:
    """Seconds from submitting the replay to its answer: each message read, checked and looked up in the books."""
    began = time.perf_counter()
    message = jobs.Replay(subject="rag.ingest", first_sequence=1, dry_run=True)
    made = await bench.client.submit(jobs.REPLAY, message, identity=identity)
    job = await bench.client.call(jobs.WAIT, jobs.WaitForJob(job_id=made.job_id, wait_s=55), identity=identity)
    took_s = time.perf_counter() - began
    told = jobs.Replayed.model_validate(job.result)
    assert told.total.waiting == STORED_JOBS, told  # nobody has ever begun one
    return took_s


async def _pulled(plain: Client, subject: str) -> float:
    """Seconds in which nats-py has received as many, without looking at them or acknowledging any."""
    config = ConsumerConfig(ack_policy=AckPolicy.NONE)
    began, received = time.perf_counter(), 0
    pull = await plain.jetstream().pull_subscribe(subject, stream=streams.JOBS, config=config)
    while received < STORED_JOBS:
        received += len(await pull.fetch(FETCHED_AT_ONCE, timeout=FETCH_TIMEOUT_S))
    took_s = time.perf_counter() - began
    await pull.unsubscribe()
    return took_s
