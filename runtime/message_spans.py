"""Spans and durations of messages, by the messaging conventions: one place for their names.

A subject is told as its template (`req.*.rag.query`): the tenant is an attribute of spans, and no label of metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from codec import headers as h
from runtime import metrics
from runtime.identity import Identity, new_id
from runtime.metrics import Histogram, Series
from runtime.tracing import Attribute, Kind, Span, begin, derived_id, root_if_recording, sampled
from subjects import grammar
from subjects.contract import AnyCall, AnyEvent

SYSTEM = "nats"
_LABELS = ("messaging.system", "messaging.operation.name", "faas.component", "faas.operation", "error.type")
CLIENT_DURATION = Histogram(
    "messaging.client.operation.duration",
    "s",
    "From asking to the answer (request), or to the stream's acknowledgement (submit), repeats included.",
    metrics.SECONDS,
    _LABELS,
)
PROCESS_DURATION = Histogram(
    "messaging.process.duration",
    "s",
    "From taking a message to its answer (request) or settlement (job, event).",
    metrics.SECONDS,
    _LABELS,
)
TYPES = {"request": "send", "submit": "send", "create": "create", "process": "process"}


def template(kind: str, component: str, operation: str) -> str:
    """A subject without its tenant and ids."""
    return f"{kind}.*.{component}.{operation}"


def asking(call: AnyCall, identity: Identity, request_id: str, trace: str | None) -> Span | None:
    """The span of a request, on the side that asks."""
    destination = template(grammar.REQUEST, call.component, call.operation)
    given = attributes("request", destination, identity.tenant, request_id, identity.correlation_id)
    return begin(f"request {destination}", Kind.CLIENT, trace, given, tracestate=identity.tracestate)


def passing_on(address: grammar.Address, headers: Mapping[str, str]) -> Span | None:
    """The same, of a request whose headers are made already."""
    destination = template(address.kind, address.component, address.operation)
    given = attributes("request", destination, address.tenant, headers.get(h.REQUEST_ID), headers.get(h.CORRELATION_ID))
    state = headers.get(h.TRACESTATE)
    return begin(f"request {destination}", Kind.CLIENT, headers.get(h.TRACEPARENT), given, tracestate=state)


def submitting(call: AnyCall, identity: Identity, job_id: str, trace: str | None) -> Span | None:
    """The span of putting a job into its stream; every attempt at the job is its child."""
    destination = template(grammar.JOB, call.component, call.operation)
    given = attributes("submit", destination, identity.tenant, job_id, identity.correlation_id)
    return begin(f"submit {destination}", Kind.PRODUCER, trace, given, tracestate=identity.tracestate)


def emitting(event: AnyEvent, identity: Identity) -> Span | None:
    """The span of an event that is made; it is published after the commit, by this process or by the keeper."""
    destination = template(grammar.EVENT, event.component, event.occurred)
    given = attributes("create", destination, identity.tenant, None, identity.correlation_id)
    state = identity.tracestate
    return begin(f"create {destination}", Kind.PRODUCER, identity.traceparent, given, tracestate=state)


def answering(address: grammar.Address, identity: Identity) -> Span | None:
    """The span of a request, on the side that answers."""
    trace = identity.traceparent or root_if_recording(new_id())
    if not sampled(trace):
        return None
    destination = template(address.kind, address.component, address.operation)
    given = attributes("process", destination, identity.tenant, identity.request_id, identity.correlation_id)
    given["messaging.consumer.group.name"] = address.component
    return begin(f"process {destination}", Kind.SERVER, trace, given, tracestate=identity.tracestate)


def attempting(
    address: grammar.Address, identity: Identity, message_id: str, component: str, attempt: Attempt
) -> Span | None:
    """The span of one delivery of a job or event: a child of its producer, linked to the delivery before it."""
    trace = identity.traceparent or root_if_recording(derived_id(attempt.stored, size=16))
    if not sampled(trace):
        return None
    destination = template(address.kind, address.component, address.operation)
    given = attributes("process", destination, identity.tenant, message_id, identity.correlation_id)
    given["messaging.consumer.group.name"] = component
    given["faas.delivery"] = attempt.delivered
    name, state = f"process {destination}", identity.tracestate
    span = begin(name, Kind.CONSUMER, trace, given, span_id=attempt.span_id, tracestate=state)
    if span is not None and attempt.delivered > 1:
        span.links = (attempt.before.span_id,)
    return span


@dataclass(frozen=True)
class Attempt:
    """One delivery of a stored message. Its span id is made from what the broker says with each delivery, so that the
    next one knows it without having been told, whichever process it is in and whatever became of this one."""

    stored: str  # stream, consumer, sequence and time of storing: one message for one consumer, for ever
    delivered: int

    @property
    def span_id(self) -> str:
        return derived_id(self.stored, str(self.delivered))

    @property
    def before(self) -> Attempt:
        return Attempt(self.stored, self.delivered - 1)


def attributes(
    operation: str, destination: str, tenant: str, message_id: str | None, correlation_id: str | None
) -> dict[str, Attribute | None]:
    return {
        "messaging.system": SYSTEM,
        "messaging.destination.name": destination,
        "messaging.operation.name": operation,
        "messaging.operation.type": TYPES[operation],
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": correlation_id,
        "faas.tenant.id": tenant,
    }


def asked(operation: str, component: str, name: str, error: str = "") -> Series:
    """Where the duration of a request or submit is counted."""
    return CLIENT_DURATION.series(SYSTEM, operation, component, name, error)


def processed(kind: str, component: str, operation: str, error: str = "") -> Series:
    """Where the duration of handling is counted. kind: request, job or event."""
    return PROCESS_DURATION.series(SYSTEM, f"process {kind}", component, operation, error)
