"""NATS, Postgres and Valkey each killed and each frozen under a running platform: it serves again by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from runtime.client import MAX_REPEATS
from runtime.identity import Identity
from runtime.jobs import ACK_TIMEOUT_S
from stack import Server
from subjects import cache, jobs, rag
from subjects.contract import Code, Fault
from tests.e2e.platform import AS_JOB, SSE, Dripping, Running, dripped, job_ended, prose, seeded, streamed, until

FROZEN_S = 10.0 if os.environ.get("FAAS_SLOW_TESTS") else 3.0
BACK_WITHIN_S = 10.0
CALL_TIMEOUT_S = 3.0
MARGIN_S = 1.5
ANSWERED_WITHIN_S = CALL_TIMEOUT_S + MARGIN_S  # beyond it, a caller was left in silence
SUBMITTED_WITHIN_S = (1 + MAX_REPEATS) * ACK_TIMEOUT_S + MARGIN_S  # a submit is safe to repeat, and is repeated
HTTP_TIMEOUT_S = 20.0
GOOD_IN_A_ROW = 3
PAUSE_S = 0.1
CHUNKS = 20
QUIET_S = 4.5  # twice ack_wait: what would be delivered again has been
DONE_WITHIN_S = 60.0
ALLOWED = {Code.UNAVAILABLE, Code.TIMEOUT, Code.EXHAUSTED}
"""How a call may fail while a server is away. Anything else would blame the caller, or hide what happened."""


@dataclass
class Load:
    """A few callers who ask without end, and remember what they were told."""

    running: Running
    tenant: str
    text: Callable[[], str]
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    good: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    accepted: dict[str, str] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    _number: int = 0

    async def keep(self, name: str, ask: Callable[[], Awaitable[None]]) -> None:
        while True:
            began = time.monotonic()
            try:
                await ask()
                self.good[name] += 1
                self.ended[f"{name} answered"] += 1
            except Fault as fault:
                self.good[name] = 0
                self.ended[f"{name} {fault.code}"] += 1
                if fault.code not in ALLOWED:
                    self.wrong.append(f"{name}: {fault.code} {fault.detail}")
            took_s = time.monotonic() - began
            self.slowest_s = max(self.slowest_s, took_s)
            if took_s > (SUBMITTED_WITHIN_S if name == "submit" else ANSWERED_WITHIN_S):
                self.wrong.append(f"{name}: {took_s:.1f} s without an answer")
            await asyncio.sleep(PAUSE_S)

    def callers(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {"cache": self.cache, "search": self.search, "submit": self.submit, "jobs": self.jobs, "http": self.http}

    async def again(self) -> bool:
        """Every caller was answered several times in a row."""
        return all(self.good[name] >= GOOD_IN_A_ROW for name in self.callers())

    def fresh(self) -> int:
        self._number += 1
        return self._number

    async def cache(self) -> None:
        """What was acknowledged is found with its own value, or not at all: a cache may forget, never mix up."""
        number, client, identity = self.fresh(), self.running.client, Identity.new(self.tenant)
        message = cache.Set(key=f"key-{number}", value=number)
        await client.call(cache.SET, message, identity=identity, timeout_s=CALL_TIMEOUT_S)
        self.written[message.key] = number
        found = await client.call(cache.GET, cache.Get(key=message.key), identity=identity, timeout_s=CALL_TIMEOUT_S)
        if found.found and found.value != number:
            self.wrong.append(f"{message.key} holds {found.value!r}")

    async def search(self) -> None:
        question = rag.Search(query="the lamp of the harbour", cache="off")
        identity = Identity.new(self.tenant)
        found = await self.running.client.call(rag.SEARCH, question, identity=identity, timeout_s=CALL_TIMEOUT_S)
        if not found.results:
            self.wrong.append("search found nothing")

    async def submit(self) -> None:
        name = f"source-{self.fresh()}"
        message = rag.Ingest(text=self.text(), source_id=name)
        made = await self.running.client.submit(rag.INGEST, message, identity=Identity.new(self.tenant))
        self.accepted[name] = made.job_id
        await asyncio.sleep(2 * PAUSE_S)

    async def jobs(self) -> None:
        identity, job_id = Identity.new(self.tenant), next(reversed(self.accepted.values()))
        await self.running.client.call(
            jobs.GET, jobs.GetJob(job_id=job_id), identity=identity, timeout_s=CALL_TIMEOUT_S
        )

    async def http(self) -> None:
        body = {"query": "the lamp of the harbour", "cache": "off"}
        headers = {"Request-Timeout": f"{CALL_TIMEOUT_S:g}"}
        async with self.running.http(self.tenant, bridge=self.fresh() % 2, timeout_s=HTTP_TIMEOUT_S) as http:
            reply = await http.post("/api/v1/rag/search", json=body, headers=headers)
        if reply.status_code != 200:
            raise Fault(Code(reply.json()["code"]), reply.json()["detail"])


async def kill(server: Server) -> None:
    """SIGKILL; its supervisor starts it again on the same data."""
    before = server.pid
    server.signal(signal.SIGKILL)
    await server.serving()
    assert server.pid != before


async def freeze(server: Server) -> None:
    server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        server.signal(signal.SIGCONT)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def loads(running: Running) -> AsyncIterator[list[Load]]:
    """Every test's load; once all is quiet, what they were promised is counted again."""
    made: list[Load] = []
    yield made
    await asyncio.sleep(QUIET_S)
    for load in made:
        await nothing_lost(running, load)


@pytest.mark.parametrize("blow", [kill, freeze])
@pytest.mark.parametrize("part", ["nats", "postgres", "valkey"])
async def test_a_server_that_was_away_is_served_again_without_a_restart_of_ours(
    part: str, blow: Callable[[Server], Awaitable[None]], running: Running, tenant: str, loads: list[Load]
) -> None:
    dice = seeded()
    await running.ready(30)
    load = Load(running, tenant, lambda: prose(dice, 3))
    async with running.http(tenant) as http:
        first = await http.post("/api/v1/rag/ingest", json={"text": prose(dice, 8)}, headers={"Prefer": "wait=20"})
        assert first.status_code == 200, first.text
    load.accepted["source-0"] = (await running.client.submit(
        rag.INGEST, rag.Ingest(text=prose(dice, 3), source_id="source-0"), identity=Identity.new(tenant)
    )).job_id  # fmt: skip
    before = running.pids()
    tasks = [asyncio.create_task(load.keep(name, ask), name=name) for name, ask in load.callers().items()]
    try:
        await until(load.again, 15)
        await blow(getattr(running.platform.stack, part))
        load.good.clear()
        took_s = await until(load.again, BACK_WITHIN_S)
        print(
            f"{part} {blow.__name__}: every caller served {took_s:.1f} s after healing, slowest {load.slowest_s:.1f} s"
        )
        await running.ready(BACK_WITHIN_S)
    finally:
        print(dict(load.ended))
        await ended(tasks)
    assert running.pids() == before
    assert not load.wrong
    await nothing_lost(running, load)
    loads.append(load)


async def test_streams_under_way_when_nats_dies_end_and_tell_how(
    running: Running, tenant: str, dripping: Dripping
) -> None:
    body = {"prompt": "say it", "model": f"openai/{dripping(CHUNKS, PAUSE_S)}"}
    whole = dripped(CHUNKS)
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        plain = [asyncio.create_task(streamed(http, body, SSE)) for http in (one, two)]
        durable = [asyncio.create_task(streamed(http, body, SSE | AS_JOB)) for http in (one, two)]
        await asyncio.sleep(CHUNKS * PAUSE_S / 2)
        await kill(running.platform.stack.nats)
        async with asyncio.timeout(30):
            ends = [found[-1] for found in await asyncio.gather(*plain, *durable)]
        listed = (await one.get("/api/v1/jobs")).json()["items"]
        jobs = [await job_ended(one, job["job_id"]) for job in listed]
    print([(end.kind, end.data.get("code"), end.data.get("detail")) for end in ends])
    for end in ends:
        assert end.kind in ("done", "error")
        assert end.kind == "error" or end.data["message"]["content"] == whole
    assert [job["status"] for job in jobs] == ["succeeded"] * 2
    assert [job["result"]["message"]["content"] for job in jobs] == [whole] * 2


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks)
    failures = [task.exception() for task in done if not task.cancelled()]
    assert not failures, failures


async def nothing_lost(running: Running, load: Load) -> None:
    """Accepted = effects, each once."""
    async with running.http(load.tenant) as http:
        found = await asyncio.gather(*(job_ended(http, job_id, DONE_WITHIN_S) for job_id in load.accepted.values()))
    assert {job["status"] for job in found} == {"succeeded"}, [job for job in found if job["status"] != "succeeded"]
    rows = await running.rows(
        load.tenant,
        "SELECT d.source_id, d.chunks, array_agg(c.ordinal ORDER BY c.ordinal) AS ordinals, max(version) AS version "
        "FROM rag_documents d LEFT JOIN rag_chunks c USING (document_no) GROUP BY d.document_no",
    )
    held: dict[str, Any] = {row["source_id"]: row for row in rows}
    assert not set(load.accepted) - set(held)
    for row in rows:
        assert row["ordinals"] == list(range(row["chunks"])), dict(row)
        assert row["version"] == 1, dict(row)
