"""Probes: named checks behind /healthz, /readyz and /metrics, and the small HTTP server that answers for workers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from runtime import metrics, telemetry
from subjects.contract import Fault

Check = Callable[[], Awaitable[Any]]
Kind = Literal["counter", "gauge"]

CHECK_TIMEOUT_S = 2.0
KEPT_S = 1.0  # so that a storm of probes is not a storm of checks
REQUEST_TIMEOUT_S = 5.0
MAX_REQUEST_BYTES = 8 * 1024
MAX_CONNECTIONS = 64
STATUS_TEXT = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

_log = telemetry.get_logger(__name__)


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class _Named:
    check: Check
    timeout_s: float
    required: bool


class Probes:
    """The checks of one process. Not ready until started() was called and every required check passes."""

    def __init__(self) -> None:
        self._checks: dict[str, _Named] = {}
        self._metrics: dict[str, tuple[Kind, Callable[[], float]]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._away: tuple[str, str] | None = ("start", "not finished")
        self._results: dict[str, str] = {}
        self._checked_at = float("-inf")
        self._running: asyncio.Task[dict[str, str]] | None = None
        self._cut: dict[str, asyncio.Task[str]] = {}
        self.measure("asyncio_tasks", "gauge", lambda: len(asyncio.all_tasks()))

    def add(self, name: str, check: Check, *, timeout_s: float = CHECK_TIMEOUT_S, required: bool = True) -> None:
        """check() passes by returning (anything but False) and fails by raising, or by not returning in time."""
        self._checks[name] = _Named(check, timeout_s, required)

    def measure(self, name: str, kind: Kind, read: Callable[[], float]) -> None:
        """A number for /metrics, read when it is asked for."""
        self._metrics[name] = (kind, read)

    def started(self) -> None:
        """The process serves: readiness depends on the checks from now on."""
        self._away = None

    def stopping(self) -> None:
        """The process takes no more work: not ready."""
        self._away = ("stop", "has begun")

    async def results(self) -> dict[str, str]:
        """Name -> `ok` or why not; at most 1 s old; one round of checks at a time."""
        if asyncio.get_running_loop().time() - self._checked_at < KEPT_S:
            return self._results
        if self._running is None:
            self._running = asyncio.ensure_future(self._round())
        # Shielded: a prober that goes away must not cancel the round for the others.
        return await asyncio.shield(self._running)

    async def _round(self) -> dict[str, str]:
        try:
            words = await asyncio.gather(*(self._one(name, named) for name, named in self._checks.items()))
            self._results = dict(zip(self._checks, words, strict=True))
            self._checked_at = asyncio.get_running_loop().time()
            return self._results
        finally:
            self._running = None

    async def _one(self, name: str, named: _Named) -> str:
        word = f"no answer within {named.timeout_s:g} s"
        if name not in self._cut:  # else the last one has not even ended yet
            task = asyncio.ensure_future(_word_of(name, named.check))
            # Not wait_for, which waits for what it cancelled to end: against a frozen server that takes as long again.
            done, _ = await asyncio.wait({task}, timeout=named.timeout_s)
            if done:
                word = task.result()
            else:
                self._cut[name] = task
                task.add_done_callback(lambda _: self._cut.pop(name))
                task.cancel()
        self._counts[name, "ok" if word == "ok" else "failed"] += 1
        return word

    async def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether the process is ready, and the word of each check."""
        words = dict(await self.results())
        if self._away is not None:
            words[self._away[0]] = self._away[1]
        failing = [name for name, word in words.items() if word != "ok" and self._is_required(name)]
        return not failing, words

    def _is_required(self, name: str) -> bool:
        return name not in self._checks or self._checks[name].required

    async def answer(self, path: str) -> Answer:
        """The answer to GET path; 404 for a path that is no probe."""
        if path in ("/healthz", "/health"):
            return _json(200, {"status": "ok"})
        if path == "/metrics":
            return Answer(200, "text/plain; version=0.0.4", self.metrics().encode())
        if path != "/readyz":
            return _json(404, {"detail": "not a probe"})
        ready, words = await self.ready()
        if not ready:
            return _json(503, {"detail": "Service not ready", "checks": words})
        clean = all(word == "ok" for word in words.values())
        return _json(200, {"status": "ready"} if clean else {"status": "ready", "checks": words})

    def metrics(self) -> str:
        """Prometheus text format."""
        lines = ["# TYPE probe_checks_total counter"]
        for (check, result), count in sorted(self._counts.items()):
            lines.append(f'probe_checks_total{{check="{check}",result="{result}"}} {count}')
        for name, (kind, read) in sorted(self._metrics.items()):
            lines += [f"# TYPE {name} {kind}", f"{name} {read():g}"]
        return "\n".join(lines) + "\n" + metrics.prometheus()


async def _word_of(name: str, check: Check) -> str:
    try:
        return "failed" if await check() is False else "ok"
    except TimeoutError:
        return "no answer in time"
    except Fault as fault:
        return fault.detail
    except Exception as error:  # a check is any code: its failure is its result, its text is not for strangers
        _log.warning("probe_failed", check=name, error=repr(error)[:300])
        return "failed"


def _json(status: int, content: dict[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(content).encode())


async def serve_probes(probes: Probes, port: int, host: str = "127.0.0.1") -> asyncio.Server:
    """Answer GET on a port (0 = a free one, logged) until the server is closed. At most 64 connections at a time."""
    places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if places.locked():
            writer.close()
            return
        async with places:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await _one_request(probes, reader, writer)
            except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
                pass  # a slow or broken prober
            finally:
                writer.close()

    server = await asyncio.start_server(connected, host, port, limit=MAX_REQUEST_BYTES)
    _log.info("probes_served", address=server.sockets[0].getsockname()[:2])
    return server


async def _one_request(probes: Probes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1, one request a connection: what a prober needs and no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
    except (asyncio.LimitOverrunError, ValueError):
        answer = _json(400, {"detail": "not a request"})
        method = "GET"
    else:
        path = target.partition("?")[0]
        answer = await probes.answer(path) if method in ("GET", "HEAD") else _json(405, {"detail": "GET and HEAD only"})
    head_out = (
        f"HTTP/1.1 {answer.status} {STATUS_TEXT[answer.status]}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    writer.write(head_out.encode() + (b"" if method == "HEAD" else answer.body))
    await writer.drain()
