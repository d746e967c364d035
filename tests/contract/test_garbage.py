"""What no polite client can send, to every worker at once: dropped and counted; everybody goes on serving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime.connection import Connection
from runtime.streams import JOBS as STREAM
from stack import Stack
from subjects import gateway
from subjects.contract import Code
from tests.broker import RawSocket
from tests.contract.examples import CALLS, JOBS, World, example
from tests.contract.fixtures import Bus, Runs, new_tenant

BODY = b"\x80"
BLOCKS: dict[str, bytes] = {
    "abc": b"abc",
    "exactly NATS/1.0": b"NATS/1.0",
    "a status line that is no UTF-8": b"NATS/1.0 \xff\xfe\r\n\r\n",
    "a status that is no number": b"NATS/1.0 x y\r\n\r\n",
    "no end": b"NATS/1.0\r\nA: b",
    "a value that is no UTF-8": b"NATS/1.0\r\nX-User-ID: \xff\xfe\r\n\r\n",
    "a name that is no UTF-8": b"NATS/1.0\r\n\xff\xfe: x\r\n\r\n",
    "a reserved one": b"NATS/1.0\r\nNats-Service-Error-Code: 500\r\nStatus: 503\r\n\r\n",
    "1,000 lines": b"NATS/1.0\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "70 KB": b"NATS/1.0\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    "a status for a puller": b"NATS/1.0 404 No Messages\r\n\r\n",
}
SUBJECTS = (b"req.\xff\xfe.%b.%b", b"req.a\xc3.%b.%b", b"req.\xed\xa0\x80.%b.%b", b"req.A.%b.%b", b"req.\x01.%b.%b")
REPLIES = (b"_INBOX.\xff\xfe", b"\xff", b"$JS.API.STREAM.PURGE.JOBS", b"$JS.ACK.x", b"req.a.cache.stats", b"out.a.b")


@pytest_asyncio.fixture
async def raw(stack: Stack) -> AsyncIterator[RawSocket]:
    socket = await RawSocket.open(stack.nats_url)
    yield socket
    socket.close()


async def everybody_serves(bus: Bus) -> None:
    """Every operation answers within a second, and every component does a job."""
    tenant = new_tenant()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(bus.ask(call, tenant, example(call, World(tenant))) for call in CALLS))
    failed = [
        (call.name, a.body) for call, a in zip(CALLS, answers, strict=True) if a.code not in (None, Code.NOT_FOUND)
    ]
    assert failed == []
    for call in JOBS:
        await bus.store(call, tenant, f"j{call.operation}", example(call, World(tenant)), Deadline="1")
    for call in JOBS:
        assert (await bus.ended(tenant, f"j{call.operation}")).status == "failed"
    # Nothing that cannot be read comes back for ever.
    js = bus.connection.jetstream()
    async with asyncio.timeout(10):
        for component in {call.component for call in JOBS}:
            while (told := await js.consumer_info(STREAM, component)).num_pending or told.num_ack_pending:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_requests_that_cannot_be_read_stop_nobody(
    raw: RawSocket, bus: Bus, served: tuple[Connection, Runs]
) -> None:
    server, _ = served
    before = server.dropped
    for call in CALLS:
        names = call.component.encode(), call.operation.encode()
        fine = b"req.%b.%b.%b" % (new_tenant().encode(), *names)
        for subject in SUBJECTS:
            await raw.publish(subject % names, BODY, reply=b"_INBOX.raw.1")
        for reply in REPLIES:
            await raw.publish(fine, BODY, reply=reply)
        for block in BLOCKS.values():
            await raw.publish(fine, BODY, reply=b"_INBOX.raw.1", block=block)
    await everybody_serves(bus)
    unreadable = len(CALLS) * (3 + 2 + 5)  # subjects, replies, and the blocks that are none
    assert server.dropped - before >= unreadable
    assert server.drops["listener"] == 0
    assert server.is_connected
    assert server.healthy


async def test_stored_jobs_that_cannot_be_read_stop_nobody(
    raw: RawSocket, bus: Bus, served: tuple[Connection, Runs]
) -> None:
    server, runs = served
    before, tenant = server.dropped, new_tenant()
    for call in JOBS:
        names = call.component.encode(), call.operation.encode()
        for subject in (b"job.\xff\xfe.%b.%b.jx", b"job.A.%b.%b.jx", b"job.a.%b.%b.\xff", b"job.a.%b.%b.J"):
            await raw.publish(subject % names, BODY, reply=b"_INBOX.\xff")
        for number, block in enumerate(BLOCKS.values()):
            subject = b"job.%b.%b.%b.jbad%d" % (tenant.encode(), *names, number)
            await raw.publish(subject, b"\xc1", block=block)
        await raw.publish(b"job.%b.%b" % (tenant.encode(), call.component.encode()), BODY)
    await everybody_serves(bus)
    assert server.dropped - before >= len({call.component for call in JOBS})
    assert server.drops["listener"] == 0
    assert server.healthy
    assert not any(count for (_, whose), count in runs.items() if whose == tenant)


async def test_forged_cancels_and_events_stop_nobody(raw: RawSocket, bus: Bus) -> None:
    for subject in (b"ctl.\xff.cancel.x", b"ctl.a.cancel.\xff", b"ctl.A.cancel.x", b"ctl.a.cancel.J"):
        await raw.publish(subject, b"")
        await raw.publish(subject, b"", block=b"abc")
    for subject in (b"evt.\xff.jobs.started", b"out.\xff.x", b"dlq.\xff.x.y.z.0"):
        await raw.publish(subject, b"\xc1", block=b"NATS/1.0")
    await everybody_serves(bus)


async def test_a_forged_ack_or_reply_of_a_stranger_ends_nothing(raw: RawSocket, bus: Bus) -> None:
    """Answers on the inboxes of others: at worst a reply that is none of the contract's."""
    for prefix in (b"_INBOX.everything", b"_INBOX.tests"):
        for block in BLOCKS.values():
            await raw.publish(prefix + b".x.1", b"\xc1", reply=b"\xff", block=block)
    await everybody_serves(bus)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
async def test_one_unreadable_message_among_good_ones_is_the_only_one_lost(
    block: bytes, raw: RawSocket, bus: Bus
) -> None:
    tenant = new_tenant()
    subject = f"req.{tenant}.gateway.embed".encode()
    good = [asyncio.create_task(bus.ask(gateway.EMBED, tenant, {"input": f"{n}"})) for n in range(5)]
    await raw.publish(subject, BODY, reply=b"_INBOX.raw.1", block=block)
    good += [asyncio.create_task(bus.ask(gateway.EMBED, tenant, {"input": f"{n}"})) for n in range(5)]
    assert [answer.code for answer in await asyncio.gather(*good)] == [None] * 10
