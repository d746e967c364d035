"""The kernel's promises, on real servers: answers, keys, jobs, events, chunks, drain."""

from __future__ import annotations

import asyncio
import json
import time

import msgpack  # type: ignore[import-untyped]
import pytest

import codec
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.jobs import job_id as job_id_of
from runtime.settings import Settings
from stack import Stack
from subjects import grammar, jobs
from subjects.contract import Code, Fault
from tests.lab import contract as lab
from tests.lab.fixtures import ended, rows
from tests.lab.worker import WORKER
from workers.serving.boot import serving

pytestmark = pytest.mark.usefixtures("served")


async def test_a_request_is_answered(client: Client, identity: Identity) -> None:
    reply = await client.call(lab.ECHO, lab.Echo(text="hello", number=7), identity=identity)
    assert (reply.text, reply.number, reply.tenant) == ("hello", 7, identity.tenant)


@pytest.mark.parametrize("encode", [msgpack.packb, lambda value: json.dumps(value).encode()], ids=["msgpack", "json"])
async def test_a_bare_client_without_headers_is_answered_in_its_codec(
    connection: Connection, tenant: str, encode: object
) -> None:
    body = encode({"text": "plain", "unknown": [1]})  # type: ignore[operator]
    msg = await connection.request(grammar.request(tenant, "lab", "echo"), body, timeout=5)
    decoded = json.loads(msg.data) if msg.data[:1] == b"{" else msgpack.unpackb(msg.data)
    assert decoded["text"] == "plain"
    assert (msg.data[:1] == b"{") == (body[:1] == b"{")


async def test_garbage_gets_a_fault_and_harms_nobody(
    connection: Connection, client: Client, identity: Identity
) -> None:
    for garbage in (b"\xc1", b"{", b"\xdd\xff\xff\xff\xff", b"[1]", b"\x80" * 100, b"null"):
        msg = await connection.request(grammar.request(identity.tenant, "lab", "write"), garbage, timeout=5)
        assert (msg.headers or {})[h.ERROR_CODE] == Code.INVALID, garbage
    assert (await client.call(lab.ECHO, lab.Echo(text="well"), identity=identity)).text == "well"


async def test_an_unknown_operation_is_not_found(connection: Connection, tenant: str) -> None:
    msg = await connection.request(grammar.request(tenant, "lab", "no_such"), b"{}", timeout=5)
    assert (msg.headers or {})[h.ERROR_CODE] == Code.NOT_FOUND


async def test_another_tenant_in_the_header_is_forbidden(connection: Connection, tenant: str) -> None:
    msg = await connection.request(
        grammar.request(tenant, "lab", "echo"), b"{}", timeout=5, headers={h.TENANT: "somebody-else"}
    )
    assert (msg.headers or {})[h.ERROR_CODE] == Code.FORBIDDEN


async def test_a_missing_scope_is_forbidden(client: Client, tenant: str) -> None:
    narrow = Identity.new(tenant, scopes=frozenset({"lab.count"}))
    with pytest.raises(Fault) as raised:
        await client.call(lab.ECHO, lab.Echo(), identity=narrow)
    assert raised.value.code is Code.FORBIDDEN


async def test_an_unexpected_exception_tells_nothing(client: Client, identity: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await client.call(lab.BROKEN, lab.Echo(text="secret"), identity=identity)
    assert raised.value.code is Code.INTERNAL
    assert "canary" not in raised.value.detail


async def test_a_handler_that_cancels_itself_ends_nothing_but_its_call(client: Client, identity: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await client.call(lab.CANCELS_ITSELF, lab.Echo(), identity=identity)
    assert raised.value.code is Code.INTERNAL
    assert (await client.call(lab.ECHO, lab.Echo(text="alive"), identity=identity)).text == "alive"


async def test_a_deadline_stops_the_handler(client: Client, identity: Identity, stack: Stack) -> None:
    started = time.monotonic()
    with pytest.raises(Fault) as raised:
        await client.call(lab.WRITE, lab.Write(name="late", sleep_s=10), identity=identity, timeout_s=0.3)
    assert raised.value.code is Code.TIMEOUT
    assert time.monotonic() - started < 2
    await asyncio.sleep(0.3)
    assert await rows(stack, identity.tenant, "late") == 0


async def test_the_same_key_has_one_effect_and_one_answer(client: Client, identity: Identity, stack: Stack) -> None:
    message = lab.Write(name="once", sleep_s=0.05)
    replies = await asyncio.gather(*(client.call(lab.WRITE, message, identity=identity, key="k") for _ in range(20)))
    assert {reply.rows for reply in replies} == {1}
    assert await rows(stack, identity.tenant, "once") == 1


async def test_the_same_key_with_another_body_is_a_conflict(client: Client, identity: Identity) -> None:
    await client.call(lab.WRITE, lab.Write(name="a"), identity=identity, key="k")
    with pytest.raises(Fault) as raised:
        await client.call(lab.WRITE, lab.Write(name="b"), identity=identity, key="k")
    assert raised.value.code is Code.CONFLICT


async def test_a_request_and_a_job_of_one_key_are_one_effect(client: Client, identity: Identity, stack: Stack) -> None:
    message = lab.Write(name="both")
    await client.call(lab.WRITE, message, identity=identity, key="k")
    submitted = await client.submit(lab.WRITE, message, identity=identity, key="k")
    await asyncio.sleep(0.5)
    assert submitted.job_id == job_id_of(identity.tenant, lab.WRITE.name, "k")
    assert await rows(stack, identity.tenant, "both") == 1


async def test_a_job_is_done_and_its_result_kept(client: Client, identity: Identity, stack: Stack) -> None:
    submitted = await client.submit(lab.WRITE, lab.Write(name="job"), identity=identity)
    job = await ended(client, identity, submitted.job_id)
    assert job.status == "succeeded"
    assert job.result == {"name": "job", "rows": 1}
    assert await rows(stack, identity.tenant, "job") == 1


async def test_fifty_submits_with_one_key_are_one_job(client: Client, identity: Identity, stack: Stack) -> None:
    message = lab.Write(name="fifty")
    made = await asyncio.gather(*(client.submit(lab.WRITE, message, identity=identity, key="k") for _ in range(50)))
    assert len({each.job_id for each in made}) == 1
    assert sum(not each.duplicate for each in made) == 1
    await ended(client, identity, made[0].job_id)
    assert await rows(stack, identity.tenant, "fifty") == 1
    with pytest.raises(Fault) as raised:
        await client.submit(lab.WRITE, lab.Write(name="other"), identity=identity, key="k")
    assert raised.value.code is Code.CONFLICT


async def test_two_tenants_with_one_key_have_two_jobs(client: Client, identity: Identity) -> None:
    other = Identity.new(f"{identity.tenant}b")
    one = await client.submit(lab.WRITE, lab.Write(name="x"), identity=identity, key="k")
    two = await client.submit(lab.WRITE, lab.Write(name="x"), identity=other, key="k")
    assert one.job_id != two.job_id
    assert not two.duplicate
    with pytest.raises(Fault) as raised:
        await client.call(jobs.GET, jobs.GetJob(job_id=one.job_id), identity=other)
    assert raised.value.code is Code.NOT_FOUND


async def test_a_plain_publish_on_a_job_subject_does_the_job(
    connection: Connection, identity: Identity, stack: Stack
) -> None:
    await connection.publish(f"job.{identity.tenant}.lab.write", b'{"name": "plain"}')
    for _ in range(100):
        if await rows(stack, identity.tenant, "plain"):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    assert await rows(stack, identity.tenant, "plain") == 1


async def test_a_retryable_fault_is_tried_again(
    client: Client, identity: Identity, stack: Stack, tmp_path: object
) -> None:
    message = lab.Write(name="again", fault=Code.UPSTREAM, faults=1, counter=f"{tmp_path}/calls")
    job = await ended(client, identity, (await client.submit(lab.WRITE, message, identity=identity)).job_id)
    assert (job.status, job.attempt) == ("succeeded", 2)
    assert await rows(stack, identity.tenant, "again") == 1


async def test_a_fault_that_will_not_change_fails_the_job_and_is_kept_dead(
    client: Client, connection: Connection, identity: Identity
) -> None:
    message = lab.Write(name="never", fault=Code.INVALID)
    submitted = await client.submit(lab.WRITE, message, identity=identity)
    job = await ended(client, identity, submitted.job_id)
    assert job.status == "failed"
    assert job.fault is not None
    assert (job.fault.code, job.attempt) == ("INVALID", 1)
    js = connection.jetstream()
    subject = grammar.dead_letter(identity.tenant, "lab", "write", submitted.job_id, 0)
    for _ in range(50):
        try:
            dead = await js.get_last_msg("DLQ", subject)
            break
        except Exception:
            await asyncio.sleep(0.1)
    assert codec.decode(dead.data or b"", lab.Write) == message
    assert (dead.headers or {})[h.DEAD_CODE] == "INVALID"


async def test_a_queued_job_that_is_cancelled_never_runs(
    client: Client, connection: Connection, settings: Settings, identity: Identity, stack: Stack
) -> None:
    # All slots are taken by sleepers, so the victim waits in the stream.
    sleepers = [
        await client.submit(lab.WRITE, lab.Write(name="sleeper", sleep_s=3), identity=identity) for _ in range(40)
    ]
    victim = await client.submit(lab.WRITE, lab.Write(name="victim"), identity=identity)
    job = await client.call(jobs.CANCEL, jobs.CancelJob(job_id=victim.job_id), identity=identity)
    assert job.status == "cancelled"
    for sleeper in sleepers:
        await client.call(jobs.CANCEL, jobs.CancelJob(job_id=sleeper.job_id), identity=identity)
    assert (await ended(client, identity, victim.job_id)).status == "cancelled"
    await asyncio.sleep(0.5)
    assert await rows(stack, identity.tenant, "victim") == 0


async def test_a_running_job_is_cancelled_within_a_second(client: Client, identity: Identity, stack: Stack) -> None:
    submitted = await client.submit(lab.WRITE, lab.Write(name="run", sleep_s=20), identity=identity)
    while True:
        job = await client.call(jobs.WAIT, jobs.WaitForJob(job_id=submitted.job_id, wait_s=0.2), identity=identity)
        if job.status == "running":
            break
    started = time.monotonic()
    await client.call(jobs.CANCEL, jobs.CancelJob(job_id=submitted.job_id), identity=identity)
    job = await ended(client, identity, submitted.job_id)
    assert job.status == "cancelled"
    assert time.monotonic() - started < 1.5
    assert await rows(stack, identity.tenant, "run") == 0


async def test_an_event_is_heard_once_in_effect(client: Client, identity: Identity, stack: Stack) -> None:
    await client.call(lab.WRITE, lab.Write(name="told"), identity=identity)
    for _ in range(100):
        if await rows(stack, identity.tenant, "told", "lab_heard"):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert await rows(stack, identity.tenant, "told", "lab_heard") == 1


async def test_chunks_come_in_order_and_equal_the_answer(client: Client, identity: Identity) -> None:
    async with client.stream(lab.PIECES, lab.Pieces(pieces=20, pause_s=0.005), identity=identity) as stream:
        said = [chunk.text async for chunk in stream if isinstance(chunk, lab.Piece)]
    assert len(said) > 1
    assert "".join(said) == stream.result.text


async def test_leaving_a_stream_stops_its_handler(client: Client, identity: Identity, tmp_path: object) -> None:
    async with client.stream(lab.PIECES, lab.Pieces(pieces=1000, pause_s=0.05), identity=identity) as stream:
        async for _ in stream:
            break
    # The lab has one slot more again: nothing to see from outside but that it goes on serving.
    assert (await client.call(lab.ECHO, lab.Echo(text="on"), identity=identity)).text == "on"


async def test_drain_finishes_what_runs_and_hands_back_the_rest(
    client: Client, settings: Settings, identity: Identity, stack: Stack
) -> None:
    own = await connect(settings, name="lab-drained")
    quick = settings.model_copy(update={"shutdown_grace_s": 0.5})
    async with serving([WORKER], quick, own):
        made = [
            await client.submit(lab.WRITE, lab.Write(name="drained", sleep_s=0.8), identity=identity) for _ in range(24)
        ]
        await asyncio.sleep(0.1)
    await own.close()
    for each in made:
        assert (await ended(client, identity, each.job_id)).status == "succeeded"
    assert await rows(stack, identity.tenant, "drained") == 24
