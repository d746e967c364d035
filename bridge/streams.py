"""A request answered as a stream of its chunks; it ends when its client leaves."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from bridge.context import Bridge
from bridge.exchange import Exchange, Gone
from bridge.preferences import left_s
from bridge.results import error_item
from bridge.sse import EventStream
from codec import MSGPACK
from codec import headers as h
from runtime.jobs import output_id
from runtime.output import OutputItem, OutputReader
from runtime.requests import Reply
from subjects import grammar
from subjects.contract import AnyCall, Code, Fault

Place = tuple[int, int]  # attempt and number of a piece

LOOK_EVERY_S = 5.0  # the longest wait between two looks at heartbeat and grace
BEHIND_S = 0.2  # between two tries to read what the broker does not give just now
HEAD_AFTER_S = 1.0  # a request that fails sooner answers with its status instead of a stream
CANCEL_WITHIN_S = 3.0  # of the grace period, kept for ending what still runs

STOPPING = Fault(Code.UNAVAILABLE, "this bridge is stopping; ask again")


async def stream_request(
    bridge: Bridge, exchange: Exchange, call: AnyCall, body: bytes, headers: dict[str, str]
) -> None:
    """Ask, and send the chunks as they come; cancelled within a second when the client is gone.

    Raises Fault when it fails before anything was sent; Gone.
    """
    tenant, ident = exchange.who().tenant, output_id()
    reader = OutputReader(bridge.connection, tenant, ident, fresh=True)
    await reader.start()
    given = headers | {h.OUTPUT_TO: ident}
    subject = grammar.request(tenant, call.component, call.operation)
    asked = asyncio.ensure_future(bridge.client.call_raw(subject, body, given, left_s(given)))
    asked.add_done_callback(lambda _: reader.wake())
    events = EventStream(bridge, exchange, ident)
    over = False
    try:
        async with events.watched(reader.wake):
            over = await _pass_on(bridge, exchange, events, reader, asked)
    finally:
        if not over and not asked.done():
            with suppress(Fault):  # cut off: the deadline ends it there
                await bridge.client.cancel(tenant, ident)
        asked.cancel()
        await asyncio.wait([asked])
        if not asked.cancelled():
            asked.exception()
        await reader.close()


async def _pass_on(
    bridge: Bridge, exchange: Exchange, events: EventStream, reader: OutputReader, asked: asyncio.Future[Reply]
) -> bool:
    """False = it ended for its client, though its worker may go on: a piece of it is no longer kept."""
    loop = asyncio.get_running_loop()
    head_at, stop_at = loop.time() + HEAD_AFTER_S, float("inf")
    place: Place = (1, 0)
    while True:
        events.check()
        replied = asked.done()  # before taking: the end was published before the reply
        if replied and not events.started:
            _raise_fault(asked)
        behind = False
        try:
            async for item in reader.take():
                if item.kind == "error" and not events.started:
                    break  # the reply follows, with the status
                await events.send(item)
                place = (item.attempt, item.n)
                if item.kind in ("done", "error"):
                    return item.kind == "done"
        except Fault:  # the broker is away: what was said meanwhile is read when it is back
            behind = True
        if replied:
            await events.send(_end(asked, exchange, place))
            return True
        if events.interrupted:
            stop_at = min(stop_at, loop.time() + max(0.0, bridge.settings.shutdown_grace_s - CANCEL_WITHIN_S))
        if loop.time() >= stop_at:
            await events.send(error_item(STOPPING, exchange.who(), place))
            raise Gone
        if loop.time() >= head_at:
            await events.open()
        await events.beat()
        wait_s = min(BEHIND_S if behind else LOOK_EVERY_S, stop_at - loop.time())
        await reader.ready(wait_s if events.started else min(wait_s, head_at - loop.time()))


def _raise_fault(asked: asyncio.Future[Reply]) -> None:
    fault = asked.result().fault
    if fault is not None:
        raise fault


def _end(asked: asyncio.Future[Reply], exchange: Exchange, place: Place) -> OutputItem:
    """The end of an output that did not say it itself: the operation has no chunks, or failed before its first."""
    try:
        _raise_fault(asked)
    except Fault as fault:
        return error_item(fault, exchange.who(), place)
    reply = asked.result()
    return OutputItem("done", place[0], place[1] + 1, reply.data, reply.content_type or MSGPACK)
