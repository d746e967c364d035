"""What the bridge depends on, as checks for /readyz and numbers for /metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from redis.asyncio import Redis
from redis.exceptions import RedisError

from bridge.exchange import Exchange
from bridge.spans import DURATION
from codec import headers as h
from runtime import headers
from runtime.connection import Connection
from runtime.probes import Probes
from runtime.settings import Settings
from store.database import Database
from subjects import grammar
from subjects.contract import Code, Fault
from subjects.registry import Registry

WORKER_TIMEOUT_S = 1.0
REDIS_TIMEOUT_S = 1.0
PROBE_TENANT = "probe"
PROBE_OPERATION = "is-there"  # no component has it: its worker says NOT_FOUND, nobody says "no responders"


@asynccontextmanager
async def checks(settings: Settings, connection: Connection, contracts: Registry) -> AsyncIterator[Probes]:
    """The checks, with the connections that they need. Opens them when they are first used: a bridge starts while its
    database is away, and says so."""
    probes = Probes()
    async with AsyncExitStack() as stack:
        # A pool of its own, of one: it is asked once a second, and opens nothing before.
        database = await Database.open(settings.database_url, min_size=0, max_size=1, name="bridge-probe")
        stack.push_async_callback(database.close)
        redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            max_connections=2,
        )
        stack.push_async_callback(redis.aclose)
        probes.add("nats", partial(_nats, connection))
        probes.add("postgres", database.ping)
        probes.add("valkey", partial(_valkey, redis))
        for component in contracts.components:
            required = component in settings.ready_requires
            probes.add(f"worker-{component}", partial(_worker, connection, component), required=required)
        for name in set(settings.ready_requires) - set(contracts.components):
            probes.add(f"worker-{name}", partial(_unknown, name))
        probes.measure("nats_dropped_messages_total", "counter", lambda: connection.dropped)
        yield probes


async def _nats(connection: Connection) -> None:
    if not connection.healthy:
        raise Fault(Code.UNAVAILABLE, "not connected")


async def _valkey(redis: Redis) -> None:
    try:
        await redis.ping()
    except (OSError, RedisError) as error:
        raise Fault(Code.UNAVAILABLE, "no answer") from error


async def _worker(connection: Connection, component: str) -> None:
    """Ask for an operation that nobody has: any answer means that a worker listens."""
    subject = grammar.request(PROBE_TENANT, component, PROBE_OPERATION)
    reply = await connection.requests.ask(subject, b"\x80", headers.block({h.SCOPES: ""}), WORKER_TIMEOUT_S)
    if reply.no_responders:
        raise Fault(Code.UNAVAILABLE, "no worker is running")


async def _unknown(name: str) -> None:
    raise Fault(Code.UNAVAILABLE, "no component has this name")


class HttpCounts:
    """Answers by route and status. Routes are the table's, never a client's text: the number of series is bounded."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self.open = 0

    def add(self, method: str, route: str, status: int, took_s: float) -> None:
        self._answers[method, route, status] += 1
        DURATION.series(method, route, str(status)).add(took_s)

    def metrics(self) -> str:
        """Prometheus text format."""
        lines = ["# TYPE http_requests_total counter"]
        for (method, route, status), count in sorted(self._answers.items()):
            lines.append(f'http_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}')
        lines += ["# TYPE http_requests_open gauge", f"http_requests_open {self.open}"]
        return "\n".join(lines) + "\n"


class Probe:
    """GET /healthz, /health, /readyz, /metrics: without a token."""

    def __init__(self, probes: Probes, counts: HttpCounts) -> None:
        self._probes = probes
        self._counts = counts

    async def __call__(self, exchange: Exchange) -> None:
        found = await self._probes.answer(exchange.path)
        body = found.body
        if exchange.path == "/metrics":
            body += self._counts.metrics().encode()
        exchange.body_read = True
        await exchange.respond(found.status, body, found.content_type, {"Cache-Control": "no-store"})
