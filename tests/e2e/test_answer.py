"""The same question by every way in, and one key for many."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import msgpack  # type: ignore[import-untyped]
import nats
import pytest

from examples.demo import Story, story
from tests.e2e.platform import Running, job_ended, prose, seeded, until

MSGPACK = "application/msgpack"
ASK_LIMIT_S = 60
CALLERS = 50


@pytest.fixture
def told() -> Story:
    return story(seeded().randrange(1_000_000))


async def over_http(http: httpx.AsyncClient, question: dict[str, Any], content_type: str) -> dict[str, Any]:
    body = msgpack.packb(question) if content_type == MSGPACK else json.dumps(question).encode()
    reply = await http.post("/api/v1/rag/query", content=body, headers={"Content-Type": content_type})
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"].startswith(content_type)
    answer: dict[str, Any] = msgpack.unpackb(reply.content) if content_type == MSGPACK else reply.json()
    return answer


async def test_the_same_question_works_by_every_way_in(running: Running, tenant: str, told: Story) -> None:
    question = {"question": told.question, "cache": "off"}
    document = json.dumps({"text": "\n".join(told.lines), "source_id": "lighthouse"}).encode()
    bare = await nats.connect(running.platform.stack.nats_url)
    try:
        await bare.publish(f"job.{tenant}.rag.ingest", document)

        async def indexed() -> bool:
            return bool(await running.rows(tenant, "SELECT 1 FROM rag_documents WHERE source_id = 'lighthouse'"))

        print(f"indexed after {await until(indexed, 20):.1f} s")
        async with running.http(tenant) as http, running.http(tenant, bridge=1) as other:
            by_nats = [
                bare.request(f"req.{tenant}.rag.query", body, timeout=ASK_LIMIT_S)
                for body in (msgpack.packb(question), json.dumps(question).encode())
            ]
            json_http, msgpack_http, msgpack_nats, json_nats = await asyncio.gather(
                over_http(http, question, "application/json"), over_http(other, question, MSGPACK), *by_nats
            )
            listed = await http.get("/api/v1/jobs")
    finally:
        await bare.close()
    assert not any("Nats-Service-Error-Code" in (reply.headers or {}) for reply in (msgpack_nats, json_nats))
    answers = [json_http, msgpack_http, msgpack.unpackb(msgpack_nats.data), json.loads(json_nats.data)]
    print([answer["timings"] for answer in answers])
    for answer in answers:
        quotes = [" ".join(citation["quote"].split()) for citation in answer["citations"]]
        assert any(told.fact in quote for quote in quotes), answer
        assert told.number in answer["answer"], answer
        assert answer["citations"] == answers[0]["citations"]
    assert [job["status"] for job in listed.json()["items"] if job["operation"] == "ingest"] == ["succeeded"]


async def test_fifty_submits_with_one_key_are_one_job(running: Running, tenant: str) -> None:
    dice = seeded()
    body = {"text": prose(dice, 12), "title": "once"}
    headers = {"Idempotency-Key": f"key-{dice.randrange(10**9)}", "Prefer": "respond-async"}
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        replies = await asyncio.gather(
            *((one, two)[n % 2].post("/api/v1/rag/ingest", json=body, headers=headers) for n in range(CALLERS))
        )
        assert {reply.status_code for reply in replies} == {202}, [reply.text for reply in replies]
        assert len({reply.json()["job_id"] for reply in replies}) == 1
        assert sorted(reply.json()["duplicate"] for reply in replies) == [False] + [True] * (CALLERS - 1)
        job_id = replies[0].json()["job_id"]
        other = await two.post("/api/v1/rag/ingest", json={**body, "title": "other"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (409, "CONFLICT")
        assert (await job_ended(one, job_id))["status"] == "succeeded"
        late = await one.post("/api/v1/rag/ingest", json=body, headers=headers)
        assert (late.json()["job_id"], late.json()["duplicate"]) == (job_id, True)
    async with running.http(tenant + "b") as neighbour:
        theirs = await neighbour.post("/api/v1/rag/ingest", json=body, headers=headers)
        assert theirs.json()["job_id"] != job_id
        assert (await job_ended(neighbour, theirs.json()["job_id"]))["status"] == "succeeded"
    assert len(await running.rows(tenant, "SELECT 1 FROM rag_documents")) == 1
    assert len(await running.rows(tenant, "SELECT 1 FROM jobs")) == 1
