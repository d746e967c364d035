"""The route of an operation: ask now, or make it a job; answer in the caller's format."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from bridge import arguments
from bridge.context import Bridge, location, permit
from bridge.exchange import Exchange, Gone
from bridge.joining import Reader
from bridge.preferences import RESPOND_ASYNC, Preferences, deadline_ms, left_s, preferences, timeout_s
from bridge.results import fault_of, result_of, waited
from bridge.streams import stream_request
from codec import CONTENT_TYPES, JSON, MSGPACK, decode, encode, encode_plain
from codec import headers as h
from runtime.jobs import checked_key
from runtime.requests import Reply
from subjects import grammar, jobs
from subjects.contract import AnyCall, Code, Fault, Model

T = TypeVar("T")

WATCH_AFTER_S = 0.2  # an answer that comes sooner is not worth watching for the client to leave


class Operation:
    """One contract at one route. resource: path and query carry fields of the message."""

    def __init__(self, bridge: Bridge, call: AnyCall, *, resource: bool = False) -> None:
        self._bridge = bridge
        self._call = call
        self._resource = resource

    async def __call__(self, exchange: Exchange) -> None:
        """Raises Fault; Gone when the client has left, and the work with it."""
        call = self._call
        permit(exchange.who(), call)
        wanted = preferences(exchange)
        body, content_type = await self._message(exchange)
        if call.job and (wanted.respond_async or call.long):
            await self._as_job(exchange, decode(body, call.input, content_type), wanted)
        elif exchange.wants_events:
            await stream_request(self._bridge, exchange, call, body, self.headers(exchange, content_type, JSON))
        else:
            await self._now(exchange, body, self.headers(exchange, content_type, exchange.accept))

    async def _message(self, exchange: Exchange) -> tuple[bytes, str]:
        """The message's bytes and their format. Its worker reads it: a field that is wrong is told by one place."""
        if not self._resource:
            if exchange.query:
                raise Fault(Code.INVALID, "this route takes no query: the body is the message")
            content_type = exchange.content_type
            return await exchange.body() or encode_plain({}, content_type, self._call.input), content_type
        if exchange.method in ("GET", "HEAD", "DELETE"):
            return arguments.from_query(self._call, exchange)
        return arguments.from_body(self._call, exchange, await exchange.body())

    def headers(self, exchange: Exchange, content_type: str, accept: str) -> dict[str, str]:
        """Of the request on the bus."""
        wanted_s = timeout_s(exchange)
        limit_s = self._call.timeout_s if wanted_s is None else min(wanted_s, self._call.timeout_s)
        made = exchange.who().with_deadline(limit_s).headers()
        made[h.CONTENT_TYPE] = content_type
        made[h.ACCEPT] = accept
        key = exchange.header(h.IDEMPOTENCY_KEY)
        if key is not None:
            made[h.IDEMPOTENCY_KEY] = checked_key(key)
        return made

    async def _now(self, exchange: Exchange, body: bytes, headers: dict[str, str]) -> None:
        identity, call = exchange.who(), self._call
        subject = grammar.request(identity.tenant, call.component, call.operation)
        asked = self._bridge.client.call_raw(subject, body, headers, left_s(headers))
        try:
            reply = await while_there(exchange, asked)
        except Gone:
            await cancel(self._bridge, identity.tenant, identity.request_id)
            raise
        await answer(exchange, reply)

    async def _as_job(self, exchange: Exchange, message: Model, wanted: Preferences) -> None:
        bridge, call, identity = self._bridge, self._call, exchange.who()
        key = exchange.header(h.IDEMPOTENCY_KEY)
        submitted = await bridge.client.submit(
            call, message, identity=identity, key=key, deadline_ms=deadline_ms(timeout_s(exchange))
        )
        headers = location(submitted.job_id) | {h.PREFERENCE_APPLIED: RESPOND_ASYNC}
        if exchange.wants_events:
            await Reader(bridge, exchange, submitted.job_id, is_job=True, headers=headers).run()
            return
        if wanted.wait_s:
            headers[h.PREFERENCE_APPLIED] = f"wait={wanted.wait_s:g}"
            wait_s = min(wanted.wait_s, timeout_s(exchange) or wanted.wait_s)
            job = await while_there(exchange, waited(bridge, identity, submitted.job_id, wait_s))
            if job is not None and job.status in jobs.FINAL:
                await self._ended(exchange, job, headers)
                return
        await exchange.respond(202, encode(submitted, exchange.accept), exchange.accept, headers)

    async def _ended(self, exchange: Exchange, job: jobs.Job, headers: dict[str, str]) -> None:
        """The job has ended while the client waited: its result is the answer."""
        if job.status != "succeeded":
            raise fault_of(job)
        data, content_type = await result_of(self._bridge, exchange.who(), job)
        result = decode(data, self._call.output, content_type)
        await exchange.respond(200, encode(result, exchange.accept), exchange.accept, headers)


async def answer(exchange: Exchange, reply: Reply) -> None:
    """Pass a reply on. Raises its Fault, if it is one."""
    fault = reply.fault
    if fault is not None:
        raise fault
    content_type = reply.content_type or MSGPACK
    if content_type not in CONTENT_TYPES:
        raise Fault(Code.INTERNAL, "the reply is in a format that is not ours")
    await exchange.respond(200, reply.data, content_type)


async def while_there(exchange: Exchange, work: Awaitable[T]) -> T:
    """Await work, and give it up with Gone when the client leaves before."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        await exchange.left()
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch(), name="client gone?")

    timer = loop.call_later(WATCH_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise Gone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


async def cancel(bridge: Bridge, tenant: str, ident: str) -> None:
    """Tell the workers, if the id can stand in a subject; a client may have chosen one that cannot."""
    if grammar.is_token(ident):
        with suppress(Fault):  # cut off: the deadline ends it there
            await bridge.client.cancel(tenant, ident)
