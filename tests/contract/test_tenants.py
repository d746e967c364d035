"""A message on one tenant's subject sees and changes that tenant's things only, whatever else it claims."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import httpx
import jwt
import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from typer.testing import CliRunner

from bridge.server import running
from cli.main import app
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection
from runtime.identity import Identity
from runtime.output_reader import read_output
from runtime.settings import Settings
from stack import Stack
from store.objects import Objects
from subjects import cache, gateway, jobs, rag
from subjects.contract import AnyCall, Code, Fault
from tests.contract.examples import CALLS, JOBS, World, example
from tests.contract.fixtures import Answer, Bus, Runs, new_tenant
from tests.contract.holdings import picture, rows_of, settled, tables

Expected = Callable[[Any], bool]


def fails(code: Code) -> Expected:
    return lambda answer: answer == code


NOT_FOUND = fails(Code.NOT_FOUND)

SEEN_BY_ANOTHER: dict[str, Expected] = {
    "cache.get": lambda a: not a["found"],
    "cache.get_many": lambda a: not any(each["found"] for each in a["entries"]),
    "cache.set": lambda a: a["written"] and a["version"] > 0,
    "cache.set_many": lambda a: all(each["written"] for each in a["results"]),
    "cache.delete": lambda a: not a["deleted"],
    "cache.invalidate": lambda a: a["count"] == 0,
    "cache.get_or_lock": lambda a: a["state"] == "locked" and not a["entry"]["found"],
    "cache.stats": lambda a: (a["keys"], a["bytes"], a["hits"]) == (0, 0, 0),
    "gateway.generate": lambda a: a["message"]["content"] == "Paris is the capital.",
    "gateway.embed": lambda a: len(a["embeddings"]) == 2,
    "gateway.list_models": lambda a: all(each["provider"] == "openai" for each in a["items"]),
    "gateway.list_providers": lambda a: a["items"],
    "ingestion.register": NOT_FOUND,
    "ingestion.process": NOT_FOUND,
    "ingestion.get_file": NOT_FOUND,
    "ingestion.list_files": lambda a: a["items"] == [],
    "jobs.get": NOT_FOUND,
    "jobs.list": lambda a: a["items"] == [],
    "jobs.wait": NOT_FOUND,
    "jobs.cancel": NOT_FOUND,
    "jobs.replay": lambda a: set(a["operations"]) <= {"jobs.replay"} and not a["total"]["finished"],
    "jobs.list_dead_letters": lambda a: a["items"] == [],
    "jobs.get_dead_letter": NOT_FOUND,
    "jobs.redrive": NOT_FOUND,
    "jobs.purge_dead_letters": NOT_FOUND,
    "rag.ingest": NOT_FOUND,
    "rag.query": lambda a: not a["answered"] and not a["citations"],
    "rag.search": lambda a: a["results"] == [],
    "rag.get_document": NOT_FOUND,
    "rag.list_documents": lambda a: a["items"] == [],
    "rag.update_document": NOT_FOUND,
    "rag.delete_document": lambda a: not a["deleted"],
}
"""What B gets for a message that names A's ids: a code, or an answer in which nothing of A's is."""

HOSTILE = (
    "", "*", ">", "a.b", "a.*", ".", "A", "Acme", "a" * 64, "a" * 1024, "а-cyrillic", "acme\u200b", "ａcme", "aсme",
    "a b", " a", "a\n", "a\r\nPUB x 0", "a\0b", "-a", "_a", "a/b", "../a", "a%2eb", "$JS", "é", "\ud800",
)  # fmt: skip


@pytest.fixture
def objects(connection: Connection) -> Objects:
    return Objects(connection)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(served: tuple[Connection, Runs], settings: Settings, connection: Connection) -> World:
    """Tenant A."""
    bus = Bus(connection, Client(connection, settings, source="tests"), served[1])
    return await settled(bus, Objects(connection))


def as_seen(answer: Answer) -> Any:
    return answer.code or answer.body


@pytest.mark.parametrize("call", CALLS, ids=[call.name for call in CALLS])
async def test_what_names_anothers_things_finds_nothing(
    call: AnyCall, world: World, bus: Bus, stack: Stack, objects: Objects
) -> None:
    before = await picture(bus, stack, objects, world)
    claims: list[dict[str, str]] = [
        {},
        {"X_User_ID": "owner", "X_Scopes": "*"},
        {"x_tenant_id": world.tenant},  # not the header's name: it says nothing
        {"Output_To": world.output_id},
        {"Idempotency_Key": "k", "Reply_To": f"_INBOX.{world.tenant}"},
    ]
    for headers in claims:
        answer = await bus.ask(call, new_tenant(), example(call, world), **headers)
        assert SEEN_BY_ANOTHER[call.name](as_seen(answer)), (headers, answer.body)
        assert world.canary.encode() not in answer.data
    refused = await bus.ask(call, new_tenant(), example(call, world), X_Tenant_ID=world.tenant)
    assert refused.code == Code.FORBIDDEN
    assert await picture(bus, stack, objects, world) == before


@pytest.mark.parametrize("call", JOBS, ids=[call.name for call in JOBS])
async def test_a_job_that_names_anothers_things_finds_nothing(
    call: AnyCall, world: World, bus: Bus, stack: Stack, objects: Objects
) -> None:
    if call.name == "ingestion.process":
        pytest.skip("waits ten minutes for its upload, which never comes")
    before, other = await picture(bus, stack, objects, world), new_tenant()
    # The very id of one of A's jobs, under B's subject, is another job.
    await bus.store(call, other, world.job_id, example(call, world), Output_To=world.output_id)
    job = await bus.ended(other, world.job_id)
    assert job.operation == call.operation
    assert SEEN_BY_ANOTHER[call.name](job.fault.code if job.fault else job.result)
    assert world.canary not in job.model_dump_json()
    assert await picture(bus, stack, objects, world) == before


def test_every_operation_has_its_answer_to_another() -> None:
    assert set(SEEN_BY_ANOTHER) == {call.name for call in CALLS}


async def test_anothers_output_is_not_read_or_joined(world: World, connection: Connection) -> None:
    async def kinds(tenant: str) -> list[str]:
        return [i.kind async for i in read_output(connection, tenant, world.output_id, idle_timeout_s=0.3)]

    assert (await kinds(world.tenant))[-1] == "done"
    assert await kinds(new_tenant()) == ["error"]


async def test_anothers_running_job_is_not_cancelled(world: World, bus: Bus) -> None:
    owner, other = Identity.new(world.tenant), Identity.new(new_tenant())
    long = gateway.Generate(prompt="Go on.", model="openai/long")
    made = await bus.client.submit(gateway.GENERATE, long, identity=owner)

    async def status(who: Identity) -> str:
        return (await bus.client.call(jobs.GET, jobs.GetJob(job_id=made.job_id), identity=who)).status

    async with asyncio.timeout(10):
        while await status(owner) != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await bus.client.cancel(other.tenant, made.job_id)
    with pytest.raises(Fault) as raised:
        await bus.client.call(jobs.CANCEL, jobs.CancelJob(job_id=made.job_id), identity=other)
    assert raised.value.code is Code.NOT_FOUND
    await asyncio.sleep(0.5)
    assert await status(owner) == "running"
    await bus.client.call(jobs.CANCEL, jobs.CancelJob(job_id=made.job_id), identity=owner)
    assert (await bus.ended(world.tenant, made.job_id)).status == "cancelled"


async def test_two_tenants_with_equal_names_have_two_things(bus: Bus) -> None:
    one, two = Identity.new(new_tenant()), Identity.new(new_tenant())
    for who in (one, two):
        text = rag.Ingest(text=f"Written by {who.tenant}.", source_id="same", title="same")
        await bus.client.call(rag.INGEST, text, identity=who, key="same")
        await bus.client.call(cache.SET, cache.Set(key="same", value=who.tenant), identity=who, key="same")
    for who in (one, two):
        found = await bus.client.call(rag.SEARCH, rag.Search(query="written"), identity=who)
        assert [hit.text for hit in found.results] == [f"Written by {who.tenant}."]
        assert (await bus.client.call(cache.GET, cache.Get(key="same"), identity=who)).value == who.tenant


# --- tenants that are none -------------------------------------------------------------------------------------------


@asynccontextmanager
async def nothing_is_said(connection: Connection) -> AsyncIterator[None]:
    """Nothing is published meanwhile on any subject of ours."""
    heard: list[str] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.subject)

    made = [await connection.subscribe(f"{prefix}.>", cb=hear) for prefix in ("req", "job", "evt", "out", "ctl", "dlq")]
    await connection.flush()
    try:
        yield
        await connection.flush()
        await asyncio.sleep(0.05)
    finally:
        for each in made:
            await each.unsubscribe()
    assert heard == []


@pytest.mark.parametrize("tenant", HOSTILE, ids=lambda tenant: repr(tenant[:12]))
async def test_a_hostile_tenant_is_refused_before_anything_is_published(
    tenant: str, client: Client, connection: Connection
) -> None:
    with pytest.raises(Fault) as raised:
        Identity.new(tenant)
    assert raised.value.code is Code.INVALID
    forged = replace(Identity.new("fine"), tenant=tenant)
    submitted = gateway.Embed(input="x")
    async with nothing_is_said(connection):
        sent = connection.stats["out_msgs"]
        for ask in (
            lambda: client.call(cache.STATS, cache.StatsRequest(), identity=forged),
            lambda: client.submit(gateway.EMBED, submitted, identity=forged, key="k"),
            lambda: client.cancel(tenant, "jx"),
            lambda: client.call_raw(f"req.{tenant}.cache.stats", b"{}", {}, 1.0),
            lambda: client.publish_event(cache.INVALIDATED, tenant, b"{}", {}, "e1"),
        ):
            with pytest.raises(Fault) as raised:
                await ask()
            assert raised.value.code is Code.INVALID
        assert connection.stats["out_msgs"] == sent


async def test_a_worker_refuses_a_hostile_tenant_that_came_through(bus: Bus) -> None:
    for tenant in ("Acme", "a" * 64, "a" * 1024, "acme\u200b", "é", "-a", "a%2eb"):
        for call in CALLS:
            answer = await bus.ask(call, tenant, example(call, World("x")))
            assert answer.code == Code.INVALID, (tenant, call.name)
            bus.ran(call, tenant, 0)


async def test_the_command_line_refuses_a_hostile_tenant(
    stack: Stack, settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.jwt_secret is not None
    for name, value in {**stack.environ(), "JWT_SECRET": settings.jwt_secret.get_secret_value()}.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()

    def all_of_them() -> list[tuple[str, list[str], int]]:
        ways = (["call", "cache.stats"], ["submit", "gateway.embed", '{"input": "x"}'], ["jobs", "get", "jx"],
                ["jobs", "cancel", "jx"], ["token"])  # fmt: skip
        hostile = [tenant for tenant in HOSTILE if tenant.isprintable()][:14]
        return [(t, way, runner.invoke(app, [*way, f"--tenant={t}"]).exit_code) for t in hostile for way in ways]

    async with nothing_is_said(connection):
        done = await asyncio.to_thread(all_of_them)
    assert [each for each in done if each[2] not in (1, 2)] == []
    fine = await asyncio.to_thread(lambda: runner.invoke(app, ["token", "--tenant", "acme"]))
    assert fine.exit_code == 0


async def test_the_bridge_takes_no_hostile_tenant_and_no_claim_of_another(
    settings: Settings, connection: Connection, world: World, bus: Bus
) -> None:
    assert settings.jwt_secret is not None
    secret, now = settings.jwt_secret.get_secret_value(), int(time.time())
    claims = {"sub": "ann", "scope": "*", "iat": now, "exp": now + 600, "aud": settings.jwt_audience,
              "iss": settings.jwt_issuer}  # fmt: skip
    free = settings.model_copy(update={"bridge_port": 0, "shutdown_grace_s": 5})
    async with running(free, connection) as url, httpx.AsyncClient(base_url=url, timeout=10) as http:

        async def post(tenant: Any, path: str, body: Any, **headers: str) -> httpx.Response:
            token = jwt.encode({**claims, "tenant_id": tenant}, secret, algorithm="HS256")
            return await http.post(path, json=body, headers={"Authorization": f"Bearer {token}", **headers})

        async with nothing_is_said(connection):
            for tenant in (*(t for t in HOSTILE if t != "\ud800"), None, 7, ["a"], {"a": 1}, True):
                answer = await post(tenant, "/api/v1/cache/stats", {})
                assert answer.status_code == 401, tenant
            other = new_tenant()
            refused = await post(other, "/api/v1/cache/stats", {}, **{h.TENANT: world.tenant})
            assert refused.status_code == 403
        for call in CALLS:
            if call.public and call.name != "ingestion.process":  # its job waits ten minutes for its upload
                seen = await post(other, call.path, example(call, world), Prefer="wait=1", **{h.SCOPES: "*"})
                assert world.canary not in seen.text
                if seen.status_code < 400 and call.name not in ("cache.set", "cache.set_many") and not call.long:
                    fresh = await post(new_tenant(), call.path, example(call, world))
                    assert SEEN_BY_ANOTHER[call.name](fresh.json()), (call.name, fresh.text)


# --- the database ----------------------------------------------------------------------------------------------------


async def test_every_table_is_under_forced_row_level_security(stack: Stack, world: World) -> None:
    connection = await asyncpg.connect(stack.database_owner_url)
    try:
        found = await tables(connection)
        assert {"inbox", "outbox", "jobs", "steps", "files", "rag_documents", "rag_chunks"} <= set(found)
        for table in found:
            row = await connection.fetchrow(
                "SELECT c.relrowsecurity, c.relforcerowsecurity, a.attnotnull FROM pg_class c JOIN pg_attribute a "
                "ON a.attrelid = c.oid AND a.attname = 'tenant_id' WHERE c.oid = $1::regclass", table,
            )  # fmt: skip
            assert row is not None, f"{table} has no tenant_id"
            assert tuple(row) == (True, True, True), f"{table} is not under forced row-level security"
            policies = await connection.fetch("SELECT * FROM pg_policies WHERE tablename = $1", table)
            for policy in policies:
                if policy["roles"] != ["faas_keeper"]:
                    for rule in (policy["qual"], policy["with_check"]):
                        assert rule == "(tenant_id = current_setting('app.tenant'::text, true))", table
            assert policies, table
        roles = await connection.fetch("SELECT * FROM pg_roles WHERE rolname LIKE 'faas%'")
        assert not any(role["rolsuper"] or role["rolbypassrls"] for role in roles)
        assert await connection.fetchval("SELECT count(*) FROM pg_views WHERE schemaname = 'public'") == 0
        risen = "SELECT count(*) FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        assert await connection.fetchval(risen) == 0
    finally:
        await connection.close()


async def test_without_a_tenant_no_row_is_seen_or_written(stack: Stack, world: World) -> None:
    assert sum(n for n, _ in (await rows_of(stack, world.tenant)).values()) > 5
    for url in (stack.database_url, stack.database_owner_url):
        connection = await asyncpg.connect(url)
        try:
            for table in await tables(connection):
                assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table  # noqa: S608
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(
                    "INSERT INTO steps (tenant_id, job_id, name, result) VALUES ('a', 'j', 'n', '')"
                )
        finally:
            await connection.close()


def test_the_expectations_are_no_wishes() -> None:
    """Each one about A's things refuses what A itself would get."""
    own = {
        "found": True, "entries": [{"found": True}], "deleted": True, "count": 1, "keys": 1, "bytes": 1, "hits": 1,
        "operations": {"rag.ingest": {}}, "items": [1],
        "results": [1], "answered": True, "citations": [1], "state": "hit", "entry": {"found": True},
    }  # fmt: skip
    others = {"cache.set", "cache.set_many"} | {name for name in SEEN_BY_ANOTHER if name.startswith("gateway.")}
    assert [name for name, holds in SEEN_BY_ANOTHER.items() if name not in others and holds(own)] == []
