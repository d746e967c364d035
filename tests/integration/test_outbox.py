"""The rule of events: published if, and only if, the state they tell of was committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime import streams
from runtime.client import Client
from runtime.connection import connect
from runtime.settings import Settings
from stack import Stack
from store.database import Database
from store.outbox import BATCH_ROWS, Outbox, OutboxRow
from subjects import grammar
from subjects.contract import Code, Fault

LOOKS, LOOK_EVERY_S = 100, 0.05


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[Database]:
    database = await Database.open(stack.database_url, max_size=4, name="test")
    yield database
    await database.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(settings: Settings) -> AsyncIterator[Client]:
    connection = await connect(settings, name="outbox-test")
    await streams.ensure(connection, settings)
    yield Client(connection, settings, source="test")
    await connection.close()


async def stored(client: Client, subject: str) -> int:
    info = await client.connection.jetstream().stream_info("EVENTS", subjects_filter=subject)
    return sum((info.state.subjects or {}).values())


async def left(database: Database, tenant: str) -> int:
    async with database.transaction(tenant) as tx:
        return int(await tx.fetchval("SELECT count(*) FROM outbox"))


def fact(tenant: str) -> str:
    return grammar.event(tenant, "rag", "indexed")


async def commit(database: Database, outbox: Outbox, tenant: str, number: int, subject: str = "") -> list[OutboxRow]:
    rows = [outbox.row(subject or fact(tenant), {"A": "b"}, b"%d" % n) for n in range(number)]
    async with database.transaction(tenant) as tx:
        await outbox.add(tx, tenant, rows)
    return rows


async def test_committed_rows_are_published_and_removed(database: Database, client: Client, tenant: str) -> None:
    async with Outbox(database, client) as outbox:
        rows = await commit(database, outbox, tenant, BATCH_ROWS + 50)
        outbox.notify(tenant, rows)
        for _ in range(LOOKS):
            if not await left(database, tenant):
                break
            await asyncio.sleep(LOOK_EVERY_S)
    assert await left(database, tenant) == 0
    assert await stored(client, fact(tenant)) == len(rows)
    message = await client.connection.jetstream().get_last_msg("EVENTS", fact(tenant))
    assert (message.headers or {})["Nats-Msg-Id"] in {str(row.event_id) for row in rows}
    assert (message.headers or {})["A"] == "b"


async def test_rows_that_were_rolled_back_are_never_seen(database: Database, client: Client, tenant: str) -> None:
    async def fail() -> None:
        async with database.transaction(tenant) as tx:
            await outbox.add(tx, tenant, [outbox.row(f"evt.{tenant}.rag.indexed", {}, b"x")])
            raise Fault(Code.INVALID, "the handler failed")

    async with Outbox(database, client) as outbox:
        with pytest.raises(Fault):
            await fail()
    assert await left(database, tenant) == 0
    assert await stored(client, fact(tenant)) == 0


async def test_what_the_broker_refuses_stays_for_the_relay(database: Database, client: Client, tenant: str) -> None:
    async with Outbox(database, client) as outbox:
        outbox.notify(tenant, await commit(database, outbox, tenant, 3, f"nowhere.{tenant}"))
    assert await left(database, tenant) == 3


async def test_a_stop_publishes_what_waits(database: Database, client: Client, tenant: str) -> None:
    async with Outbox(database, client) as outbox:
        outbox.notify(tenant, await commit(database, outbox, tenant, 5))
    assert await stored(client, fact(tenant)) == 5
    assert await left(database, tenant) == 0
