"""Spans and the W3C trace context. A message that is not sampled carries a string and costs nothing else.

A span is recorded when a collector is configured and the trace is sampled; whoever begins the trace decides that
(docs/adr has the rule). Recording is appending one small object to a bounded queue; otlp.py sends it from a thread.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from hashlib import blake2b

from runtime import metrics
from runtime.sampling import Rate, Sampler
from subjects.contract import Code, Fault

SPANS_A_S = 2000.0  # of one process, whatever others have sampled: about a tenth of its CPU
MAX_TRACESTATE_CHARS = 512
MAX_ATTRIBUTE_CHARS = 256

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_ODD = frozenset("13579bdf")

DROPPED = metrics.Counter("faas.telemetry.dropped", "", "Spans that were not delivered, by reason.", ("reason",))

Attribute = str | int | float | bool | list[str]


class Kind(IntEnum):
    """As OpenTelemetry numbers them."""

    INTERNAL = 0
    SERVER = 1
    CLIENT = 2
    PRODUCER = 3
    CONSUMER = 4


class Span:
    """One that is being recorded. Attributes are names and numbers: never a body, a parameter or a secret."""

    __slots__ = (
        "attributes", "end_ns", "error", "kind", "links", "name", "parent_id", "span_id", "start_ns", "trace_id",
        "tracestate",
    )  # fmt: skip

    def __init__(
        self, name: str, kind: Kind, traceparent: str, attributes: dict[str, Attribute], span_id: str | None = None
    ) -> None:
        self.name = name
        self.kind = kind
        self.trace_id = traceparent[3:35]
        self.parent_id = None if _is_start(traceparent) else traceparent[36:52]
        self.span_id = span_id or _span_id()
        self.tracestate: str | None = None
        self.attributes = attributes
        self.links: tuple[str, ...] = ()  # ids of other spans of this trace
        self.error: str | None = None
        self.start_ns = time.time_ns()
        self.end_ns = 0

    @property
    def traceparent(self) -> str:
        """For what is caused by it."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def end(self, error: str | None = None) -> None:
        """error: a code of ours, or a short name for what went wrong."""
        if self.end_ns:
            return
        self.end_ns = time.time_ns()
        if error:
            self.error = self.attributes["error.type"] = str(error)
        if _recorder is not None:
            _recorder.sink(self)


class _Recorder:
    def __init__(self, sink: Callable[[Span], None], sampler: Sampler) -> None:
        self.sink = sink
        self.sampler = sampler
        self.may_begin = Rate(SPANS_A_S)


_recorder: _Recorder | None = None
_current: ContextVar[Span | None] = ContextVar("span", default=None)


@contextmanager
def recording(sink: Callable[[Span], None], sampler: Sampler) -> Iterator[None]:
    """Spans that end within the block go to sink, which must be quick."""
    global _recorder
    before, _recorder = _recorder, _Recorder(sink, sampler)
    try:
        yield
    finally:
        _recorder = before


def is_recording() -> bool:
    return _recorder is not None


def sampled(traceparent: str | None) -> bool:
    """Whether what is done under this parent is to be recorded. Quick: asked for every message."""
    if _recorder is None or traceparent is None:
        return False
    if _recorder.sampler.every_hop:
        return _recorder.sampler(traceparent[3:35])
    return traceparent[-1] in _ODD


def begin(
    name: str,
    kind: Kind,
    traceparent: str | None,
    attributes: Mapping[str, Attribute | None] | None = None,
    *,
    span_id: str | None = None,
    tracestate: str | None = None,
) -> Span | None:
    """A child of traceparent; None when it is not recorded. Absent attributes (None) are left out, long ones cut."""
    if traceparent is None or not sampled(traceparent) or _recorder is None:
        return None
    if not _recorder.may_begin():
        DROPPED.add("rate")
        return None
    kept = {name: _cut(value) for name, value in (attributes or {}).items() if value is not None}
    span = Span(name, kind, traceparent, kept, span_id)
    span.tracestate = tracestate
    return span


def within(name: str, kind: Kind, attributes: Mapping[str, Attribute | None] | None = None) -> Span | None:
    """A child of the span that is current in this task; None without one."""
    parent = _current.get()
    return None if parent is None else begin(name, kind, parent.traceparent, attributes)


def error_of(failed: BaseException) -> str:
    """What a span is told of an exception: the code of a Fault, a cancellation, an SQLSTATE, else its class."""
    if isinstance(failed, Fault):
        return failed.code.value
    if isinstance(failed, asyncio.CancelledError):
        return Code.CANCELLED.value
    return str(getattr(failed, "sqlstate", None) or type(failed).__name__)


@contextmanager
def ending(span: Span | None) -> Iterator[None]:
    """The block is what the span is about."""
    if span is None:
        yield
        return
    try:
        yield
    except BaseException as failed:
        span.end(error_of(failed))
        raise
    span.end()


def current() -> Span | None:
    """The span of the message that this task handles, when it is recorded."""
    return _current.get()


def enter(span: Span | None) -> None:
    """Make it current, or none, for the rest of this task, which must be the message's own."""
    _current.set(span)


def root(trace_id: str | None = None) -> str:
    """The start of a new trace (with this random id, if one is at hand), sampled or not. Its span id only marks the
    start: the first span has no parent."""
    made = trace_id or f"{random.getrandbits(128) or 1:032x}"
    return _started(made, made[:16])


def root_if_recording(trace_id: str) -> str | None:
    """For a message that nobody gave a parent: whoever records begins its trace, whoever does not says nothing."""
    if _recorder is None:
        return None
    return f"00-{trace_id}-{trace_id[:16]}-{'01' if _recorder.sampler(trace_id) else '00'}"  # root(), in one step


def adopted(outside: str | None) -> str | None:
    """The valid parent that somebody outside named, as far as it is believed: its ids, and that it is not sampled.
    Whether it is sampled is decided as for a new trace, so that nobody outside can have everything recorded."""
    valid = valid_traceparent(outside)
    if valid is None or valid[-1] not in _ODD:
        return valid
    return _started(valid[3:35], valid[36:52])


def _started(trace_id: str, span_id: str) -> str:
    is_sampled = _recorder is not None and _recorder.sampler(trace_id)
    return f"00-{trace_id}-{span_id}-{'01' if is_sampled else '00'}"


def derived_id(*parts: str, size: int = 8) -> str:
    """The id of a span (8 bytes) or a trace (16) that everybody finds who knows the same words."""
    return blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=size).hexdigest()


def valid_traceparent(value: str | None) -> str | None:
    """The value itself if it is a version 00 traceparent with non-zero ids, else None (W3C: restart the trace)."""
    found = _TRACEPARENT.match(value) if value else None
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return value


def trace_id(traceparent: str | None) -> str | None:
    return traceparent[3:35] if traceparent else None


def _is_start(traceparent: str) -> bool:
    return traceparent[36:52] == traceparent[3:19]


def _span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


def _cut(value: Attribute | None) -> Attribute:
    return value[:MAX_ATTRIBUTE_CHARS] if isinstance(value, str) else value  # type: ignore[return-value]
