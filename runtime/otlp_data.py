"""Our spans and numbers as the OpenTelemetry SDK's data, which its exporters encode. Imports the SDK."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from runtime import metrics
from runtime.tracing import Span

SCOPE = InstrumentationScope("motadata-faas")
CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE
_STARTED_NS = time.time_ns()
_ERROR = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)


def resource(named: dict[str, str]) -> Resource:
    """named, and what OTEL_RESOURCE_ATTRIBUTES adds."""
    return Resource.create(named)


def spans(batch: Sequence[Span], of: Resource) -> list[ReadableSpan]:
    return [_span(each, of) for each in batch]


def _span(span: Span, of: Resource) -> ReadableSpan:
    state = TraceState.from_header([span.tracestate]) if span.tracestate else None
    return ReadableSpan(
        name=span.name,
        context=_context(span.trace_id, span.span_id, state),
        parent=None if span.parent_id is None else _context(span.trace_id, span.parent_id, state),
        resource=of,
        attributes=span.attributes,
        links=[Link(_context(span.trace_id, linked)) for linked in span.links],
        kind=SpanKind(span.kind),
        status=_ERROR if span.error else _UNSET,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=SCOPE,
    )


def _context(trace_id: str, span_id: str, state: TraceState | None = None) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), False, TraceFlags(TraceFlags.SAMPLED), state)


def measured(snapshots: Sequence[metrics.Snapshot], of: Resource) -> sdk.MetricsData:
    now_ns = time.time_ns()
    scope = sdk.ScopeMetrics(SCOPE, [_metric(each, now_ns) for each in snapshots if each.points], "")
    return sdk.MetricsData([sdk.ResourceMetrics(of, [scope], "")])


def _metric(told: metrics.Snapshot, now_ns: int) -> sdk.Metric:
    metric = told.metric
    return sdk.Metric(metric.name, metric.help, metric.unit, _data(told, now_ns))


def _data(told: metrics.Snapshot, now_ns: int) -> Any:
    metric = told.metric
    if isinstance(metric, metrics.Histogram):
        points = [_spread(labels, value, metric, now_ns) for labels, value in told.points]
        return sdk.Histogram(points, CUMULATIVE)
    numbers = [
        sdk.NumberDataPoint(labels, _STARTED_NS, now_ns, value)
        for labels, value in told.points
        if not isinstance(value, metrics.Series)
    ]
    if metric.kind == "gauge":
        return sdk.Gauge(numbers)
    return sdk.Sum(numbers, CUMULATIVE, is_monotonic=metric.kind == "counter")


def _spread(labels: Any, series: Any, metric: metrics.Histogram, now_ns: int) -> sdk.HistogramDataPoint:
    buckets = list(series.buckets)
    nothing: Any = None  # the least and the most are not kept
    return sdk.HistogramDataPoint(
        labels, _STARTED_NS, now_ns, sum(buckets), series.total, buckets, metric.bounds, nothing, nothing
    )
