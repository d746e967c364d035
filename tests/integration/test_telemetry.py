"""A collector that is away, frozen or unwilling delays nothing; what is exported is bounded and holds no secret."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime import metrics, otlp, sampling, tracing
from runtime.client import Client
from runtime.connection import Connection
from runtime.identity import Identity
from runtime.otlp import FLUSH_S, MAX_WAITING_SPANS, exporting
from runtime.probes import Probes
from runtime.settings import Settings
from stack import Stack
from stack.ports import free_port
from subjects import grammar
from tests.collector import Collector
from tests.lab import contract as lab

ROOT = Path(__file__).resolve().parents[2]
STOP_WITHIN_S = 5.0
CANARIES = ("canary-prompt", "canary-token", "canary-password", "sk-canary")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@contextmanager
def frozen() -> Iterator[str]:
    """A collector's process that was stopped: the kernel takes connections, nobody answers."""
    program = (
        "import sys; from tests.collector import Collector; c = Collector(); c.__enter__(); print(c.url, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", f"{program}; sys.stdin.read()"], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    process.send_signal(signal.SIGSTOP)
    try:
        yield url
    finally:
        process.kill()
        process.wait()


def told(settings: Settings, url: str, **more: str) -> Settings:
    return settings.model_copy(update={"otel_exporter_otlp_endpoint": url, **more})


def dropped() -> float:
    return sum(value for _, value in tracing.DROPPED.read())


def record(count: int) -> None:
    for _ in range(count):
        span = tracing.begin("a span", tracing.Kind.INTERNAL, f"{tracing.root()[:-2]}01")
        if span is not None:
            span.end()


@pytest.mark.parametrize("fault", ["nobody", "silent", "frozen", "503"])
async def test_a_collector_in_trouble_delays_nothing_and_what_it_misses_is_counted(
    fault: str, settings: Settings, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SPANS_A_S", 1e6)
    before, longest_s, looking = dropped(), 0.0, True

    async def look() -> None:
        nonlocal longest_s
        while looking:
            at = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - at)

    with ExitStack() as stack:
        url = collector.url
        match fault:
            case "nobody":
                url = f"http://127.0.0.1:{free_port()}"
            case "frozen":
                url = stack.enter_context(frozen())
            case "silent":
                collector.hang.set()
            case "503":
                collector.status = 503
        async with exporting(told(settings, url), "faas-tests"):
            watching = asyncio.create_task(look())
            record(100)
            await asyncio.sleep(otlp.SPANS_EVERY_S + 0.5)  # now its thread is in trouble
            record(MAX_WAITING_SPANS + 500)
            left = time.monotonic()
        took_s, looking = time.monotonic() - left, False
        await watching
    assert took_s < FLUSH_S + 0.5
    assert longest_s < 0.5
    assert dropped() - before >= 500


async def test_processes_end_in_time_though_the_collector_is_frozen(
    lab_tables: None, stack: Stack, settings: Settings, client: Client, tenant: str
) -> None:
    assert settings.jwt_secret is not None
    with frozen() as url:
        environ = {
            **os.environ, **stack.environ(), "OTEL_EXPORTER_OTLP_ENDPOINT": url, "BRIDGE_PORT": "0",
            "JWT_SECRET": settings.jwt_secret.get_secret_value(),
        }  # fmt: skip
        pipe = asyncio.subprocess.PIPE
        started = [
            await asyncio.create_subprocess_exec(sys.executable, "-m", *module, cwd=ROOT, env=environ, stderr=pipe)
            for module in (("tests.lab",), ("cli", "bridge"))
        ]
        try:
            for process, word in zip(started, (b'"serving"', b"bridge_serves"), strict=True):
                assert process.stderr is not None
                async with asyncio.timeout(30):
                    while word not in (line := await process.stderr.readline()):
                        assert line
            sampled = replace(Identity.new(tenant), traceparent=f"{tracing.root()[:-2]}01")
            await client.call(lab.ECHO, lab.Echo(), identity=sampled)
            await asyncio.sleep(otlp.SPANS_EVERY_S)
            asked = time.monotonic()
            for process in started:
                process.send_signal(signal.SIGTERM)
            codes = [await asyncio.wait_for(process.wait(), STOP_WITHIN_S + 5) for process in started]
            assert codes == [0, 0]
            assert time.monotonic() - asked < STOP_WITHIN_S
        finally:
            for process in started:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def test_without_a_collector_no_exporter_is_imported() -> None:
    program = (
        "import asyncio, sys\nfrom runtime.otlp import exporting\nfrom runtime.settings import Settings\n"
        "import workers.serving.boot, bridge.server\n"
        "async def main():\n async with exporting(Settings(), 'x'): pass\nasyncio.run(main())\n"
        # redis-py imports the SDK's metrics where it finds them; the rest comes with a collector alone.
        "found = [n for n in sys.modules if n.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))]\n"
        "assert not found, found"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], cwd=ROOT, env=environ, timeout=60)
    assert done.returncode == 0


# -- what is recorded --------------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> list[tracing.Span]:
    return []


def test_new_traces_are_recorded_up_to_a_rate(kept: list[tracing.Span]) -> None:
    with tracing.recording(kept.append, sampling.sampler()):
        began = time.monotonic()
        sampled = sum(tracing.sampled(Identity.new("acme").traceparent) for _ in range(2000))
        most = sampling.TRACES_A_S * (1 + time.monotonic() - began) + 1
    assert sampling.TRACES_A_S <= sampled <= most


def test_an_outsiders_flag_forces_nothing_and_its_trace_goes_on(kept: list[tracing.Span]) -> None:
    outside = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    assert tracing.adopted(f"{outside}-01") == f"{outside}-00"  # where nothing is recorded
    with tracing.recording(kept.append, sampling.sampler()):
        given = [tracing.adopted(f"{outside}-01") for _ in range(1000)]
        assert tracing.adopted(f"{outside}-00") == f"{outside}-00"
    assert {each and each[:-3] for each in given} == {outside}
    assert given[0] == f"{outside}-01"
    assert sum(tracing.sampled(each) or each == f"{outside}-01" for each in given) < 4 * sampling.TRACES_A_S


def test_a_trace_that_our_bus_sampled_is_recorded_up_to_the_rate_of_spans(kept: list[tracing.Span]) -> None:
    before = dropped()
    with tracing.recording(kept.append, sampling.sampler("parentbased_always_off")):
        assert not tracing.sampled(Identity.new("acme").traceparent)
        record(10_000)
    assert tracing.SPANS_A_S <= len(kept) < 2 * tracing.SPANS_A_S
    assert dropped() - before == 10_000 - len(kept)


def test_the_standard_samplers_mean_what_they_say(kept: list[tracing.Span]) -> None:
    def share(name: str, argument: str = "") -> float:
        with tracing.recording(kept.append, sampling.sampler(name, argument)):
            return sum(tracing.sampled(tracing.root()) for _ in range(2000)) / 2000

    assert (share("always_on"), share("always_off"), share("parentbased_always_on")) == (1.0, 0.0, 1.0)
    assert 0.2 < share("parentbased_traceidratio", "0.25") < 0.3
    with pytest.raises(ValueError, match="OTEL_TRACES_SAMPLER"):
        sampling.sampler("jaeger_remote")
    with pytest.raises(ValueError, match="float"):
        sampling.sampler("traceidratio", "half")


# -- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
async def test_metrics_are_prometheus_text_and_no_tenant_or_made_up_name_is_a_label(
    client: Client, connection: Connection, tenant: str
) -> None:
    identity = Identity.new(tenant)
    for _ in range(3):
        await client.call(lab.ECHO, lab.Echo(), identity=identity)
    for number in range(50):
        await connection.request(grammar.request(tenant, "lab", f"made_up_{number}"), b"{}", timeout=5)
        await connection.request(f"req.{tenant}x{number}.lab.echo", b"{}", timeout=5)
    text = (await Probes().answer("/metrics")).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    processed = families["messaging_process_duration_seconds"]
    assert processed.type == "histogram"
    counts = {
        sample.labels["faas_operation"]: sample.value
        for sample in processed.samples
        if sample.name.endswith("_count")
        and sample.labels["faas_component"] == "lab"
        and sample.labels["messaging_operation_name"] == "process request"
        and "error_type" not in sample.labels
    }
    assert counts["echo"] >= 53
    assert "made_up" not in text
    assert tenant not in text
    assert {"process_cpu_time_seconds", "process_memory_usage_bytes", "db_client_connection_count"} < set(families)
    assert families["faas_messages_active"].type == "gauge"


def test_what_comes_beyond_the_limit_is_counted_together() -> None:
    histogram = metrics.Histogram("test.limit", "s", "A test's.", (1.0, 2.0), ("name",))
    try:
        for number in range(metrics.MAX_SERIES + 100):
            histogram.series(f"n{number}").add(1.5)
        assert len(histogram.read()) == metrics.MAX_SERIES + 1
        assert 'test_limit_seconds_count{otel_metric_overflow="true"} 100' in metrics.prometheus()
    finally:
        metrics._metrics.remove(histogram)


@pytest.mark.usefixtures("served")
async def test_numbers_arrive_at_the_collector_and_no_secret_does(
    client: Client, settings: Settings, collector: Collector, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    monkeypatch.setenv("DATABASE_OWNER_URL", "postgresql://u:canary-password@h/d")
    async with exporting(told(settings, collector.url), "faas-tests"):
        identity = Identity.new(tenant)
        await client.call(lab.ECHO, lab.Echo(text="canary-prompt"), identity=identity)
        await client.call(lab.WRITE, lab.Write(name="canary-token"), identity=identity)
        with pytest.raises(Exception, match="internal"):
            await client.call(lab.BROKEN, lab.Echo(text="canary-prompt"), identity=identity)
    names = {span.name for span in collector.trace(tracing.trace_id(identity.traceparent))}
    assert {"process req.*.lab.echo", "process req.*.lab.write", "process req.*.lab.broken", "INSERT"} <= names
    durations = collector.metrics["messaging.process.duration"]
    failed = [point for point in durations if point["attributes"].get("error.type") == "INTERNAL"]
    assert [point["count"] >= 1 for point in failed if point["attributes"]["faas.operation"] == "broken"] == [True]
    assert collector.metrics["process.memory.usage"][0]["value"] > 1e6
    sent = b"".join(collector.raw)
    secrets = [
        *CANARIES,
        str(urlparse(settings.database_url).password),
        settings.jwt_secret.get_secret_value() if settings.jwt_secret else "",
    ]
    assert [canary for canary in secrets if canary.encode() in sent] == []
    assert tenant.encode() in sent  # of the spans
    assert not any(tenant in str(point) for points in collector.metrics.values() for point in points)
