"""A tenth component is one contract file and one folder: everything else finds it, and nothing else changes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

import codec
from runtime.client import Client
from runtime.connection import connect
from runtime.identity import Identity
from runtime.settings import Settings
from stack import Stack
from stack.ports import free_port
from subjects.contract import AnyCall
from tests.broker import own_broker
from tests.contract import test_universal as universal
from tests.contract.examples import EXAMPLES
from tests.contract.fixtures import CODECS, Bus, new_tenant

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("subjects", "codec", "runtime", "store", "workers", "bridge", "cli", "stack", "schemas")
NAME = f"tenth{uuid.uuid4().hex[:6]}"
START_WITHIN_S = 20.0

CONTRACT = '''"""A component that notes words."""

from subjects.contract import Call, Event, EventPayload, Model


class Note(Model):
    word: str


class Noted(Model):
    words: int


class WordNoted(EventPayload):
    word: str


NOTE = Call("NAME", "note", Note, Noted, timeout_s=5, mutates=True, summary="Note a word",
            http=("PUT /api/v1/NAME/words/{word}",))
NOTED = Event("NAME", "noted", WordNoted)
'''
WORKER = '''"""The table of NAME."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import NAME as contract
from workers.NAME.handlers import note
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[None]:
    yield None


WORKER = Worker("NAME", lifespan, serves=[serve(contract.NOTE, note)])
'''
HANDLERS = '''"""What NAME does."""

from store.sql import load
from subjects import NAME as contract
from workers.serving import Context

queries = load("workers.NAME")


async def note(ctx: Context[None], message: contract.Note) -> contract.Noted:
    tx = await ctx.begin()
    await tx.execute(queries.insert_word, ctx.tenant, message.word)
    ctx.emit(contract.NOTED, contract.WordNoted(entity_id=message.word, word=message.word))
    return contract.Noted(words=await tx.fetchval(queries.count_words))
'''
FILES = {
    "subjects/NAME.py": CONTRACT,
    "workers/NAME/__init__.py": '"""NAME: notes words."""\n',
    "workers/NAME/worker.py": WORKER,
    "workers/NAME/handlers.py": HANDLERS,
    "workers/NAME/queries.sql": "-- name: insert_word\nINSERT INTO NAME_words (tenant_id, word) VALUES ($1, $2)\n\n"
    "-- name: count_words\nSELECT count(*) FROM NAME_words\n",
    "workers/NAME/migrations/0001_words.sql": "CREATE TABLE NAME_words (tenant_id text NOT NULL, word text NOT NULL);\n"
    "SELECT enable_tenancy('NAME_words');\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The source as it is, and the new files."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        file = tmp_path / path.replace("NAME", NAME)
        assert not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("NAME", NAME))
    return tmp_path


class Faas:
    """The command line of that checkout."""

    def __init__(self, checkout: Path, environ: dict[str, str]) -> None:
        self._checkout = checkout
        self._environ = {**os.environ, **environ, "PYTHONPATH": str(checkout), "LOG_LEVEL": "warning"}

    async def start(self, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli", *arguments, cwd=self._checkout, env={**self._environ, **environ},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def __call__(self, *arguments: str) -> Any:
        process = await self.start(*arguments)
        out, _ = await asyncio.wait_for(process.communicate(), START_WITHIN_S)
        assert process.returncode == 0, arguments
        return json.loads(out) if out.startswith((b"{", b"[")) else out.decode().strip()

    @asynccontextmanager
    async def serving(self, *arguments: str, port: int, **environ: str) -> AsyncIterator[httpx.AsyncClient]:
        """A process that serves, once it is ready; SIGTERM ends it with 0."""
        process = await self.start(*arguments, **environ)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
                async with asyncio.timeout(START_WITHIN_S):
                    while not await _is_ready(http):
                        assert process.returncode is None
                        await asyncio.sleep(0.1)
                yield http
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), START_WITHIN_S) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.HTTPError:
        return False


def call_of(checkout: Path) -> AnyCall:
    """The contract as a client in another process knows it."""
    spec = importlib.util.spec_from_file_location(NAME, checkout / "subjects" / f"{NAME}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    call: AnyCall = module.NOTE
    return call


async def test_everything_finds_a_tenth_component(
    checkout: Path, stack: Stack, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.jwt_secret is not None
    async with own_broker() as broker:
        secret = settings.jwt_secret.get_secret_value()
        faas = Faas(checkout, {**stack.environ(), "NATS_URL": broker.url, "JWT_SECRET": secret, "JOB_ACK_WAIT_S": "2"})
        tenant, probe, port = new_tenant(), free_port(), free_port()
        applied, known, token = await asyncio.gather(
            faas("migrate", "--json"), faas("contracts"), faas("token", "--tenant", tenant)
        )
        try:
            assert applied["migrations"] == [f"{NAME}/0001_words"]
            assert f"{NAME}.note" in known["calls"]
            async with (
                faas.serving("worker", NAME, port=probe, PROBE_PORT=str(probe)),
                # Ready only when a worker of this component answers.
                faas.serving("bridge", port=port, BRIDGE_PORT=str(port), READY_REQUIRES=NAME) as http,
            ):
                assert await faas("call", f"{NAME}.note", '{"word": "one"}', "--tenant", tenant) == {"words": 1}
                await over_http(http, token)
                job = await faas("submit", f"{NAME}.note", '{"word": "three"}', "--tenant", tenant)
                assert job["status"] == "queued"
                await universally(call_of(checkout), replace_url(settings, broker.url), monkeypatch)
            assert await words(stack, tenant) == ["four", "one", "three", "two"]
        finally:
            await forget(stack)


def replace_url(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"nats_url": url})


async def over_http(http: httpx.AsyncClient, token: str) -> None:
    path = f"/api/v1/{NAME}/note"
    described = (await http.get("/openapi.json")).json()["paths"][path]["post"]
    assert described["summary"] == "Note a word"
    answer = await http.post(path, json={"word": "two"}, headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()) == (200, {"words": 2})
    assert (await http.post(path, json={"word": "two"})).status_code == 401
    resource = await http.put(f"/api/v1/{NAME}/words/four", headers={"Authorization": f"Bearer {token}"})
    assert (resource.status_code, resource.json()) == (200, {"words": 3})


async def universally(call: AnyCall, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The universal suite, once the component has its line of examples."""
    monkeypatch.setitem(EXAMPLES, call.name, lambda world: {"word": "word"})
    connection = await connect(settings, name="tenth")
    bus = Bus(connection, Client(connection, settings, source="tests"))
    for content_type in CODECS:
        await universal.test_garbage_is_a_fault_in_the_callers_codec(call, content_type, bus)
    await universal.test_the_reply_comes_in_the_codec_asked_for(call, bus)
    await universal.test_unknown_fields_are_ignored(call, bus)
    await universal.test_a_repeated_request_has_one_effect_and_one_answer(call, bus)
    await universal.test_after_its_deadline_nothing_is_run(call, bus)
    await universal.test_who_may_not_is_refused_and_nothing_is_run(call, bus)
    tenant = new_tenant()
    answers = [await bus.ask(call, tenant, {"word": "w"}, codec.JSON, Idempotency_Key="k") for _ in range(3)]
    assert [answer.body for answer in answers] == [{"words": 1}] * 3
    lasting = Identity.new(tenant)
    assert (await bus.client.call(call, call.input(word="v"), identity=lasting)).words == 2
    await connection.close()


async def words(stack: Stack, tenant: str) -> list[str]:
    connection = await asyncpg.connect(stack.database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.tenant', $1, true)", tenant)
            return [row["word"] for row in await connection.fetch(f"SELECT word FROM {NAME}_words ORDER BY 1")]  # noqa: S608
    finally:
        await connection.close()


async def forget(stack: Stack) -> None:
    """The session's other tests know nine components."""
    connection = await asyncpg.connect(stack.database_owner_url)
    try:
        await connection.execute(f"DROP TABLE IF EXISTS {NAME}_words")
        await connection.execute("DELETE FROM schema_migrations WHERE name LIKE $1", f"{NAME}/%")
    finally:
        await connection.close()
