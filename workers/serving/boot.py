"""Runs worker tables in this process: open, serve, drain, close. What `faas worker` calls."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from runtime import metrics, streams
from runtime.connection import Connection, connect
from runtime.otlp import exporting
from runtime.probes import Probes, serve_probes
from runtime.settings import Settings
from store.inbox import Inbox
from store.valkey_inbox import ValkeyInbox
from subjects import grammar
from subjects.contract import Code, Fault
from workers.serving import discovery
from workers.serving.dispatch import Dispatcher
from workers.serving.host import Host, open_host
from workers.serving.perform import Performer
from workers.serving.route import Need, Worker
from workers.serving.settle import MAX_REPLY_BYTES

FLUSH_TIMEOUT_S = 5
ENSURE_AGAIN_S = 1.0  # while JetStream is still starting

DROPPED = metrics.Observed(
    "faas.messages.dropped", "", "Messages that could not be read, and events that could not be published.", "counter",
    ("reason",),
)  # fmt: skip

log = structlog.get_logger("workers.serving")


async def run(
    workers: Sequence[Worker],
    settings: Settings,
    *,
    connection: Connection | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve these tables until SIGTERM or SIGINT (or stop is set), then drain and return.

    connection: an open one, to embed workers in a program. Raises Fault(UNAVAILABLE) when a client cannot be opened,
    and when the connection to NATS is closed for good, so that the supervisor starts the process again.
    """
    names = "-".join(worker.name for worker in workers)
    async with exporting(settings, f"faas-{names}"):
        await _run(workers, settings, names, connection, stop)


async def _run(
    workers: Sequence[Worker], settings: Settings, names: str, connection: Connection | None, stop: asyncio.Event | None
) -> None:
    ended = stop or asyncio.Event()
    if stop is None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, ended.set)
    if connection is None:
        connection = await connect(settings, name=f"worker-{names}", on_closed=ended.set)
        owned = True
    else:
        owned = False
    try:
        async with serving(workers, settings, connection):
            gc.freeze()  # what is imported and open stays: collecting it again and again only makes pauses
            log.info("serving", workers=[worker.name for worker in workers])
            await ended.wait()
            log.info("draining", workers=[worker.name for worker in workers])
    finally:
        if owned and not connection.is_closed:
            await connection.close()


@asynccontextmanager
async def serving(workers: Sequence[Worker], settings: Settings, connection: Connection) -> AsyncIterator[Host]:
    """The tables are served inside this block; leaving it drains them."""
    async with AsyncExitStack() as stack:
        await streams.ensure(connection, settings)
        needs: frozenset[Need] = frozenset().union(*(worker.needs for worker in workers))
        host = await stack.enter_async_context(open_host(settings, needs, connection))
        await stack.enter_async_context(_hearing_cancels(host))
        await stack.enter_async_context(_keeping_streams(connection, settings))
        stack.callback(DROPPED.watch(lambda: _dropped(connection, host)))
        probes = probes_of(host)
        if settings.probe_port is not None:  # before the components open: a slow start is "not ready", not silence
            server = await serve_probes(probes, settings.probe_port)
            stack.push_async_callback(_close, server)
        dispatchers = []
        for worker in workers:
            deps = await stack.enter_async_context(worker.lifespan(host))
            dispatchers.append(Dispatcher(worker, host, deps, Performer(host, keys_of(worker, host))))
        for dispatcher in dispatchers:
            await dispatcher.start()
        try:
            async with discovery.announcing(connection, [_service(each, host) for each in dispatchers]):
                await connection.flush(FLUSH_TIMEOUT_S)  # now the broker knows every subscription
                probes.started()
                yield host
        finally:
            probes.stopping()
            await asyncio.gather(*(d.drain(settings.shutdown_grace_s) for d in dispatchers))


def _service(dispatcher: Dispatcher, host: Host) -> discovery.Service:
    most_bytes = min(MAX_REPLY_BYTES, host.connection.max_payload)
    return discovery.service(
        dispatcher.worker,
        dispatcher.stats,
        version=host.settings.service_version,
        process=host.owner,
        most_bytes=most_bytes,
    )


def _dropped(connection: Connection, host: Host) -> list[tuple[tuple[str, ...], float]]:
    return [*(((reason,), count) for reason, count in list(connection.drops.items())), (("event",), host.facts.dropped)]


def keys_of(worker: Worker, host: Host) -> Inbox | ValkeyInbox | None:
    """Where this table's requests claim their keys."""
    match worker.keys:
        case "database":
            return host.books.inbox
        case "valkey":
            return ValkeyInbox(host.valkey)
        case "nowhere":
            return None


def probes_of(host: Host) -> Probes:
    probes = Probes()

    async def broker() -> None:
        if not host.connection.healthy:
            raise Fault(Code.UNAVAILABLE, "no connection to NATS")

    probes.add("nats", broker)
    if host.maybe_database is not None:
        probes.add("postgres", host.maybe_database.ping)
    if host.maybe_valkey is not None:
        probes.add("valkey", host.maybe_valkey.ping)
    return probes


@asynccontextmanager
async def _hearing_cancels(host: Host) -> AsyncIterator[None]:
    """Every worker process hears every cancel; the one that runs it stops it."""

    def on_cancel(subject: bytes, _reply: bytes, _data: bytes, _block: bytes | None) -> None:
        try:
            address = grammar.parse(subject.decode())
        except Fault:
            return
        if host.running.cancel(address.tenant, address.ident):
            log.info("cancelled", tenant=address.tenant, id=address.ident)

    subscription = await host.connection.listen(grammar.CANCELS, on_cancel)
    try:
        yield
    finally:
        if host.connection.is_connected:
            await subscription.unsubscribe()


@asynccontextmanager
async def _keeping_streams(connection: Connection, settings: Settings) -> AsyncIterator[None]:
    """After each reconnect, create what is absent: a broker that was started again has lost OUT, which is in memory."""
    reconnected = asyncio.Event()
    forget = connection.on_reconnect(reconnected.set)

    async def keep() -> None:
        while True:
            await reconnected.wait()
            reconnected.clear()
            try:
                created = await streams.ensure(connection, settings)
            except Fault as fault:
                log.warning("streams not looked at", code=fault.code.value)
                await asyncio.sleep(ENSURE_AGAIN_S)
                reconnected.set()
                continue
            if created:
                log.warning("streams were gone; made again", streams=created)

    task = asyncio.create_task(keep(), name="streams")
    try:
        yield
    finally:
        forget()
        task.cancel()
        await asyncio.wait({task})


async def _close(server: Any) -> None:
    server.close()
    await server.wait_closed()
