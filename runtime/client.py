"""The typed client: contracts in, answers or Faults out. Whatever of ours speaks on the bus speaks through it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from codec import decode, digest, encode
from codec import headers as h
from runtime import headers, jobs, telemetry, tracing
from runtime.connection import Connection
from runtime.headers import as_block
from runtime.identity import Identity, new_id
from runtime.message_spans import asked, asking, passing_on, submitting
from runtime.metrics import Series
from runtime.requests import Reply
from runtime.settings import Settings
from runtime.stream import Stream
from subjects import grammar
from subjects.contract import AnyCall, Call, Code, Event, Fault, Model
from subjects.jobs import Submitted

I = TypeVar("I", bound=Model)  # noqa: E741
O = TypeVar("O", bound=Model)  # noqa: E741
P = TypeVar("P", bound=Model)
EventHandler = Callable[[P, Identity], Awaitable[None]]

MAX_REPEATS = 3
REPEAT_FROM_S, REPEAT_TO_S = 0.010, 0.080
MIN_REPEAT_LEFT_S = 0.1
FULL_HINT_S = 1.0
INBOX = "_INBOX."

__all__ = ["Client", "Reply", "Stream"]

_log = telemetry.get_logger(__name__)
_END = b"\r\n"


class Client:
    """One per process or component. calls: the contracts that it may call, None = any. source: who says so in logs."""

    def __init__(
        self, connection: Connection, settings: Settings, *, source: str, calls: Collection[AnyCall] | None = None
    ) -> None:
        self.connection = connection
        self.source = source
        self._allowed = None if calls is None else frozenset(call.name for call in calls)
        self._type = settings.content_type
        self._type_line = headers.lines({h.CONTENT_TYPE: self._type})
        self._first = headers.LINE + self._type_line
        self._answered: dict[str, Series] = {}  # by operation, so that the usual end of a call is counted quickly

    # -- requests -------------------------------------------------------------------------------------------------

    async def call(
        self,
        call: Call[I, O],
        message: I,
        *,
        identity: Identity,
        timeout_s: float | None = None,
        key: str | None = None,
        output_to: str | None = None,
    ) -> O:
        """Ask and wait for the answer, at most until the identity's deadline and the contract's timeout.

        A mutating call without a key gets one, the same on every repeat. What was not delivered (EXHAUSTED, no
        responder) is repeated up to 3 times. Raises the Fault of the reply, or TIMEOUT, UNAVAILABLE, TOO_LARGE,
        FORBIDDEN (the contract is not among `calls`), INVALID (tenant, key, or a value that the wire cannot carry).
        """
        self._check(call)
        began, request_id = time.perf_counter(), new_id()
        trace = identity.traceparent or tracing.root_if_recording(request_id)
        limit_s = identity.remaining_s(timeout_s or call.timeout_s)
        span = asking(call, identity, request_id, trace) if tracing.sampled(trace) else None
        block = self._first + _identity_lines(identity, request_id, limit_s, span.traceparent if span else trace)
        if call.mutates or key is not None:
            block += headers.lines(
                {h.IDEMPOTENCY_KEY: jobs.checked_key(key or new_id()), h.BODY_DIGEST: digest(message)}
            )
        if output_to is not None:
            block += headers.lines({h.OUTPUT_TO: grammar.token(output_to, "output id")})
        subject = grammar.request(identity.tenant, call.component, call.operation)
        try:
            reply = await self._ask(subject, encode(message, self._type), block + _END, limit_s)
            answer = self._answer(call, reply)
        except asyncio.CancelledError:
            self._give_up(identity.tenant, request_id)
            self._ended(call, began, span, Code.CANCELLED)
            raise
        except Fault as fault:
            self._ended(call, began, span, fault.code)
            raise
        self._ended(call, began, span)
        return answer

    def stream(
        self,
        call: Call[I, O],
        message: I,
        *,
        identity: Identity,
        timeout_s: float | None = None,
        key: str | None = None,
        output_id: str | None = None,
    ) -> Stream[O]:
        """`async with client.stream(...) as s: async for chunk in s: ...; s.result`. Faults as call()."""
        if call.chunk is None:
            raise Fault(Code.INVALID, f"{call.name} has no chunks: use call()")
        made = output_id or jobs.output_id()

        async def ask() -> O:
            return await self.call(call, message, identity=identity, timeout_s=timeout_s, key=key, output_to=made)

        return Stream(self.connection, identity.tenant, made, call.chunk, ask)

    async def call_raw(self, subject: str, data: bytes, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Bytes in, bytes out, repeated like call(). The reply may be a failure: see Reply.fault.

        Deadline and X-Request-ID are the caller's to set. Raises Fault: TIMEOUT, UNAVAILABLE, TOO_LARGE, INVALID.
        """
        address, began = grammar.parse(subject), time.perf_counter()
        span = passing_on(address, headers) if tracing.sampled(headers.get(h.TRACEPARENT)) else None
        given = headers if span is None else {**headers, h.TRACEPARENT: span.traceparent}
        error: Code | None = Code.CANCELLED
        try:
            reply = await self._ask(subject, data, as_block(given), timeout_s, give_fault=False)
            error = reply.fault.code if reply.failed and reply.fault else None
        except Fault as fault:
            error = fault.code
            raise
        finally:
            asked("request", address.component, address.operation, error or "").add(time.perf_counter() - began)
            if span is not None:
                span.end(error)
        return reply

    async def _ask(self, subject: str, data: bytes, block: bytes, limit_s: float, give_fault: bool = True) -> Reply:
        requests = self.connection.requests
        requests.budget.earn()
        reply = await requests.ask(subject, data, block, limit_s)
        if not (reply.no_responders or reply.failed):
            return reply
        until = time.monotonic() + limit_s
        for _ in range(MAX_REPEATS):
            fault = _fault_of(reply)
            if fault is None or not _undelivered(reply, fault):
                break
            pause_s = random.uniform(REPEAT_FROM_S, REPEAT_TO_S)
            if time.monotonic() + pause_s + MIN_REPEAT_LEFT_S > until or not requests.budget.spend():
                break
            await asyncio.sleep(pause_s)
            reply = await requests.ask(subject, data, block, until - time.monotonic())
        fault = _fault_of(reply)
        if fault is not None and (give_fault or reply.no_responders):
            raise fault
        return reply

    def _answer(self, call: Call[I, O], reply: Reply) -> O:
        # Reading all headers of every answer would cost a fifth of the call: ours say what we said.
        usual = reply.block is not None and self._type_line in reply.block
        try:
            return decode(reply.data, call.output, self._type if usual else reply.content_type)
        except Fault as error:  # INVALID would blame the caller's message
            _log.error("answer_does_not_match", call=call.name, errors=[each.path for each in error.errors])
            raise Fault(Code.INTERNAL, f"the answer of {call.name} does not match its contract") from error

    def _ended(self, call: AnyCall, began: float, span: tracing.Span | None, error: Code | None = None) -> None:
        series = (
            self._answered.get(call.name) if error is None else asked("request", call.component, call.operation, error)
        )
        if series is None:
            series = self._answered[call.name] = asked("request", call.component, call.operation)
        series.add(time.perf_counter() - began)
        if span is not None:
            span.end(error)

    def _check(self, call: AnyCall) -> None:
        if self._allowed is not None and call.name not in self._allowed:
            raise Fault(Code.FORBIDDEN, f"{self.source} may not call {call.name}: add it to the calls of its table")

    def _give_up(self, tenant: str, target_id: str) -> None:
        with contextlib.suppress(Fault):  # cut off: the deadline will end it there
            self.connection.write(grammar.cancel(tenant, target_id), b"")

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def submit(
        self,
        call: Call[I, O],
        message: I,
        *,
        identity: Identity,
        key: str | None = None,
        reply_to: str | None = None,
        output_to: str | None = None,
        deadline_ms: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Submitted:
        """Make the message a job. The same key: the same job, `duplicate: true`; with another body: CONFLICT.

        deadline_ms: not started after it. headers: further ones (Replay, Accept); Nats-* are dropped. Raises Fault as
        call(), and EXHAUSTED when the stream is full, INVALID when the contract makes no sense as a job.
        """
        self._check(call)
        if not call.job:
            raise Fault(Code.INVALID, f"{call.name} is not to be had as a job: call it")
        if reply_to is not None and not _is_inbox(reply_to):
            raise Fault(Code.INVALID, f"{h.REPLY_TO} must be a subject below {INBOX}")
        began, job_id = time.perf_counter(), jobs.job_id(identity.tenant, call.name, key)
        trace = identity.traceparent or tracing.root_if_recording(new_id())
        span = submitting(call, identity, job_id, trace) if tracing.sampled(trace) else None
        given = {name: value for name, value in (headers or {}).items() if not name.lower().startswith("nats-")}
        given.update(identity.next_message(span.traceparent if span else trace).headers())
        given.pop(h.DEADLINE, None)  # that of the request which submits is not the job's
        given |= {h.CONTENT_TYPE: self._type, h.BODY_DIGEST: digest(message)}
        optional = {
            h.IDEMPOTENCY_KEY: None if key is None else jobs.checked_key(key),
            h.REPLY_TO: reply_to,
            h.OUTPUT_TO: None if output_to is None else grammar.token(output_to, "output id"),
            h.DEADLINE: None if deadline_ms is None else str(deadline_ms),
        }
        given.update({name: value for name, value in optional.items() if value is not None})
        subject = grammar.job(identity.tenant, call.component, call.operation, job_id)
        error: Code | None = Code.CANCELLED
        try:
            duplicate = await self._until_delivered(
                lambda: jobs.publish_first(self.connection.requests, subject, encode(message, self._type), given)
            )
            error = None
        except Fault as fault:
            error = fault.code
            raise
        finally:
            asked("submit", call.component, call.operation, error or "").add(time.perf_counter() - began)
            if span is not None:
                span.end(error)
        # A random id cannot be anybody else's: a duplicate is our own first try, whose PubAck got lost.
        return Submitted(job_id=job_id, duplicate=duplicate and key is not None)

    async def _until_delivered(self, publish: Callable[[], Awaitable[Any]]) -> Any:
        """Storing is safe to repeat (the id refuses a second one): UNAVAILABLE and TIMEOUT are, up to 3 times."""
        budget = self.connection.requests.budget
        budget.earn()
        for _ in range(MAX_REPEATS):
            try:
                return await publish()
            except Fault as fault:
                if fault.code not in (Code.UNAVAILABLE, Code.TIMEOUT) or not budget.spend():
                    raise
            await asyncio.sleep(random.uniform(REPEAT_FROM_S, REPEAT_TO_S))
        return await publish()

    async def cancel(self, tenant: str, target_id: str) -> None:
        """Tell every worker to stop this request, output or job. Raises Fault(INVALID, UNAVAILABLE)."""
        await self.connection.send(grammar.cancel(tenant, target_id), b"")

    # -- events ---------------------------------------------------------------------------------------------------

    async def publish_event(
        self, event: Event[Any], tenant: str, data: bytes, headers: Mapping[str, str], event_id: str
    ) -> None:
        """Store an event; the same event_id again within 2 minutes is stored once. Raises Fault(UNAVAILABLE, ...)."""
        await self.publish_kept(grammar.event(tenant, event.component, event.occurred), data, headers, event_id)

    async def publish_kept(self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str) -> None:
        """As publish_event, for a subject that is there already (the outbox)."""
        given = {**headers, h.MESSAGE_ID: message_id}
        await self._until_delivered(lambda: jobs.publish_kept(self.connection.requests, subject, data, given))

    async def subscribe(self, event: Event[P], handler: EventHandler[P], *, tenant: str = "*") -> Subscription:
        """Hear events as they come (nothing is kept for the listener: durable ones belong into a worker's table).

        The handler gets the payload and the identity, one event after another; what it raises is logged.
        """
        subject = grammar.event(tenant, event.component, event.occurred) if tenant != "*" else None

        async def received(msg: Msg) -> None:
            try:
                payload = decode(msg.data, event.payload, (msg.headers or {}).get(h.CONTENT_TYPE))
                identity = Identity.from_message(grammar.parse(msg.subject).tenant, msg.headers)
            except Fault as fault:
                _log.warning("event_dropped", name=event.name, detail=fault.detail)
                return
            await handler(payload, identity)

        return await self.connection.subscribe(
            subject or grammar.events_of(event.component, event.occurred), cb=received
        )


def _identity_lines(identity: Identity, request_id: str, limit_s: float, trace: str | None) -> bytes:
    """The lasting headers, made once for an identity, and those of this one message."""
    deadline_ms = int((time.time() + limit_s) * 1000)
    line = f"{h.TRACEPARENT}: {trace}\r\n" if trace else ""
    return identity.lasting_lines + f"{h.REQUEST_ID}: {request_id}\r\n{h.DEADLINE}: {deadline_ms}\r\n{line}".encode()


def _fault_of(reply: Reply) -> Fault | None:
    if reply.no_responders:
        return Fault(Code.UNAVAILABLE, "no worker of this component is running", retry_after_s=1)
    return reply.fault


def _undelivered(reply: Reply, fault: Fault) -> bool:
    if reply.no_responders:
        return True
    # Full slots say 1 s. A longer hint is a handler's own (a provider's rate limit, say): that call was delivered.
    return fault.code is Code.EXHAUSTED and (fault.retry_after_s or 0.0) <= FULL_HINT_S


def _is_inbox(subject: str) -> bool:
    return subject.startswith(INBOX) and subject.isascii() and subject.isprintable() and not set(subject) & set(" *>")
