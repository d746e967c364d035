"""Takes a component's messages in: a slot, then a task, then the answer. One dispatcher a component and process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

import codec
from codec import headers as names
from runtime import metrics, streams, tracing
from runtime.identity import Identity, new_id
from runtime.jobs import job_id as job_id_of
from runtime.message_spans import answering
from runtime.output import OutputWriter
from runtime.telemetry import bind
from runtime.tracing import trace_id
from subjects import grammar
from subjects.contract import AnyCall, AnyEvent, Code, Fault
from workers.serving.context import Context
from workers.serving.delivery import Delivery
from workers.serving.durable import EVENT_TIMEOUT_S, Durable
from workers.serving.host import Host
from workers.serving.middleware import permit, wrap
from workers.serving.outcome import Outcome
from workers.serving.perform import Performer
from workers.serving.pull import Pull
from workers.serving.route import Handler, On, Route, Worker
from workers.serving.running import Cancellable
from workers.serving.settle import answer, end_output
from workers.serving.slots import EVENT_SLOTS, JOB_SLOTS, Slots
from workers.serving.stats import Stats

log = structlog.get_logger("workers.serving")

HAND_BACK_S = 3.0  # what a cancelled task has to hand its job back
BUSY = Outcome(
    "done",
    fault=Fault(Code.EXHAUSTED, "every slot of this process and its backlog are taken; ask again", retry_after_s=1),
)
STOPPING = Fault(Code.UNAVAILABLE, "this process is stopping; ask again")
ACTIVE = metrics.Observed("faas.messages.active", "", "Requests that run or wait for a slot.", "updown",
                          ("faas.component", "faas.state"))  # fmt: skip


class Dispatcher:
    """Serves one worker table on one host."""

    def __init__(self, worker: Worker, host: Host, deps: Any, performer: Performer) -> None:
        self.worker = worker
        self._host = host
        self._deps = deps
        self._performer = performer
        self._client = host.client_for(worker.name, worker.calls)
        self._handlers = {s.call.operation: (s.call, wrap(s.call.name, s.handler)) for s in worker.serves}
        self._jobs = {call.operation: job_route(call, handler) for call, handler in self._handlers.values() if call.job}
        self._jobs |= {
            grammar.delivery_of(on.event.component, on.event.occurred): event_route(on) for on in worker.consumes
        }
        self._slots = Slots(host.settings.concurrency(worker.name))
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: set[Cancellable] = set()
        self._pulls: list[Pull] = []
        self._subscription: Any = None
        self.stats = Stats(worker.name, self._handlers)
        self._forget = ACTIVE.watch(self._active)

    def _active(self) -> list[tuple[tuple[str, str], float]]:
        name = self.worker.name
        return [((name, "running"), self._slots.running), ((name, "waiting"), self._slots.waiting)]

    async def start(self) -> None:
        """Durable consumers first, then requests: what is announced as there must be able to work."""
        settings, connection, name = self._host.settings, self._host.connection, self.worker.name
        if self.worker.serves_jobs:
            slots = min(JOB_SLOTS, settings.concurrency(name))
            await self._pull(streams.JOBS, streams.jobs_consumer(name, settings), slots, None)
        for on in self.worker.consumes:
            consumer = streams.event_consumer(name, on.event.component, on.event, settings)
            await self._pull(streams.EVENTS, consumer, EVENT_SLOTS, (on.event, wrap(on.event.name, on.handler)))
        subject = grammar.requests_of(name, "*")
        self._subscription = await connection.listen(subject, self._on_request, queue=name)

    async def _pull(self, stream: str, consumer: Any, slots: int, heard: tuple[AnyEvent, Handler] | None) -> None:
        connection = self._host.connection

        async def ensure() -> None:
            await streams.ensure_consumer(connection, stream, consumer)

        def start(delivery: Delivery, release: Callable[[], None]) -> None:
            durable = Durable(self._host, self._performer, self._context, delivery, self.stats)
            work = durable.event(*heard, self.worker.name) if heard is not None else durable.job(self._jobs)
            self._spawn(work, durable.stop, release)

        await ensure()
        pull = Pull(connection, stream, consumer.durable_name, slots, start, ensure)
        await pull.begin()
        self._pulls.append(pull)

    # --- requests -------------------------------------------------------------------------------------------------

    def _on_request(self, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
        # Called by the read loop: take a slot, start a task, return.
        delivery, stop = Delivery.of(subject, reply, data, block), Cancellable()
        if not self._slots.offer(lambda: self._spawn(self._request(delivery, stop), stop, self._slots.release)):
            request_id = delivery.headers.get(names.REQUEST_ID) or new_id()
            answer(self._host.connection, delivery.reply, delivery.accept, BUSY, request_id, "")
            self.stats.of_subject(delivery.subject).ended(0.0, BUSY.fault)

    async def _request(self, delivery: Delivery, stop: Cancellable) -> None:
        began, operation = time.perf_counter(), ""
        identity: Identity | None = None
        span: tracing.Span | None = None
        try:
            address = delivery.addressed()
            operation = address.operation
            identity = delivery.identified(address.tenant)
            if address.operation not in self._handlers:
                raise Fault(Code.NOT_FOUND, f"{self.worker.name} has no operation {address.operation}")
            if tracing.is_recording():
                span = answering(address, identity)
                identity = identity.under(span)
                tracing.enter(span)
            outcome = await self._perform(delivery, *self._handlers[address.operation], identity, stop)
        except Fault as fault:
            outcome = Outcome("done", fault=fault)
        except asyncio.CancelledError:
            outcome = Outcome("done", fault=STOPPING)
        except Exception:
            log.exception("unexpected exception in the dispatcher", subject=delivery.subject)
            outcome = Outcome("done", fault=Fault(Code.INTERNAL, "internal error"))
        request_id = identity.request_id if identity else delivery.headers.get(names.REQUEST_ID) or new_id()
        correlation_id = identity.correlation_id if identity else ""
        said = answer(self._host.connection, delivery.reply, delivery.accept, outcome, request_id, correlation_id)
        tally = self.stats.requests.get(operation) or self.stats.of_subject(delivery.subject)
        tally.ended(time.perf_counter() - began, said)
        if span is not None:
            span.end(None if said is None else said.code)
        if outcome.then is not None:
            await outcome.then()

    async def _perform(
        self, delivery: Delivery, call: AnyCall, handler: Handler, identity: Identity, stop: Cancellable
    ) -> Outcome:
        permit(identity, call.scope)
        headers = delivery.headers
        message = codec.decode(delivery.data, call.input, delivery.content_type)
        ctx = self._context(identity, call.timeout_s, stop, output_id=headers.get(names.OUTPUT_TO), call=call)
        key = headers.get(names.IDEMPOTENCY_KEY)
        digest = ""
        if key and call.mutates:
            ctx.key = job_id_of(identity.tenant, call.name, key)
            digest = headers.get(names.BODY_DIGEST) or codec.digest(message)
        idents = {identity.request_id, headers.get(names.OUTPUT_TO) or identity.request_id}
        for ident in idents:
            self._host.running.add(identity.tenant, ident, stop)
        # This task is the message's own, so what is bound here ends with it.
        bind(tenant=identity.tenant, request_id=identity.request_id, correlation_id=identity.correlation_id,
             trace_id=trace_id(identity.traceparent))  # fmt: skip
        try:
            outcome = await self._performer.request(ctx, call, handler, message, digest)
        finally:
            for ident in idents:
                self._host.running.remove(identity.tenant, ident, stop)
        if ctx.output is not None:
            await end_output(ctx.output, outcome, identity.request_id, identity.correlation_id)
        return outcome

    def _context(
        self,
        identity: Identity,
        timeout_s: float,
        stop: Cancellable,
        *,
        output_id: str | None = None,
        call: AnyCall | None = None,
    ) -> Context[Any]:
        deadline = time.time() + timeout_s
        if identity.deadline_ms is not None:
            deadline = min(deadline, identity.deadline_ms / 1000)
        ctx = Context(self._host, self._client, self._deps, identity, deadline=deadline, stop=stop)
        ctx.streams = call is not None and call.chunk is not None
        if output_id is not None:
            ctx.output = OutputWriter(self._host.connection, identity.tenant, grammar.token(output_id, "output id"))
        return ctx

    # --- life -------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Any, stop: Cancellable, release: Callable[[], None]) -> None:
        task = asyncio.create_task(work)
        stop.task = task
        self._tasks.add(task)
        self._stops.add(stop)

        def ended(done: asyncio.Task[None]) -> None:
            self._tasks.discard(done)
            self._stops.discard(stop)
            release()
            if not done.cancelled() and done.exception() is not None:
                log.error("a message's task failed", exc_info=done.exception())

        task.add_done_callback(ended)

    async def drain(self, grace_s: float) -> None:
        """No new work; wait for what runs; after grace_s cancel the rest, which is then delivered again."""
        self._forget()
        await asyncio.gather(*(pull.stop() for pull in self._pulls))
        if self._subscription is not None and self._host.connection.is_connected:
            await self._subscription.drain()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        for stop in list(self._stops):
            stop.cancel("drain")
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=HAND_BACK_S)


def event_route(on: On) -> Route:
    """A delivery of an event that was dead and is redriven comes to this subscription alone, as a job."""
    return Route(on.event.payload, None, wrap(on.event.name, on.handler), EVENT_TIMEOUT_S)


def job_route(call: AnyCall, handler: Handler) -> Route:
    return Route(call.input, call.output, handler, call.job_timeout_s, streams=call.chunk is not None, long=call.long)
