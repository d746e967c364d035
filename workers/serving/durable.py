"""A message of a stream: pulse while it works, count its crashes, run it, settle it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

import codec
from codec import headers as names
from runtime import tracing
from runtime.identity import Identity
from runtime.jobs import run_key
from runtime.message_spans import attempting, processed
from runtime.output import OutputWriter
from runtime.telemetry import bind
from runtime.tracing import trace_id
from subjects import grammar
from subjects.contract import AnyEvent, Code, Fault
from subjects.jobs import STARTED, JobChanged
from workers.serving.alongside import Alongside
from workers.serving.context import Context
from workers.serving.delivery import Delivery
from workers.serving.host import Host
from workers.serving.middleware import permit
from workers.serving.outcome import Outcome
from workers.serving.perform import Performer
from workers.serving.route import Handler, Route
from workers.serving.running import Cancellable
from workers.serving.settle import INBOX_PREFIX, MAX_CRASHES, answer, end_output, settle
from workers.serving.slots import AloneTooLate
from workers.serving.stats import UNKNOWN, Stats

log = structlog.get_logger("workers.serving")

EVENT_TIMEOUT_S = 300.0
ALONE_WAIT_S, ALONE_WAIT_MOST_S = 5.0, 60.0  # while one waits to run alone, newcomers wait behind it
ALONE_AGAIN_S = 5.0
ROW_AFTER_S = 0.2  # a job that ends sooner writes its row once, at its end
CRASHED = Fault(Code.INTERNAL, f"the job's worker process died {MAX_CRASHES} times while it ran; it is not run again")
LATE = Fault(Code.TIMEOUT, "its deadline had passed before it could be started")


class Durable:
    """One delivery of a job or an event."""

    def __init__(
        self,
        host: Host,
        performer: Performer,
        context: Callable[..., Context[Any]],
        delivery: Delivery,
        stats: Stats,
    ) -> None:
        self._host = host
        self._stats = stats
        self._performer = performer
        self._context = context
        self._delivery = delivery
        self._digest = delivery.digest
        self._began = time.perf_counter()
        self._span: tracing.Span | None = None
        self.stop = Cancellable()

    async def job(self, routes: Mapping[str, Route]) -> None:
        """Run a job and settle it. Leaves a message that this process cannot finish to be delivered again."""
        delivery = self._delivery
        try:
            address = delivery.addressed()
            job_id, redrive = delivery.job_id(address), delivery.redrive
        except Fault as fault:
            self._unreadable(fault)
            return
        dead = grammar.dead_letter(address.tenant, address.component, address.operation, job_id, redrive)
        name = f"{address.component}.{address.operation}"
        async with self._pulse():
            try:
                outcome = await self._job(name, address.tenant, job_id, routes.get(address.operation))
            except asyncio.CancelledError:
                outcome = await self._stopped(name, address.tenant, job_id)
        if outcome.verdict == "stray":
            stray = delivery.stored_id(address.tenant)
            dead = grammar.dead_letter(address.tenant, address.component, address.operation, stray, 0)
        await settle(self._host.connection, delivery, outcome, dead)
        self._ended("job", address.component, address.operation if address.operation in routes else UNKNOWN, outcome)
        if outcome.verdict in ("done", "dead"):
            await self._tell(address.tenant, job_id, outcome)

    async def event(self, event: AnyEvent, handler: Handler, component: str) -> None:
        """Have one event heard and settle it."""
        delivery = self._delivery
        try:
            address = delivery.addressed()
            ident = delivery.job_id(address)
        except Fault as fault:
            self._unreadable(fault)
            return
        operation = grammar.delivery_of(event.component, event.occurred)
        dead = grammar.dead_letter(address.tenant, component, operation, ident, 0)
        name = f"{component}.{operation}"
        async with self._pulse():
            outcome = await self._heard(
                name, address.tenant, ident, Route(event.payload, None, handler, EVENT_TIMEOUT_S)
            )
        await settle(self._host.connection, delivery, outcome, dead)
        self._ended("event", component, operation, outcome)

    # --- the way of a job --------------------------------------------------------------------------------------------

    async def _job(self, name: str, tenant: str, job_id: str, route: Route | None) -> Outcome:
        headers = self._delivery.headers
        key = run_key(job_id, self._delivery.redrive)
        ctx: Context[Any] | None = None
        try:
            identity = self._attempt(self._delivery.identified(tenant), job_id, name.partition(".")[0])
            ctx = self._of(identity, route, key)
            ctx.job_id = job_id
            replay_of = headers.get(names.REPLAY_OF)
            ctx.replay_of = replay_of if grammar.is_token(replay_of) else None
            if route is None:
                raise Fault(Code.NOT_FOUND, f"there is no operation {name}")
            if route.output is not None:  # a fact is heard whoever caused it
                permit(identity, name)
            if identity.deadline_ms is not None and identity.deadline_ms < time.time() * 1000:
                raise LATE
            message = codec.decode(self._delivery.data, route.input, self._delivery.content_type)
        except Fault as fault:
            ctx = ctx or self._anonymous(tenant, key, job_id)
            return await self._performer.give_up(ctx, name, self._digest, fault)
        output_id = headers.get(names.OUTPUT_TO, job_id)
        ctx.output_id = output_id if grammar.is_token(output_id) else job_id
        ctx.streams = route.streams
        return await self._guarded(ctx, name, route, message, {job_id, output_id})

    async def _heard(self, name: str, tenant: str, ident: str, route: Route) -> Outcome:
        ctx: Context[Any] | None = None
        try:
            identity = self._attempt(self._delivery.identified(tenant), ident, name.partition(".")[0])
            ctx = self._of(identity, route, ident)
            message = codec.decode(self._delivery.data, route.input, self._delivery.content_type)
        except Fault as fault:
            ctx = ctx or self._anonymous(tenant, ident, None)
            return await self._performer.give_up(ctx, name, self._digest, fault)
        return await self._guarded(ctx, name, route, message, set())

    async def _guarded(self, ctx: Context[Any], name: str, route: Route, message: Any, idents: set[str]) -> Outcome:
        """Alone in this process when a process died over it before; not at all after the third time."""
        crashes = await self._performer.crashes(ctx, name) if self._delivery.delivered > 1 else 0
        digest = self._digest
        identity = ctx.identity
        for ident in idents:
            self._host.running.add(ctx.tenant, ident, self.stop)
        bind(tenant=ctx.tenant, request_id=identity.request_id, correlation_id=identity.correlation_id,
             trace_id=trace_id(identity.traceparent), job_id=ctx.job_id)  # fmt: skip
        try:
            if crashes >= MAX_CRASHES:
                return await self._performer.give_up(ctx, name, digest, CRASHED)
            gate = self._host.gate
            alone_wait_s = min(ALONE_WAIT_S * self._delivery.delivered, ALONE_WAIT_MOST_S)
            async with gate.alone(alone_wait_s) if crashes else gate.together():
                ctx.deadline = time.time() + route.timeout_s  # waiting for the gate is not its fault
                async with self._row(ctx, name, at_once=route.long or self._delivery.delivered > 1):
                    return await self._performer.durable(ctx, name, route.handler, message, digest, route.output)
        except AloneTooLate:  # the others go on; another process may be idle, or this one later
            return Outcome("again", delay_s=ALONE_AGAIN_S)
        finally:
            for ident in idents:
                self._host.running.remove(ctx.tenant, ident, self.stop)

    # --- what is told of it ---------------------------------------------------------------------------------------

    def _attempt(self, identity: Identity, ident: str, component: str) -> Identity:
        """The identity under this delivery's span, when it is recorded."""
        if not tracing.is_recording():
            return identity
        address = self._delivery.addressed()
        self._span = attempting(address, identity, ident, component, self._delivery.attempt())
        tracing.enter(self._span)
        return identity.under(self._span)

    def _ended(self, kind: str, component: str, operation: str, outcome: Outcome) -> None:
        error = outcome.fault.code if outcome.fault is not None else ""
        took_s = time.perf_counter() - self._began
        tally = self._stats.job(operation) if kind == "job" else None
        if tally is not None:
            tally.ended(took_s, outcome.fault)
        else:
            processed(kind, component, operation, error).add(took_s)
        if self._span is not None:
            self._span.attributes |= {"faas.verdict": outcome.verdict, "faas.attempt": outcome.attempt}
            self._span.end(error)

    # --- around it ----------------------------------------------------------------------------------------------------

    async def _stopped(self, name: str, tenant: str, job_id: str | None) -> Outcome:
        """Stopped outside its handler: cancelled before it began, or handed back because this process drains."""
        task = asyncio.current_task()
        if self.stop.reason is None or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        if self.stop.reason == "caller" and job_id is not None:
            ctx = self._anonymous(tenant, run_key(job_id, self._delivery.redrive), job_id)
            return await self._performer.give_up(
                ctx, name, self._digest, Fault(Code.CANCELLED, "cancelled by its caller")
            )
        return Outcome("again")

    def _pulse(self) -> Alongside:
        """Tell the server every third of ack_wait that the message is being worked on."""
        every_s = self._host.settings.job_ack_wait_s / 3

        async def pulse() -> None:
            while True:
                if self._host.connection.is_connected:
                    self._host.connection.write(self._delivery.reply, b"+WPI")
                await asyncio.sleep(every_s)

        return Alongside(pulse, every_s)

    def _row(self, ctx: Context[Any], name: str, *, at_once: bool) -> AbstractAsyncContextManager[None]:
        """The job's row says running, once it is worth saying so."""
        if ctx.job_id is None:
            return nullcontext()
        return Alongside(partial(self._say_running, ctx, name), 0.0 if at_once else ROW_AFTER_S)

    async def _say_running(self, ctx: Context[Any], name: str) -> None:
        await ctx.claimed.wait()
        component, _, operation = name.partition(".")
        delivery = self._delivery
        try:
            await self._host.books.jobs.running(
                ctx.tenant,
                str(ctx.job_id),
                component=component,
                operation=operation,
                attempt=ctx.attempt,
                headers=delivery.headers,
                body=delivery.data,
            )
        except Fault as fault:
            log.warning("job row not written", code=fault.code.value)
            return
        if not ctx.resumed:
            started = JobChanged(
                entity_id=str(ctx.job_id),
                version=ctx.attempt,
                component=component,
                operation=operation,
                status="running",
                attempt=ctx.attempt,
            )
            self._host.facts.publish(ctx.tenant, STARTED, started, ctx.event_headers(STARTED))

    def _of(self, identity: Identity, route: Route | None, key: str) -> Context[Any]:
        # The deadline header says when a job may start; how long it may run is its contract's matter.
        timeless = replace(identity, deadline_ms=None)
        ctx = self._context(timeless, route.timeout_s if route else EVENT_TIMEOUT_S, self.stop)
        ctx.key, ctx.durable = key, True
        return ctx

    def _anonymous(self, tenant: str, key: str, job_id: str | None) -> Context[Any]:
        """For a message whose headers cannot be trusted to say who sent it."""
        ctx = self._of(Identity.new(tenant), None, key)
        ctx.job_id = job_id
        return ctx

    async def _tell(self, tenant: str, job_id: str, outcome: Outcome) -> None:
        """End the job's output, and answer the inbox that was named for its result."""
        headers, request_id = self._delivery.headers, self._delivery.headers.get(names.REQUEST_ID, "")
        correlation_id = headers.get(names.CORRELATION_ID, "")
        output_id = headers.get(names.OUTPUT_TO, job_id)
        if outcome.output is not None:
            await end_output(outcome.output, outcome, request_id, correlation_id)
        elif grammar.is_token(output_id):
            # Nobody knows how far the attempt got that ended it: a further one says restart, then how it ended.
            writer = OutputWriter(self._host.connection, tenant, output_id, outcome.attempt + 1)
            await end_output(writer, outcome, request_id, correlation_id)
        reply_to = headers.get(names.REPLY_TO, "")
        if reply_to.startswith(INBOX_PREFIX):
            answer(self._host.connection, reply_to, self._delivery.accept, outcome, request_id, correlation_id)

    def _unreadable(self, fault: Fault) -> None:
        """A subject that names no tenant or operation has nobody to tell and nowhere to be kept."""
        log.error("terminated: unreadable subject", subject=repr(self._delivery.subject), detail=fault.detail)
        self._host.connection.write(self._delivery.reply, b"+TERM")
