"""Readiness on real servers, of the bridge and of a worker: what is away is named and nothing else; healed is ready."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from bridge.server import running
from runtime import probes
from runtime.connection import connect
from runtime.settings import Settings
from stack import Server, Stack
from stack.ports import free_port
from stack.postgres import SUPERUSER
from stack.secrets import secret
from subjects.contract import Call, Code, Fault
from subjects.registry import Registry
from tests.lab import contract as lab
from tests.lab.worker import echo
from workers.serving import Host, Worker, serve
from workers.serving.boot import serving

WITHIN_S = 15.0
POLL_S = 0.05
GHOST = Call("ghost", "haunt", lab.Echo, lab.Echoed)  # nobody serves it
CONTRACTS = Registry([lab.ECHO, GHOST], [])
READY = {"status": "ready"}
ROOT = Path(__file__).resolve().parents[2]
NO_PGVECTOR = "the database has no pgvector extension; run store/bootstrap.sql as its superuser"
COUNTED = re.compile(r'^probe_checks_total\{check="([^"]+)",result="([^"]+)"\} (\d+)$', re.MULTILINE)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def servers() -> AsyncIterator[Stack]:
    """Servers of this module's own: they are stopped here."""
    home, parts = Path(tempfile.mkdtemp(prefix="faas-r-", dir="/tmp")), frozenset({"nats", "postgres", "valkey"})
    bootstrap = (ROOT / "store" / "bootstrap.sql").read_text()
    own = Stack(home, bootstrap=bootstrap, parts=parts, ports=dict.fromkeys(parts, 0))
    try:
        async with own:
            yield own
    finally:
        own.abandon()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def here(servers: Stack) -> Settings:
    found = {name.lower(): value for name, value in servers.environ().items()}
    ports = {"bridge_port": 0, "probe_port": free_port()}
    return Settings.model_validate({**found, **ports, "jwt_secret": "test-" + "x" * 40, "shutdown_grace_s": 1})


@asynccontextmanager
async def nothing(host: Host) -> AsyncIterator[None]:
    yield


WORKER = Worker("lab", nothing, [serve(lab.ECHO, echo)], needs=frozenset({"database", "valkey"}))


@dataclass(frozen=True)
class Probed:
    """One process, asked as a supervisor asks it."""

    http: httpx.AsyncClient
    always: dict[str, str]
    """What a 503 lists beside the servers."""

    async def ready(self) -> tuple[int, Any]:
        response = await self.http.get("/readyz")
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.json()

    def healed(self) -> Any:
        return {**READY, "checks": {**ALL_WELL, **self.always}} if self.always else READY

    async def until(self, status: int) -> Any:
        """The body once it answers so."""
        deadline = time.monotonic() + WITHIN_S
        while (found := await self.ready())[0] != status:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(POLL_S)
        return found[1]

    async def checks(self) -> dict[tuple[str, str], int]:
        text = (await self.http.get("/metrics")).text
        return {(check, result): int(count) for check, result, count in COUNTED.findall(text)}


ALL_WELL = {"nats": "ok", "postgres": "ok", "valkey": "ok"}


@asynccontextmanager
async def a_bridge(settings: Settings) -> AsyncIterator[Probed]:
    async with AsyncExitStack() as stack:
        connection = await connect(settings, name="probed-bridge")
        stack.push_async_callback(connection.close)
        url = await stack.enter_async_context(running(settings, connection, contracts=CONTRACTS))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10))
        yield Probed(http, {"worker-ghost": "no worker is running", "worker-lab": "no worker is running"})


@asynccontextmanager
async def a_worker(settings: Settings, worker: Worker = WORKER) -> AsyncIterator[Probed]:
    async with AsyncExitStack() as stack:
        connection = await connect(settings, name="probed-worker")
        stack.push_async_callback(connection.close)
        await stack.enter_async_context(serving([worker], settings, connection))
        url = f"http://127.0.0.1:{settings.probe_port}"
        yield Probed(await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=10)), {})


@pytest_asyncio.fixture(params=["bridge", "worker"])
async def probed(request: pytest.FixtureRequest, here: Settings, fresh: None) -> AsyncIterator[Probed]:
    async with (a_bridge if request.param == "bridge" else a_worker)(here) as found:
        yield found


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is a check."""
    monkeypatch.setattr(probes, "KEPT_S", 0.0)


async def test_all_well_is_ready(probed: Probed) -> None:
    assert await probed.ready() == (200, probed.healed())
    for path in ("/healthz", "/health"):
        assert (await probed.http.get(path)).json() == {"status": "ok"}


WORDS = {
    "nats": {"not connected", "no connection to NATS"},
    "postgres": {"the database is not available", "the connection to the database was lost"},
    "valkey": {"no answer", "the cache server does not answer: try again"},
}


@pytest.mark.parametrize("parts", [("valkey",), ("postgres",), ("valkey", "postgres"), ("nats",)], ids="+".join)
async def test_what_is_down_is_named_and_ready_when_it_is_back(
    servers: Stack, probed: Probed, parts: tuple[str, ...]
) -> None:
    assert (await probed.ready())[0] == 200
    stopped: list[Server] = [servers.servers[part] for part in parts]
    await asyncio.gather(*(each.stop() for each in stopped))
    try:
        body = await probed.until(503)
        assert set(body) == {"detail", "checks"}
        assert body["detail"] == "Service not ready"
        failing = {name: word for name, word in body["checks"].items() if word != "ok" and name not in probed.always}
        assert set(failing) == set(parts)
        for part in parts:
            assert failing[part] in WORDS[part]
        assert set(body["checks"]) == set(ALL_WELL) | set(probed.always)
        assert (await probed.http.get("/healthz")).status_code == 200
    finally:
        await asyncio.gather(*(each.start() for each in stopped))
    assert await probed.until(200) == probed.healed()


@pytest.mark.parametrize("part", ["valkey", "postgres"])
async def test_what_is_frozen_is_named_within_the_time_of_a_check(servers: Stack, probed: Probed, part: str) -> None:
    assert (await probed.ready())[0] == 200
    servers.servers[part].signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        status, body = await probed.ready()
        assert time.monotonic() - began < probes.CHECK_TIMEOUT_S + 1
        assert (status, {name for name in ALL_WELL if body["checks"][name] != "ok"}) == (503, {part})
    finally:
        servers.servers[part].signal(signal.SIGCONT)
    assert await probed.until(200) == probed.healed()


async def test_the_checks_are_counted_exactly(servers: Stack, probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await probed.checks() == {}
    for _ in range(3):
        assert (await probed.ready())[0] == 200
    monkeypatch.setattr(probes, "KEPT_S", 60.0)
    for _ in range(10):
        assert (await probed.ready())[0] == 200  # the third answer again: nothing is checked
    monkeypatch.setattr(probes, "KEPT_S", 0.0)
    valkey = servers.servers["valkey"]
    await valkey.stop()
    try:
        for _ in range(4):
            assert (await probed.ready())[0] == 503
    finally:
        await valkey.start()
    away = {(name, "failed"): 7 for name in probed.always}
    assert await probed.checks() == {
        ("nats", "ok"): 7, ("postgres", "ok"): 7, ("valkey", "ok"): 3, ("valkey", "failed"): 4, **away,
    }  # fmt: skip


async def test_without_pgvector_postgres_fails_and_says_why(servers: Stack, here: Settings, fresh: None) -> None:
    admin = f"postgresql://{SUPERUSER}:{secret(servers.home, SUPERUSER)}@{servers.database_url.rpartition('@')[2]}"
    at_root = await asyncpg.connect(admin)
    await at_root.execute("CREATE DATABASE bare")
    await at_root.close()
    root = await asyncpg.connect(admin.rpartition("/")[0] + "/bare")
    bare = here.model_copy(update={"database_url": servers.database_url.rpartition("/")[0] + "/bare"})
    missing = {"detail": "Service not ready", "checks": {**ALL_WELL, "postgres": NO_PGVECTOR}}
    try:
        async with a_bridge(bare) as bridge:
            body = {**missing, "checks": {**missing["checks"], **bridge.always}}  # type: ignore[dict-item]
            assert await bridge.ready() == (503, body)
            with pytest.raises(Fault) as raised:
                async with a_worker(bare):
                    pass
            assert (raised.value.code, raised.value.detail) == (Code.UNAVAILABLE, NO_PGVECTOR)
            await root.execute("CREATE EXTENSION vector")
            assert await bridge.ready() == (200, bridge.healed())
        async with a_worker(bare) as worker:
            assert await worker.ready() == (200, READY)
            await root.execute("DROP EXTENSION vector")
            assert await worker.ready() == (503, missing)
            await root.execute("CREATE EXTENSION vector")
            assert await worker.ready() == (200, READY)
    finally:
        await root.close()


async def test_a_worker_is_not_ready_until_its_start_has_finished_nor_while_it_drains(
    here: Settings, fresh: None
) -> None:
    opening, opened = asyncio.Event(), asyncio.Event()
    closing, closed = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def slow(host: Host) -> AsyncIterator[None]:
        opening.set()
        await opened.wait()
        yield
        closing.set()
        await closed.wait()

    stop = asyncio.Event()

    async def process() -> None:
        async with a_worker(here, Worker("lab", slow, [serve(lab.ECHO, echo)], needs=WORKER.needs)):
            await stop.wait()

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{here.probe_port}", timeout=10) as http:
        asked, task = Probed(http, {}), asyncio.create_task(process())
        try:
            await asyncio.wait_for(opening.wait(), WITHIN_S)
            not_yet = {"detail": "Service not ready", "checks": {**ALL_WELL, "start": "not finished"}}
            assert await asked.ready() == (503, not_yet)
            opened.set()
            assert await asked.until(200) == READY
            stop.set()
            await asyncio.wait_for(closing.wait(), WITHIN_S)
            assert await asked.ready() == (503, {**not_yet, "checks": {**ALL_WELL, "stop": "has begun"}})
        finally:
            for event in (opened, closed, stop):
                event.set()
            await task


async def test_a_component_without_a_worker_fails_nothing_unless_it_is_required(here: Settings, fresh: None) -> None:
    away = {"worker-ghost": "no worker is running", "worker-lab": "no worker is running"}
    needing = here.model_copy(update={"ready_requires": ("lab",)})
    async with a_bridge(here) as relaxed, a_bridge(needing) as strict:
        assert await relaxed.ready() == (200, {**READY, "checks": {**ALL_WELL, **away}})
        refused = {"detail": "Service not ready", "checks": {**ALL_WELL, **away}}
        assert await strict.ready() == (503, refused)
        async with a_worker(here):
            served = {**ALL_WELL, **away, "worker-lab": "ok"}
            assert await strict.until(200) == {**READY, "checks": served}
            assert await relaxed.ready() == (200, {**READY, "checks": served})
        assert (await strict.ready())[0] == 503
