"""What every operation of every worker keeps, whatever it does. Each rule is run over the whole registry."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import codec
from codec import headers as h
from runtime.connection import connect
from runtime.identity import Identity
from runtime.settings import Settings
from runtime.stored import read_stored
from runtime.streams import JOBS as STREAM
from runtime.streams import ensure, ensure_consumer, jobs_consumer
from stack import Stack
from store.database import Database
from store.inbox import Inbox
from subjects import cache, gateway, registry
from subjects.contract import AnyCall, Code, Fault
from tests.broker import own_broker
from tests.contract.examples import CALLS, EXAMPLES, JOBS, MUTATING, World, example
from tests.contract.fixtures import CODECS, Bus, Runs, new_tenant, tables
from workers.serving.boot import serving
from workers.serving.settle import MAX_CRASHES
from workers.serving.tables import load, names

NAMES = [call.name for call in CALLS]
JOB_NAMES = [call.name for call in JOBS]
MAX_PAYLOAD = 1024 * 1024
GARBAGE = (
    b"", b"\xc1", b"{", b"[1]", b"null", b"\xdd\xff\xff\xff\xff", b"\x80" * 100, b"\x91" * 5000, b'{"a":NaN}',
    b"\x81\x01\x02", b"\xd4\x01\x00", b"\xff" * 1000, b'{"a": "\\ud800"}', b"\x82\xa1a\x01\xa1a\x02",
)  # fmt: skip
NEVER = b"\xc1"  # the beginning of no message in any format
EXAMPLES_EACH = 25
QUICK = settings(
    max_examples=EXAMPLES_EACH, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def test_every_operation_is_served_and_has_an_example() -> None:
    known = registry.load().calls
    assert {each.call.name for name in names() for each in load(name).serves} == set(known)
    assert set(EXAMPLES) == set(known), "tests/contract/examples.py: one line for each operation"
    for call in CALLS:
        assert codec.decode(codec.encode_plain(example(call, World("t")), codec.JSON), call.input, codec.JSON)


def readable(data: bytes, model: type[BaseModel], content_type: str) -> bool:
    try:
        codec.decode(data, model, content_type)
    except Fault:  # always INVALID: tests/unit/test_codec.py
        return False
    return True


async def refused_or_read(bus: Bus, call: AnyCall, data: bytes, content_type: str) -> None:
    """What the contract cannot read is INVALID in the caller's codec and runs nothing; the rest is no accident."""
    tenant = new_tenant()
    deadline = str(int(time.time() * 1000) + 2000)
    answer = await bus.ask(call, tenant, data, content_type, Deadline=deadline, X_Request_ID="r-1")
    assert answer.content_type == content_type
    if readable(data, call.input, content_type):
        assert answer.code != Code.INTERNAL, (data, answer.body)
    else:
        assert answer.code == Code.INVALID, (data, answer.body)
        assert answer.headers[h.REQUEST_ID] == "r-1"
        bus.ran(call, tenant, 0)


@pytest.mark.parametrize("content_type", CODECS)
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_garbage_is_a_fault_in_the_callers_codec(call: AnyCall, content_type: str, bus: Bus) -> None:
    await asyncio.gather(*(refused_or_read(bus, call, data, content_type) for data in GARBAGE))


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
@QUICK
@given(data=st.data(), content_type=st.sampled_from(CODECS))
async def test_whatever_stands_in_the_fields_is_read_or_refused(
    call: AnyCall, data: st.DataObject, content_type: str, bus: Bus
) -> None:
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(call.input.model_fields) or ["x"]), VALUES, max_size=3))
    try:
        body = codec.encode_plain(example(call, World("t")) | changed, content_type, call.input)
    except Fault:  # our own encoder refuses it: the test above sends such bytes
        return
    await refused_or_read(bus, call, body, content_type)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_the_reply_comes_in_the_codec_asked_for(call: AnyCall, bus: Bus) -> None:
    for content_type, accept in zip(CODECS, (*CODECS[1:], CODECS[0]), strict=True):
        answer = await bus.ask(call, new_tenant(), NEVER, content_type, Accept=accept)
        assert (answer.content_type, answer.code) == (accept, Code.INVALID)
    answer = await bus.ask(call, new_tenant(), b"{}", "application/pickle")
    assert (answer.content_type, answer.code) == (codec.MSGPACK, Code.INVALID)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_unknown_fields_are_ignored(call: AnyCall, bus: Bus) -> None:
    for content_type in CODECS:
        tenant = new_tenant()
        body = example(call, World(tenant))
        known = await bus.ask(call, tenant, body, content_type)
        more = await bus.ask(call, new_tenant(), body | {"a_field_of_tomorrow": {"x": [1]}}, content_type)
        assert known.code == more.code != Code.INVALID
        assert isinstance(known.body, dict)
        assert set(known.body) == set(more.body)


@pytest.mark.parametrize("call", MUTATING, ids=lambda call: call.name)
async def test_a_repeated_request_has_one_effect_and_one_answer(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()
    body = example(call, World(tenant))
    headers = {"Idempotency_Key": "k"}
    first, *others = await asyncio.gather(*(bus.ask(call, tenant, body, **headers) for _ in range(5)))
    others.append(await bus.ask(call, tenant, body, codec.JSON, **headers))
    for other in others:
        assert other.code == first.code
        if first.code is None:
            assert codec.decode(other.data, call.output, other.content_type) == codec.decode(first.data, call.output)
    bus.ran(call, tenant, 1)
    changed = await bus.ask(call, tenant, body, Body_Digest="another", **headers)
    assert changed.code == Code.CONFLICT


@pytest.mark.parametrize("call", JOBS, ids=JOB_NAMES)
async def test_a_job_delivered_twice_is_done_once(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()
    # What fails for ever is done once as well; what waits for its file is not to be waited for here.
    body = {"text": "Some words."} if call.name == "rag.ingest" else example(call, World(tenant))
    if call.name == "ingestion.process":
        pytest.skip("waits ten minutes for its upload; tests/integration/test_ingestion.py has it")
    for _ in range(3):
        await bus.store(call, tenant, "jtwice", body)
    job = await bus.ended(tenant, "jtwice")
    # There is no document to be changed, and asking twice does not make one.
    assert job.status == ("failed" if call.name == "rag.update_document" else "succeeded"), job.fault
    again = await bus.ended(tenant, "jtwice")
    await asyncio.sleep(0.2)
    assert (again.result, again.attempt) == (job.result, 1)
    bus.ran(call, tenant, 1)


@pytest.mark.parametrize("call", JOBS, ids=JOB_NAMES)
async def test_another_message_under_a_jobs_id_is_kept_dead_and_changes_nothing(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()
    body = example(call, World(tenant))
    await bus.store(call, tenant, "jsame", body, Body_Digest="one", Deadline="1")
    assert (await bus.ended(tenant, "jsame")).status == "failed"
    await bus.store(call, tenant, "jsame", body | {"more": 1}, Body_Digest="two", Deadline="1")
    await all_settled(bus, call)
    bus.ran(call, tenant, 0)
    kept = [each async for each in read_stored(bus.connection, "DLQ", f"dlq.{tenant}.>")]
    assert {each.headers[h.DEAD_CODE] for each in kept} == {Code.TIMEOUT, Code.CONFLICT}


async def all_settled(bus: Bus, call: AnyCall) -> None:
    """Nothing of this component is on its way any more: whatever was stored is acked, terminated or dead."""
    js = bus.connection.jetstream()
    async with asyncio.timeout(10):
        while True:
            told = await js.consumer_info(STREAM, call.component)
            if told.num_pending == 0 and told.num_ack_pending == 0:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_after_its_deadline_nothing_is_run(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()
    past = str(int(time.time() * 1000) - 1000)
    for headers in ({}, {"Idempotency_Key": "k"}):
        answer = await bus.ask(call, tenant, example(call, World(tenant)), Deadline=past, **headers)
        assert answer.code == Code.TIMEOUT
    bus.ran(call, tenant, 0)
    wrong = await bus.ask(call, tenant, example(call, World(tenant)), Deadline="tomorrow")
    assert wrong.code == Code.INVALID


NOT_ALLOWED: list[tuple[dict[str, str], Code]] = [
    ({"X_Tenant_ID": "somebody-else"}, Code.FORBIDDEN),
    ({"X_Tenant_ID": ""}, Code.FORBIDDEN),
    ({"X_Scopes": "nothing.at_all"}, Code.FORBIDDEN),
    ({"X_Scopes": ""}, Code.FORBIDDEN),
    ({"X_Scopes": "a" * 5000}, Code.INVALID),
    ({"X_User_ID": "u" * 300}, Code.INVALID),
]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
async def test_who_may_not_is_refused_and_nothing_is_run(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()
    for headers, code in NOT_ALLOWED:
        answer = await bus.ask(call, tenant, example(call, World(tenant)), **headers)
        assert answer.code == code, headers
    bus.ran(call, tenant, 0)
    for scope in (call.name, f"{call.component}.*", "*", f"x.y {call.name}"):
        answer = await bus.ask(call, tenant, example(call, World(tenant)), X_Tenant_ID=tenant, X_Scopes=scope)
        assert answer.code not in (Code.FORBIDDEN, Code.INVALID)


LOST: list[tuple[str, Any, dict[str, str], Code]] = [
    ("unreadable", b"\xc1\xff", {}, Code.INVALID),
    ("unreadable JSON", b'{"a"', {"Content_Type": "application/json"}, Code.INVALID),
    ("a codec of nobody", b"{}", {"Content_Type": "application/pickle"}, Code.INVALID),
    ("another tenant", None, {"X_Tenant_ID": "somebody-else"}, Code.FORBIDDEN),
    ("no scope", None, {"X_Scopes": "nothing.at_all"}, Code.FORBIDDEN),
    ("too late", None, {"Deadline": "1000"}, Code.TIMEOUT),
    ("a header that cannot be written", b"\xc1", {"N\u00e4me": "x"}, Code.INVALID),
    ("no room for the reason", b"\xc1" * (MAX_PAYLOAD - 250), {}, Code.INVALID),
    ("a deadline that is none", None, {"Deadline": "soon"}, Code.INVALID),
]


@pytest.mark.parametrize("call", JOBS, ids=JOB_NAMES)
async def test_a_job_that_cannot_be_done_is_kept_dead_with_its_reason(call: AnyCall, bus: Bus) -> None:
    tenant = new_tenant()

    async def lost(number: int, body: bytes | None, headers: dict[str, str], code: Code) -> None:
        ident = f"jlost{number}"
        content_type = headers.get("Content_Type", codec.MSGPACK)
        data = body if body is not None else codec.encode_plain(example(call, World(tenant)), content_type)
        await bus.store(call, tenant, ident, data, **headers)
        job = await bus.ended(tenant, ident)
        assert (job.status, job.fault and job.fault.code) == ("failed", code)
        dead = await bus.dead_letter(call, tenant, ident)
        assert dead.data == (data if len(data) < MAX_PAYLOAD // 2 else b"")
        assert (dead.headers[h.DEAD_CODE], dead.headers[h.CONTENT_TYPE]) == (code, content_type)
        assert dead.headers[h.DEAD_SUBJECT].endswith(ident)

    await asyncio.gather(*(lost(n, body, headers, code) for n, (_, body, headers, code) in enumerate(LOST)))
    await all_settled(bus, call)
    bus.ran(call, tenant, 0)


async def test_while_a_process_drains_every_request_is_answered_and_every_job_done(
    bus: Bus, platform_settings: Settings
) -> None:
    """A second process of every worker comes and goes under load: the first is enough, and nobody notices."""
    tenant, stop, codes = new_tenant(), asyncio.Event(), list[str | None]()

    async def asking(call: AnyCall) -> None:
        while not stop.is_set():
            codes.append((await bus.ask(call, tenant, example(call, World(tenant)))).code)

    reads = [call for call in CALLS if not call.job and call.timeout_s <= 10]
    load_on = [asyncio.create_task(asking(call)) for call in reads]
    made = []
    for _ in range(2):
        own = await connect(platform_settings, name="passing-by")
        async with serving(tables(Runs()), platform_settings, own):
            for number in range(15):
                message = gateway.Embed(input=f"text {number}")
                made.append(await bus.client.submit(gateway.EMBED, message, identity=Identity.new(tenant)))
        await own.close()
    stop.set()
    await asyncio.gather(*load_on)
    assert len(codes) > 100
    assert set(codes) <= {None, Code.NOT_FOUND, Code.UNAVAILABLE, Code.EXHAUSTED}
    for each in made:
        assert (await bus.ended(tenant, each.job_id)).status == "succeeded"


async def test_what_killed_its_process_three_times_is_kept_dead_without_another_run(
    platform_settings: Settings, stack: Stack
) -> None:
    """On a broker of its own, so that nobody else takes the message between its deaths."""
    tenant, runs = new_tenant(), Runs()
    async with own_broker() as broker:
        alone = platform_settings.model_copy(update={"nats_url": broker.url, "database_keeper_url": None})
        own = await connect(alone, name="after-crashes")
        bus = Bus(own, await client_of(own, alone), runs)
        await ensure(own, alone)
        for call in JOBS:
            await ensure_consumer(own, STREAM, jobs_consumer(call.component, alone))
            await bus.store(call, tenant, f"j{call.operation}", example(call, World(tenant)))
        await taken_and_died(own, alone, tenant)
        async with serving(tables(runs), alone, own):
            for call in JOBS:
                job = await bus.ended(tenant, f"j{call.operation}")
                assert (job.status, job.fault and job.fault.code) == ("failed", Code.INTERNAL)
                dead = await bus.dead_letter(call, tenant, job.job_id)
                assert dead.headers[h.DEAD_CODE] == Code.INTERNAL
                bus.ran(call, tenant, 0)
            beat = await bus.ask(cache.STATS, tenant, {})
            assert beat.code is None
        await own.close()


async def client_of(connection: Any, settings: Settings) -> Any:
    from runtime.client import Client

    return Client(connection, settings, source="tests")


async def taken_and_died(connection: Any, settings: Settings, tenant: str) -> None:
    """Each job was delivered once, and three processes took its claim and never said anything again."""
    js = connection.jetstream()
    database = await Database.open(settings.database_url, name="tests")
    inbox = Inbox(database)
    try:
        for component in sorted({call.component for call in JOBS}):
            pull = await js.pull_subscribe_bind(component, STREAM)
            for msg in await pull.fetch(10, timeout=2):
                *_, operation, job_id = msg.subject.split(".")
                for death in range(MAX_CRASHES):
                    await inbox.claim(
                        tenant, f"{component}.{operation}", job_id, digest="", lease_s=0, owner=f"dead-{death}"
                    )
                await msg.nak()
            await pull.unsubscribe()
    finally:
        await database.close()
