"""Probes: ready when started and every required check passes; the little server answers whatever comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runtime import probes as module
from runtime.probes import Probes, serve_probes
from subjects.contract import Code, Fault


async def passes() -> None:
    pass


async def fails() -> None:
    raise RuntimeError("canary: postgres://u:secret@h")


async def hangs() -> None:
    await asyncio.sleep(60)


async def refused() -> None:
    raise Fault(Code.UNAVAILABLE, "not connected")


@pytest.fixture
def probes() -> Probes:
    made = Probes()
    made.add("nats", passes)
    made.started()
    return made


async def status(probes: Probes) -> tuple[int, dict[str, object]]:
    answer = await probes.answer("/readyz")
    return answer.status, json.loads(answer.body)


async def test_ready_when_all_pass(probes: Probes) -> None:
    assert await status(probes) == (200, {"status": "ready"})


async def test_not_ready_before_the_start_has_finished_nor_while_stopping(probes: Probes) -> None:
    fresh = Probes()
    assert (await status(fresh))[0] == 503
    fresh.started()
    assert (await status(fresh))[0] == 200
    fresh.stopping()
    assert (await status(fresh))[0] == 503
    assert (await fresh.answer("/healthz")).status == 200


async def test_a_failing_check_is_named_without_its_text(probes: Probes) -> None:
    probes.add("postgres", fails)
    probes.add("valkey", refused)
    probes.add("slow", hangs, timeout_s=0.05)
    code, body = await status(probes)
    assert code == 503
    assert body["detail"] == "Service not ready"
    assert body["checks"] == {
        "nats": "ok", "postgres": "failed", "valkey": "not connected", "slow": "no answer within 0.05 s",
    }  # fmt: skip


async def test_what_is_not_required_is_listed_and_fails_nothing(probes: Probes) -> None:
    probes.add("rag", refused, required=False)
    assert await status(probes) == (200, {"status": "ready", "checks": {"nats": "ok", "rag": "not connected"}})


async def test_a_storm_of_probes_is_one_round_of_checks() -> None:
    rounds: list[int] = []

    async def counts() -> None:
        rounds.append(1)
        await asyncio.sleep(0.01)

    probes = Probes()
    probes.add("one", counts)
    await asyncio.gather(*(probes.results() for _ in range(100)))
    await probes.results()
    assert len(rounds) == 1


async def test_metrics_count_the_checks(probes: Probes) -> None:
    probes.add("postgres", refused)
    probes.measure("nats_dropped_messages_total", "counter", lambda: 3)
    await probes.results()
    text = (await probes.answer("/metrics")).body.decode()
    assert 'probe_checks_total{check="nats",result="ok"} 1' in text
    assert 'probe_checks_total{check="postgres",result="failed"} 1' in text
    assert "nats_dropped_messages_total 3" in text


@pytest_asyncio.fixture
async def port(probes: Probes) -> AsyncIterator[int]:
    server = await serve_probes(probes, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def say(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_the_server_answers_http(port: int) -> None:
    for path, start in (("/readyz", b"HTTP/1.1 200"), ("/healthz?x=1", b"HTTP/1.1 200"), ("/other", b"HTTP/1.1 404")):
        assert (await say(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).startswith(start)
    assert (await say(port, b"POST /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
    head = await say(port, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("garbage", [b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000])
async def test_the_server_survives_garbage(port: int, garbage: bytes) -> None:
    answer = await say(port, garbage)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert (await say(port, b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_slow_prober_is_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 0.1)
    assert await say(port, b"GET /healthz HTTP") == b""
