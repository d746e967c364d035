"""The ASGI application: find the route, check the token, answer whatever goes wrong as a problem document."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge import auth
from bridge.auth import Door
from bridge.context import Bridge
from bridge.documents import Documents
from bridge.exchange import Exchange, Gone, Receive, Scope, Send, SlowBody
from bridge.probes import HttpCounts, Probe, checks
from bridge.routes import operations
from bridge.spans import answered, answering
from bridge.table import Route, Table
from runtime import telemetry, tracing
from runtime.client import Client
from runtime.connection import Connection
from runtime.probes import Probes
from runtime.settings import Settings
from store.objects import Objects
from subjects.contract import Code, Fault
from subjects.registry import Registry, load

PROBE_PATHS = ("/healthz", "/health", "/readyz", "/metrics")
CLIENT_GONE = 499  # for the log and the counts: nobody is there to read it
NO_ROUTE = "(no route)"

_log = telemetry.get_logger(__name__)


class Application:
    """One process's HTTP face."""

    def __init__(self, bridge: Bridge, probes: Probes, contracts: Registry, door: Door) -> None:
        self._door = door
        self._counts = HttpCounts()
        probe = Probe(probes, self._counts)
        open_to_all = [Route("GET", path, probe, public=True) for path in PROBE_PATHS]
        open_to_all += Documents(bridge.settings, contracts).routes()
        self._table = Table(open_to_all + operations(bridge, contracts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the bridge speaks HTTP, not {scope['type']}")
        exchange, started = Exchange(scope, receive, send), time.perf_counter()
        self._counts.open += 1
        route, error = NO_ROUTE, ""
        try:
            match = self._table.find(exchange.method, exchange.raw_path)
            if match.route is not None:
                route, exchange.params = match.route.path, match.params
            await self._answer(exchange, match.route, match.allowed)
        except Gone:
            exchange.status, error = CLIENT_GONE, "CANCELLED"
        finally:
            self._counts.open -= 1
            method = exchange.method if route != NO_ROUTE else "ANY"
            self._counts.add(method, route, exchange.status, time.perf_counter() - started)
            if exchange.span is not None:
                answered(exchange.span, exchange.status, error)

    async def _answer(self, exchange: Exchange, route: Route | None, allowed: tuple[str, ...]) -> None:
        try:
            exchange.check_headers()
            if route is None or not route.public:
                # Before anything about the path is said: who has no token learns nothing.
                exchange.identity = self._door.recall(exchange) or await self._door.identify(exchange)
                if tracing.is_recording():
                    exchange.span = answering(exchange.method, route.path if route else "", exchange.identity)
                    exchange.identity = exchange.identity.under(exchange.span)
                    tracing.enter(exchange.span)
            if route is None:
                await _no_route(exchange, allowed)
                return
            await route.endpoint(exchange)
        except Fault as fault:
            await _fail(exchange, fault)
        except SlowBody:
            slow = Fault(Code.TIMEOUT, "the body did not come in time; send it again")
            await exchange.problem(slow, status=408, headers={"Connection": "close"})
        except Gone:
            raise
        except Exception:
            _log.exception("unexpected exception", path=exchange.path, request_id=exchange.request_id)
            await _fail(exchange, Fault(Code.INTERNAL, "internal error"))


async def _fail(exchange: Exchange, fault: Fault) -> None:
    if fault.code in (Code.INTERNAL, Code.UNAVAILABLE):
        _log.warning("failed", path=exchange.path, code=fault.code.value, detail=fault.detail,
                     request_id=exchange.request_id, correlation_id=exchange.correlation_id)  # fmt: skip
    if exchange.started:  # the head is out: a cut stream must look cut
        raise Gone
    await exchange.problem(fault)


async def _no_route(exchange: Exchange, allowed: tuple[str, ...]) -> None:
    if allowed and exchange.method == "OPTIONS":
        await exchange.respond(204, b"", "text/plain", {"Allow": ", ".join(allowed)})
        return
    if allowed:
        fault = Fault(Code.INVALID, f"{exchange.method} is not allowed here; use {', '.join(allowed)}")
        await exchange.problem(fault, status=405, headers={"Allow": ", ".join(allowed)})
        return
    await exchange.problem(Fault(Code.NOT_FOUND, "there is no such path; see /openapi.json"))


@asynccontextmanager
async def opened(
    settings: Settings, connection: Connection, contracts: Registry | None = None
) -> AsyncIterator[tuple[Application, Bridge, Probes]]:
    """The application with its open clients. The connection stays the caller's.

    Raises Fault(UNAVAILABLE) without a usable JWT_SECRET or JWT_JWKS_URL.
    """
    known = contracts or load()
    client = Client(connection, settings, source="bridge")
    bridge = Bridge(settings, connection, client, Objects(connection))
    async with checks(settings, connection, known) as probes, auth.opened(settings) as (door, keys):
        if keys is not None:
            # With a secret too, a bridge without the provider's keys still has somebody to serve.
            probes.add("jwks", keys.check, required=settings.jwt_secret is None)
            probes.measure("jwks_keys", "gauge", keys.count)
        yield Application(bridge, probes, known, door), bridge, probes
