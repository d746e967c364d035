"""A platform whose own processes speak protobuf (CODEC_TYPE): requests, chunks, jobs, events, failures."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import codec
from cli import watch
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.jobs import last_of
from runtime.settings import Settings
from subjects import grammar, jobs
from subjects.contract import Code, Fault
from tests.e2e.platform import until
from tests.lab import contract as lab
from tests.lab.fixtures import ended
from tests.lab.worker import WORKER
from workers.jobs.worker import WORKER as JOBS
from workers.serving.boot import serving


@pytest_asyncio.fixture
async def speaking(lab_tables: None, settings: Settings) -> AsyncIterator[Client]:
    """The lab and jobs served in protobuf, and a client that speaks it."""
    protobuf = settings.model_copy(update={"codec_type": "protobuf"})
    own = await connect(protobuf, name="lab-in-protobuf")
    async with serving([WORKER, JOBS], protobuf, own):
        yield Client(own, protobuf, source="tests")
    await own.close()


async def test_every_way_of_speaking_works(speaking: Client, connection: Connection, identity: Identity) -> None:
    tenant = identity.tenant
    heard = await connection.subscribe(f"evt.{tenant}.lab.written")
    reply = await speaking.call(lab.ECHO, lab.Echo(text="hé", number=-7), identity=identity)
    assert (reply.text, reply.number) == ("hé", -7)
    async with speaking.stream(lab.PIECES, lab.Pieces(pieces=3), identity=identity) as stream:
        said = "".join([chunk.text async for chunk in stream if isinstance(chunk, lab.Piece)])
    assert said == stream.result.text
    with pytest.raises(Fault) as raised:
        await speaking.call(lab.WRITE, lab.Write(name="no", fault=Code.NOT_FOUND), identity=identity)
    assert (raised.value.code, raised.value.detail) == (Code.NOT_FOUND, "as asked")

    made = await speaking.submit(lab.WRITE, lab.Write(name="job"), identity=identity, key="k")
    assert (await ended(speaking, identity, made.job_id)).result == {"name": "job", "rows": 1}
    stored = await last_of(connection.requests, "JOBS", grammar.job(tenant, "lab", "write", made.job_id))
    assert stored is not None
    assert stored.content_type == codec.PROTOBUF
    assert codec.decode(stored.data, lab.Write, codec.PROTOBUF).name == "job"
    assert (await speaking.submit(lab.WRITE, lab.Write(name="job"), identity=identity, key="k")).duplicate

    event = await heard.next_msg(timeout=5)
    assert (event.headers or {})[h.CONTENT_TYPE] == codec.PROTOBUF
    assert codec.decode(event.data, lab.Happened, codec.PROTOBUF).name == "job"

    async def is_heard() -> bool:
        return (await speaking.call(lab.COUNT, lab.Count(name="job"), identity=identity)).heard == 1

    await until(is_heard, 10)


async def test_one_key_is_one_effect_whatever_the_codec(
    speaking: Client, connection: Connection, identity: Identity
) -> None:
    subject = grammar.request(identity.tenant, "lab", "write")
    for kind in codec.CONTENT_TYPES:
        given = {h.CONTENT_TYPE: kind, h.IDEMPOTENCY_KEY: "one"}  # without Body-Digest: the worker finds it
        told = await connection.request(subject, codec.encode(lab.Write(name="x"), kind), timeout=5, headers=given)
        assert h.ERROR_CODE not in (told.headers or {})
        assert codec.decode(told.data, lab.Written, kind) == lab.Written(name="x", rows=1)
    changed = codec.encode(lab.Write(name="y"), codec.PROTOBUF)
    told = await connection.request(subject, changed, timeout=5, headers={**given, h.CONTENT_TYPE: codec.PROTOBUF})
    assert codec.decode(told.data, codec.Problem, codec.PROTOBUF).code == Code.CONFLICT


def test_what_passes_on_a_subject_is_read_by_its_contract() -> None:
    changed = jobs.JobChanged(entity_id="j1", component="rag", operation="ingest", status="failed")
    data = codec.encode(changed, codec.PROTOBUF)
    body = watch._body(data, codec.PROTOBUF, "evt.acme.jobs.failed")
    assert (body["entity_id"], body["status"]) == ("j1", "failed")
    assert watch._body(data, codec.PROTOBUF, "_INBOX.x.y") == f"<{len(data)} bytes>"
