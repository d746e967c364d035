"""A tenant with something in every place of the platform, and a picture of all that it has, to compare."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import redis.asyncio

from runtime.identity import Identity
from stack import Stack
from store.objects import Objects
from subjects import cache, gateway, ingestion, rag
from tests.contract.examples import World
from tests.contract.fixtures import Bus, new_tenant

STREAMS = {"JOBS": "job", "EVENTS": "evt", "OUT": "out", "DLQ": "dlq"}
ON_ITS_WAY = {"outbox"}
"""Tables whose rows leave by themselves."""


async def settled(bus: Bus, objects: Objects) -> World:
    """A new tenant that has a cache entry, a file, its text, documents, jobs, outputs and events."""
    tenant, canary = new_tenant(), f"canary{uuid.uuid4().hex}"
    who, client = Identity.new(tenant, "owner"), bus.client
    text = f"The secret word is {canary}. Nobody else may read it."
    await client.call(cache.SET, cache.Set(key="key", value={"word": canary}, tags=["tag"]), identity=who)
    content = text.encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    file_id = "f" + uuid.uuid4().hex[:20]
    await objects.put(tenant, file_id, pieces(), max_bytes=1 << 20, timeout_s=5)
    digest = hashlib.sha256(content).hexdigest()
    register = ingestion.Register(file_id=file_id, name=f"{canary}.txt", size=len(content), sha256=digest)
    uploaded = await client.call(ingestion.REGISTER, register, identity=who)
    said = await client.submit(gateway.GENERATE, gateway.Generate(prompt=f"Repeat {canary}"), identity=who)
    ingest = rag.Ingest(text=f"{text} Twice.", source_id="source", title=canary)
    ingested = await client.call(rag.INGEST, ingest, identity=who)
    search = rag.Search(query="secret word")
    assert canary in (await client.call(rag.SEARCH, search, identity=who)).results[0].text
    for job_id in (uploaded.job_id, said.job_id):
        job = await bus.ended(tenant, job_id, within_s=60)
        assert job.status == "succeeded", job.fault
    return World(
        tenant, canary, file_id=file_id, document_id=ingested.document_id, job_id=uploaded.job_id,
        output_id=said.job_id,
    )  # fmt: skip


async def tables(connection: asyncpg.Connection[Any]) -> list[str]:
    """Every table but the ledger of migrations."""
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace "
        "AND relname <> 'schema_migrations' ORDER BY relname"
    )
    return [row["relname"] for row in rows]


async def rows_of(stack: Stack, tenant: str) -> dict[str, tuple[int, str]]:
    """How many rows the tenant sees in each table, and a hash of them."""
    connection = await asyncpg.connect(stack.database_url)
    try:
        found = {}
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.tenant', $1, true)", tenant)
            for table in await tables(connection):
                row = await connection.fetchrow(
                    f"SELECT count(*) AS n, md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) AS hash, "  # noqa: S608
                    f"count(*) FILTER (WHERE tenant_id <> $1) AS strange FROM {table} AS t",
                    tenant,
                )
                assert row is not None
                assert row["strange"] == 0, f"{table} shows rows of others"
                found[table] = (row["n"], row["hash"])
        return found
    finally:
        await connection.close()


async def picture(bus: Bus, stack: Stack, objects: Objects, world: World) -> dict[str, Any]:
    """All that the tenant has: rows, cache, objects, messages of every stream. Once nothing is on its way."""
    tenant = world.tenant
    async with asyncio.timeout(10):
        while (rows := await rows_of(stack, tenant))["outbox"][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    valkey = redis.asyncio.from_url(stack.redis_url)
    try:
        names = sorted([name async for name in valkey.scan_iter(match=f"*{tenant}*", count=1000)])
        kept = {name: await valkey.dump(name) for name in names}
    finally:
        await valkey.aclose()
    js = bus.connection.jetstream()
    messages = {
        stream: (await js.stream_info(stream, subjects_filter=f"{prefix}.{tenant}.>")).state.subjects
        for stream, prefix in STREAMS.items()
    }
    files = [await objects.stat(tenant, ident) for ident in (world.file_id, f"{world.file_id}-text")]
    return {
        "rows": {name: found for name, found in rows.items() if name not in ON_ITS_WAY},
        "cache": kept,
        "messages": messages,
        "files": files,
    }
