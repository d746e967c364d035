"""The whole platform under blows: every worker killed, two of each sharing the load, stopped politely under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest_asyncio

from runtime.identity import Identity
from stack import Server
from subjects import cache
from subjects.contract import Fault
from tests.e2e.platform import (
    AS_JOB,
    SSE,
    Dripping,
    Piece,
    Running,
    dripped,
    job_ended,
    pieces,
    prose,
    seeded,
    streamed,
    text_of,
    until,
)

DOCUMENTS = 6
SENTENCES = 450  # of a document: some forty chunks, three calls to the embedding model
ALL_DONE_WITHIN_S = 60.0
QUIET_S = 4.5  # twice ack_wait: what would be delivered again has been
GRACE_S = 3.0 + 3.0 + 1.0  # SHUTDOWN_GRACE_S of `faas up`, what a cancelled task has to hand back, and closing
BACK_WITHIN_S = 30.0
CHUNKS = 45
PAUSE_S = 0.1  # an answer of 4.5 s: longer than the grace period
WHOLE = dripped(CHUNKS)


async def submitted(http: httpx.AsyncClient, body: dict[str, Any], path: str = "/api/v1/rag/ingest") -> str:
    reply = await http.post(path, json=body, headers=AS_JOB)
    assert reply.status_code == 202, reply.text
    return str(reply.json()["job_id"])


Check = Callable[[], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def afterwards(running: Running) -> AsyncIterator[list[tuple[float, Check]]]:
    """What must still be true once all is quiet, and when that is: the other tests run meanwhile."""
    checks: list[tuple[float, Check]] = []
    yield checks
    for quiet_at, check in checks:
        await asyncio.sleep(max(0.0, quiet_at - time.monotonic()))
        await check()


async def test_every_worker_killed_while_documents_are_embedded_leaves_each_chunk_once(
    running: Running, tenant: str, dripping: Dripping, afterwards: list[tuple[float, Check]]
) -> None:
    dice = seeded()
    body = {"prompt": "say it", "model": f"openai/{dripping(CHUNKS, PAUSE_S)}"}
    texts = {f"source-{n}": prose(dice, SENTENCES) for n in range(DOCUMENTS)}
    async with running.http(tenant, timeout_s=90) as http:
        jobs = [await submitted(http, {"text": text, "source_id": name}) for name, text in texts.items()]

        async def under_way() -> bool:
            return len(await running.rows(tenant, "SELECT 1 FROM steps")) >= DOCUMENTS // 2

        await until(under_way, 20)
        reader = asyncio.create_task(streamed(http, body, SSE | AS_JOB))

        async def half_said() -> bool:
            return running.upstream.sent[tenant] > CHUNKS // 3

        await until(half_said, 10)
        done = await running.rows(tenant, "SELECT 1 FROM rag_documents WHERE chunks > 0")
        print(f"killed with {len(done)} of {DOCUMENTS} documents done")
        before = {each.name: each.pid for each in running.workers}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        assert len(done) < DOCUMENTS
        killed_at = time.monotonic()
        ended = await asyncio.gather(*(job_ended(http, job_id, ALL_DONE_WITHIN_S) for job_id in jobs))
        print(f"all done {time.monotonic() - killed_at:.1f} s after the kill")
        assert [(job["status"], job["fault"]) for job in ended] == [("succeeded", None)] * DOCUMENTS
        assert any(job["attempt"] > 1 for job in ended)
        pieces_read = await reader
        assert [piece.kind for piece in pieces_read].count("restart") == 1
        assert text_of(pieces_read) == pieces_read[-1].data["message"]["content"] == WHOLE
        assert running.upstream.hits[tenant] == 2  # one an attempt
    await running.ready(BACK_WITHIN_S)
    assert not set(before.values()) & {each.pid for each in running.workers}
    quiet_at = time.monotonic() + QUIET_S

    async def each_chunk_once() -> None:
        chunks = {name: job["result"]["chunks"] for name, job in zip(texts, ended, strict=True)}
        await documents_stand(running, tenant, texts, chunks)

    await each_chunk_once()
    afterwards.append((quiet_at, each_chunk_once))


async def documents_stand(running: Running, tenant: str, texts: dict[str, str], chunks: dict[str, int]) -> None:
    """Each document with its text and so many chunks, numbered without a gap, each its own part of the text."""
    rows = await running.rows(
        tenant,
        "SELECT d.source_id, d.text, d.chunks, array_agg(c.ordinal ORDER BY c.ordinal) AS ordinals, "
        "bool_and(substr(d.text, c.start_at + 1, c.end_at - c.start_at) = c.text) AS verbatim "
        "FROM rag_documents d JOIN rag_chunks c USING (document_no) GROUP BY d.document_no",
    )
    assert {row["source_id"]: row["text"] for row in rows} == texts
    assert {row["source_id"]: row["chunks"] for row in rows} == chunks
    for row in rows:
        assert row["ordinals"] == list(range(row["chunks"]))
        assert row["verbatim"]
    counted = await running.rows(tenant, "SELECT documents, chunks FROM rag_collections")
    assert [tuple(row) for row in counted] == [(DOCUMENTS, sum(chunks.values()))]


async def test_two_processes_of_every_worker_and_two_bridges_share_the_load(running: Running, tenant: str) -> None:
    dice = seeded()
    pairs = [running.named("worker"), running.named("worker-gateway")]
    before = {each.name: cpu_s(each) for pair in pairs for each in pair}
    body = {"input": ["the same words"], "encoding": "float"}
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        jobs = [await submitted((one, two)[n % 2], {"text": prose(dice, 10)}) for n in range(24)]
        embedded = await asyncio.gather(
            *((one, two)[n % 2].post("/api/v1/gateway/embed", json=body) for n in range(60))
        )
        assert {reply.status_code for reply in embedded} == {200}
        assert len({str(reply.json()["embeddings"]) for reply in embedded}) == 1
        await asyncio.gather(*(round_trip((one, two)[n % 2], (two, one)[n % 2], n) for n in range(150)))
        ended = [await job_ended((two, one)[n % 2], job_id) for n, job_id in enumerate(jobs)]
        lists = [(await http.get("/api/v1/jobs?limit=100")).json() for http in (one, two)]
        documents = (await two.get("/openapi.json")).json() == (await one.get("/openapi.json")).json()
    assert {job["status"] for job in ended} == {"succeeded"}
    assert lists[0] == lists[1]
    assert documents
    assert await running.served_by(tenant, "rag.ingest") == {each.pid for each in running.named("worker")}
    for pair in pairs:
        spent = {each.name: cpu_s(each) - before[each.name] for each in pair}
        print(f"CPU seconds {spent}")
        assert min(spent.values()) > 0.2 * max(spent.values())


async def round_trip(one: httpx.AsyncClient, two: httpx.AsyncClient, number: int) -> None:
    """What is written through one bridge is read through the other."""
    key = f"key-{number}"
    written = await one.post("/api/v1/cache/set", json={"key": key, "value": {"n": number}})
    read = await two.post("/api/v1/cache/get", json={"key": key})
    assert (written.json()["written"], read.json()["value"]) == (True, {"n": number})


def cpu_s(server: Server) -> float:
    times = psutil.Process(server.pid).cpu_times()
    return times.user + times.system


async def test_a_worker_stopped_under_load_ends_with_0_and_loses_nothing(
    running: Running, tenant: str, dripping: Dripping
) -> None:
    dice = seeded()
    victims = [dice.choice(running.named(name)) for name in ("worker", "worker-gateway")]
    before = {each.name: (each.pid, len(running.exits(each.name))) for each in victims}
    identity = Identity.new(tenant)
    body = {"prompt": "say it", "model": f"openai/{dripping(CHUNKS, PAUSE_S)}"}
    async with running.http(tenant) as http, light_load(running, identity) as load:
        streams = [asyncio.create_task(streamed(http, body, SSE)) for _ in range(4)]
        job_streams = [asyncio.create_task(streamed(http, body, SSE | AS_JOB)) for _ in range(4)]
        jobs = [await submitted(http, {"text": prose(dice, 60)}) for _ in range(6)]
        await asyncio.sleep(0.5)
        took = await asyncio.gather(*(ended_after(each, signal.SIGTERM) for each in victims))
        print(f"ended after {took} s")
        assert max(took) < GRACE_S
        found = await asyncio.gather(*streams)
        kept = await asyncio.gather(*job_streams)
        ended = [await job_ended(http, job_id) for job_id in jobs]
        await until(lambda: all_back(victims, before), BACK_WITHIN_S)
    for each in victims:
        assert running.exits(each.name)[before[each.name][1] :] == [0], running.said
    assert {job["status"] for job in ended} == {"succeeded"}
    for plain in found:  # whole, or told that its process is stopping: never silence
        assert plain[-1].kind in ("done", "error"), plain[-1]
        assert plain[-1].kind == "done" or plain[-1].data["code"] == "UNAVAILABLE", plain[-1]
    for durable in kept:
        assert durable[-1].kind == "done", durable[-1]
        assert text_of(durable) == WHOLE
    print(f"load {dict(load)}")
    assert set(load) == {"answered"}
    assert running.upstream.hits[tenant] <= 8 + 4


async def all_back(victims: list[Server], before: dict[str, tuple[int, int]]) -> bool:
    return all(each.pid != before[each.name][0] and psutil.pid_exists(each.pid) for each in victims)


async def test_a_bridge_stopped_with_open_streams_ends_with_0_and_its_readers_go_on(
    running: Running, tenant: str, dripping: Dripping
) -> None:
    body = {"prompt": "say it", "model": f"openai/{dripping(CHUNKS, PAUSE_S)}"}
    victim = running.bridges[1]
    exits = len(running.exits(victim.name))
    async with running.http(tenant, bridge=1) as two, running.http(tenant) as one:
        plain = [asyncio.create_task(streamed(two, body, SSE)) for _ in range(3)]
        durable = [asyncio.create_task(streamed(two, body, SSE | AS_JOB)) for _ in range(3)]
        await asyncio.sleep(1.0)
        took = await ended_after(victim, signal.SIGTERM)
        print(f"ended after {took:.1f} s")
        assert took < GRACE_S
        for found in await asyncio.gather(*plain):
            assert (found[-1].kind, found[-1].data["code"]) == ("error", "UNAVAILABLE")
        cut = await asyncio.gather(*durable)
        rejoined = await asyncio.gather(*(rejoin(one, each[-1].ident) for each in cut))
    for before, after in zip(cut, rejoined, strict=True):
        assert before[-1].kind == "chunk"
        assert after[-1].kind == "done"
        assert text_of([*before, *after]) == WHOLE
    assert running.upstream.hits[tenant] == 6
    await victim.serving()
    await running.ready(BACK_WITHIN_S)
    assert running.exits(victim.name)[exits:] == [0], running.said


async def ended_after(server: Server, number: signal.Signals) -> float:
    """Seconds until this process has ended."""
    process = psutil.Process(server.pid)
    process.send_signal(number)

    async def gone() -> bool:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    return await until(gone, 30)


async def rejoin(http: httpx.AsyncClient, last: str) -> list[Piece]:
    path, headers = f"/api/v1/outputs/{last.partition('.')[0]}", SSE | {"Last-Event-ID": last}
    async with http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        return [piece async for piece in pieces(response)]


@asynccontextmanager
async def light_load(running: Running, identity: Identity) -> AsyncIterator[Counter[str]]:
    """Small calls one after another within the block, counted by how they ended."""
    counted: Counter[str] = Counter()

    async def calls() -> None:
        while True:
            message = cache.Set(key=f"load-{counted.total()}", value=1)
            try:
                await running.client.call(cache.SET, message, identity=identity)
                counted["answered"] += 1
            except Fault as fault:
                counted[f"{fault.code}: {fault.detail}"] += 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(calls())
    try:
        yield counted
    finally:
        task.cancel()
        await asyncio.wait({task})
