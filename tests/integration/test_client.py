"""The typed client: what it sends, what it repeats, what it makes of failures; and jobs accepted once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from nats.js.api import StreamConfig

import codec
from codec import headers as h
from runtime import headers, jobs, streams
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from stack.process import Server
from subjects import cache, gateway, grammar, ingestion, rag
from subjects.contract import Code, Fault, FieldError
from tests.broker import own_broker, settings_of, until

Heard = tuple[str, dict[str, str], bytes]
Answer = Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes] | None]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def broker() -> AsyncIterator[Server]:
    async with own_broker() as server:
        link = await connect(settings_of(server.url), name="setup")
        await streams.ensure(link, settings_of(server.url))
        await link.close()
        yield server


@pytest_asyncio.fixture
async def link(broker: Server) -> AsyncIterator[Connection]:
    opened = await connect(settings_of(broker.url), name="tests")
    yield opened
    await opened.close()


@pytest.fixture
def client(link: Connection) -> Client:
    return Client(link, settings_of("nats://unused:1"), source="tests")


@pytest.fixture
def identity(tenant: str) -> Identity:
    return Identity.new(tenant, "bob", frozenset({"cache.*"}))


async def serve(link: Connection, subject: str, answer: Answer) -> list[Heard]:
    """Answer with what `answer` returns (None = not at all); returns what was heard."""
    heard: list[Heard] = []

    def received(subject_: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
        given = headers.parse(block) if block else {}
        heard.append((subject_.decode(), given, data))
        made = answer(given, data)
        if made is not None:
            link.write(reply.decode(), made[1], block=headers.block(made[0]))

    await link.listen(subject, received)
    await link.flush()
    return heard


def found(_given: dict[str, str], _data: bytes) -> tuple[dict[str, str], bytes]:
    return {h.CONTENT_TYPE: codec.MSGPACK}, codec.encode(cache.Entry(found=True, value="v", version=1))


def written(_given: dict[str, str], _data: bytes) -> tuple[dict[str, str], bytes]:
    return {h.CONTENT_TYPE: codec.MSGPACK}, codec.encode(cache.SetResult(written=True, version=1))


async def test_a_call_carries_identity_and_deadline(link: Connection, client: Client, identity: Identity) -> None:
    heard = await serve(link, f"req.{identity.tenant}.cache.get", found)
    before_ms = time.time() * 1000
    entry = await client.call(cache.GET, cache.Get(key="k"), identity=identity)
    assert entry == cache.Entry(found=True, value="v", version=1)
    given = heard[0][1]
    assert given[h.TENANT] == identity.tenant
    assert (given[h.USER], given[h.SCOPES]) == ("bob", "cache.*")
    assert given[h.CORRELATION_ID] == identity.correlation_id
    assert given[h.REQUEST_ID] not in ("", identity.request_id)
    assert before_ms < int(given[h.DEADLINE]) <= time.time() * 1000 + cache.GET.timeout_s * 1000
    assert identity.traceparent is not None
    assert given[h.TRACEPARENT] == identity.traceparent  # nothing records here: the parent stays the one there is
    assert h.IDEMPOTENCY_KEY not in given


async def test_a_deadline_is_never_extended(link: Connection, client: Client, identity: Identity) -> None:
    heard = await serve(link, f"req.{identity.tenant}.cache.get", found)
    near = identity.with_deadline(0.5)
    await client.call(cache.GET, cache.Get(key="k"), identity=near, timeout_s=60)
    assert near.deadline_ms is not None
    assert abs(int(heard[0][1][h.DEADLINE]) - near.deadline_ms) <= 1


async def test_a_mutating_call_has_one_key_on_every_repeat(
    link: Connection, client: Client, identity: Identity
) -> None:
    tries: list[int] = []

    def busy_twice(given: dict[str, str], data: bytes) -> tuple[dict[str, str], bytes]:
        tries.append(1)
        return codec.fault_reply(Fault(Code.EXHAUSTED, "full")) if len(tries) < 3 else written(given, data)

    heard = await serve(link, f"req.{identity.tenant}.cache.set", busy_twice)
    message = cache.Set(key="k", value=1)
    assert (await client.call(cache.SET, message, identity=identity)).written
    assert len(heard) == 3
    assert len({given[h.IDEMPOTENCY_KEY] for _, given, _ in heard}) == 1
    assert {given[h.BODY_DIGEST] for _, given, _ in heard} == {codec.digest(message)}


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.UNAVAILABLE, Code.TIMEOUT, Code.UPSTREAM, Code.NOT_FOUND])
async def test_what_a_handler_failed_at_is_not_repeated(
    link: Connection, client: Client, identity: Identity, code: Code
) -> None:
    fault = Fault(code, "so it is", errors=[FieldError(path="a.b", message="no")])
    heard = await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: codec.fault_reply(fault))
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity)
    assert (raised.value.code, raised.value.detail, raised.value.errors) == (code, "so it is", fault.errors)
    assert len(heard) == 1


async def test_a_full_worker_is_asked_four_times_at_most(link: Connection, client: Client, identity: Identity) -> None:
    full = Fault(Code.EXHAUSTED, "full")
    heard = await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: codec.fault_reply(full))
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity)
    assert raised.value.code is Code.EXHAUSTED
    assert len(heard) == 4


async def test_repeats_are_a_tenth_of_the_calls(link: Connection, client: Client, identity: Identity) -> None:
    full = Fault(Code.EXHAUSTED, "full")
    heard = await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: codec.fault_reply(full))
    calls = (client.call(cache.GET, cache.Get(key="k"), identity=identity) for _ in range(400))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, Fault) and each.code is Code.EXHAUSTED for each in outcomes)
    assert 400 < len(heard) <= 400 + 40 + 20 + 1


async def test_nobody_there_is_unavailable_at_once(client: Client, identity: Identity) -> None:
    started = time.monotonic()
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity)
    assert raised.value.code is Code.UNAVAILABLE
    assert time.monotonic() - started < 1


async def test_a_worker_that_comes_up_during_the_repeats_is_found(
    link: Connection, client: Client, identity: Identity
) -> None:
    asked = asyncio.create_task(client.call(cache.GET, cache.Get(key="k"), identity=identity))
    await asyncio.sleep(0.005)
    await serve(link, f"req.{identity.tenant}.cache.get", found)
    assert (await asked).found


async def test_silence_is_a_timeout(link: Connection, client: Client, identity: Identity) -> None:
    await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: None)
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity, timeout_s=0.2)
    assert raised.value.code is Code.TIMEOUT
    assert len(link.requests) == 0


async def test_a_deadline_in_the_past_sends_nothing(link: Connection, client: Client, identity: Identity) -> None:
    heard = await serve(link, f"req.{identity.tenant}.cache.get", found)
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity.with_deadline(-1))
    assert raised.value.code is Code.TIMEOUT
    await link.flush()
    assert not heard


async def test_a_cancelled_caller_cancels_the_work(link: Connection, client: Client, identity: Identity) -> None:
    heard = await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: None)
    cancels = await serve(link, f"ctl.{identity.tenant}.cancel.*", lambda *_: None)
    asked = asyncio.create_task(client.call(cache.GET, cache.Get(key="k"), identity=identity))
    await until(lambda: bool(heard))
    asked.cancel()
    await until(lambda: bool(cancels))
    assert cancels[0][0] == grammar.cancel(identity.tenant, heard[0][1][h.REQUEST_ID])


@pytest.mark.parametrize(
    "reply",
    [
        ({h.CONTENT_TYPE: codec.MSGPACK}, b"\xc1"),
        ({h.CONTENT_TYPE: codec.MSGPACK}, codec.encode(cache.DeleteResult(deleted=True))),
        ({h.CONTENT_TYPE: "image/png"}, b"x"),
        ({h.ERROR_CODE: "WHAT"}, b"\xff"),
    ],
)
async def test_an_answer_that_cannot_be_read_is_not_the_callers_fault(
    link: Connection, client: Client, identity: Identity, reply: tuple[dict[str, str], bytes]
) -> None:
    await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: reply)
    with pytest.raises(Fault) as raised:
        await client.call(cache.GET, cache.Get(key="k"), identity=identity)
    assert raised.value.code is Code.INTERNAL


async def test_only_the_calls_of_the_table_may_be_made(link: Connection, identity: Identity) -> None:
    client = Client(link, settings_of("nats://unused:1"), source="rag", calls=[cache.GET])
    heard = await serve(link, f"req.{identity.tenant}.cache.*", found)
    assert (await client.call(cache.GET, cache.Get(key="k"), identity=identity)).found
    with pytest.raises(Fault) as raised:
        await client.call(cache.DELETE, cache.Delete(key="k"), identity=identity)
    assert raised.value.code is Code.FORBIDDEN
    with pytest.raises(Fault):
        await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity)
    assert len(heard) == 1


@pytest.mark.parametrize("key", ["", "a\r\nX-Tenant-ID: other", "k" * 257, "a\0b"])
async def test_a_key_cannot_be_another_header(client: Client, identity: Identity, key: str) -> None:
    with pytest.raises(Fault) as raised:
        await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity, key=key)
    assert raised.value.code is Code.INVALID


async def test_bytes_pass_as_they_are(link: Connection, client: Client, identity: Identity) -> None:
    await serve(link, f"req.{identity.tenant}.cache.get", lambda given, data: ({"A": given["B"]}, data + b"!"))
    subject = grammar.request(identity.tenant, "cache", "get")
    reply = await client.call_raw(subject, b"raw", {"B": "c"}, 5)
    assert (reply.data, reply.headers, reply.fault) == (b"raw!", {"A": "c"}, None)


async def test_a_raw_failure_is_passed_on_with_its_body(link: Connection, client: Client, identity: Identity) -> None:
    failing = codec.fault_reply(Fault(Code.NOT_FOUND, "none"), codec.JSON)
    await serve(link, f"req.{identity.tenant}.cache.get", lambda *_: failing)
    reply = await client.call_raw(grammar.request(identity.tenant, "cache", "get"), b"", {}, 5)
    assert reply.data == failing[1]
    assert reply.fault is not None
    assert reply.fault.code is Code.NOT_FOUND


# -- jobs -----------------------------------------------------------------------------------------------------------


async def stored(link: Connection, subject: str) -> int:
    info = await link.jetstream().stream_info("JOBS", subjects_filter=subject)
    return sum((info.state.subjects or {}).values())


async def test_fifty_submits_with_one_key_are_one_job(link: Connection, client: Client, identity: Identity) -> None:
    message = rag.Ingest(text="t", source_id="s")
    made = await asyncio.gather(
        *(client.submit(rag.INGEST, message, identity=identity, key="key-1") for _ in range(50))
    )
    assert len({each.job_id for each in made}) == 1
    assert sum(not each.duplicate for each in made) == 1
    assert await stored(link, f"job.{identity.tenant}.>") == 1


async def test_the_same_key_with_another_body_is_a_conflict(
    link: Connection, client: Client, identity: Identity
) -> None:
    await client.submit(rag.INGEST, rag.Ingest(text="one"), identity=identity, key="k")
    with pytest.raises(Fault) as raised:
        await client.submit(rag.INGEST, rag.Ingest(text="two"), identity=identity, key="k")
    assert raised.value.code is Code.CONFLICT
    assert await stored(link, f"job.{identity.tenant}.>") == 1


async def test_two_tenants_with_the_same_key_are_two_jobs(client: Client, identity: Identity) -> None:
    message, other = rag.Ingest(text="t"), Identity.new(identity.tenant + "b")
    one = await client.submit(rag.INGEST, message, identity=identity, key="k")
    two = await client.submit(rag.INGEST, message, identity=other, key="k")
    assert one.job_id != two.job_id
    assert [one.duplicate, two.duplicate] == [False, False]


async def test_without_a_key_every_submit_is_a_job(client: Client, identity: Identity) -> None:
    made = [await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity) for _ in range(3)]
    assert len({each.job_id for each in made}) == 3


async def test_a_job_carries_what_its_worker_needs(link: Connection, client: Client, identity: Identity) -> None:
    message = rag.Ingest(text="t")
    made = await client.submit(
        rag.INGEST, message, identity=identity.with_deadline(5), key="k", reply_to="_INBOX.a.b", output_to="o1",
        headers={"Replay": "r1", "Nats-Rollup": "all"},
    )  # fmt: skip
    kept = await jobs.last_of(link.requests, "JOBS", grammar.job(identity.tenant, "rag", "ingest", made.job_id))
    assert kept is not None
    given = kept.headers
    assert codec.decode(kept.data, rag.Ingest, given[h.CONTENT_TYPE]) == message
    assert (given[h.IDEMPOTENCY_KEY], given[h.BODY_DIGEST]) == ("k", codec.digest(message))
    assert (given[h.REPLY_TO], given[h.OUTPUT_TO], given[h.REPLAY]) == ("_INBOX.a.b", "o1", "r1")
    assert given[h.CORRELATION_ID] == identity.correlation_id
    assert h.DEADLINE not in given  # that of the request which submits is not the job's
    assert "Nats-Rollup" not in given
    assert h.MESSAGE_ID not in given


@pytest.mark.parametrize("reply_to", ["$JS.API.STREAM.PURGE.JOBS", "_INBOX.*", "_INBOX.a b", "_inbox.a"])
async def test_a_result_goes_to_inboxes_only(client: Client, identity: Identity, reply_to: str) -> None:
    with pytest.raises(Fault) as raised:
        await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity, reply_to=reply_to)
    assert raised.value.code is Code.INVALID


async def test_what_makes_no_sense_as_a_job_is_refused(client: Client, identity: Identity) -> None:
    with pytest.raises(Fault) as raised:
        await client.submit(cache.GET, cache.Get(key="k"), identity=identity)
    assert raised.value.code is Code.INVALID


async def test_a_full_stream_is_exhausted_and_takes_nothing(identity: Identity) -> None:
    async with own_broker() as broker:
        link = await connect(settings_of(broker.url), name="tests")
        client = Client(link, settings_of(broker.url), source="tests")
        with pytest.raises(Fault) as raised:
            await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity)
        assert raised.value.code is Code.UNAVAILABLE  # no stream at all
        small = next(each for each in streams.STREAMS if each.name == "JOBS")
        await link.jetstream().add_stream(StreamConfig(**{**vars(small), "max_bytes": 64 * 1024}))
        accepted, refused = 0, None
        while refused is None:
            try:
                await client.submit(rag.INGEST, rag.Ingest(text="t" * 10_000), identity=identity)
                accepted += 1
            except Fault as fault:
                refused = fault
        assert refused.code is Code.EXHAUSTED
        assert await stored(link, "job.>") == accepted > 0
        await link.close()


async def test_a_frozen_broker_gives_a_timeout_and_the_job_is_accepted_once(
    monkeypatch: pytest.MonkeyPatch, identity: Identity
) -> None:
    monkeypatch.setattr(jobs, "ACK_TIMEOUT_S", 0.3)
    async with own_broker() as broker:
        link = await connect(settings_of(broker.url), name="tests")
        await streams.ensure(link, settings_of(broker.url))
        client = Client(link, settings_of(broker.url), source="tests")
        broker.signal(signal.SIGSTOP)
        with pytest.raises(Fault) as raised:
            await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity, key="k")
        assert raised.value.code is Code.TIMEOUT
        broker.signal(signal.SIGCONT)
        await client.submit(rag.INGEST, rag.Ingest(text="t"), identity=identity, key="k")
        assert await stored(link, "job.>") == 1
        await link.close()


# -- events ---------------------------------------------------------------------------------------------------------


async def test_an_event_is_stored_once_and_heard(link: Connection, client: Client, identity: Identity) -> None:
    heard: list[tuple[ingestion.FileFailed, str]] = []

    async def received(payload: ingestion.FileFailed, who: Identity) -> None:
        heard.append((payload, who.tenant))

    await client.subscribe(ingestion.FILE_FAILED, received)
    await link.flush()
    payload = ingestion.FileFailed(entity_id="f", stage="validated", reason="no")
    for _ in range(2):
        await client.publish_event(
            ingestion.FILE_FAILED, identity.tenant, codec.encode(payload), identity.headers(), event_id="e1" * 8
        )
    await until(lambda: bool(heard))
    assert heard[0] == (payload, identity.tenant)
    info = await link.jetstream().stream_info("EVENTS", subjects_filter=f"evt.{identity.tenant}.>")
    assert sum((info.state.subjects or {}).values()) == 1


async def test_a_garbled_event_is_dropped_and_the_next_one_heard(
    link: Connection, client: Client, identity: Identity
) -> None:
    heard: list[ingestion.FileFailed] = []

    async def received(payload: ingestion.FileFailed, _who: Identity) -> None:
        heard.append(payload)

    await client.subscribe(ingestion.FILE_FAILED, received, tenant=identity.tenant)
    subject = grammar.event(identity.tenant, "ingestion", "file_failed")
    await link.publish(subject, b"\xc1")
    await link.publish(subject, codec.encode(ingestion.FileFailed(entity_id="f", stage="validated", reason="no")))
    await until(lambda: len(heard) == 1)


async def test_a_contract_without_chunks_cannot_be_streamed(client: Client, identity: Identity) -> None:
    with pytest.raises(Fault) as raised:
        client.stream(gateway.EMBED, gateway.Embed(input=["t"]), identity=identity)
    assert raised.value.code is Code.INVALID
