"""The rules of Postgres: one tenant's rows in a transaction, none outside, one kind of error."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest
import pytest_asyncio

from stack import Stack
from store.database import Database
from store.migrate import Migration, migrate
from store.transaction import Transaction
from subjects.contract import Code, Fault

PAPERS = Migration(
    "papers/0001_papers",
    "CREATE TABLE papers (tenant_id text, id text, about jsonb, place vector(3), PRIMARY KEY (tenant_id, id));"
    "SELECT enable_tenancy('papers')",
)
PLATFORM_ONLY = {"schema_migrations"}
KEEPER_SEES = {"inbox", "outbox", "jobs", "steps"}
INSERT = "INSERT INTO papers (tenant_id, id, about) VALUES ($1, $2, $3)"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[Database]:
    await migrate(stack.database_owner_url, migrations=[PAPERS])
    database = await Database.open(stack.database_url, max_size=3, name="test")
    yield database
    await database.close()


async def count(database: Database, tenant: str) -> int:
    async with database.transaction(tenant) as tx:
        return int(await tx.fetchval("SELECT count(*) FROM papers"))


async def owner_rows(stack: Stack, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(stack.database_owner_url)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


async def test_a_tenant_sees_nothing_of_another(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as tx:
        await tx.execute(INSERT, tenant, "a", {"title": "ours"})
    assert await count(database, tenant) == 1
    assert await count(database, f"{tenant}-other") == 0
    async with database.transaction(f"{tenant}-other") as tx:
        assert await tx.execute("DELETE FROM papers WHERE tenant_id = $1", tenant) == "DELETE 0"
    assert await count(database, tenant) == 1


async def test_nothing_can_be_written_for_another_tenant(database: Database, tenant: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.transaction(tenant) as tx:
            await tx.execute(INSERT, f"{tenant}-other", "a", {})


async def test_outside_a_transaction_of_a_tenant_reads_find_nothing(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as tx:
        await tx.execute(INSERT, tenant, "a", {})
    async with database.untenanted() as tx:
        assert await tx.fetch("SELECT * FROM papers") == []
    assert await database.alone("SELECT * FROM papers") == []


@pytest.mark.parametrize("tenant", ["", "A", "a.b", "*", ">", "a'; DROP TABLE papers; --", "a b", "a\n", "x" * 64])
async def test_a_tenant_that_is_no_token_opens_nothing(database: Database, tenant: str) -> None:
    with pytest.raises(Fault) as raised:
        async with database.transaction(tenant):
            pass
    assert raised.value.code is Code.INVALID


async def test_row_level_security_is_forced_on_every_table(stack: Stack, database: Database) -> None:
    rows = await owner_rows(
        stack,
        "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity AS forced, EXISTS (SELECT FROM pg_attribute a "
        "WHERE a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull) AS owned FROM pg_class c "
        "WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace",
    )
    tables = {row["relname"]: row["forced"] and row["owned"] for row in rows}
    assert set(tables) >= KEEPER_SEES
    assert {name for name, forced in tables.items() if not forced} == PLATFORM_ONLY


async def test_roles_have_no_more_than_their_grants(stack: Stack, database: Database) -> None:
    roles = await owner_rows(stack, "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb AS power "
                                    "FROM pg_roles WHERE rolname LIKE 'faas_%'")  # fmt: skip
    assert {row["rolname"]: row["power"] for row in roles} == dict.fromkeys(
        ("faas_owner", "faas_app", "faas_keeper"), False
    )
    grants = await owner_rows(
        stack,
        "SELECT DISTINCT c.relname, r.rolname, p.privilege FROM pg_class c, pg_roles r, "
        "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES']) p(privilege) "
        "WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND r.rolname <> 'faas_owner' "
        "AND r.rolname LIKE 'faas_%' AND (has_table_privilege(r.oid, c.oid, p.privilege) OR p.privilege IN "
        "('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(r.oid, c.oid, p.privilege))",
    )
    keeper = {(row["relname"], row["privilege"]) for row in grants if row["rolname"] == "faas_keeper"}
    assert keeper == {(table, what) for table in KEEPER_SEES for what in ("SELECT", "DELETE")} | {
        ("outbox", "UPDATE"), ("jobs", "UPDATE"),
    }  # fmt: skip
    app = {row["privilege"] for row in grants if row["rolname"] == "faas_app"}
    assert app == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert not any(row["relname"] in PLATFORM_ONLY for row in grants)


async def test_the_keeper_reads_no_reply_of_a_message(stack: Stack, database: Database) -> None:
    keeper = await asyncpg.connect(stack.database_keeper_url)
    try:
        for column, table in (("reply", "inbox"), ("result", "jobs"), ("result", "steps"), ("id", "papers")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await keeper.fetch(f"SELECT {column} FROM {table}")  # noqa: S608
    finally:
        await keeper.close()


BAD = ["a\0b", "\ud800", {"a": float("nan")}, {"a": "\0"}, {"a": "\ud800"}, 2**63, 1 << 300]


@pytest.mark.parametrize("value", BAD, ids=[str(n) for n in range(len(BAD))])
async def test_what_postgres_cannot_hold_is_invalid(database: Database, tenant: str, value: object) -> None:
    sql = {str: "SELECT $1::text", dict: "SELECT $1::jsonb", int: "SELECT $1::bigint"}[type(value)]
    with pytest.raises(Fault) as raised:
        async with database.transaction(tenant) as tx:
            await tx.fetchval(sql, value)
    assert raised.value.code is Code.INVALID
    assert await count(database, tenant) == 0  # the connection serves on


async def test_a_broken_rule_of_the_schema_is_the_callers_to_judge(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as tx:
        await tx.execute(INSERT, tenant, "a", {})
        with pytest.raises(asyncpg.UniqueViolationError):
            async with tx.savepoint():
                await tx.execute(INSERT, tenant, "a", {})
        await tx.execute(INSERT, tenant, "b", {})
    assert await count(database, tenant) == 2


async def test_an_exception_takes_everything_back(database: Database, tenant: str) -> None:
    async def handle() -> None:
        async with database.transaction(tenant) as tx:
            await tx.execute(INSERT, tenant, "a", {})
            raise RuntimeError("the handler failed")

    with pytest.raises(RuntimeError):
        await handle()
    assert await count(database, tenant) == 0


async def test_a_swallowed_failure_is_not_reported_as_committed(database: Database, tenant: str) -> None:
    async def handle() -> None:
        async with database.transaction(tenant) as tx:
            await tx.execute(INSERT, tenant, "a", {})
            with suppress(asyncpg.UniqueViolationError):
                await tx.execute(INSERT, tenant, "a", {})

    with pytest.raises(Fault) as raised:
        await handle()
    assert raised.value.code is Code.INTERNAL
    assert await count(database, tenant) == 0


async def test_a_transaction_that_has_ended_refuses_statements(database: Database, tenant: str) -> None:
    kept: list[Transaction] = []
    async with database.transaction(tenant) as tx:
        kept.append(tx)
    with pytest.raises(Fault) as raised:
        await kept[0].fetch("SELECT 1")
    assert raised.value.code is Code.INTERNAL


async def test_many_rows_go_in_by_copy_under_the_policy(database: Database, tenant: str) -> None:
    rows = [(tenant, f"p{n}", {"n": n}, [1.0, 2.0, float(n)]) for n in range(300)]
    names = ["tenant_id", "id", "about", "place"]
    async with database.transaction(tenant) as tx:
        assert await tx.copy_into("papers", names, rows) == 300
        assert await tx.copy_into("papers", names, rows[:9], on_conflict="ON CONFLICT DO NOTHING") == 0
    async with database.transaction(tenant, search=True) as tx:
        near = await tx.fetchrow("SELECT id, about FROM papers ORDER BY place <-> $1 LIMIT 1", [1.0, 2.0, 7.1])
    assert near is not None
    assert (near["id"], near["about"]) == ("p7", {"n": 7})
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.transaction(f"{tenant}-other") as tx:
            await tx.copy_into("papers", names, rows[:1])


async def test_when_all_connections_are_busy_the_wait_is_bounded(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.transaction.ACQUIRE_TIMEOUT_S", 0.2)
    async with database.transaction(tenant), database.transaction(tenant), database.transaction(tenant):
        with pytest.raises(Fault) as raised:
            async with database.transaction(tenant):
                pass
    assert raised.value.code is Code.UNAVAILABLE


async def end_sessions(stack: Stack, name: str) -> None:
    keeper = await asyncpg.connect(stack.database_url)
    try:
        await keeper.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)
    finally:
        await keeper.close()


async def test_a_connection_that_dies_is_a_fault_and_the_pool_is_whole_again(stack: Stack, tenant: str) -> None:
    name = f"dies-{uuid.uuid4().hex[:8]}"
    database = await Database.open(stack.database_url, max_size=1, name=name)

    async def cut_in_the_middle() -> None:
        async with database.transaction(tenant) as tx:
            await end_sessions(stack, name)
            await tx.fetchval("SELECT 1")

    try:
        with pytest.raises(Fault) as raised:
            await cut_in_the_middle()
        assert raised.value.code is Code.UNAVAILABLE
        with pytest.raises(Fault) as raised:
            async with database.transaction(tenant):
                await end_sessions(stack, name)
        assert raised.value.code is Code.UNAVAILABLE  # OutcomeUnknown, or the loss was seen before COMMIT
        async with database.transaction(tenant) as tx:
            assert await tx.fetchval("SELECT 1") == 1
    finally:
        await database.close()


async def test_a_cancelled_commit_is_finished_first(database: Database, tenant: str) -> None:
    committing = asyncio.Event()

    async def write() -> None:
        async with database.transaction(tenant) as tx:
            await tx.execute(INSERT, tenant, "a", {})
            committing.set()

    task = asyncio.create_task(write())
    await committing.wait()  # it runs on into COMMIT; the cancel arrives there
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count(database, tenant) == 1


async def test_a_frozen_database_fails_in_time_and_serves_again(
    stack: Stack, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.database.COMMAND_TIMEOUT_S", 0.5)
    database = await Database.open(stack.database_url, min_size=4, max_size=4, name="frozen")

    async def ask() -> None:
        async with database.transaction(tenant) as tx:
            await tx.fetchval("SELECT 1")

    try:
        stack.postgres.signal(signal.SIGSTOP)
        began = time.monotonic()
        attempts = [ask(), ask(), database.ping(), database.alone("SELECT 1", timeout_s=0.5)]
        found = await asyncio.gather(*attempts, return_exceptions=True)
        took = time.monotonic() - began
        cancelled = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await asyncio.wait({cancelled}, timeout=5)
        assert cancelled.done()
    finally:
        stack.postgres.signal(signal.SIGCONT)
    assert all(isinstance(error, Fault) and error.code in (Code.TIMEOUT, Code.UNAVAILABLE) for error in found), found
    assert took < 5
    await asyncio.gather(*(ask() for _ in range(8)))
    await database.close()


async def test_ping_tells_whether_the_database_serves(database: Database) -> None:
    await database.ping()
    with pytest.raises(Fault) as raised:
        await Database.open("postgresql://nobody:x@127.0.0.1:1/none", name="test")
    assert raised.value.code is Code.UNAVAILABLE
