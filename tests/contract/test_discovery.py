"""Discovery (ADR-32): a stock client finds every component, and what it is told agrees with what was sent."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]
import nats
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from nats.aio.client import Client as StockClient
from nats.aio.msg import Msg
from nats.micro.service import EndpointStats, ServiceInfo, ServicePing, ServiceStats

from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.headers import block
from runtime.identity import Identity
from runtime.settings import Settings
from subjects import registry
from subjects.contract import Call, Code, Fault
from tests.lab import contract as lab
from tests.lab.fixtures import ended
from tests.lab.worker import WORKER
from workers.serving import Worker, discovery, tables
from workers.serving.boot import serving
from workers.serving.discovery import semantic, service
from workers.serving.settle import MAX_REPLY_BYTES
from workers.serving.stats import Stats

T = TypeVar("T")
WITHIN_S = 10.0
QUIET_S = 0.3  # nobody answers any more
SEMVER = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
NOBODY = "nobody"


@asynccontextmanager
async def instance(settings: Settings, *workers: Worker) -> AsyncIterator[Connection]:
    """Another process of these components, as far as the broker can tell."""
    own = await connect(settings, name="instance")
    async with serving(workers, settings, own):
        yield own
    await own.close()


@pytest.fixture
def everything(served: object) -> list[Worker]:
    """Every component that there is, served."""
    return [tables.load(name) for name in tables.names()]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outside(settings: Settings) -> AsyncIterator[StockClient]:
    """nats-py as anybody has it."""
    opened = await nats.connect(settings.nats_url)
    yield opened
    await opened.close()


async def asked(outside: StockClient, subject: str, read: Callable[[dict[str, Any]], T], most: int = 100) -> list[T]:
    """What everybody answers, or the first that do."""
    inbox = outside.new_inbox()
    answers = await outside.subscribe(inbox)
    await outside.publish(subject, b"", reply=inbox)
    found: list[T] = []
    while len(found) < most:
        try:
            msg = await answers.next_msg(timeout=QUIET_S if found else WITHIN_S)
        except TimeoutError:
            break
        if (msg.headers or {}).get("Status") == "503":
            break
        found.append(read(json.loads(msg.data)))
    await answers.unsubscribe()
    return found


async def counted(outside: StockClient, name: str) -> dict[str, EndpointStats]:
    [stats] = await asked(outside, f"$SRV.STATS.{name}", ServiceStats.from_dict, 1)
    return {each.name: each for each in stats.endpoints}


async def ask(connection: Connection, call: Call[Any, Any], tenant: str, body: bytes, **headers: str) -> str | None:
    """The code of the fault that is answered."""
    given = block({name.replace("_", "-"): value for name, value in headers.items()})
    subject = f"req.{tenant}.{call.component}.{call.operation}"
    return (await connection.requests.ask(subject, body, given, WITHIN_S)).headers.get(h.ERROR_CODE)


async def test_every_component_is_listed_with_its_endpoints_and_schemas(
    everything: list[Worker], outside: StockClient
) -> None:
    pings = await asked(outside, "$SRV.PING", ServicePing.from_dict)
    infos = await asked(outside, "$SRV.INFO", ServiceInfo.from_dict)
    known = registry.load()
    assert sorted(ping.name for ping in pings) == sorted(info.name for info in infos) == known.components
    assert {(ping.name, ping.id) for ping in pings} == {(info.name, info.id) for info in infos}
    for info in infos:
        assert info.type == "io.nats.micro.v1.info_response"
        assert SEMVER.fullmatch(info.version)
        assert info.description
        assert {each.name for each in info.endpoints} == {call.operation for call in known.of(info.name)}
        for each in info.endpoints:
            assert (each.subject, each.queue_group) == (f"req.*.{info.name}.{each.name}", info.name)
            call, told = known.calls[f"{info.name}.{each.name}"], each.metadata or {}
            assert set(told) >= {"input_schema", "output_schema"} | ({"chunk_schema"} if call.chunk else set())
            assert all(isinstance(value, str) for value in told.values())
            for name in [name for name in told if name.endswith("_schema")]:
                Draft202012Validator.check_schema(json.loads(told[name]))
            assert set(json.loads(told["input_schema"]).get("properties", {})) == set(call.input.model_fields)


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_each_is_asked_by_name_and_by_id(everything: list[Worker], outside: StockClient, verb: str) -> None:
    everybody = await asked(outside, f"$SRV.{verb}", dict)
    assert {each["type"] for each in everybody} == {f"io.nats.micro.v1.{verb.lower()}_response"}
    addresses = [(each["name"], each["id"]) for each in everybody]
    by_id = await asyncio.gather(*(asked(outside, f"$SRV.{verb}.{name}.{ident}", dict) for name, ident in addresses))
    assert [[(each["name"], each["id"]) for each in found] for found in by_id] == [[address] for address in addresses]
    assert await asked(outside, f"$SRV.{verb}.{NOBODY}", dict) == []
    [cache] = await asked(outside, f"$SRV.{verb}.cache", dict)
    assert cache["name"] == "cache"


async def test_two_processes_of_one_component_are_two_until_one_has_gone(
    everything: list[Worker], outside: StockClient, settings: Settings
) -> None:
    began = time.time()
    async with instance(settings, tables.load("cache")):
        found = await asked(outside, "$SRV.STATS.cache", ServiceStats.from_dict)
        assert len({each.id for each in found}) == len(found) == 2
        newest = max(each.started.timestamp() - time.timezone for each in found)
        assert began - 1 < newest < time.time() + 1
        assert len(await asked(outside, "$SRV.PING", ServicePing.from_dict)) == len(everything) + 1
    assert len(await asked(outside, "$SRV.PING.cache", ServicePing.from_dict)) == 1


async def test_refused_requests_are_counted_for_every_operation(
    everything: list[Worker], outside: StockClient, connection: Connection, tenant: str
) -> None:
    for worker in everything:
        before = await counted(outside, worker.name)
        for call in [each.call for each in worker.serves]:
            assert await ask(connection, call, tenant, b"\xc1 canary") == Code.INVALID
            assert await ask(connection, call, tenant, b"\x80", X_Scopes="other.thing") == Code.FORBIDDEN
            assert await ask(connection, call, "NO-TENANT", b"\x80") == Code.INVALID
            assert await ask(connection, call, tenant, b"\x80", X_Tenant_ID="somebody") == Code.FORBIDDEN
        assert await ask(connection, Call(worker.name, "none", *_EMPTY), tenant, b"\x80") == Code.NOT_FOUND
        for name, after in (await counted(outside, worker.name)).items():
            assert after.num_errors - before[name].num_errors == 4, (worker.name, name)
            assert after.num_requests - before[name].num_requests >= 4  # what other tests left behind may ask as well
            assert str(after.last_error).startswith("FORBIDDEN: ")
            assert "canary" not in str(after.last_error)
            assert after.average_processing_time == after.processing_time // after.num_requests


_EMPTY = (lab.Echo, lab.Echoed)


async def test_counts_errors_and_times_agree_with_what_was_sent(
    lab_tables: None,
    everything: list[Worker],
    outside: StockClient,
    settings: Settings,
    connection: Connection,
    client: Client,
    identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAB_CONCURRENCY", "2")
    async with instance(settings, WORKER):
        fresh = await counted(outside, "lab")
        assert {(each.num_requests, each.num_errors, each.last_error) for each in fresh.values()} == {(0, 0, "")}

        for _ in range(7):
            await client.call(lab.ECHO, lab.Echo(text="well"), identity=identity)
        with pytest.raises(Fault):
            await client.call(lab.BROKEN, lab.Echo(text="secret"), identity=identity)
        slow = msgpack.packb({"name": "busy", "sleep_s": 0.4})
        codes = await asyncio.gather(*(ask(connection, lab.WRITE, identity.tenant, slow) for _ in range(9)))
        assert sorted(map(str, codes)) == sorted(["None"] * 4 + ["EXHAUSTED"] * 5)  # two slots, two wait
        done = await client.submit(lab.ECHO, lab.Echo(), identity=identity)
        failed = await client.submit(lab.WRITE, lab.Write(name="x", fault=Code.NOT_FOUND), identity=identity)
        for job in (done, failed):
            await ended(client, identity, job.job_id)

        found = await counted(outside, "lab")
        assert {name: (each.num_requests, each.num_errors) for name, each in found.items() if each.num_requests} == {
            "echo": (7, 0), "broken": (1, 1), "write": (9, 5),
        }  # fmt: skip
        assert found["broken"].last_error == "INTERNAL: internal error"
        assert str(found["write"].last_error).startswith("EXHAUSTED: ")
        assert 4 * 0.4e9 <= found["write"].processing_time < 4 * 1.5e9
        assert _jobs(found["echo"]) == (1, 0, "")
        assert _jobs(found["write"]) == (1, 1, "NOT_FOUND: as asked")


def _jobs(stats: EndpointStats) -> tuple[int, int, str]:
    jobs = (stats.data or {})["jobs"]
    return jobs["num_attempts"], jobs["num_errors"], jobs["last_error"]


async def test_only_an_inbox_is_answered(everything: list[Worker], outside: StockClient) -> None:
    heard: list[Msg] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg)

    listening = await outside.subscribe("evt.victim.>", cb=hear)
    for verb in ("PING", "INFO", "STATS"):
        await outside.publish(f"$SRV.{verb}", b"", reply="evt.victim.rag.document_indexed")
        await outside.publish(f"$SRV.{verb}")
    assert len(await asked(outside, "$SRV.PING.cache", dict)) == 1
    assert heard == []
    await listening.unsubscribe()


async def test_a_flood_of_questions_is_not_answered_for_ever_and_starves_nobody(
    lab_tables: None,
    everything: list[Worker],
    outside: StockClient,
    settings: Settings,
    client: Client,
    identity: Identity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discovery, "ANSWER_BURST_BYTES", 64 * 1024)
    monkeypatch.setattr(discovery, "ANSWER_BYTES_A_S", 16 * 1024)
    questions, inbox, size = 5000, outside.new_inbox(), 0

    async def weigh(msg: Msg) -> None:
        nonlocal size
        size += len(msg.data)

    async with instance(settings, WORKER):
        answers = await outside.subscribe(inbox, cb=weigh)
        began = time.monotonic()
        for _ in range(questions):
            await outside.publish("$SRV.INFO.lab", b"", reply=inbox)
        calls = [client.call(lab.ECHO, lab.Echo(text="work"), identity=identity) for _ in range(50)]
        assert {reply.text for reply in await asyncio.gather(*calls)} == {"work"}
        await outside.flush()
        most = 64 * 1024 + (time.monotonic() - began) * 16 * 1024
        info = len(service(WORKER, Stats("lab", []), version="0.1.0", process="x" * 64).info)
        assert 0 < size <= most + info
        await answers.unsubscribe()
    assert len(await asked(outside, "$SRV.PING", dict)) == len(everything)  # the others had none of it


def test_an_info_that_does_not_fit_goes_without_its_schemas() -> None:
    def made(most_bytes: int) -> bytes:
        return service(WORKER, Stats("lab", []), version="0.1.0", process="p", most_bytes=most_bytes).info

    whole = made(MAX_REPLY_BYTES)
    assert "input_schema" in (ServiceInfo.from_dict(json.loads(made(len(whole)))).endpoints[0].metadata or {})
    cut = ServiceInfo.from_dict(json.loads(made(len(whole) - 1)))
    assert {each.name for each in cut.endpoints} == {each.call.operation for each in WORKER.serves}
    assert "faas contracts" in (cut.endpoints[0].metadata or {})["schemas"]


@pytest.mark.parametrize(
    ("given", "told"),
    [("1.2.3", "1.2.3"), ("1.2.3-rc.1+b", "1.2.3-rc.1+b"), ("main-4f2a", "0.0.0+main-4f2a"), ("01.2.3", "0.0.0+01-2-3"),
     ("v1.2", "0.0.0+v1-2"), ("", "0.0.0"), ("ü", "0.0.0")],
)  # fmt: skip
def test_a_version_that_is_not_semantic_is_told_as_build_metadata(given: str, told: str) -> None:
    assert semantic(given) == told
