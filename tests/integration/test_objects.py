"""The object store: bounded memory both ways, whole or not at all, nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime import streams
from runtime.connection import Connection, connect
from runtime.settings import Settings
from store.bucket import Bucket, chunk_subject
from store.objects import CHUNK_BYTES, Objects
from subjects.contract import Code, Fault
from tests.broker import own_broker

BIG = 64 << 20


@pytest_asyncio.fixture
async def connection(settings: Settings) -> AsyncIterator[Connection]:
    connection = await connect(settings, name="test-objects")
    await streams.ensure(connection, settings)
    yield connection
    await connection.close()


@pytest.fixture
def objects(connection: Connection) -> Objects:
    return Objects(connection)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(objects: Objects, tenant: str, data: bytes, file_id: str = "f1") -> None:
    await objects.put(tenant, file_id, pieces(data), max_bytes=BIG, timeout_s=20)


async def chunks_kept(connection: Connection) -> int:
    info = await connection.jetstream().stream_info(streams.FILES_STREAM, subjects_filter="$O.files.C.>")
    return sum((info.state.subjects or {}).values())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 9 * CHUNK_BYTES + 7, 6 << 20])
async def test_what_was_put_is_what_is_read(objects: Objects, tenant: str, size: int) -> None:
    data = os.urandom(size)
    cut = [data[at : at + 50_001] for at in range(0, size, 50_001)]
    stored = await objects.put(tenant, "f1", pieces(*cut), max_bytes=BIG, timeout_s=20)
    assert (stored.size, stored.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert await objects.stat(tenant, "f1") == stored
    assert await objects.read(tenant, "f1", BIG, 20) == data


async def test_the_nats_client_reads_what_we_wrote(objects: Objects, connection: Connection, tenant: str) -> None:
    data = os.urandom(3 * CHUNK_BYTES)
    await put(objects, tenant, data)
    bucket = await connection.jetstream().object_store(streams.FILES_BUCKET)
    assert (await bucket.get(f"{tenant}/f1")).data == data


async def test_a_file_over_its_limit_leaves_nothing_behind(
    objects: Objects, connection: Connection, tenant: str
) -> None:
    before = await chunks_kept(connection)
    with pytest.raises(Fault) as caught:
        await objects.put(tenant, "f1", pieces(*[bytes(CHUNK_BYTES)] * 20), max_bytes=15 * CHUNK_BYTES, timeout_s=20)
    assert caught.value.code is Code.TOO_LARGE
    assert await chunks_kept(connection) == before
    with pytest.raises(Fault, match="NOT_FOUND"):
        await objects.stat(tenant, "f1")


async def test_a_cancelled_put_leaves_nothing_behind(objects: Objects, connection: Connection, tenant: str) -> None:
    before = await chunks_kept(connection)
    reached = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(5 * CHUNK_BYTES)
        reached.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(objects.put(tenant, "f1", stalls(), max_bytes=BIG, timeout_s=60))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await chunks_kept(connection) == before


async def test_a_source_that_stalls_ends_at_the_deadline(objects: Objects, connection: Connection, tenant: str) -> None:
    before = await chunks_kept(connection)

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(3 * CHUNK_BYTES)
        await asyncio.sleep(60)

    with pytest.raises(Fault, match="TIMEOUT"):
        await objects.put(tenant, "f1", stalls(), max_bytes=BIG, timeout_s=0.3)
    assert await chunks_kept(connection) == before


async def test_replacing_and_deleting_leave_no_chunk(objects: Objects, connection: Connection, tenant: str) -> None:
    before = await chunks_kept(connection)
    await put(objects, tenant, b"a" * (2 * CHUNK_BYTES))
    await put(objects, tenant, b"b" * 10)
    assert await objects.read(tenant, "f1", 100, 5) == b"b" * 10
    assert await chunks_kept(connection) == before + 1
    assert await objects.delete(tenant, "f1") is True
    assert await objects.delete(tenant, "f1") is False
    assert await chunks_kept(connection) == before
    with pytest.raises(Fault, match="NOT_FOUND"):
        await objects.read(tenant, "f1", 100, 5)


async def test_many_writers_of_one_name_leave_one_object(objects: Objects, connection: Connection, tenant: str) -> None:
    before = await chunks_kept(connection)
    bodies = [bytes([n]) * 1000 for n in range(5)]
    outcomes = await asyncio.gather(*(put(objects, tenant, body) for body in bodies), return_exceptions=True)
    assert any(outcome is None for outcome in outcomes)
    assert await objects.read(tenant, "f1", BIG, 5) in bodies
    assert await chunks_kept(connection) == before + 1


async def test_an_object_of_another_tenant_is_not_found(objects: Objects, tenant: str) -> None:
    await put(objects, tenant, b"mine")
    with pytest.raises(Fault, match="NOT_FOUND"):
        await objects.read("other", "f1", 100, 5)
    for bad in ("*", ">", "a.b", "", "../x", "a/b"):
        with pytest.raises(Fault, match="INVALID"):
            await objects.stat(tenant, bad)


async def test_a_damaged_object_is_an_error_before_its_end(
    objects: Objects, connection: Connection, tenant: str
) -> None:
    await put(objects, tenant, bytes(3 * CHUNK_BYTES))
    described = await Bucket(connection).look(f"{tenant}/f1")
    js = connection.jetstream()
    last = await js.get_last_msg(streams.FILES_STREAM, chunk_subject(described.nuid))
    await js.delete_msg(streams.FILES_STREAM, last.seq or 0)
    await js.publish(chunk_subject(described.nuid), b"x" * CHUNK_BYTES)
    got: list[int] = []

    async def read() -> None:
        async for piece in objects.open(tenant, "f1", 10):
            got.append(len(piece))

    with pytest.raises(Fault, match="damaged"):
        await read()
    assert sum(got) == 2 * CHUNK_BYTES


async def test_reading_over_the_limit_is_too_large(objects: Objects, tenant: str) -> None:
    await put(objects, tenant, bytes(3 * CHUNK_BYTES))
    with pytest.raises(Fault, match="TOO_LARGE"):
        await objects.read(tenant, "f1", CHUNK_BYTES, 5)


async def test_a_frozen_broker_ends_a_read_and_a_write_at_their_deadline(settings: Settings, tenant: str) -> None:
    async with own_broker() as server:
        own = settings.model_copy(update={"nats_url": server.url})
        connection = await connect(own, name="test-frozen")
        await streams.ensure(connection, own)
        objects = Objects(connection)
        await put(objects, tenant, bytes(200 * CHUNK_BYTES))  # more than the reader and the sockets take ahead
        reader = objects.open(tenant, "f1", 1.0)
        assert await anext(reader)
        server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Fault):
                async for _ in reader:
                    pass
            started = asyncio.get_running_loop().time()
            with pytest.raises(Fault):
                await objects.put(tenant, "f2", pieces(bytes(CHUNK_BYTES)), max_bytes=BIG, timeout_s=0.5)
            assert asyncio.get_running_loop().time() - started < 6
        finally:
            server.signal(signal.SIGCONT)
            await connection.close()
