"""Streams that survive a cut, streams that end with their client, and readers on any bridge."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.e2e.platform import AS_JOB, SSE, Dripping, Piece, Running, dripped, job_ended, pieces, text_of

CHUNKS = 40
PAUSE_S = 0.04
CUT_AT = 5
CLOSED_WITHIN_S = 1.0


WHOLE = dripped(CHUNKS)


@pytest.fixture
def model(dripping: Dripping) -> str:
    return dripping(CHUNKS, PAUSE_S)


async def read(response: httpx.Response, most: int | None = None) -> list[Piece]:
    found: list[Piece] = []
    async for piece in pieces(response):
        found.append(piece)
        if len(found) == most or piece.kind in ("done", "error"):
            break
    return found


async def test_a_job_stream_cut_at_chunk_five_goes_on_at_the_second_bridge(
    running: Running, tenant: str, model: str
) -> None:
    body = {"prompt": "say it", "model": f"openai/{model}"}
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        async with one.stream("POST", "/api/v1/gateway/generate", json=body, headers=SSE | AS_JOB) as response:
            assert response.status_code == 200, await response.aread()
            job_id = response.headers["Location"].rpartition("/")[2]
            before = await read(response, CUT_AT)
        assert [piece.kind for piece in before] == ["chunk"] * CUT_AT
        await asyncio.sleep(5 * PAUSE_S)  # what is said meanwhile must not be lost
        output_id = before[-1].ident.partition(".")[0]

        async def joined(http: httpx.AsyncClient, last: str | None) -> list[Piece]:
            headers = SSE | ({} if last is None else {"Last-Event-ID": last})
            async with http.stream("GET", f"/api/v1/outputs/{output_id}", headers=headers) as response:
                assert response.status_code == 200, await response.aread()
                return await read(response)

        after, whole, again = await asyncio.gather(
            joined(two, before[-1].ident), joined(two, None), joined(one, before[1].ident)
        )
        job = await job_ended(one, job_id)
    for found in ([*before, *after], whole, [*before[:2], *again]):
        assert [piece.ident.split(".")[1:] for piece in found] == [["1", str(n + 1)] for n in range(len(found))]
        assert text_of(found) == WHOLE
        assert found[-1].kind == "done"
        assert found[-1].data["message"]["content"] == WHOLE
    assert job["result"]["message"]["content"] == WHOLE
    assert running.upstream.hits[model] == 1


async def test_a_plain_stream_ends_upstream_when_its_client_leaves(running: Running, tenant: str, model: str) -> None:
    body = {"prompt": "say it", "model": f"openai/{model}"}
    async with running.http(tenant) as http:
        async with http.stream("POST", "/api/v1/gateway/generate", json=body, headers=SSE) as response:
            before = await read(response, CUT_AT)
            assert [piece.kind for piece in before] == ["chunk"] * CUT_AT
        left_at = time.monotonic()
    await asyncio.wait_for(running.upstream.left[model].wait(), CLOSED_WITHIN_S)
    print(f"upstream closed after {time.monotonic() - left_at:.3f} s")
    assert running.upstream.sent[model] < CHUNKS
    assert running.upstream.hits[model] == 1


async def test_a_plain_stream_read_to_its_end_is_the_answer(running: Running, tenant: str, model: str) -> None:
    body = {"prompt": "say it", "model": f"openai/{model}"}
    async with running.http(tenant, bridge=1) as http:
        async with http.stream("POST", "/api/v1/gateway/generate", json=body, headers=SSE) as response:
            found = await read(response)
    assert text_of(found) == WHOLE
    assert found[-1].kind == "done"
    assert found[-1].data["message"]["content"] == WHOLE


async def test_a_cancelled_job_closes_its_upstream_and_tells_its_readers(
    running: Running, tenant: str, model: str
) -> None:
    body = {"prompt": "say it", "model": f"openai/{model}"}
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        async with one.stream("POST", "/api/v1/gateway/generate", json=body, headers=SSE | AS_JOB) as response:
            job_id = response.headers["Location"].rpartition("/")[2]
            told = pieces(response)
            await anext(told)
            assert (await two.delete(f"/api/v1/jobs/{job_id}")).status_code == 200
            await asyncio.wait_for(running.upstream.left[model].wait(), CLOSED_WITHIN_S)
            rest = [piece async for piece in told]
        assert (rest[-1].kind, rest[-1].data["code"]) == ("error", "CANCELLED")
        assert (await job_ended(two, job_id))["status"] == "cancelled"


async def test_a_question_as_a_stream_is_the_same_answer_in_pieces(running: Running, tenant: str) -> None:
    document = {"text": "The mill of Tarn has 417 wheels. It stands by the river.", "title": "mill"}
    question = {"question": "How many wheels does the mill of Tarn have?", "cache": "off"}
    async with running.http(tenant) as one, running.http(tenant, bridge=1) as two:
        submitted = await one.post("/api/v1/rag/ingest", json=document, headers={"Prefer": "respond-async"})
        assert (await job_ended(one, submitted.json()["job_id"]))["status"] == "succeeded"
        async with two.stream("POST", "/api/v1/rag/query", json=question, headers=SSE | AS_JOB) as response:
            assert response.status_code == 200, await response.aread()
            found = await read(response)
    assert found[-1].kind == "done", found
    assert text_of(found).strip() == found[-1].data["answer"].strip()
    assert found[-1].data["citations"]
