"""Every component of the platform served in this process on the session's servers, and a client without manners."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import pytest_asyncio

import codec
from bridge.server import running
from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.headers import CRLF, LINE
from runtime.identity import Identity
from runtime.jobs import last_of
from runtime.requests import Reply
from runtime.settings import Settings
from subjects import grammar, jobs
from subjects.contract import AnyCall, Model
from tests.contract.examples import Json
from tests.upstream import Upstream
from workers.serving import Context, Worker, serve
from workers.serving.boot import serving
from workers.serving.tables import load, names

WITHIN_S = 10.0
CODECS = codec.CONTENT_TYPES
Runs = Counter[tuple[str, str]]
"""How often the handler of an operation was really run, by (operation, tenant)."""


@dataclass(frozen=True)
class Answer:
    """A reply in the codec that it names."""

    content_type: str
    headers: dict[str, str]
    body: Any
    data: bytes

    @property
    def code(self) -> str | None:
        """None = no fault. Otherwise the body was read as a problem that says the same as the headers."""
        code = self.headers.get(h.ERROR_CODE)
        if code is not None:
            problem = codec.decode(self.data, codec.Problem, self.content_type)
            assert problem.code == code
            assert problem.detail
            assert problem.request_id == self.headers.get(h.REQUEST_ID)
        return code


@dataclass(frozen=True)
class Bus:
    """Sends what it is told. runs is None where the handlers run in another process."""

    connection: Connection
    client: Client
    runs: Runs | None = field(default=None)

    async def ask(
        self, call: AnyCall, tenant: str, body: Json | bytes, content_type: str = codec.MSGPACK, **headers: str
    ) -> Answer:
        """headers by their names with _ for -. A body that is no bytes is encoded."""
        subject = f"{grammar.REQUEST}.{tenant}.{call.component}.{call.operation}"
        message = _message(body, content_type, headers, call.input)
        reply = await self.connection.requests.ask(subject, *message, WITHIN_S)
        assert not reply.no_responders, f"nobody serves {call.name}"
        return _answer(reply, call)

    async def store(
        self, call: AnyCall, tenant: str, job_id: str, body: Json | bytes, content_type: str = codec.MSGPACK,
        **headers: str,
    ) -> None:  # fmt: skip
        """Publish a job as anybody could: without asking whether its subject holds one already."""
        subject = f"{grammar.JOB}.{tenant}.{call.component}.{call.operation}.{job_id}"
        message = _message(body, content_type, headers, call.input)
        reply = await self.connection.requests.ask(subject, *message, WITHIN_S)
        assert b'"seq"' in reply.data, reply.data

    async def ended(self, tenant: str, job_id: str, within_s: float = WITHIN_S) -> jobs.Job:
        async with asyncio.timeout(within_s):
            while True:
                message = jobs.WaitForJob(job_id=job_id, wait_s=5)
                job = await self.client.call(jobs.WAIT, message, identity=Identity.new(tenant))
                if job.status in jobs.FINAL:
                    return job

    async def dead_letter(self, call: AnyCall, tenant: str, job_id: str) -> Reply:
        """The job's dead letter, once it is there."""
        subject = grammar.dead_letter(tenant, call.component, call.operation, job_id, 0)
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await last_of(self.connection.requests, "DLQ", subject)
                if found is not None:
                    return found
                await asyncio.sleep(0.02)

    def ran(self, call: AnyCall, tenant: str, times: int) -> None:
        if self.runs is not None:
            assert self.runs[call.name, tenant] == times, f"{call.name} was run {self.runs[call.name, tenant]} times"


def _message(body: Json | bytes, content_type: str, headers: dict[str, str], model: type[Model]) -> tuple[bytes, bytes]:
    data = body if isinstance(body, bytes) else codec.encode_plain(body, content_type, model)
    given = {h.CONTENT_TYPE: content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())  # no name is refused here
    return data, LINE + lines.encode() + CRLF


def _answer(reply: Reply, call: AnyCall) -> Answer:
    content_type = reply.headers[h.CONTENT_TYPE]
    model = codec.Problem if h.ERROR_CODE in reply.headers else call.output
    return Answer(content_type, reply.headers, codec.decode_plain(reply.data, content_type, model), reply.data)


def counted(table: Worker, runs: Runs) -> Worker:
    """The same table; each run of a handler is counted."""

    def counting(name: str, handler: Callable[[Context[Any], Any], Awaitable[Any]]) -> Any:
        async def run(ctx: Context[Any], message: Any) -> Any:
            runs[name, ctx.tenant] += 1
            return await handler(ctx, message)

        return run

    return replace(table, serves=[serve(each.call, counting(each.call.name, each.handler)) for each in table.serves])


def tables(runs: Runs) -> list[Worker]:
    """Every worker that there is."""
    return [counted(load(name), runs) for name in names()]


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture(scope="package")
def platform_settings(settings: Settings, upstream: Upstream) -> Any:
    """Every model is the scripted upstream's."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENAI_API_KEY", "sk-test-key")
        environment.setenv("OPENAI_BASE_URL", upstream.url)
        yield settings.model_copy(
            update={"llm_default_model": "openai/ok", "embed_default_model": "openai/vectors", "shutdown_grace_s": 5}
        )


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def served(platform_settings: Settings) -> AsyncIterator[tuple[Connection, Runs]]:
    """The connection of the process that serves everything, and what it ran."""
    own = await connect(platform_settings, name="everything")
    runs: Runs = Counter()
    async with serving(tables(runs), platform_settings, own):
        yield own, runs
    await own.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def bridge_url(
    served: tuple[Connection, Runs], platform_settings: Settings, connection: Connection
) -> AsyncIterator[str]:
    """A bridge in this process, before all of it."""
    async with running(platform_settings.model_copy(update={"bridge_port": 0}), connection) as url:
        yield url


@pytest.fixture
def bus(served: tuple[Connection, Runs], connection: Connection, client: Client) -> Bus:
    return Bus(connection, client, served[1])


def new_tenant() -> str:
    return "t" + uuid.uuid4().hex[:12]
