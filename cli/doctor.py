"""doctor: every setting with its origin, and whether each connection, stream and consumer is there."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from cli import session, show
from subjects.contract import Fault

if TYPE_CHECKING:
    from runtime.connection import Connection
    from runtime.settings import Settings

CHECK_LIMIT_S = 5.0
INSTANCES_ANSWER_S = 0.5


@dataclass(frozen=True)
class Check:
    """ok None: not configured here, which is no failure."""

    name: str
    ok: bool | None
    detail: str
    ms: float


def run(as_json: bool) -> None:
    settings = session.load()
    checks = asyncio.run(_checks(settings))
    sources = [{"name": s.name, "value": s.value, "origin": s.origin} for s in settings.sources()]
    if show.wants_json(as_json):
        show.value({"settings": sources, "checks": [asdict(check) for check in checks]}, as_json=True)
    else:
        show.table(("setting", "value", "from"), [(s["name"], s["value"], s["origin"]) for s in sources])
        marks = {True: "ok", False: "FAILED", None: "-"}
        show.table(("check", "", "ms", ""), [(c.name, marks[c.ok], f"{c.ms:.0f}", c.detail) for c in checks])
    if any(check.ok is False for check in checks):
        raise typer.Exit(session.FAULT_EXIT)


async def _checks(settings: Settings) -> list[Check]:
    roles = {
        "postgres (faas_app)": settings.database_url,
        "postgres (faas_owner)": settings.database_owner_url,
        "postgres (faas_keeper)": settings.database_keeper_url,
    }
    found = [await _check(name, _postgres(url)) for name, url in roles.items()]
    found.append(await _check("valkey", lambda: _valkey(settings.redis_url)))
    found.append(await _check("local models", _http(settings.local_models_url, "/healthz")))
    found.append(await _check("jwks", _jwks(settings.jwt_jwks_url)))
    found.append(await _check("bridge", _http(settings.bridge_url, "/readyz")))
    return await _nats_checks(settings) + found


async def _check(name: str, ask: Callable[[], Awaitable[str]] | None) -> Check:
    if ask is None:
        return Check(name, None, "not configured", 0.0)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(CHECK_LIMIT_S):
            detail, ok = await ask(), True
    except TimeoutError:
        detail, ok = f"no answer within {CHECK_LIMIT_S:g} s", False
    except Fault as fault:
        detail, ok = fault.detail, False
    except Exception as error:  # every library has its own: here each is a finding, not a failure of ours
        detail, ok = f"{type(error).__name__}: {error}", False
    return Check(name, ok, detail, (time.perf_counter() - started) * 1000)


async def _nats_checks(settings: Settings) -> list[Check]:
    from runtime import streams

    checks: list[Check] = []
    try:
        async with session.connected(settings) as connection:
            checks.append(await _check("nats", lambda: _server(connection)))
            checks.append(await _check("workers", lambda: _instances(connection)))
            names = [str(config.name) for config in streams.STREAMS] + [streams.FILES_STREAM]
            checks += [await _check(f"stream {name}", _stream(connection, name)) for name in names]
            for stream, consumer in await _consumers(connection):
                checks.append(await _check(f"consumer {stream}/{consumer}", _consumer(connection, stream, consumer)))
    except Fault as fault:
        checks.append(Check("nats", False, fault.detail, 0.0))
    return checks


async def _consumers(connection: Connection) -> list[tuple[str, str]]:
    """Those of JOBS that should be there (one for each component with a job operation), then those that are."""
    from nats.errors import Error

    from runtime import streams
    from subjects import registry

    known = registry.load()
    wanted = [(streams.JOBS, name) for name in known.components if any(call.job for call in known.of(name))]
    found: list[tuple[str, str]] = []
    for stream in (streams.JOBS, streams.EVENTS):
        with suppress(Error, TimeoutError):  # reported as a failed check of the stream
            found += [(stream, info.name) for info in await connection.jetstream().consumers_info(stream)]
    return list(dict.fromkeys(wanted + found))


async def _server(connection: Connection) -> str:
    await connection.flush()
    url = connection.connected_url  # its netloc would show the password
    return f"{url.hostname}:{url.port} {connection.connected_server_version}" if url else ""


async def _instances(connection: Connection) -> str:
    """How many processes serve each component, by the NATS service protocol. None is no failure: it may be meant so."""
    found: Counter[str] = Counter()

    def heard(_subject: bytes, _reply: bytes, data: bytes, _block: bytes | None) -> None:
        if data:  # else the broker's word that nobody listens
            found[str(json.loads(data)["name"])] += 1

    inbox = connection.new_inbox()
    subscription = await connection.listen(inbox, heard)
    await connection.send("$SRV.PING", b"", inbox)
    await asyncio.sleep(INSTANCES_ANSWER_S)
    await subscription.unsubscribe()
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"


def _stream(connection: Connection, name: str) -> Callable[[], Awaitable[str]]:
    async def ask() -> str:
        state = (await connection.jetstream().stream_info(name)).state
        return f"{state.messages} messages, {state.bytes} bytes, {state.consumer_count} consumers"

    return ask


def _consumer(connection: Connection, stream: str, name: str) -> Callable[[], Awaitable[str]]:
    async def ask() -> str:
        info = await connection.jetstream().consumer_info(stream, name)
        return f"{info.num_pending} waiting, {info.num_ack_pending} at work"

    return ask


def _postgres(url: str | None) -> Callable[[], Awaitable[str]] | None:
    if not url:
        return None

    async def ask() -> str:
        import asyncpg

        connection = await asyncpg.connect(url, timeout=CHECK_LIMIT_S)
        try:
            version = await connection.fetchval("SHOW server_version")
            vector = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        finally:
            await connection.close(timeout=CHECK_LIMIT_S)
        if vector is None:
            raise RuntimeError("the extension vector is missing: run store/bootstrap.sql as superuser")
        return f"PostgreSQL {version}, pgvector {vector}"

    return ask


async def _valkey(url: str) -> str:
    from redis.asyncio import Redis

    async with Redis.from_url(url, socket_timeout=CHECK_LIMIT_S, socket_connect_timeout=CHECK_LIMIT_S) as valkey:
        info = await valkey.info("server")
        return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info.get('redis_version', ''))}"


def _jwks(url: str | None) -> Callable[[], Awaitable[str]] | None:
    if url is None:
        return None

    async def ask() -> str:
        from bridge import jwk, jwks

        async with jwks.http_client() as http:
            found = jwk.read(await jwks.fetch(http, url))
        algorithms = ", ".join(sorted({key.algorithm for key in found.keys.values()}))
        if not found.keys:
            raise RuntimeError(f"no usable key: {found.skipped[:3]}")
        return f"{len(found.keys)} keys ({algorithms}), {len(found.skipped)} left out"

    return ask


def _http(url: str, path: str) -> Callable[[], Awaitable[str]] | None:
    if not url:
        return None

    async def ask() -> str:
        import httpx

        async with httpx.AsyncClient(timeout=CHECK_LIMIT_S) as http:
            answer = await http.get(url + path)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"{answer.status_code} {answer.text[:200]}")
        return url

    return ask
