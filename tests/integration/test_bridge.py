"""The HTTP face on a real broker, database and cache: what a client sees, whatever it sends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgpack  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from bridge.arguments import from_body
from bridge.exchange import Exchange
from bridge.server import running
from codec import CONTENT_TYPES, PROTOBUF, Problem, decode, encode, encode_plain
from runtime.connection import Connection, connect
from runtime.settings import Settings
from stack import Stack
from store.objects import Objects
from subjects.contract import AnyCall, Code, Fault
from subjects.jobs import Submitted
from subjects.registry import Registry, load
from tests.integration.ingestion_lab import INDEX, pdf
from tests.lab import contract as lab
from workers.ingestion.worker import WORKER as INGESTION
from workers.serving.boot import serving

pytestmark = pytest.mark.usefixtures("served")

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
LAB: list[AnyCall] = [lab.ECHO, lab.WRITE, lab.COUNT, lab.PIECES, lab.STEPS, lab.BROKEN]


def claims(settings: Settings, tenant: str, **changes: Any) -> Json:
    now = int(time.time())
    made = {
        "tenant_id": tenant, "sub": "ann", "scope": "*", "iat": now, "exp": now + 600,
        "aud": settings.jwt_audience, "iss": settings.jwt_issuer,
    } | changes  # fmt: skip
    return {name: value for name, value in made.items() if value is not None}


def signed(settings: Settings, given: Json, **options: Any) -> str:
    assert settings.jwt_secret is not None
    return jwt.encode(given, options.pop("key", settings.jwt_secret.get_secret_value()), algorithm="HS256", **options)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url(settings: Settings, connection: Connection) -> AsyncIterator[str]:
    contracts = Registry((*load().calls.values(), *LAB), load().events.values())
    free = settings.model_copy(update={"bridge_port": 0, "shutdown_grace_s": 5})
    async with running(free, connection, contracts=contracts) as served_at:
        yield served_at


@pytest_asyncio.fixture
async def http(url: str, settings: Settings, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    token = signed(settings, claims(settings, tenant))
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        yield client


def problem(response: httpx.Response, status: int) -> Json:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: Json = response.json()
    assert body["status"] == status
    assert body["code"] in Code.__members__
    assert body["request_id"] == response.headers["x-request-id"]
    return body


async def events(response: httpx.Response, most: int = 1000) -> list[Json]:
    """The stream's events until it ends, or until there are so many."""
    found: list[Json] = []
    current: Json = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            current[name] = value
        elif not line and "event" in current:
            found.append(current)
            current = {}
            if len(found) == most:
                break
    return found


def text_of(found: list[Json]) -> str:
    return "".join(json.loads(each["data"])["text"] for each in found if each["event"] == "chunk")


# -- requests -----


async def test_a_request_is_answered_in_json(http: httpx.AsyncClient, tenant: str) -> None:
    response = await http.post("/api/v1/lab/echo", json={"text": "hé", "number": 7}, headers={"X-Request-ID": "r-1"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "r-1"
    assert response.headers["x-correlation-id"]
    body = response.json()
    assert (body["text"], body["number"], body["tenant"], body["user"]) == ("hé", 7, tenant, "ann")


@pytest.mark.parametrize("accept", [None, "application/json"])
async def test_a_request_is_answered_in_msgpack(http: httpx.AsyncClient, accept: str | None) -> None:
    headers = {"Content-Type": "application/msgpack", "Accept": accept or "application/msgpack"}
    response = await http.post("/api/v1/lab/echo", content=msgpack.packb({"text": "x"}), headers=headers)
    assert response.headers["content-type"] == (accept or "application/msgpack")
    body = response.json() if accept else msgpack.unpackb(response.content)
    assert body["text"] == "x"


async def test_a_bad_field_is_named_and_not_repeated(http: httpx.AsyncClient) -> None:
    body = problem(await http.post("/api/v1/lab/echo", json={"number": "canary-77"}), 400)
    assert [each["path"] for each in body["errors"]] == ["number"]
    assert "canary" not in json.dumps(body)


async def test_a_fault_in_msgpack_for_a_client_of_msgpack(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/lab/echo", content=b"\xc1", headers={"Content-Type": "application/msgpack"})
    assert response.status_code == 400
    assert Problem.model_validate(msgpack.unpackb(response.content)).code == "INVALID"


async def test_protobuf_over_http(http: httpx.AsyncClient) -> None:
    given = {"Content-Type": PROTOBUF}
    echo = await http.post("/api/v1/lab/echo", content=encode(lab.Echo(text="x"), PROTOBUF), headers=given)
    assert echo.headers["content-type"] == PROTOBUF
    assert decode(echo.content, lab.Echoed, PROTOBUF).text == "x"
    empty = await http.post("/api/v1/lab/echo", headers=given)
    assert decode(empty.content, lab.Echoed, PROTOBUF).text == ""
    wrong = await http.post("/api/v1/lab/echo", content=b"\xc1", headers=given)
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, PROTOBUF)
    assert decode(wrong.content, Problem, PROTOBUF).code == "INVALID"
    write = encode(lab.Write(name="x"), PROTOBUF)
    job = await http.post("/api/v1/lab/write", content=write, headers=given | {"Prefer": "respond-async"})
    assert (await ended(http, decode(job.content, Submitted, PROTOBUF).job_id))["result"]["name"] == "x"
    question = encode(lab.Pieces(pieces=2), PROTOBUF)
    async with http.stream("POST", "/api/v1/lab/pieces", content=question, headers=given | EVENTS) as response:
        assert text_of(await events(response)) == "piece 0. piece 1. "  # events are JSON, whoever asks


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_a_body_is_joined_with_the_fields_of_its_path_in_every_format(content_type: str) -> None:
    scope = {
        "method": "PUT", "path": "/", "query_string": b"", "headers": [(b"content-type", content_type.encode())]
    }  # fmt: skip
    exchange = Exchange(scope, None, None)  # type: ignore[arg-type]
    exchange.params = {"name": "a"}
    body = encode_plain({"faults": 2}, content_type, lab.Write)
    joined, written = from_body(lab.WRITE, exchange, body)
    assert decode(joined, lab.Write, written) == lab.Write(name="a", faults=2)
    with pytest.raises(Fault):
        from_body(lab.WRITE, exchange, encode_plain({"name": "b"}, content_type, lab.Write))


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b'{"text":"a\\u0000"}', b'{"number":NaN}', b'{"number":1e999}', b'{"number":18446744073709551616}',
     b'{"text":"\\ud800"}', b'{"text":"a","text":"b"}', b"[" * 100_000, b"\xff\xfe"],
)  # fmt: skip
async def test_garbage_is_a_400(http: httpx.AsyncClient, content: bytes) -> None:
    problem(await http.post("/api/v1/lab/echo", content=content), 400)


async def test_an_unexpected_exception_says_nothing(http: httpx.AsyncClient) -> None:
    body = problem(await http.post("/api/v1/lab/broken", json={"text": "secret"}), 500)
    assert body["detail"] == "internal error"
    assert "canary" not in json.dumps(body)


async def test_no_worker_is_a_503_that_says_when_to_come_back(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/rag/search", json={"query": "x"})
    assert problem(response, 503)["retryable"] is True
    assert int(response.headers["retry-after"]) >= 1


async def test_the_deadline_is_the_clients(http: httpx.AsyncClient) -> None:
    started = time.perf_counter()
    response = await http.post(
        "/api/v1/lab/write", json={"name": "late", "sleep_s": 5}, headers={"Request-Timeout": "0.3"}
    )
    problem(response, 504)
    assert time.perf_counter() - started < 3


async def test_work_that_nobody_waits_for_is_cancelled(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/api/v1/lab/write", json={"name": "left", "sleep_s": 1.5}, timeout=0.5)
    await asyncio.sleep(1.5)
    assert (await http.post("/api/v1/lab/count", json={"name": "left"})).json()["rows"] == 0


async def test_paths_and_methods_that_are_not_there(http: httpx.AsyncClient) -> None:
    problem(await http.get("/api/v1/nothing"), 404)
    problem(await http.post("/api/v1/ingestion/register", json={}), 404)
    problem(await http.post("/api/v1/lab/echo/", json={}), 404)
    response = await http.get("/api/v1/lab/echo")
    assert problem(response, 405)["code"] == "INVALID"
    assert response.headers["allow"] == "OPTIONS, POST"


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Request-Timeout": "-1"}, {"Request-Timeout": "soon"}, {"Idempotency-Key": ""},
     {"Idempotency-Key": "k" * 300}, {"X-Request-ID": "r" * 300}, {"Prefer": "respond-async, wait=forever"}],
    ids=repr,
)  # fmt: skip
async def test_headers_that_say_nonsense_are_a_400(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await http.post("/api/v1/lab/echo", json={}, headers=headers), 400)


async def test_the_same_key_has_one_effect(http: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    replies = [await http.post("/api/v1/lab/write", json={"name": "w"}, headers=key) for _ in range(3)]
    assert [each.json() for each in replies] == [{"name": "w", "rows": 1}] * 3
    problem(await http.post("/api/v1/lab/write", json={"name": "other"}, headers=key), 409)


# -- tokens -----


@pytest.mark.parametrize("path", ["/api/v1/lab/echo", "//api/v1/lab/echo", "/healthz/../api/v1/lab/echo",
                                  "/%61pi/v1/lab/echo", "/nothing", "/healthz%2f", "/api/v1/jobs"])  # fmt: skip
async def test_no_spelling_of_a_path_gets_round_the_token(url: str, path: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x/healthz?\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
    )
    status = await reader.readline()
    writer.close()
    assert b" 401 " in status


async def test_another_tenant_in_the_header_is_a_403(http: httpx.AsyncClient, tenant: str) -> None:
    problem(await http.post("/api/v1/lab/echo", json={}, headers={"X-Tenant-ID": "somebody"}), 403)
    response = await http.post("/api/v1/lab/echo", json={}, headers={"X-Tenant-ID": tenant, "X-User-ID": "root"})
    assert response.json()["user"] == "ann"


async def test_a_token_may_do_what_its_scopes_say(url: str, settings: Settings, tenant: str) -> None:
    async def asked(scope: str) -> int:
        token = signed(settings, claims(settings, tenant, scope=scope))
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
            return (await client.post("/api/v1/lab/echo", json={})).status_code

    assert [await asked(scope) for scope in ("lab.echo", "lab.*", "*", "rag.query lab.echo")] == [200] * 4
    assert [await asked(scope) for scope in ("", "lab.write", "lab", "rag.*", "lab.echo2")] == [403] * 5


async def test_a_known_token_ends_when_it_expires(url: str, settings: Settings, tenant: str) -> None:
    now = int(time.time())
    token = signed(settings, claims(settings, tenant, iat=now - 60, exp=now - 28))  # the leeway is 30 s
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        assert (await client.post("/api/v1/lab/echo", json={})).status_code == 200
        deadline = time.monotonic() + 10
        while (await client.post("/api/v1/lab/echo", json={})).status_code != 401:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


# -- limits -----


async def test_a_body_over_a_mebibyte_is_a_413(http: httpx.AsyncClient) -> None:
    problem(await http.post("/api/v1/lab/echo", content=b"x" * (1024 * 1024 + 1)), 413)
    problem(await http.post("/api/v1/lab/echo", content=b"x" * (50 * 1024 * 1024)), 413)


async def test_a_body_without_length_is_counted(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    problem(await http.post("/api/v1/lab/echo", content=endless()), 413)


async def test_a_slow_body_is_a_408(url: str, settings: Settings, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.exchange.BODY_WITHIN_S", 0.3)
    token = signed(settings, claims(settings, tenant))
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/lab/echo HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + b"{")
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_slow_headers_are_cut(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.server.HEADERS_WITHIN_S", 0.3)
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /api/v1/lab/echo HTTP/1.1\r\nHost")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_header_without_an_end_is_cut_after_two_mebibytes(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ")
    answered, sent = asyncio.create_task(reader.readline()), 0
    try:
        while not answered.done():
            assert sent < 32 * 1024 * 1024
            writer.write(b"x" * 65536)
            sent += 65536
            await asyncio.wait_for(writer.drain(), 5)
            await asyncio.sleep(0)
        assert b" 431 " in await answered
    except ConnectionError:  # cut while we were speaking: the answer got lost on its way
        answered.cancel()
    writer.close()


@pytest.mark.parametrize("lines", [10_000, 1], ids=["10,000 headers", "one of 100 KB"])
async def test_endless_headers_are_a_431(url: str, lines: int) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = 8 if lines > 1 else 100_000
    writer.write(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"v" * size) for n in range(lines))
    )
    writer.write(b"\r\n")
    assert b" 431 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


# -- resources -----


async def test_a_query_names_fields_and_no_others(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/v1/jobs?limit=5&status=queued")).status_code == 200
    for query in ("nothing=1", "limit=5&limit=6", "limit=x", "limit=99999", "cursor=%00", "status=a"):
        problem(await http.get(f"/api/v1/jobs?{query}"), 400)
    problem(await http.get("/api/v1/jobs/jaaaaaaaaaaaaaaaaaaaaaaaaaa?job_id=other"), 400)
    problem(await http.get("/api/v1/jobs/A%20b"), 400)
    problem(await http.get("/api/v1/jobs/jaaaaaaaaaaaaaaaaaaaaaaaaaa"), 404)


# -- jobs -----


async def ended(http: httpx.AsyncClient, job_id: str, within_s: float = 20) -> Json:
    deadline = time.monotonic() + within_s
    while True:
        job: Json = (await http.get(f"/api/v1/jobs/{job_id}")).json()
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return job
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.1)


async def test_respond_async_makes_it_a_job(http: httpx.AsyncClient) -> None:
    headers = {"Prefer": "respond-async", "Idempotency-Key": "one"}
    response = await http.post("/api/v1/lab/write", json={"name": "j"}, headers=headers)
    assert response.status_code == 202
    submitted = response.json()
    assert (submitted["status"], submitted["duplicate"]) == ("queued", False)
    assert response.headers["location"] == f"/api/v1/jobs/{submitted['job_id']}"
    assert response.headers["preference-applied"] == "respond-async"
    job = await ended(http, submitted["job_id"])
    assert (job["status"], job["result"]) == ("succeeded", {"name": "j", "rows": 1})
    again = (await http.post("/api/v1/lab/write", json={"name": "j"}, headers=headers)).json()
    assert again == submitted | {"duplicate": True}
    problem(await http.post("/api/v1/lab/write", json={"name": "k"}, headers=headers), 409)


async def test_a_long_operation_is_a_job_by_itself(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/lab/steps", json={"name": "s", "counter": ""})
    assert response.status_code == 202
    assert (await ended(http, response.json()["job_id"]))["status"] == "succeeded"


async def test_a_job_that_ends_in_time_is_the_answer(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/lab/steps", json={"name": "s", "counter": ""}, headers={"Prefer": "wait=20"})
    assert response.status_code == 200
    assert response.json() == {"name": "s", "rows": 1}
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["location"].startswith("/api/v1/jobs/j")
    slow = {"name": "slow", "sleep_s": 3}
    response = await http.post("/api/v1/lab/write", json=slow, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202


async def test_a_job_that_fails_in_time_is_the_fault(http: httpx.AsyncClient) -> None:
    body = {"name": "f", "fault": "NOT_FOUND"}
    response = await http.post("/api/v1/lab/write", json=body, headers={"Prefer": "respond-async, wait=20"})
    assert problem(response, 404)["detail"] == "as asked"


async def test_an_operation_that_is_no_job_answers_at_once(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/v1/lab/count", json={"name": "x"}, headers={"Prefer": "respond-async"})
    assert response.status_code == 200
    assert "preference-applied" not in response.headers


async def test_an_invalid_message_is_never_a_job(http: httpx.AsyncClient) -> None:
    problem(await http.post("/api/v1/lab/write", json={"x": 1}, headers={"Prefer": "respond-async"}), 400)


async def test_delete_cancels_a_job(http: httpx.AsyncClient) -> None:
    body = {"name": "c", "sleep_s": 15}
    response = await http.post("/api/v1/lab/write", json=body, headers={"Prefer": "respond-async"})
    job_id = response.json()["job_id"]
    assert (await http.delete(f"/api/v1/jobs/{job_id}")).status_code == 200
    assert (await ended(http, job_id, 10))["status"] == "cancelled"


# -- streams -----

EVENTS = {"Accept": "text/event-stream"}


async def test_chunks_come_as_events_and_the_last_is_the_answer(http: httpx.AsyncClient) -> None:
    async with http.stream(
        "POST", "/api/v1/lab/pieces", json={"pieces": 5, "pause_s": 0.05}, headers=EVENTS
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        found = await events(response)
    assert [each["event"] for each in found] == ["chunk"] * (len(found) - 1) + ["done"]
    assert text_of(found) == json.loads(found[-1]["data"])["text"] == "".join(f"piece {n}. " for n in range(5))
    idents = [each["id"].rsplit(".", 2) for each in found]
    assert {ident for ident, _, _ in idents} == {idents[0][0]}
    assert [int(n) for _, _, n in idents] == list(range(1, len(found) + 1))


async def test_a_stream_that_fails_at_once_has_its_status(http: httpx.AsyncClient) -> None:
    problem(await http.post("/api/v1/lab/pieces", json={"pieces": "x"}, headers=EVENTS), 400)
    problem(await http.post("/api/v1/lab/broken", json={}, headers=EVENTS), 500)
    problem(await http.post("/api/v1/gateway/generate", json={"prompt": "x"}, headers=EVENTS), 503)


async def test_an_operation_without_chunks_is_one_event(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/api/v1/lab/echo", json={"text": "x"}, headers=EVENTS) as response:
        found = await events(response)
    assert [each["event"] for each in found] == ["done"]


async def test_a_stream_is_cancelled_when_its_client_leaves(http: httpx.AsyncClient, tmp_path: Path) -> None:
    body = {"pieces": 200, "pause_s": 0.05, "counter": str(tmp_path / "counter")}
    async with http.stream("POST", "/api/v1/lab/pieces", json=body, headers=EVENTS) as response:
        found = await events(response, most=3)
    output_id = found[0]["id"].split(".")[0]
    await asyncio.sleep(1.2)
    async with http.stream("GET", f"/api/v1/outputs/{output_id}") as response:
        kept = await events(response)
    assert kept[-1]["event"] == "error"
    assert json.loads(kept[-1]["data"])["code"] == "CANCELLED"
    assert len(kept) < 60


async def test_a_job_streams_and_survives_a_cut(http: httpx.AsyncClient, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    body = {"pieces": 20, "pause_s": 0.1, "counter": str(counter)}
    headers = EVENTS | {"Prefer": "respond-async"}
    async with http.stream("POST", "/api/v1/lab/pieces", json=body, headers=headers) as response:
        assert response.status_code == 200
        job_id = response.headers["location"].removeprefix("/api/v1/jobs/")
        first = await events(response, most=5)
    last = {"Last-Event-ID": first[-1]["id"]}
    async with http.stream("GET", f"/api/v1/outputs/{job_id}", headers=last) as response:
        rest = await events(response)
    assert [each["id"] for each in first + rest] == [f"{job_id}.1.{n}" for n in range(1, len(first + rest) + 1)]
    whole = json.loads(rest[-1]["data"])["text"]
    assert text_of(first) + text_of(rest) == whole
    assert counter.stat().st_size == 1
    for path in (f"/api/v1/outputs/{job_id}", f"/api/v1/jobs/{job_id}/events"):
        async with http.stream("GET", path) as response:
            assert text_of(await events(response)) == whole


async def test_the_end_of_a_job_is_known_without_its_output(http: httpx.AsyncClient, connection: Connection) -> None:
    response = await http.post("/api/v1/lab/steps", json={"name": "s", "counter": ""}, headers={"Prefer": "wait=20"})
    job_id = response.headers["location"].rsplit("/", 1)[1]
    await connection.jetstream().purge_stream("OUT", subject=f"out.*.{job_id}")
    async with http.stream("GET", f"/api/v1/jobs/{job_id}/events") as stream:
        found = await events(stream)
    assert [(each["event"], json.loads(each["data"])) for each in found] == [("done", {"name": "s", "rows": 1})]


async def test_an_output_is_its_tenants(http: httpx.AsyncClient, url: str, settings: Settings) -> None:
    async with http.stream("POST", "/api/v1/lab/pieces", json={}, headers=EVENTS) as response:
        output_id = (await events(response))[0]["id"].split(".")[0]
    submitted = await http.post("/api/v1/lab/pieces", json={}, headers={"Prefer": "respond-async"})
    job_id = submitted.json()["job_id"]
    token = signed(settings, claims(settings, "somebody-else"))
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as other:
        for path in (f"outputs/{output_id}", f"outputs/{job_id}", f"jobs/{job_id}", f"jobs/{job_id}/events"):
            problem(await other.get(f"/api/v1/{path}"), 404)
    problem(await http.get(f"/api/v1/outputs/{output_id}", headers={"Last-Event-ID": "other.1.1"}), 400)
    problem(await http.get("/api/v1/outputs/UPPER"), 400)


# -- probes and documents -----


async def test_probes_answer_without_a_token(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for path in ("/healthz", "/health"):
            assert (await client.get(path)).json() == {"status": "ok"}
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["status"] == "ready"
        assert ready.json()["checks"]["worker-lab"] == "ok"
        assert ready.json()["checks"]["worker-rag"] != "ok"
        metrics = (await client.get("/metrics")).text
    assert 'probe_checks_total{check="postgres",result="ok"}' in metrics
    assert 'http_requests_total{method="GET",route="/readyz",status="200"}' in metrics


async def test_a_required_worker_that_is_away_is_not_ready(settings: Settings, connection: Connection) -> None:
    needing = settings.model_copy(update={"bridge_port": 0, "ready_requires": ("rag",)})
    async with running(needing, connection) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["detail"] == "Service not ready"
        assert response.json()["checks"]["worker-rag"] == "no worker is running"


async def test_the_document_has_every_route_with_its_schemas(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    for call in load().calls.values():
        assert (call.path in document["paths"]) == call.public


async def test_cors_is_off_unless_asked_for(url: str, settings: Settings, connection: Connection) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with httpx.AsyncClient() as client:
        off = await client.options(f"{url}/api/v1/lab/echo", headers=preflight)
        assert off.status_code == 401
        assert "access-control-allow-origin" not in off.headers
        allowing = settings.model_copy(update={"bridge_port": 0, "cors_origins": ("https://a.example",)})
        async with running(allowing, connection) as other:
            on = await client.options(f"{other}/api/v1/cache/get", headers=preflight)
            assert on.headers["access-control-allow-origin"] == "https://a.example"
            preflight["Origin"] = "https://b.example"
            refused = await client.options(f"{other}/api/v1/cache/get", headers=preflight)
            assert "access-control-allow-origin" not in refused.headers


# -- the process -----


async def test_sigterm_ends_open_streams_and_exits_with_0(stack: Stack, settings: Settings, tenant: str) -> None:
    assert settings.jwt_secret is not None
    environ = {
        **os.environ, **stack.environ(), "BRIDGE_PORT": "0", "SHUTDOWN_GRACE_S": "5",
        "JWT_SECRET": settings.jwt_secret.get_secret_value(),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", "bridge", cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while "bridge_serves" not in (line := (await asyncio.wait_for(process.stderr.readline(), 20)).decode()):
            assert line
        url = json.loads(line)["url"]
        headers = {"Authorization": f"Bearer {signed(settings, claims(settings, tenant))}"}
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            submitted = await submitted_job(client, settings, tenant)
            async with client.stream("GET", f"/api/v1/jobs/{submitted}/events") as response:
                lines = response.aiter_lines()
                process.send_signal(signal.SIGTERM)
                started = time.monotonic()
                said = [line async for line in lines]
        assert "retry: 1000" in said
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert time.monotonic() - started < 6
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def submitted_job(client: httpx.AsyncClient, settings: Settings, tenant: str) -> str:
    """A job that nobody works on: its component has no worker here."""
    response = await client.post("/api/v1/rag/ingest", json={"text": "x"})
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


# -- uploads -----


async def test_an_upload_without_a_worker_is_a_503_and_with_nonsense_a_400(http: httpx.AsyncClient) -> None:
    files = {"file": ("a.txt", b"hello", "text/plain")}
    problem(await http.post("/api/v1/ingestion/upload", files=files), 503)
    problem(await http.post("/api/v1/ingestion/upload", files={"other": ("a", b"x")}), 400)
    problem(await http.post("/api/v1/ingestion/upload", json={}), 400)
    problem(await http.post("/api/v1/ingestion/upload", files=files, data={"metadata": "{"}), 400)
    problem(await http.post("/api/v1/ingestion/upload", files=files, data={"nonsense": "1"}), 400)
    cut = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nabc'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(await http.post("/api/v1/ingestion/upload", content=cut, headers=headers), 400)


async def test_an_upload_over_the_limit_is_a_413_before_it_is_read(url: str, settings: Settings, tenant: str) -> None:
    token = signed(settings, claims(settings, tenant))
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v1/ingestion/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {300 * 1024 * 1024}\r\n\r\n"
    writer.write(head.encode())
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


@pytest_asyncio.fixture
async def ingesting(settings: Settings) -> AsyncIterator[None]:
    own = await connect(settings, name="ingestion-here")
    async with serving([INGESTION, INDEX], settings, own):
        yield
    await own.close()


@pytest.mark.usefixtures("ingesting")
async def test_an_upload_is_stored_and_processed(http: httpx.AsyncClient) -> None:
    data = pdf("A page of prose.")
    files = {"file": ("../dir\\a name.pdf", data, "application/pdf")}
    response = await http.post(
        "/api/v1/ingestion/upload", files=files, data={"metadata": '{"a":1}', "collection": "c1", "source_id": ""}
    )
    assert response.status_code == 202, response.text
    uploaded = response.json()
    assert (uploaded["size"], uploaded["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert uploaded["type"] == "application/pdf"
    assert response.headers["location"] == f"/api/v1/jobs/{uploaded['job_id']}"
    assert (await ended(http, uploaded["job_id"]))["status"] == "succeeded"
    file = (await http.post("/api/v1/ingestion/get_file", json={"file_id": uploaded["file_id"]})).json()
    assert (file["name"], file["collection"], file["metadata"]) == ("a name.pdf", "c1", {"a": 1})
    assert file["status"] == "indexed"


@pytest.mark.usefixtures("ingesting")
async def test_an_upload_with_a_key_has_one_effect(
    http: httpx.AsyncClient, connection: Connection, tenant: str
) -> None:
    key = {"Idempotency-Key": "one"}

    async def upload(data: bytes) -> httpx.Response:
        return await http.post("/api/v1/ingestion/upload", files={"file": ("a.txt", data)}, headers=key)

    first, again = await upload(b"the same"), await upload(b"the same")
    assert first.json() == again.json()
    problem(await upload(b"another"), 409)
    kept = await Objects(connection).read(tenant, first.json()["file_id"], max_bytes=100, timeout_s=5)
    assert kept == b"the same"


@pytest.mark.usefixtures("ingesting")
async def test_a_large_upload_arrives_whole(http: httpx.AsyncClient) -> None:
    data = os.urandom(24 * 1024 * 1024)
    response = await http.post("/api/v1/ingestion/upload", files={"file": ("a.bin", data)})
    assert response.status_code == 202, response.text
    assert response.json()["sha256"] == hashlib.sha256(data).hexdigest()


async def test_an_upload_whose_client_leaves_leaves_nothing(http: httpx.AsyncClient, connection: Connection) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(10):
            yield b"x" * 100_000
        raise ConnectionError

    stream = connection.jetstream()
    before = (await stream.stream_info("OBJ_files")).state.bytes
    with pytest.raises(ConnectionError):
        await http.post(
            "/api/v1/ingestion/upload", content=cut(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
    deadline = time.monotonic() + 5
    while (await stream.stream_info("OBJ_files")).state.bytes > before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
