"""A small real OTLP/HTTP collector in a thread of its own: parses what arrives and keeps it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
POLL_S = 0.02
KEPT = 50_000  # spans; the oldest go


@dataclass(frozen=True)
class Seen:
    """A span as it arrived."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: bool
    took_s: float


class Collector:
    """`with Collector() as collector:` then OTEL_EXPORTER_OTLP_ENDPOINT=collector.url. status: what it answers;
    hang: set it to have requests accepted and never answered."""

    def __init__(self) -> None:
        self.status = 200
        self.hang = Event()
        self.raw: deque[bytes] = deque(maxlen=1000)
        self.asked = 0
        self._lock = Lock()
        self._spans: list[Seen] = []
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        self._over = Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[Seen]:
        with self._lock:
            return list(self._spans)

    @property
    def metrics(self) -> dict[str, list[dict[str, Any]]]:
        """Name -> the latest points: attributes, value (or sum and count)."""
        with self._lock:
            return dict(self._metrics)

    def trace(self, trace_id: str | None) -> list[Seen]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def until(self, holds: Callable[[], bool], within_s: float = 10.0) -> None:
        """Blocks: call it in a thread when a loop runs here."""
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {within_s} s: {[span.name for span in self.spans]}"
            time.sleep(POLL_S)

    def take(self, path: str, body: bytes) -> int:
        self.asked += 1
        if self.hang.is_set():
            self._over.wait()
        if self.status != 200:
            return self.status
        with self._lock:
            self.raw.append(body)
            if path == "/v1/traces":
                self._spans += _spans(ExportTraceServiceRequest.FromString(body))
                del self._spans[:-KEPT]
            elif path == "/v1/metrics":
                self._metrics.update(_points(ExportMetricsServiceRequest.FromString(body)))
        return self.status


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status = collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _spans(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for group in request.resource_spans:
        service = _attributes(group.resource.attributes)["service.name"]
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    span.name,
                    KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    service,
                    _attributes(span.attributes),
                    tuple(link.span_id.hex() for link in span.links),
                    span.status.code == 2,
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                )


def _points(request: ExportMetricsServiceRequest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for group in request.resource_metrics:
        for scope in group.scope_metrics:
            for metric in scope.metrics:
                data = getattr(metric, metric.WhichOneof("data") or "sum")
                yield metric.name, [_point(point) for point in data.data_points]


def _point(point: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"attributes": _attributes(point.attributes)}
    if hasattr(point, "bucket_counts"):
        return found | {"count": point.count, "sum": point.sum, "buckets": list(point.bucket_counts)}
    return found | {"value": getattr(point, point.WhichOneof("value"))}


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
