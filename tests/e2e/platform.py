"""The whole platform, started once for the session: two processes of every worker, two bridges, a scripted upstream."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from cli import children
from cli.platform import Platform
from cli.tokens import sign
from runtime.client import Client
from runtime.connection import Connection, connect
from stack import Server
from stack.process import start_all
from tests.collector import Collector
from tests.upstream import MODES, Reply, Upstream

Dripping = Callable[[int, float], str]

ACK_WAIT_S = 2
ANY_FREE_PORT = 0
PARTS = ("nats", "postgres", "valkey", "models")
POLL_S = 0.05
KEEP = "FAAS_KEEP_TEST_HOME"
"""Set it to look at the logs of a failed run."""
SSE = {"Accept": "text/event-stream"}
AS_JOB = {"Prefer": "respond-async"}
SHORT = {"Request-Timeout": "5"}
ENDED = re.compile(r"^(\S+) ended with status (-?\d+);")


@dataclass(frozen=True)
class Piece:
    """One server-sent event."""

    ident: str
    kind: str
    data: Any


@dataclass
class Running:
    """What the tests talk to and hurt."""

    platform: Platform
    upstream: Upstream
    workers: list[Server]
    bridges: list[Server]
    client: Client
    connection: Connection
    collector: Collector
    said: list[str] = field(default_factory=list)

    def named(self, start: str) -> list[Server]:
        """Both processes of worker-gateway, or of worker (all other components)."""
        return [each for each in self.workers if re.sub(r"-2$", "", each.name) == start]

    def pids(self) -> dict[str, int]:
        return {each.name: each.pid for each in (*self.workers, *self.bridges)}

    def http(self, tenant: str, *, bridge: int = 0, timeout_s: float = 60.0) -> httpx.AsyncClient:
        token = sign(self.platform.settings(), tenant)
        limits = httpx.Limits(max_connections=200)
        return httpx.AsyncClient(
            base_url=self.bridges[bridge].url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_s,
            limits=limits,
        )

    async def rows(self, tenant: str, sql: str, *args: object) -> list[asyncpg.Record]:
        """What stands in the tenant's tables."""
        connection = await asyncpg.connect(self.platform.stack.database_url)
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('app.tenant', $1, true)", tenant)
                return list(await connection.fetch(sql, *args))
        finally:
            await connection.close()

    async def served_by(self, tenant: str, operation: str) -> set[int]:
        """The processes that worked on the tenant's messages of this operation, by their claims."""
        found = await self.rows(tenant, "SELECT owner FROM inbox WHERE operation = $1", operation)
        return {int(row["owner"].rsplit("-", 3)[1]) for row in found}

    async def ready(self, within_s: float) -> None:
        """Every worker and bridge answers /readyz with 200."""
        async with httpx.AsyncClient(timeout=5) as http:

            async def one(server: Server) -> bool:
                try:
                    return (await http.get(f"{server.url}/readyz")).status_code == 200
                except httpx.HTTPError:
                    return False

            async def everyone() -> bool:
                return all(await asyncio.gather(*map(one, (*self.workers, *self.bridges))))

            await until(everyone, within_s)

    def exits(self, name: str) -> list[int]:
        """The exit codes of this process and its successors so far."""
        found = [match for line in self.said if (match := ENDED.match(line)) is not None]
        return [int(match[2]) for match in found if match[1] == name]


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < within_s, f"not within {within_s} s"
        await asyncio.sleep(POLL_S)
    return time.monotonic() - began


async def pieces(response: httpx.Response) -> AsyncIterator[Piece]:
    """The events of an SSE response as they come."""
    given: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(":")
            given[name] = value.strip()
        elif "event" in given:
            yield Piece(given["id"], given["event"], json.loads(given["data"]))
            given = {}
        else:
            given = {}


async def streamed(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]) -> list[Piece]:
    """Every event of a generation."""
    async with http.stream("POST", "/api/v1/gateway/generate", json=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        return [piece async for piece in pieces(response)]


def text_of(found: list[Piece]) -> str:
    """What the pieces say from the last restart on."""
    said = ""
    for piece in found:
        said = "" if piece.kind == "restart" else said + piece.data["text"] if piece.kind == "chunk" else said
    return said


def dripped(chunks: int) -> str:
    """The whole answer of a dripping model."""
    return "".join(f"word {number} " for number in range(chunks))


async def job_ended(http: httpx.AsyncClient, job_id: str, within_s: float = 60.0) -> dict[str, Any]:
    """The job once it is final, asked over HTTP; while nobody can tell, asked again."""
    deadline = time.monotonic() + within_s
    status: object = None
    while time.monotonic() < deadline:
        # Short, because a worker that is killed takes the question along with it.
        reply = await http.post("/api/v1/jobs/wait", json={"job_id": job_id, "wait_s": 3}, headers=SHORT)
        status = reply.json()
        if reply.status_code == 200 and reply.json()["status"] in ("succeeded", "failed", "cancelled"):
            job: dict[str, Any] = reply.json()
            return job
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"job {job_id} after {within_s} s: {status}")


def seeded() -> random.Random:
    """Dice whose seed stands in the output of a failed test."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


WORDS = ("harbour", "lamp", "stone", "river", "ferry", "market", "winter", "keeper", "tower", "letter", "garden")


def prose(dice: random.Random, sentences: int) -> str:
    """Text in which no two sentences are the same."""
    made = []
    for number in range(sentences):
        words = " ".join(dice.choice(WORDS) for _ in range(12))
        made.append(f"Entry {number} of {dice.randrange(10**9)} tells of {words}.")
    return "\n\n".join(" ".join(made[at : at + 5]) for at in range(0, len(made), 5))


@pytest.fixture
def dripping(tenant: str) -> Iterator[Dripping]:
    """Makes the upstream's model of this test alone: so many chunks, so many seconds apart. Gives its name."""

    def made(chunks: int, pause_s: float) -> str:
        async def drip(reply: Reply) -> None:
            reply.stream()
            for number in range(chunks):
                await reply.words(f"word {number} ")
                await asyncio.sleep(pause_s)
            await reply.finish()

        MODES[tenant] = drip
        return tenant

    yield made
    MODES.pop(tenant, None)


def _again(server: Server, home: Path, report: Callable[[str], None]) -> Server:
    """The same program under a second name."""
    return Server(replace(server.program, name=f"{server.name}-2"), server.url, home=home, report=report)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running() -> AsyncIterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="faas-p-", dir="/tmp"))
    print(f"the platform of the tests lives in {home}")
    said: list[str] = []
    platform = Platform(home, port=ANY_FREE_PORT, ports=dict.fromkeys(PARTS, ANY_FREE_PORT), report=said.append)
    try:
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(Upstream())
            collector = stack.enter_context(Collector())
            with pytest.MonkeyPatch.context() as patch:
                for name in [name for name in os.environ if name.endswith("_URL")]:
                    patch.delenv(name)
                patch.setenv("JOB_ACK_WAIT_S", str(ACK_WAIT_S))
                patch.setenv("LLM_DEFAULT_MODEL", "local/smollm2")
                patch.setenv("OPENAI_API_KEY", "sk-none")
                patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
                patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "2000")
                patch.setenv("OPENAI_API_BASE", upstream.url)
                await stack.enter_async_context(platform)
                more = _second(platform, home, said.append)
                await start_all(each.start() for each in more)
            for each in more:
                stack.push_async_callback(each.stop)
            settings = platform.settings()
            connection = await connect(settings, name="tests")
            stack.push_async_callback(connection.close)
            found = Running(
                platform,
                upstream,
                [*platform.children[:-1], *more[:-1]],
                [platform.children[-1], more[-1]],
                Client(connection, settings, source="tests"),
                connection,
                collector,
                said,
            )
            await found.ready(30)
            yield found
    finally:
        platform.stack.abandon()
        if not os.environ.get(KEEP):
            shutil.rmtree(home, ignore_errors=True)


def _second(platform: Platform, home: Path, report: Callable[[str], None]) -> list[Server]:
    """A second process of every worker, and a second bridge."""
    environ, keeper_url = platform.environ(), platform.stack.database_keeper_url
    made = [
        children.worker(group, environ, home=home, keeper_url=keeper_url)
        for group in children.groups(platform.components, split=False)
    ]
    port = children.bridge_port(ANY_FREE_PORT)
    made.append(children.bridge(platform.components, environ, home=home, port=port))
    return [_again(each, home, report) for each in made]
