"""The keeper's rules: nothing committed is left unpublished, nothing unfinished is removed, one works at a time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
import structlog
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig, StreamInfo, StreamState

from runtime import metrics, streams
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack
from store import sweep
from store.database import Database, prepare
from store.keeper import ADVISORY_LOCK, Keeper
from store.lag import LAG, Lag, behind
from store.lost import Lost
from store.sweep import Sweep, finished_below
from subjects import grammar
from tests.e2e.platform import until
from tests.lab import contract as lab
from tests.lab.fixtures import rows
from tests.lab.worker import WORKER
from workers.serving.boot import serving

LOOKS, LOOK_EVERY_S = 200, 0.05
WITHIN_S = 15.0
REDRIVEN = {"Redrive": "2"}
HEADERS = {"Content-Type": "application/json", "Nats-Msg-Id": "stripped"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to a broker of this module's own: its streams are wiped here."""
    home = Path(tempfile.mkdtemp(prefix="faas-k-", dir="/tmp"))
    try:
        async with Stack(home, parts=frozenset({"nats"}), ports={"nats": 0}) as own:
            own_settings = settings.model_copy(update={"nats_url": own.nats_url})
            connection = await connect(own_settings, name="keeper-test")
            await streams.ensure(connection, own_settings)
            yield connection
            await connection.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def role(stack: Stack) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """The keeper's own connection to the database."""
    connection = await asyncpg.connect(stack.database_keeper_url)
    await prepare(connection)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[Database]:
    database = await Database.open(stack.database_url, max_size=4, name="test")
    yield database
    await database.close()


async def ids(database: Database, tenant: str, statement: str) -> set[str]:
    async with database.transaction(tenant) as tx:
        return {str(row[0]) for row in await tx.fetch(statement)}


async def stored(connection: Connection, stream: str, subject: str) -> int:
    info = await connection.jetstream().stream_info(stream, subjects_filter=subject)
    return sum((info.state.subjects or {}).values())


async def add_event(database: Database, tenant: str, subject: str, age_s: float) -> uuid.UUID:
    event_id = uuid.uuid4()
    async with database.transaction(tenant) as tx:
        await tx.execute(
            "INSERT INTO outbox (tenant_id, event_id, subject, headers, body, due_at) "
            "VALUES ($1, $2, $3, $4, $5, now() + interval '5 s' - $6::interval)",
            tenant, event_id, subject, {"A": "b"}, b"body", timedelta(seconds=age_s),
        )  # fmt: skip
    return event_id


async def test_the_relay_publishes_what_is_older_than_five_seconds(
    stack: Stack, database: Database, role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str
) -> None:
    subject = grammar.event(tenant, "rag", "indexed")
    for _ in range(205):
        await add_event(database, tenant, subject, age_s=60)
    young = await add_event(database, tenant, subject, age_s=0)
    await Keeper(stack.database_keeper_url, connection).relay(role)
    assert await ids(database, tenant, "SELECT event_id FROM outbox") == {str(young)}
    assert await stored(connection, "EVENTS", subject) == 205


async def test_a_row_that_the_broker_refuses_waits_longer_and_holds_up_no_other(
    stack: Stack, database: Database, role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str
) -> None:
    subject = grammar.event(tenant, "rag", "indexed")
    nowhere = await add_event(database, tenant, f"nowhere.{tenant}", age_s=120)
    await add_event(database, tenant, subject, age_s=60)
    keeper = Keeper(stack.database_keeper_url, connection)
    await keeper.relay(role)
    assert await ids(database, tenant, "SELECT event_id FROM outbox WHERE attempts = 1 AND due_at > now()") == {
        str(nowhere)
    }
    assert await stored(connection, "EVENTS", subject) == 1


async def test_rows_are_forgotten_eight_days_after_their_end(
    stack: Stack, database: Database, role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str
) -> None:
    async with database.transaction(tenant) as tx:
        for name, created, ended in (("old", 9, 9), ("long", 9, 1), ("new", 1, 1), ("open", 9, None)):
            made = timedelta(days=created)
            done = None if ended is None else timedelta(days=ended)
            await tx.execute(
                "INSERT INTO inbox (tenant_id, operation, key, digest, owner, lease_until, created_at, done_at) "
                "VALUES ($1, 'rag.ingest', $2, '', '', now(), now() - $3::interval, now() - $4::interval)",
                tenant, name, made, done,
            )  # fmt: skip
            await tx.execute(
                "INSERT INTO jobs (tenant_id, job_id, component, operation, status, created_at, finished_at) "
                "VALUES ($1, $2, 'rag', 'ingest', CASE WHEN $4::interval IS NULL THEN 'running' ELSE 'failed' END, "
                "now() - $3::interval, now() - $4::interval)",
                tenant, name, made, done,
            )  # fmt: skip
            await tx.execute(
                "INSERT INTO steps (tenant_id, job_id, name, result, created_at) "
                "VALUES ($1, $2, 'embed', '', now() - $3::interval)",
                tenant, name, made,
            )  # fmt: skip
    await Keeper(stack.database_keeper_url, connection).forget(role)
    assert await ids(database, tenant, "SELECT key FROM inbox") == {"long", "new", "open"}
    assert await ids(database, tenant, "SELECT job_id FROM jobs") == {"long", "new", "open"}
    assert await ids(database, tenant, "SELECT job_id FROM steps") == {"new", "open"}


async def test_only_finished_jobs_are_purged(
    role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    js = connection.jetstream()
    for component in ("alpha", "beta", "idle"):
        config = ConsumerConfig(
            durable_name=component, filter_subject=grammar.jobs_of(component), ack_policy=AckPolicy.EXPLICIT
        )
        await js.add_consumer("JOBS", config)
    for n in range(6):
        for component in ("alpha", "beta", "ghost"):
            await js.publish(grammar.job(tenant, component, "work", f"j{n}"), b"{}")
    for component, finished in (("alpha", 6), ("beta", 2)):
        pull = await js.pull_subscribe_bind(consumer=component, stream="JOBS")
        for msg in await pull.fetch(finished):
            await msg.ack_sync()
    kept = [f"job.{tenant}.{component}.>" for component in ("alpha", "beta", "ghost")]
    await Sweep(connection).purge(role)
    assert [await stored(connection, "JOBS", subject) for subject in kept] == [6, 6, 6]  # none is 7 days old
    monkeypatch.setattr(sweep, "JOB_AGE", timedelta(0))
    await Sweep(connection).purge(role)
    assert [await stored(connection, "JOBS", subject) for subject in kept] == [0, 4, 6]


async def test_dead_letters_go_after_their_time(
    role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = grammar.dead_letter(tenant, "rag", "ingest", "j1", 0)
    await connection.jetstream().publish(subject, b"{}")
    await Sweep(connection).purge(role)
    assert await stored(connection, "DLQ", subject) == 1
    monkeypatch.setattr(sweep, "DEAD_LETTER_AGE", timedelta(0))
    await Sweep(connection).purge(role)
    assert await stored(connection, "DLQ", subject) == 0


def test_without_consumers_nothing_is_finished() -> None:
    assert finished_below(100, []) == {}


async def test_running_jobs_are_published_again_when_their_stream_was_made_anew(
    settings: Settings,
    database: Database,
    role: asyncpg.Connection[asyncpg.Record],
    connection: Connection,
    tenant: str,
) -> None:
    async with database.transaction(tenant) as tx:
        states = {"j1": "running", "j2": "running", "j3": "succeeded", "j4": "running"}
        for job_id, status in states.items():
            await tx.execute(
                "INSERT INTO jobs (tenant_id, job_id, component, operation, status, headers, body, started_at) "
                "VALUES ($1, $2, 'rag', 'ingest', $3, $4, $5, now() - interval '1 h')",
                tenant, job_id, status, HEADERS | (REDRIVEN if job_id == "j4" else {}), b"{}",
            )  # fmt: skip
    js = connection.jetstream()
    await js.delete_stream("JOBS")
    await streams.ensure(connection, settings)
    keeper = Sweep(connection)
    await keeper.republish(role)
    await keeper.republish(role)
    await Sweep(connection).republish(role)  # another process leads now: nothing is published twice
    counts = [await stored(connection, "JOBS", grammar.job(tenant, "rag", "ingest", f"j{n}")) for n in (1, 2, 3)]
    assert counts == [1, 1, 0]
    assert await stored(connection, "JOBS", grammar.job(tenant, "rag", "ingest", "j4", "d2")) == 1
    message = await js.get_last_msg("JOBS", grammar.job(tenant, "rag", "ingest", "j1"))
    assert message.data == b"{}"
    assert (message.headers or {}).get("Content-Type") == "application/json"
    assert "Nats-Msg-Id" not in (message.headers or {})


async def test_a_job_seen_running_is_done_once_although_its_stream_was_wiped(
    lab_tables: None,
    stack: Stack,
    settings: Settings,
    database: Database,
    role: asyncpg.Connection[asyncpg.Record],
    connection: Connection,
    tenant: str,
) -> None:
    assert connection.connected_url is not None
    own = settings.model_copy(update={"nats_url": connection.connected_url.geturl(), "shutdown_grace_s": 0})

    @asynccontextmanager
    async def worker() -> AsyncIterator[None]:
        opened = await connect(own, name="wiped")
        async with serving([WORKER], own, opened):
            yield
        await opened.close()

    def is_told(status: str) -> Callable[[], Awaitable[bool]]:
        async def ask() -> bool:
            return bool(await ids(database, tenant, f"SELECT 1 FROM jobs WHERE status = '{status}'"))  # noqa: S608

        return ask

    keeper = Sweep(connection)
    await keeper.republish(role)
    client, message = Client(connection, own, source="tests"), lab.Write(name="wiped", sleep_s=1)
    async with worker():
        await client.submit(lab.WRITE, message, identity=Identity.new(tenant))
        await until(is_told("running"), WITHIN_S)
        await connection.jetstream().delete_stream("JOBS")
    await streams.ensure(connection, own)
    await keeper.republish(role)
    async with worker():
        await until(is_told("succeeded"), WITHIN_S)
    assert await rows(stack, tenant, "wiped") == 1


async def add_job(database: Database, tenant: str, job_id: str, *, status: str, hours: int, cancel: bool) -> None:
    async with database.transaction(tenant) as tx:
        await tx.execute(
            "INSERT INTO jobs (tenant_id, job_id, component, operation, status, cancel_requested, headers, created_at) "
            "VALUES ($1, $2, 'rag', 'ingest', $3, $4, $5, now() - $6::interval)",
            tenant, job_id, status, cancel, HEADERS, timedelta(hours=hours),
        )  # fmt: skip


async def test_a_job_without_message_and_claim_is_ended_after_two_looks(
    database: Database, role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str
) -> None:
    for job_id, status, hours in (
        ("lost", "running", 2), ("lost-cancelled", "queued", 2), ("kept", "running", 2), ("redriven", "queued", 2),
        ("claimed", "running", 2), ("young", "running", 0),
    ):  # fmt: skip
        await add_job(database, tenant, job_id, status=status, hours=hours, cancel=job_id == "lost-cancelled")
    for subject in (
        grammar.job(tenant, "rag", "ingest", "kept"),
        grammar.job(tenant, "rag", "ingest", "redriven", "d1"),
    ):
        await connection.jetstream().publish(subject, b"{}")
    async with database.transaction(tenant) as tx:
        await tx.execute(
            "INSERT INTO inbox (tenant_id, operation, key, digest, owner, lease_until) "
            "VALUES ($1, 'rag.ingest', 'claimed', '', '', now() + interval '1 min')", tenant,
        )  # fmt: skip
    unfinished = "SELECT job_id FROM jobs WHERE status IN ('queued', 'running')"
    lost = Lost(connection)
    await lost.end(role)
    assert await ids(database, tenant, unfinished) >= {"lost", "lost-cancelled"}
    for _ in range(2):
        await lost.end(role)
        assert await ids(database, tenant, unfinished) == {"kept", "redriven", "claimed", "young"}
    async with database.transaction(tenant) as tx:
        ended = await tx.fetch("SELECT job_id, status, fault, body FROM jobs WHERE finished_at IS NOT NULL")
    told = {row["job_id"]: (row["status"], row["fault"]["code"], row["body"]) for row in ended}
    assert told == {"lost": ("failed", "INTERNAL", None), "lost-cancelled": ("cancelled", "CANCELLED", None)}
    for event in ("failed", "cancelled"):
        assert await stored(connection, "EVENTS", grammar.event(tenant, "jobs", event)) == 1
    end = await connection.jetstream().get_last_msg("OUT", grammar.output(tenant, "lost"))
    assert (end.headers or {})["Chunk-End"] == "error"


async def test_a_consumer_that_lags_by_four_fifths_of_what_is_kept_is_told(
    role: asyncpg.Connection[asyncpg.Record], connection: Connection, tenant: str
) -> None:
    js, kept_bytes, component = connection.jetstream(), 64 * 1024, f"c{tenant}"
    await js.purge_stream("EVENTS")
    before = (await js.stream_info("EVENTS")).config
    await js.update_stream(replace(before, max_bytes=kept_bytes))
    for name, of in (("slow", "indexed"), ("idle", "never")):
        await js.add_consumer(
            "EVENTS",
            ConsumerConfig(
                durable_name=f"{component}-{name}",
                filter_subject=grammar.events_of(component, of),
                ack_policy=AckPolicy.EXPLICIT,
            ),
        )
    lag, slow, idle = Lag(connection), f"{component}-slow", f"{component}-idle"
    unwatch = LAG.watch(lag.read)

    def told_as(value: str) -> str:
        return f'faas_consumer_lag{{faas_consumer="{slow}"}} {value}'

    async def told() -> tuple[float, float, list[tuple[str, float, float]]]:
        with structlog.testing.capture_logs() as lines:
            await lag.look(role)
        shares = {name: share for (name,), share in lag.read()}
        warned = [(line["consumer"], line["lag"], line["limit"]) for line in lines if line["event"] == "consumer_lags"]
        return shares[slow], shares[idle], warned

    try:
        for _ in range(11):
            await js.publish(grammar.event(tenant, component, "indexed"), b"x" * 4096)
        share, nothing, warned = await told()
        assert (0.6 < share < 0.8, nothing, warned) == (True, 0.0, [])
        for _ in range(3):
            await js.publish(grammar.event(tenant, component, "indexed"), b"x" * 4096)
        share, nothing, warned = await told()
        assert (0.8 <= share < 1, nothing, warned) == (True, 0.0, [(slow, round(share, 3), 0.8)])
        assert told_as("0.8") in metrics.prometheus()
        pull = await js.pull_subscribe_bind(consumer=slow, stream="EVENTS")
        for msg in await pull.fetch(14):
            await msg.ack_sync()
        assert await told() == (0.0, 0.0, [])
        assert told_as("0") in metrics.prometheus()
    finally:
        unwatch()
        await js.update_stream(before)
        for name in (slow, idle):
            await js.delete_consumer("EVENTS", name)


def test_lag_is_by_age_or_by_bytes_whichever_is_nearer() -> None:
    state = StreamState(messages=100, bytes=1000, first_seq=1, last_seq=100, consumer_count=1)
    info = StreamInfo(StreamConfig(max_age=1000, max_bytes=2000), state)
    assert behind(info, 101, 0) == 0
    assert behind(info, 1, 100) == 0.5
    assert behind(info, 100, 850) == 0.85
    assert behind(StreamInfo(StreamConfig(), state), 1, 1e9) == 0


async def test_one_of_two_keepers_works_and_the_other_takes_over(
    stack: Stack, database: Database, connection: Connection, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.keeper.STAND_BY_S", 0.1)
    monkeypatch.setattr("store.keeper.ADVISORY_LOCK", ADVISORY_LOCK + uuid.uuid4().int % 2**20 + 1)
    keepers = [asyncio.create_task(Keeper(stack.database_keeper_url, connection).run()) for _ in range(2)]
    try:
        for _ in range(2):
            await add_event(database, tenant, grammar.event(tenant, "rag", "indexed"), age_s=60)
            for _ in range(LOOKS):
                if not await ids(database, tenant, "SELECT event_id FROM outbox"):
                    break
                await asyncio.sleep(LOOK_EVERY_S)
            assert await ids(database, tenant, "SELECT event_id FROM outbox") == set()
            keepers[0].cancel()
            await asyncio.wait({keepers[0]})
    finally:
        for task in keepers:
            task.cancel()
        await asyncio.wait(keepers)
