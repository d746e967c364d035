"""One trace through the whole platform: HTTP, jobs, events, models and Postgres, with the right parents."""

from __future__ import annotations

import asyncio
import secrets

from tests.collector import Seen
from tests.e2e.platform import Running, job_ended, prose, seeded

WITHIN_S = 20.0
UPLOAD = [
    "embeddings local/minilm",
    "process req.*.gateway.embed",
    "request req.*.gateway.embed",
    "process job.*.rag.ingest",
    "submit job.*.rag.ingest",
    "process job.*.ingestion.process",
    "submit job.*.ingestion.process",
    "process req.*.ingestion.register",
    "request req.*.ingestion.register",
    "POST /api/v1/ingestion/upload",
]
"""From the model back to the caller."""


def way_back(spans: list[Seen], start: Seen) -> tuple[list[str], str]:
    """The names from a span up to the one that came from outside, and the parent that it names."""
    known, names, at = {span.span_id: span for span in spans}, [start.name], start
    while at.parent_id in known:
        at = known[at.parent_id]
        names.append(at.name)
    return names, at.parent_id


async def test_one_trace_spans_the_bridge_the_jobs_the_model_and_the_database(running: Running, tenant: str) -> None:
    trace_id, outside = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace_id}-{outside}-01"}
    text = prose(seeded(), 6)
    async with running.http(tenant) as http:
        reply = await http.post("/api/v1/ingestion/upload", files={"file": ("a.txt", text)}, headers=headers)
        assert reply.status_code == 202, reply.text
        assert (await job_ended(http, reply.json()["job_id"]))["status"] == "succeeded"
    collector = running.collector

    def whole() -> bool:
        names = {span.name for span in collector.trace(trace_id)}
        return names.issuperset(UPLOAD) and "process job.*.ingestion.process" in names

    await asyncio.to_thread(collector.until, whole, WITHIN_S)
    await asyncio.sleep(1.5)  # what ended last comes last
    spans = collector.trace(trace_id)
    model = next(span for span in spans if span.name == UPLOAD[0])
    assert way_back(spans, model) == (UPLOAD, outside)
    assert model.attributes["gen_ai.provider.name"] == "local"
    assert model.attributes["gen_ai.usage.input_tokens"] > 0
    known = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id not in known] == [UPLOAD[-1]]
    services = {span.service for span in spans}
    assert {"faas-bridge", "faas-gateway"} < services
    database = [span for span in spans if span.attributes.get("db.system.name") == "postgresql"]
    assert {way_back(spans, span)[1] for span in database} == {outside}
    secret = [text[:40], http.headers["Authorization"].split()[1], "sk-none"]
    assert not any(each.encode() in body for body in collector.raw for each in secret)
