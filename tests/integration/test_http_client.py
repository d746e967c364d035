"""The HTTP client: on a real bridge with real workers, and against a server that fails as scripted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bridge.server import running
from cli.tokens import sign
from client import (
    Chunk,
    CircuitOpen,
    ClientConfig,
    Conflict,
    Done,
    Event,
    Failed,
    NotFound,
    ServiceClientManager,
    ServiceError,
    ServiceHTTPClient,
    sse,
)
from runtime.connection import Connection, connect
from runtime.settings import Settings
from subjects import cache, jobs
from subjects.contract import AnyCall, Code, Fault
from subjects.registry import Registry, load
from tests.broker import Proxy, until
from tests.integration.ingestion_lab import INDEX
from tests.lab import contract as lab
from tests.scripted import Scripted, answer, events, hang, problem, reset
from workers.cache.worker import WORKER as CACHE
from workers.ingestion.worker import WORKER as INGESTION
from workers.serving.boot import serving

LAB: list[AnyCall] = [lab.ECHO, lab.WRITE, lab.PIECES]
QUICK: dict[str, Any] = {"backoff_from_s": 0.01, "backoff_to_s": 0.02}
OK = answer(200, {"ok": True})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bridge(settings: Settings, connection: Connection) -> AsyncIterator[str]:
    free = settings.model_copy(update={"bridge_port": 0, "shutdown_grace_s": 5})
    async with running(
        free, connection, contracts=Registry((*load().calls.values(), *LAB), load().events.values())
    ) as served_at:
        yield served_at


@pytest_asyncio.fixture
async def services(bridge: str, settings: Settings, tenant: str) -> AsyncIterator[ServiceClientManager]:
    async with ServiceClientManager(ClientConfig(base_url=bridge, token=sign(settings, tenant))) as made:
        yield made


def scripted_client(server: Scripted, **changes: Any) -> ServiceHTTPClient:
    return ServiceHTTPClient("lab", ClientConfig(base_url=server.url, token="canary-token", **(QUICK | changes)))


async def failing(work: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await work
    return caught.value


async def until_it_fails(stream: AsyncIterator[Event] | Any) -> tuple[list[Event], ServiceError]:
    found: list[Event] = []
    try:
        async for event in stream:
            found.append(event)
    except ServiceError as error:
        return found, error
    raise AssertionError("the stream did not fail")


async def all_of(stream: AsyncIterator[Event] | Any) -> list[Event]:
    return [event async for event in stream]


# -- on the platform -----


@pytest.mark.usefixtures("served")
async def test_a_service_answers_at_its_own_path_and_at_a_whole_one(
    services: ServiceClientManager, tenant: str
) -> None:
    client = services.get_client("lab")
    headers = services.get_headers(tenant, "ann", "c-1")
    for path in ("echo", "/api/v1/lab/echo"):
        assert (await client.post(path, json_data={"text": "é"}, headers=headers))["text"] == "é"
    found = await client.call(lab.ECHO, lab.Echo(text="typed", number=3))
    assert (found.text, found.number, found.tenant) == ("typed", 3, tenant)


@pytest.mark.usefixtures("served")
async def test_a_refusal_is_an_error_that_says_everything(services: ServiceClientManager) -> None:
    client = services.get_client("lab")
    error = await failing(client.post("echo", {"number": "x"}, headers=services.get_headers(correlation_id="c-2")))
    assert (error.code, error.status, error.retryable) == (Code.INVALID, 400, False)
    assert [each.path for each in error.errors] == ["number"]
    assert error.correlation_id == "c-2"
    assert error.request_id
    assert isinstance(await failing(client.job("j" + "a" * 26)), NotFound)
    other = services.get_headers("another")
    assert (await failing(client.post("echo", {}, headers=other))).code is Code.FORBIDDEN


@pytest.mark.usefixtures("served")
async def test_the_same_key_has_one_effect_and_without_one_each_call_has_its_own(
    services: ServiceClientManager,
) -> None:
    client, key = services.get_client("lab"), {"Idempotency-Key": "once"}
    for headers, rows in ((key, 1), (key, 1), (None, 2), (None, 3)):
        assert (await client.post("write", {"name": "w"}, headers=headers))["rows"] == rows
    assert isinstance(await failing(client.post("write", {"name": "other"}, headers=key)), Conflict)


@pytest.mark.usefixtures("served")
async def test_a_stream_is_chunks_and_then_the_whole(services: ServiceClientManager) -> None:
    found = await all_of(services.get_client("lab").stream("pieces", {"pieces": 4, "pause_s": 0.03}))
    said = "".join(event.data["text"] for event in found if isinstance(event, Chunk))
    assert isinstance(found[-1], Done)
    assert said == found[-1].data["text"]


@pytest.mark.usefixtures("served")
async def test_leaving_a_stream_cancels_its_work(services: ServiceClientManager) -> None:
    client = services.get_client("lab")
    async with client.stream("pieces", {"pieces": 400, "pause_s": 0.05}) as stream:
        async for event in stream:
            output_id = event.id.split(".")[0]
            break
    again = services.get_client("outputs")
    deadline = time.monotonic() + 5
    while True:  # the output says so within a second
        kept = await again._transport.ask(again._asked("GET", output_id, {"Accept": "text/event-stream"}))
        if b"CANCELLED" in kept.body:
            break
        assert time.monotonic() < deadline


@pytest.mark.usefixtures("served")
async def test_a_jobs_stream_survives_cut_connections(bridge: str, settings: Settings, tenant: str) -> None:
    async with Proxy(bridge) as proxy:
        config = ClientConfig(base_url=proxy.url, token=sign(settings, tenant), **QUICK)
        async with ServiceHTTPClient("lab", config) as client:
            found: list[Event] = []
            async for event in client.stream("pieces", {"pieces": 30, "pause_s": 0.03}, as_job=True):
                found.append(event)
                if len(found) in (3, 9):
                    proxy.cut()
    assert isinstance(found[-1], Done)
    assert "".join(event.data["text"] for event in found if isinstance(event, Chunk)) == found[-1].data["text"]
    places = [int(event.id.rsplit(".", 1)[1]) for event in found]
    assert places == list(range(1, len(found) + 1))


@pytest.mark.usefixtures("served")
async def test_a_job_is_submitted_waited_for_and_cancelled(services: ServiceClientManager) -> None:
    client = services.get_client("lab")
    first, again = [await client.submit("write", {"name": "j"}, key="k") for _ in range(2)]
    assert (first.job_id, first.duplicate, again.duplicate) == (again.job_id, False, True)
    job = await client.wait(first.job_id)
    assert (job.status, job.result) == ("succeeded", {"name": "j", "rows": 1})
    slow = await client.submit("write", {"name": "slow", "sleep_s": 15})
    assert (await failing(client.wait(slow.job_id, timeout_s=0.2))).code is Code.TIMEOUT
    await client.cancel(slow.job_id)
    assert (await client.wait(slow.job_id, timeout_s=10)).status == "cancelled"


@pytest.mark.usefixtures("lab_tables")
async def test_a_file_goes_up_in_pieces_with_its_progress(
    services: ServiceClientManager, settings: Settings, tmp_path: Path
) -> None:
    path, told = tmp_path / 'a "name".txt', list[tuple[int, int | None]]()
    path.write_bytes(os.urandom(700_000))
    own = await connect(settings, name="ingestion-here")
    async with serving([INGESTION, INDEX], settings, own):
        client = services.get_client("ingestion")
        first, again = [
            await client.upload(path, key="u", fields={"collection": "c"}, progress=lambda *at: told.append(at))
            for _ in range(2)
        ]
        file = await client.post("get_file", {"file_id": first["file_id"]})
    await own.close()
    assert first == again
    assert first["size"] == 700_000
    assert file["collection"] == "c"
    assert told[:3] == [(262_144, 700_000), (524_288, 700_000), (700_000, 700_000)]


async def test_a_token_is_asked_for_before_each_attempt_and_a_bad_one_is_not_tried_again(
    bridge: str, settings: Settings, tenant: str
) -> None:
    tokens = ["wrong", sign(settings, tenant)]
    asked: list[str] = []

    async def token() -> str:
        asked.append(tokens[min(1, len(asked))])
        return asked[-1]

    async with ServiceHTTPClient("jobs", ClientConfig(base_url=bridge, token=token, max_attempts=1)) as client:
        assert (await failing(client.post("list"))).code is Code.UNAUTHENTICATED
        assert len(asked) == 1
        assert (await failing(client.post("list"))).code is not Code.UNAUTHENTICATED  # nobody serves jobs here
        assert len(asked) == 2


async def test_typed_calls_of_every_contract(services: ServiceClientManager, settings: Settings) -> None:
    own = await connect(settings, name="cache-here")
    async with serving([CACHE], settings, own):
        client = services.get_client("cache")
        await client.call(cache.SET, cache.Set(key="k", bytes=b"\x00\xff"))
        entry = await client.call(cache.GET, cache.Get(key="k"))
    await own.close()
    assert entry.bytes == b"\x00\xff"


# -- against a server that fails -----


async def test_an_attempt_is_repeated_with_its_key_and_not_before_it_may(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Scripted(problem(503, "UNAVAILABLE", retryable=True, retry_after="1"), OK) as server:
        async with scripted_client(server) as client:
            assert await client.post("write", {"name": "canary-body"}) == {"ok": True}
    first, second = server.requests
    assert second.at - first.at >= 1
    for name in ("idempotency-key", "x-correlation-id", "authorization"):
        assert first.headers[name] == second.headers[name]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.body == second.body
    assert float(first.headers["request-timeout"]) < 60
    assert "canary" not in caplog.text


@pytest.mark.parametrize("fault", [hang, reset, answer(502, b"<html>canary</html>", kind="text/html")])
async def test_what_may_pass_is_tried_again_so_often_and_no_more(fault: Any) -> None:
    async with Scripted(fault, OK) as server, scripted_client(server, read_timeout_s=0.3) as client:
        assert await client.get("echo") == {"ok": True}
        server.script(fault)
        error = await failing(client.post("echo", {}))
        assert len(server.requests) == 4
        assert error.retryable
        assert "canary" not in str(error)


async def test_the_whole_time_is_bounded() -> None:
    async with Scripted(hang) as server, scripted_client(server) as client:
        began = time.monotonic()
        assert (await failing(client.post("echo", {}, timeout_s=0.5))).code is Code.TIMEOUT
        assert time.monotonic() - began < 1.5
        server.script(problem(429, "EXHAUSTED", retryable=True, retry_after="30"))
        began = time.monotonic()
        error = await failing(client.post("echo", {}, timeout_s=5))
        assert (error.code, error.retry_after_s, len(server.requests)) == (Code.EXHAUSTED, 30, 1)
        assert time.monotonic() - began < 1


@pytest.mark.parametrize(("status", "code"), [(400, "INVALID"), (409, "CONFLICT"), (404, "NOT_FOUND")])
async def test_a_refusal_is_never_tried_again(status: int, code: str) -> None:
    async with Scripted(problem(status, code, retryable=False)) as server, scripted_client(server) as client:
        error = await failing(client.post("echo", {}))
        assert (error.code.value, error.detail, error.request_id) == (code, "as scripted", "r1")
        assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b'{"a":', b"", b"<html>"])
async def test_an_answer_that_cannot_be_read_is_an_error(body: bytes) -> None:
    async with Scripted(answer(200, body)) as server, scripted_client(server) as client:
        error = await failing(client.call(jobs.GET, jobs.GetJob(job_id="j1")))
        assert (error.code, error.status, len(server.requests)) == (Code.UPSTREAM, 200, 1)


async def test_nobody_there_is_an_error_that_sent_nothing() -> None:
    async with Scripted(OK) as server:
        url = server.url
    async with ServiceHTTPClient("lab", ClientConfig(base_url=url, **QUICK)) as client:
        error = await failing(client.post("echo", {}))
    assert (error.code, error.status, error.sent) == (Code.UNAVAILABLE, None, False)


async def test_what_only_reads_has_no_key_and_a_job_no_timeout_that_would_be_its_deadline() -> None:
    async with Scripted(OK) as server, scripted_client(server) as client:
        await client.post("/api/v1/cache/get", {"key": "k"})
        assert "idempotency-key" not in server.requests[-1].headers
        await client.post("/api/v1/rag/ingest", {"text": "x"})
        assert "idempotency-key" in server.requests[-1].headers
        assert "request-timeout" not in server.requests[-1].headers


async def test_an_open_breaker_refuses_at_once_and_lets_one_probe_through() -> None:
    down = problem(500, "INTERNAL", retryable=False)
    async with Scripted(problem(404, "NOT_FOUND", retryable=False)) as server:
        async with scripted_client(server, breaker_failures=3, breaker_open_s=0.4) as client:
            for _ in range(5):  # a refusal is no outage
                await failing(client.post("echo", {}))
            server.script(down)
            for _ in range(3):
                await failing(client.post("echo", {}))
            error = await failing(client.post("echo", {}))
            assert isinstance(error, CircuitOpen)
            assert 0 < (error.retry_after_s or 0) <= 0.4
            assert len(server.requests) == 3
            await failing(client.post("/api/v1/other/echo", {}))  # another service is another breaker
            assert len(server.requests) == 4
            await asyncio.sleep(0.45)
            server.script(_slow_ok, OK)
            found = await asyncio.gather(*(client.post("echo", {}) for _ in range(5)), return_exceptions=True)
            assert sum(isinstance(each, CircuitOpen) for each in found) == 4
            assert len(server.requests) == 1
            assert await client.post("echo", {}) == {"ok": True}


async def _slow_ok(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.1)
    OK(writer)


# -- streams that fail -----

CHUNKS = (
    b'id: o1.1.1\nevent: chunk\ndata: {"text":"a"}\n\n: still there\n\nid: o1.1.2\nevent: chunk\ndata: {"text":"b"}\n\n'
)
END = b'id: j1.1.3\nevent: done\ndata: {"text":"ab"}\n\n'


async def test_a_plain_stream_that_is_cut_is_an_error_and_never_asked_again() -> None:
    async with Scripted(events(CHUNKS)) as server, scripted_client(server) as client:
        found, error = await until_it_fails(client.stream("pieces"))
        assert [event.id for event in found] == ["o1.1.1", "o1.1.2"]
        assert error.code is Code.UNAVAILABLE
        assert len(server.requests) == 1


async def test_a_jobs_stream_is_joined_at_its_last_event_and_not_for_ever() -> None:
    began = events(CHUNKS.replace(b"o1", b"j1"), location="/api/v1/jobs/j1")
    async with Scripted(began, problem(503, "UNAVAILABLE", retryable=True), events(END)) as server:
        async with scripted_client(server, max_rejoins=2) as client:
            stream = client.stream("pieces", as_job=True)
            found = await all_of(stream)
            assert [event.id for event in found] == ["j1.1.1", "j1.1.2", "j1.1.3"]
            assert [(each.method, each.path) for each in server.requests[1:]] == [("GET", "/api/v1/outputs/j1")] * 2
            assert [each.headers.get("last-event-id") for each in server.requests] == [None, "j1.1.2", "j1.1.2"]
            server.script(began, events(b": nothing\n\n"))
            assert "j1.1.2" in (await failing(all_of(client.stream("pieces", as_job=True)))).detail
            assert len(server.requests) == 3


async def test_an_error_event_is_given_and_then_raised() -> None:
    body = {"status": 504, "code": "TIMEOUT", "detail": "too slow", "retryable": True}
    last = CHUNKS + b"id: o1.1.3\nevent: error\ndata: " + json.dumps(body).encode() + b"\n\n"
    async with Scripted(events(last)) as server, scripted_client(server) as client:
        found, error = await until_it_fails(client.stream("pieces"))
        assert error.detail == "too slow"
        assert isinstance(found[-1], Failed)


async def test_a_cancelled_reader_closes_its_connection() -> None:
    async with Scripted(events(CHUNKS, end=False)) as server, scripted_client(server) as client:
        reading = asyncio.ensure_future(all_of(client.stream("pieces")))
        await until(lambda: bool(server.requests))
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait_for(server.left.wait(), 2)


async def test_a_silent_stream_ends() -> None:
    async with Scripted(events(CHUNKS, end=False)) as server, scripted_client(server, stream_idle_s=0.2) as client:
        assert (await failing(all_of(client.stream("pieces")))).code is Code.UNAVAILABLE


async def test_events_are_the_same_however_the_bytes_are_cut() -> None:
    body = CHUNKS + 'id: o1.1.3\r\nevent: done\r\ndata: {"text":\r\ndata: "\u2028é"}\r\n\r\nretry: 1500\n\n'.encode()
    dice = random.Random(7)

    async def cut() -> AsyncIterator[bytes]:
        at = 0
        while at < len(body):
            size = dice.randrange(1, 12)
            yield body[at : at + size]
            at += size

    for _ in range(20):
        found = [raw async for raw in sse.events(cut()) if raw.data or raw.retry_s]
        assert [raw.kind for raw in found] == ["chunk", "chunk", "done", ""]
        assert sse.typed(found[2]) == Done("o1.1.3", {"text": "\u2028é"})
        assert found[3].retry_s == 1.5


# -- files -----


@pytest.mark.parametrize("opens", [lambda path: path, lambda path: path.read_bytes(), lambda path: pieces_of(path)])
async def test_an_upload_is_repeated_whole_with_the_same_key(tmp_path: Path, opens: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(300_000))
    async with Scripted(problem(503, "UNAVAILABLE", retryable=True), answer(202, {"size": 1})) as server:
        async with scripted_client(server) as client:
            assert await client.upload(opens(path), name="a.bin") == {"size": 1}
    first, second = server.requests
    assert path.read_bytes() in first.body
    assert first.body == second.body
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def pieces_of(path: Path) -> Callable[[], AsyncIterator[bytes]]:
    data = path.read_bytes()

    async def opened() -> AsyncIterator[bytes]:
        yield data

    return opened


async def test_what_cannot_be_opened_again_is_sent_once(tmp_path: Path) -> None:
    async with Scripted(problem(503, "UNAVAILABLE", retryable=True)) as server, scripted_client(server) as client:
        await failing(client.upload(pieces_of(Path(__file__))()))
        assert len(server.requests) == 1


async def test_a_download_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    whole, target = os.urandom(600_000), tmp_path / "got.bin"
    cut = answer(200, whole[:1000], declared=len(whole))
    async with Scripted(cut, answer(200, whole)) as server, scripted_client(server) as client:
        assert await client.download("/files/1", target) == len(whole)
        assert target.read_bytes() == whole
        target.unlink()
        server.script(cut)
        await failing(client.download("/files/1", target))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["//evil/x", "http://evil/x", "../jobs/list", "/api/v1/../x", "a\\b"])
async def test_a_token_goes_nowhere_else(path: str) -> None:
    async with Scripted(OK) as server, scripted_client(server) as client:
        with pytest.raises(Fault) as caught:
            await client.get(path)
        assert caught.value.code is Code.INVALID
        assert server.requests == []
