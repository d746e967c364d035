"""Replay's rules: what has ended stays as it is unless forced, nothing is sent twice, nobody else's is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

import codec
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.headers import block
from runtime.identity import Identity
from runtime.jobs import ask_stream, job_id
from runtime.settings import Settings
from runtime.stored import Stored, read_stored
from stack import Stack
from subjects import gateway, grammar, jobs, rag
from subjects.contract import AnyCall, Code, Fault, Model
from tests.lab.fixtures import ended
from tests.upstream import Upstream
from workers.cache.worker import WORKER as CACHE
from workers.gateway.worker import WORKER as GATEWAY
from workers.jobs.worker import WORKER as JOBS
from workers.rag.worker import WORKER as RAG
from workers.serving.boot import serving

ROOT = Path(__file__).resolve().parents[2]
GENERATE = "gateway.generate"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def others(settings: Settings, upstream: Upstream) -> AsyncIterator[Settings]:
    """rag, gateway and cache, whose models are the scripted upstream's."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-test-key")
        environment.setenv("OPENAI_BASE_URL", upstream.url)
        changed = settings.model_copy(
            update={"llm_default_model": "openai/ok", "embed_default_model": "openai/vectors", "shutdown_grace_s": 5}
        )
        own = await connect(changed, name="replay-others")
        async with serving([RAG, GATEWAY, CACHE], changed, own):
            yield changed
        await own.close()


@pytest_asyncio.fixture
async def here(others: Settings) -> AsyncIterator[None]:
    """The component jobs in this process."""
    own = await connect(others, name="replay-jobs")
    async with serving([JOBS], others, own):
        yield
    await own.close()


async def said(client: Client, who: Identity, text: str, model: str = "openai/ok") -> jobs.Job:
    """A generation that has ended."""
    made = await client.submit(gateway.GENERATE, gateway.Generate(prompt=text, model=model), identity=who)
    return await ended(client, who, made.job_id)


async def replayed(client: Client, who: Identity, subject: str = GENERATE, **more: Any) -> jobs.Replayed:
    """What a replay from the beginning of the stream comes to."""
    message = jobs.Replay.model_validate({"subject": subject, "first_sequence": 1, **more})
    made = await client.submit(jobs.REPLAY, message, identity=who)
    job = await ended(client, who, made.job_id)
    assert job.status == "succeeded", job.fault
    return jobs.Replayed.model_validate(job.result)


async def all_ended(client: Client, who: Identity, told: jobs.Replayed) -> list[jobs.Job]:
    return [await ended(client, who, each.replayed_as) for each in told.jobs]


async def publish(
    connection: Connection, tenant: str, call: AnyCall, ident: str, message: Model | bytes, **headers: str
) -> None:
    """As anybody might, without an id when there is none."""
    subject = f"{grammar.JOB}.{tenant}.{call.component}.{call.operation}{ident and '.' + ident}"
    data = message if isinstance(message, bytes) else codec.encode(message)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    assert b'"seq"' in (await ask_stream(connection.requests, subject, data, block(given))).data


async def stored(connection: Connection, tenant: str) -> list[Stored]:
    """The tenant's messages in JOBS, replays aside."""
    found = [each async for each in read_stored(connection, "JOBS", f"job.{tenant}.>")]
    return [each for each in found if ".jobs.replay." not in each.subject]


def counts(told: jobs.Replayed, name: str = GENERATE) -> dict[str, int]:
    """Those that are not 0."""
    return {fate: number for fate, number in told.operations[name].model_dump().items() if number}


@pytest.mark.usefixtures("here")
async def test_a_replay_of_finished_work_changes_nothing_and_calls_no_model(
    client: Client, identity: Identity, connection: Connection, upstream: Upstream
) -> None:
    before = [await said(client, identity, f"word {n}", "openai/finished") for n in range(3)]
    kept = len(await stored(connection, identity.tenant))
    assert upstream.hits["finished"] == 3
    told = await replayed(client, identity)
    assert counts(told) == {"finished": 3}
    assert told.jobs == []
    assert len(await stored(connection, identity.tenant)) == kept
    # Even what is sent all the same, by somebody who has not looked, is found finished.
    for each in await stored(connection, identity.tenant):
        headers = {name.replace("-", "_"): value for name, value in each.headers.items() if not name.startswith("Nats")}
        ident = f"{grammar.parse(each.subject).ident}.r1"
        await publish(connection, identity.tenant, gateway.GENERATE, ident, each.data, **headers)
    await said(client, identity, "after them")
    after = [await ended(client, identity, job.job_id) for job in before]
    assert after == before
    assert upstream.hits["finished"] == 3


@pytest.mark.usefixtures("here")
async def test_a_dry_run_counts_what_a_forced_replay_does(
    client: Client, identity: Identity, connection: Connection, upstream: Upstream, tenant: str
) -> None:
    made = await client.submit(rag.INGEST, rag.Ingest(text="The ferry leaves at nine."), identity=identity)
    result = (await ended(client, identity, made.job_id)).result
    assert isinstance(result, dict)
    await said(client, identity, "hello", "openai/counted")
    await publish(connection, tenant, gateway.GENERATE, "jgarbage", b"\xc1")
    await publish(connection, tenant, gateway.GENERATE, "jnobody", gateway.Generate(prompt="x"), X_Scopes="rag.query")
    await publish(connection, tenant, gateway.GENERATE, "", gateway.Generate(prompt="plain", model="openai/counted"))
    for ident in ("jgarbage", "jnobody"):
        await ended(client, identity, ident)
    while upstream.hits["counted"] < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    document = rag.GetDocument(document_id=str(result["document_id"]))
    await client.call(rag.DELETE_DOCUMENT, rag.DeleteDocument(document_id=document.document_id), identity=identity)

    dry = await replayed(client, identity, "*", force=True, dry_run=True)
    assert counts(dry) == {"run": 2, "unreadable": 1, "not_permitted": 1}
    assert counts(dry, rag.INGEST.name) == {"run": 1}
    assert upstream.hits["counted"] == 2
    with pytest.raises(Fault):
        await client.call(rag.GET_DOCUMENT, document, identity=identity)

    told = await replayed(client, identity, "*", force=True)
    # The dry run is a message of its own by now.
    assert {name: counts(told, name) for name in (GENERATE, rag.INGEST.name, jobs.REPLAY.name)} == {
        GENERATE: counts(dry), rag.INGEST.name: counts(dry, rag.INGEST.name), jobs.REPLAY.name: {"skipped": 2},
    }  # fmt: skip
    again = await all_ended(client, identity, told)
    assert {job.status for job in again} == {"succeeded"}
    assert upstream.hits["counted"] == 4
    assert (await client.call(rag.GET_DOCUMENT, document, identity=identity)).document_id == document.document_id
    for each in told.jobs:
        name = f"{each.component}.{each.operation}"
        assert each.replayed_as == job_id(tenant, name, f"{each.job_id}#{told.replay_id}")
    # What replays made is not replayed, however often.
    third = await replayed(client, identity, force=True, dry_run=True)
    assert counts(third) == {"run": 2, "unreadable": 1, "not_permitted": 1, "skipped": 2}


@pytest.mark.usefixtures("here")
async def test_a_forced_replay_keeps_who_asked_and_may_ask_another_model(
    client: Client, identity: Identity, connection: Connection, upstream: Upstream, tenant: str
) -> None:
    ann = Identity.new(tenant, "ann", frozenset({"gateway.*", "jobs.wait"}), correlation_id="from-ann")
    first = await said(client, ann, "hello", "openai/first-model")
    told = await replayed(client, identity, f"job.{tenant}.gateway.*.{first.job_id}", force=True,
                          set={"model": "openai/second-model"})  # fmt: skip
    (again,) = await all_ended(client, identity, told)
    assert (again.status, again.job_id != first.job_id) == ("succeeded", True)
    assert (upstream.hits["first-model"], upstream.hits["second-model"]) == (1, 1)
    one, two = await stored(connection, tenant)
    for name in (h.USER, h.SCOPES, h.CORRELATION_ID):
        assert two.headers[name] == one.headers[name]
    assert two.headers[h.REPLAY_OF] == first.job_id
    assert two.headers[h.ORIGINAL_TRACEPARENT] == one.headers[h.TRACEPARENT]
    assert two.headers[h.TRACEPARENT][3:35] != one.headers[h.TRACEPARENT][3:35]
    dry = await replayed(client, identity, force=True, dry_run=True, set={"temperature": "hot"})
    assert counts(dry) == {"unreadable": 1, "skipped": 1}
    with pytest.raises(Fault) as raised:
        await client.call(jobs.REPLAY, jobs.Replay(subject="*", first_sequence=1, set={"model": "x"}), identity=ann)
    assert raised.value.code is Code.FORBIDDEN  # ann may not replay
    with pytest.raises(Fault) as raised:
        await client.call(
            jobs.REPLAY, jobs.Replay(subject="*", first_sequence=1, set={"model": "x"}), identity=identity
        )
    assert raised.value.code is Code.INVALID  # without force


@pytest.mark.usefixtures("here")
async def test_what_the_books_have_lost_runs_again_once_under_its_own_id(
    client: Client, identity: Identity, connection: Connection, upstream: Upstream, stack: Stack, tenant: str
) -> None:
    job = await said(client, identity, "hello", "openai/lost")
    database = await asyncpg.connect(stack.database_url)
    async with database.transaction():
        await database.execute("SELECT set_config('app.tenant', $1, true)", tenant)
        await database.execute("DELETE FROM inbox WHERE key = $1", job.job_id)
        await database.execute("DELETE FROM jobs WHERE job_id = $1", job.job_id)
    await database.close()
    assert (await client.call(jobs.GET, jobs.GetJob(job_id=job.job_id), identity=identity)).status == "queued"
    told = await replayed(client, identity)
    assert counts(told) == {"run": 1}
    assert [each.replayed_as for each in told.jobs] == [job.job_id]
    assert (await ended(client, identity, job.job_id)).status == "succeeded"
    assert [each.subject.split(".")[4:] for each in await stored(connection, tenant)] == [
        [job.job_id],
        [job.job_id, "r1"],
    ]
    assert counts(await replayed(client, identity)) == {"finished": 1, "skipped": 1}
    assert upstream.hits["lost"] == 2


@pytest.mark.usefixtures("here")
async def test_another_tenants_jobs_are_out_of_reach(client: Client, identity: Identity, upstream: Upstream) -> None:
    await said(client, identity, "mine", "openai/others")
    other = Identity.new(f"{identity.tenant}x")
    for subject in ("*", GENERATE, f"job.{other.tenant}.>"):
        assert (await replayed(client, other, subject, force=True)).total.run == 0
    for subject in (f"job.{identity.tenant}.>", f"job.{identity.tenant}.gateway.generate.>", "job.*.gateway.>"):
        with pytest.raises(Fault) as raised:
            await client.call(jobs.REPLAY, jobs.Replay(subject=subject, first_sequence=1, force=True), identity=other)
        assert raised.value.code is Code.FORBIDDEN
    narrow = Identity.new(identity.tenant, scopes=frozenset({"jobs.*"}))
    assert counts(await replayed(client, narrow, force=True)) == {"not_permitted": 1}
    assert upstream.hits["others"] == 1


@pytest.mark.usefixtures("here")
async def test_a_range_of_time_or_of_the_stream_is_kept_to(
    client: Client, identity: Identity, connection: Connection
) -> None:
    for n in range(4):
        await said(client, identity, f"word {n}")
    first, second, third, _ = await stored(connection, identity.tenant)
    within = await replayed(client, identity, first_sequence=second.sequence, last_sequence=third.sequence)
    assert counts(within) == {"finished": 2}
    since = await replayed(client, identity, first_sequence=None, since=third.stored_at)
    assert counts(since) == {"finished": 2}
    assert since.first_sequence == third.sequence > first.sequence


@pytest.mark.usefixtures("here")
async def test_a_slow_replay_keeps_its_rate_and_stops_when_it_is_cancelled(
    client: Client, identity: Identity, upstream: Upstream
) -> None:
    for n in range(12):
        await said(client, identity, f"word {n}", "openai/slow")
    began = time.monotonic()
    message = jobs.Replay(subject=GENERATE, first_sequence=1, force=True, rate=5)
    made = await client.submit(jobs.REPLAY, message, identity=identity)
    while upstream.hits["slow"] < 12 + 4:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert time.monotonic() - began > 3 / 5
    await client.call(jobs.CANCEL, jobs.CancelJob(job_id=made.job_id), identity=identity)
    assert (await ended(client, identity, made.job_id)).status == "cancelled"
    sent = upstream.hits["slow"]
    await asyncio.sleep(0.6)
    assert upstream.hits["slow"] == sent < 24


async def test_a_replay_whose_process_is_killed_goes_on_and_sends_nothing_twice(
    client: Client, identity: Identity, upstream: Upstream, stack: Stack, others: Settings, connection: Connection
) -> None:
    for n in range(30):
        await client.submit(gateway.GENERATE, gateway.Generate(prompt=f"word {n}", model="openai/killed"),
                            identity=identity)  # fmt: skip
    while upstream.hits["killed"] < 30:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    environ = {**os.environ, **stack.environ(), "JOB_ACK_WAIT_S": "2", "LOG_LEVEL": "warning"}

    async def worker() -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "cli", "worker", "jobs")
        return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environ)

    process = await worker()
    try:
        message = jobs.Replay(subject=GENERATE, first_sequence=1, force=True, rate=10)
        made = await client.submit(jobs.REPLAY, message, identity=identity)
        async with asyncio.timeout(20):
            while upstream.hits["killed"] < 30 + 8:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert upstream.hits["killed"] < 60
        process = await worker()
        async with asyncio.timeout(20):
            while upstream.hits["killed"] < 60:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        job = await ended(client, identity, made.job_id)
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
    told = jobs.Replayed.model_validate(job.result)
    assert (counts(told), job.attempt) == ({"run": 30}, 2)
    assert len(await stored(connection, identity.tenant)) == 60
    assert upstream.hits["killed"] == 60


@pytest.mark.usefixtures("here")
async def test_what_cannot_be_sent_with_its_headers_stops_nobody(
    client: Client, identity: Identity, connection: Connection, upstream: Upstream, tenant: str
) -> None:
    large = gateway.Generate(prompt="large", model="openai/large").model_dump() | {"padding": "x" * (2**20 - 700)}
    await publish(connection, tenant, gateway.GENERATE, "jlarge", codec.encode_plain(large))
    await said(client, identity, "small", "openai/large")
    await ended(client, identity, "jlarge")
    told = await replayed(client, identity, force=True)
    assert counts(told) == {"run": 1, "unreadable": 1}
    await all_ended(client, identity, told)
    assert upstream.hits["large"] == 3
