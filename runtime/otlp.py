"""Sends spans and metrics to a collector, over OTLP (http/protobuf), from a thread of its own.

Nothing here is waited for: what does not fit into the queue or is not taken in time is dropped and counted. The SDK is
imported in that thread, and only when OTEL_EXPORTER_OTLP_ENDPOINT names a collector.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from runtime import metrics, sampling, telemetry, tracing
from runtime.settings import Settings
from runtime.tracing import DROPPED, Span

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

MAX_WAITING_SPANS = 4096
BATCH_SPANS = 128  # about 4 ms of the interpreter, which the loop then has to wait for
SPANS_EVERY_S = 1.0
METRICS_EVERY_S = 60.0  # OTEL_METRIC_EXPORT_INTERVAL, in ms, says otherwise
EXPORT_TIMEOUT_S = 5.0  # OTEL_EXPORTER_OTLP_TIMEOUT, in s, says otherwise
FLUSH_S = 2.0  # at the end of the process; then what is left is lost
SCOPE = "motadata-faas"

_log = telemetry.get_logger(__name__)


@asynccontextmanager
async def exporting(
    settings: Settings, service: str, *, with_metrics: bool = True, flush_s: float = FLUSH_S
) -> AsyncIterator[None]:
    """Within the block this process records spans and sends them, if a collector is configured. service: its name when
    SERVICE_NAME is silent. Leaving takes at most flush_s, whatever the collector does."""
    endpoint = settings.otel_exporter_otlp_endpoint
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield
        return
    exporter = Exporter(endpoint, settings.service_name or service, settings.service_version, with_metrics=with_metrics)
    exporter.start()
    try:
        if _exports("TRACES"):
            with tracing.recording(exporter.take, _sampler(settings)):
                yield
        else:
            yield
    finally:
        await asyncio.to_thread(exporter.stop, flush_s)


def _exports(signal: str) -> bool:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() != "none"


def _sampler(settings: Settings) -> sampling.Sampler:
    try:
        return sampling.sampler(settings.otel_traces_sampler, settings.otel_traces_sampler_arg)
    except ValueError as error:  # telemetry stops nobody from starting
        _log.warning("sampler_not_known", detail=str(error)[:200])
        return sampling.sampler()


class Exporter:
    """A queue and the thread that empties it."""

    def __init__(self, endpoint: str, service: str, version: str, *, with_metrics: bool) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._named = {
            "service.name": service,
            "service.version": version,
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        }
        self._with_metrics = with_metrics and _exports("METRICS")
        self._waiting: deque[Span] = deque()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._spans: OTLPSpanExporter | None = None
        self._metrics: OTLPMetricExporter | None = None

    def start(self) -> None:
        self._thread.start()

    def take(self, span: Span) -> None:
        """Queue a span. Never waits."""
        if len(self._waiting) >= MAX_WAITING_SPANS:
            DROPPED.add("queue_full")
        else:
            self._waiting.append(span)

    def stop(self, within_s: float) -> None:
        """Send what waits, for at most so long. A thread that hangs in a collector is left behind: it is a daemon."""
        self._stop.set()
        if not self._done.wait(within_s):
            for exporter in (self._spans, self._metrics):
                if exporter is not None:
                    exporter.shutdown()  # no further try
            DROPPED.add("shutdown", by=len(self._waiting))
            _log.warning("telemetry_not_delivered", spans=len(self._waiting))

    def _run(self) -> None:
        try:
            self._send_until_stopped()
        except Exception:  # whatever it was, it must not be silent
            _log.exception("telemetry_ended")
        finally:
            self._done.set()

    def _send_until_stopped(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from runtime import otlp_data

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # its errors quote addresses; ours are below
        resource = otlp_data.resource(self._named)
        timeout_s = None if os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else EXPORT_TIMEOUT_S
        self._spans = OTLPSpanExporter(self._url("TRACES"), timeout=timeout_s)
        self._metrics = OTLPMetricExporter(self._url("METRICS"), timeout=timeout_s)
        metrics_every_s = _interval_s()
        metrics_at = time.monotonic() + metrics_every_s
        stopping = False
        while not stopping:
            stopping = self._stop.wait(SPANS_EVERY_S)
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_SPANS, len(self._waiting)))]
                sent = self._spans.export(otlp_data.spans(batch, resource))
                self._told(sent.name == "SUCCESS", len(batch))
            if self._with_metrics and (stopping or time.monotonic() >= metrics_at):
                metrics_at = time.monotonic() + metrics_every_s
                told = self._metrics.export(otlp_data.measured(metrics.snapshot(), resource))
                self._told(told.name == "SUCCESS", 0)

    def _url(self, signal: str) -> str:
        return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or f"{self._endpoint}/v1/{signal.lower()}"

    def _told(self, sent: bool, spans: int) -> None:
        """One line when it begins to fail, and one when it works again."""
        if not sent and spans:
            DROPPED.add("not_taken", by=spans)
        if sent == self._failing:
            self._failing = not sent
            _log.warning("collector_answers_again" if sent else "collector_does_not_take_telemetry")


def _interval_s() -> float:
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    return int(text) / 1000 if text.isdecimal() and int(text) else METRICS_EVERY_S
