"""Traces as a collector sees them: right parents from the client to Postgres, across jobs, redeliveries and events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from runtime import telemetry, tracing
from runtime.client import Client
from runtime.identity import Identity
from runtime.otlp import exporting
from runtime.settings import Settings
from subjects.contract import Code, Fault
from tests.collector import Collector, Seen
from tests.lab import contract as lab
from tests.lab.fixtures import Processes, ended

WITHIN_S = 15.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest_asyncio.fixture
async def recorded(collector: Collector, settings: Settings) -> AsyncIterator[None]:
    """This process records, as one whose OTEL_EXPORTER_OTLP_ENDPOINT is set."""
    told = settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.url})
    async with exporting(told, "faas-tests"):
        yield


@pytest.fixture
def identity(recorded: None, tenant: str) -> Identity:
    return Identity.new(tenant)


async def arrived(collector: Collector, identity: Identity, *names: str) -> list[Seen]:
    """The spans of the identity's trace, once these are among them (a name as often as it is given)."""
    trace_id = tracing.trace_id(identity.traceparent)

    def there() -> bool:
        return not Counter(names) - Counter(span.name for span in collector.trace(trace_id))

    await asyncio.to_thread(collector.until, there, WITHIN_S)
    return collector.trace(trace_id)


def named(spans: list[Seen], name: str) -> list[Seen]:
    return [span for span in spans if span.name == name]


def one(spans: list[Seen], name: str) -> Seen:
    found = named(spans, name)
    assert len(found) == 1, (name, [span.name for span in spans])
    return found[0]


@pytest.mark.usefixtures("served")
async def test_a_request_is_one_trace_down_to_the_database(
    client: Client, identity: Identity, collector: Collector
) -> None:
    await client.call(lab.COUNT, lab.Count(name="x"), identity=identity)
    spans = await arrived(collector, identity, "request req.*.lab.count", "SELECT", "SELECT")
    asked, answered = one(spans, "request req.*.lab.count"), one(spans, "process req.*.lab.count")
    assert {span.trace_id for span in spans} == {tracing.trace_id(identity.traceparent)}
    assert (asked.kind, asked.parent_id) == ("CLIENT", "")
    assert (answered.kind, answered.parent_id) == ("SERVER", asked.span_id)
    inside = one(spans, "transaction")
    assert inside.parent_id == answered.span_id
    assert {span.parent_id for span in named(spans, "SELECT")} == {inside.span_id}
    assert answered.attributes["messaging.system"] == "nats"
    assert answered.attributes["messaging.destination.name"] == "req.*.lab.count"
    assert answered.attributes["messaging.operation.type"] == "process"
    assert answered.attributes["messaging.message.id"] == asked.attributes["messaging.message.id"]
    assert inside.attributes["db.system.name"] == "postgresql"


@pytest.mark.usefixtures("served")
async def test_a_fault_is_the_spans_error(client: Client, identity: Identity, collector: Collector) -> None:
    with pytest.raises(Fault):
        await client.call(lab.WRITE, lab.Write(name="x", fault=Code.NOT_FOUND, faults=1), identity=identity)
    spans = await arrived(collector, identity, "request req.*.lab.write", "process req.*.lab.write")
    for name in ("request req.*.lab.write", "process req.*.lab.write"):
        assert one(spans, name).failed
        assert one(spans, name).attributes["error.type"] == "NOT_FOUND"


@pytest.mark.usefixtures("served")
async def test_a_stream_is_the_span_of_its_request(client: Client, identity: Identity, collector: Collector) -> None:
    async with client.stream(lab.PIECES, lab.Pieces(pieces=3), identity=identity) as stream:
        assert len([chunk async for chunk in stream]) >= 1
    spans = await arrived(collector, identity, "request req.*.lab.pieces", "process req.*.lab.pieces")
    asked, answered = one(spans, "request req.*.lab.pieces"), one(spans, "process req.*.lab.pieces")
    assert (answered.parent_id, answered.failed) == (asked.span_id, False)


@pytest.mark.usefixtures("served")
async def test_a_log_line_names_the_span(client: Client, identity: Identity, collector: Collector) -> None:
    with structlog.testing.capture_logs(processors=[telemetry.with_ids]) as lines:
        with pytest.raises(Fault):
            await client.call(lab.BROKEN, lab.Echo(), identity=identity)
    spans = await arrived(collector, identity, "process req.*.lab.broken")
    failed = next(line for line in lines if line["event"] == "failed")
    assert failed["span_id"] == one(spans, "process req.*.lab.broken").span_id
    assert failed["trace_id"] == spans[0].trace_id


@pytest.mark.usefixtures("served")
async def test_a_job_and_its_event_stay_in_the_trace_of_who_submitted_it(
    client: Client, identity: Identity, collector: Collector
) -> None:
    submitted = await client.submit(lab.WRITE, lab.Write(name="job"), identity=identity)
    await ended(client, Identity.new(identity.tenant), submitted.job_id)
    spans = await arrived(collector, identity, "process evt.*.lab.written", "submit job.*.lab.write")
    put, ran = one(spans, "submit job.*.lab.write"), one(spans, "process job.*.lab.write")
    made, heard = one(spans, "create evt.*.lab.written"), one(spans, "process evt.*.lab.written")
    assert (put.kind, put.parent_id) == ("PRODUCER", "")
    assert (ran.kind, ran.parent_id) == ("CONSUMER", put.span_id)
    assert (made.kind, made.parent_id) == ("PRODUCER", ran.span_id)
    assert (heard.kind, heard.parent_id) == ("CONSUMER", made.span_id)
    assert ran.attributes["messaging.message.id"] == submitted.job_id
    assert {span.trace_id for span in (put, ran, made, heard)} == {tracing.trace_id(identity.traceparent)}
    assert {span.parent_id for span in named(spans, "inbox.claim")} == {ran.span_id, heard.span_id}


@pytest.mark.usefixtures("served")
async def test_each_attempt_is_linked_to_the_one_before(
    client: Client, identity: Identity, collector: Collector, tmp_path: Path
) -> None:
    message = lab.Write(name="again", fault=Code.UNAVAILABLE, faults=1, counter=str(tmp_path / "again"))
    submitted = await client.submit(lab.WRITE, message, identity=identity)
    await ended(client, Identity.new(identity.tenant), submitted.job_id)
    spans = await arrived(collector, identity, *["process job.*.lab.write"] * 2)
    first, second = sorted(named(spans, "process job.*.lab.write"), key=lambda span: span.attributes["faas.delivery"])
    put = one(spans, "submit job.*.lab.write")
    assert first.parent_id == second.parent_id == put.span_id
    assert (first.links, second.links) == ((), (first.span_id,))
    assert first.failed
    assert not second.failed
    assert second.attributes["faas.attempt"] == 2


async def test_a_killed_attempt_is_linked_too_though_it_never_said_its_id(
    client: Client,
    identity: Identity,
    collector: Collector,
    processes: Processes,
    jobs_served: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    await processes.start()
    message = lab.Steps(name="killed", die_after=1, counter=str(tmp_path / "died"))
    submitted = await client.submit(lab.STEPS, message, identity=identity)

    async def done() -> bool:
        found = collector.trace(tracing.trace_id(identity.traceparent))
        return bool(named(found, "process job.*.lab.steps"))

    await processes.keep(done, 30)
    job = await ended(client, Identity.new(identity.tenant), submitted.job_id)
    spans = collector.trace(tracing.trace_id(identity.traceparent))
    last = one(spans, "process job.*.lab.steps")
    assert job.status == "succeeded"
    assert last.attributes["faas.delivery"] >= 2
    assert last.parent_id == one(spans, "submit job.*.lab.steps").span_id
    assert len(last.links) == 1
    assert last.links[0] != last.span_id
