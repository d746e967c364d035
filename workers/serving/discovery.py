"""Discovery by the NATS service protocol (ADR-32): $SRV.PING, $SRV.INFO and $SRV.STATS, for each component served here.

Answers come from the read loop itself, are bounded together, and go to inboxes alone.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from codec import schemas
from runtime import metrics
from runtime.connection import Connection
from runtime.identity import new_id
from subjects import grammar
from subjects.contract import AnyCall, Fault
from workers.serving.route import Worker
from workers.serving.settle import MAX_REPLY_BYTES, is_inbox
from workers.serving.stats import Operation, Stats, Tally

PREFIX = "$SRV"
TYPE = "io.nats.micro.v1.{}_response"
ANSWER_BYTES_A_S = 2 * 1024**2  # of a process, over all its components: whoever floods gets no more
ANSWER_BURST_BYTES = (
    4 * 1024**2
)  # everything a process has to say, several times over; half of what may wait to be sent
ANSWER_COST_BYTES = 1024  # what an answer counts for beside its length: making it takes time as well
NS = 1_000_000_000

_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_NOT_IN_BUILD = re.compile(r"[^0-9a-zA-Z-]+")
ANSWERS = metrics.Counter(
    "faas.discovery.answers", "", "Discovery questions, by what became of them.", ("faas.result",)
)

log = structlog.get_logger("workers.serving")


@dataclass(frozen=True)
class Service:
    """One component in one process, as discovery tells of it. info is made once: nothing in it ever changes."""

    identity: dict[str, Any]
    endpoints: tuple[dict[str, str], ...]
    info: bytes
    stats: Stats
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z")

    @property
    def name(self) -> str:
        return str(self.identity["name"])

    @property
    def ident(self) -> str:
        return str(self.identity["id"])

    def say(self, verb: str) -> bytes:
        """The answer to PING, INFO or STATS."""
        match verb:
            case "INFO":
                return self.info
            case "STATS":
                endpoints = [
                    {**endpoint, **_counted(self.stats.operations[endpoint["name"]])} for endpoint in self.endpoints
                ]
                return _answer("stats", self.identity, endpoints=endpoints, started=self.started)
            case _:
                return _answer("ping", self.identity)


def service(worker: Worker, stats: Stats, *, version: str, process: str, most_bytes: int = MAX_REPLY_BYTES) -> Service:
    """Of this table. process tells its processes apart for a person. An INFO of more than most_bytes goes without
    its schemas: it must fit into one message."""
    identity = {
        "name": worker.name,
        "id": new_id(),
        "version": semantic(version),
        "metadata": {"platform": "motadata-faas", "process": process},
    }
    calls = [each.call for each in worker.serves]
    endpoints = tuple(_endpoint(call) for call in calls)
    info = _info(identity, endpoints, [{**_facts(call), **_schemas(call)} for call in calls])
    if len(info) > most_bytes:
        log.warning("discovery_without_schemas", component=worker.name, bytes=len(info), most_bytes=most_bytes)
        left_out = {"schemas": "left out, too large for one message; see `faas contracts --format jsonschema`"}
        info = _info(identity, endpoints, [{**_facts(call), **left_out} for call in calls])
    return Service(identity, endpoints, info, stats)


def semantic(version: str) -> str:
    """The version itself where it is a semantic one, else 0.0.0 with it as build metadata."""
    if _SEMVER.fullmatch(version):
        return version
    build = _NOT_IN_BUILD.sub("-", version).strip("-")
    return f"0.0.0+{build}" if build else "0.0.0"


def _endpoint(call: AnyCall) -> dict[str, str]:
    subject = grammar.requests_of(call.component, call.operation)
    return {"name": call.operation, "subject": subject, "queue_group": call.component}


def _facts(call: AnyCall) -> dict[str, str]:
    return {
        "summary": call.summary,
        "scope": call.scope,
        "timeout_s": f"{call.timeout_s:g}",
        "mutates": str(call.mutates).lower(),
        "job": str(call.job).lower(),
    }


def _schemas(call: AnyCall) -> dict[str, str]:
    models = {"input_schema": call.input, "output_schema": call.output, "chunk_schema": call.chunk}
    return {name: schemas.of(model) for name, model in models.items() if model is not None}


def _info(identity: dict[str, Any], endpoints: Sequence[dict[str, str]], metadata: Sequence[dict[str, str]]) -> bytes:
    described = [{**endpoint, "metadata": each} for endpoint, each in zip(endpoints, metadata, strict=True)]
    return _answer("info", identity, description=_description(identity["name"]), endpoints=described)


def _description(component: str) -> str:
    """The first line of its contract file."""
    document = getattr(sys.modules.get(f"subjects.{component}"), "__doc__", None) or ""
    return document.partition("\n")[0].removeprefix(f"{component}: ")


def _counted(operation: Operation) -> dict[str, Any]:
    requests, jobs = _told(operation.requests, "num_requests"), _told(operation.jobs, "num_attempts")
    return {**requests, "data": {"jobs": jobs}}


def _told(tally: Tally, count: str) -> dict[str, Any]:
    took_ns = int(tally.took_s * NS)
    return {
        count: tally.ended_count,
        "num_errors": tally.faults,
        "last_error": tally.last_error,
        "processing_time": took_ns,
        "average_processing_time": took_ns // tally.ended_count if tally.ended_count else 0,
    }


def _answer(kind: str, identity: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"type": TYPE.format(kind), **identity, **more}, separators=(",", ":")).encode()


class Allowance:
    """Bytes that may be answered: ANSWER_BURST_BYTES at once, ANSWER_BYTES_A_S in the long run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(ANSWER_BURST_BYTES)
        self._at = clock()

    def is_open(self) -> bool:
        """Whether another answer may be given."""
        now = self._clock()
        self._left = min(ANSWER_BURST_BYTES, self._left + (now - self._at) * ANSWER_BYTES_A_S)
        self._at = now
        return self._left > 0

    def spend(self, size: int) -> None:
        self._left -= size + ANSWER_COST_BYTES


@asynccontextmanager
async def announcing(connection: Connection, services: Sequence[Service]) -> AsyncIterator[None]:
    """These components are found inside this block, each by all, by its name, and by its name and id."""
    allowance = Allowance()

    def asked(verb: str, of: Sequence[Service], _subject: bytes, reply: bytes, _data: bytes, _: bytes | None) -> None:
        to = reply.decode()
        if not is_inbox(to):
            ANSWERS.add("refused")
            return
        for each in of:
            # A question that came with a flood is not worth its answer; who asks again is answered later.
            if not allowance.is_open():
                ANSWERS.add("dropped")
                continue
            said = each.say(verb)
            allowance.spend(len(said))
            try:
                connection.write(to, said)
            except Fault:  # closed, or more waits to be sent than may
                ANSWERS.add("dropped")
                continue
            ANSWERS.add("answered")

    async with AsyncExitStack() as stack:

        async def listen(subject: str, verb: str, of: Sequence[Service]) -> None:
            subscription = await connection.listen(subject, partial(asked, verb, of))
            stack.push_async_callback(_forget, connection, subscription)

        for verb in ("PING", "INFO", "STATS"):
            await listen(f"{PREFIX}.{verb}", verb, services)
            for each in services:
                await listen(f"{PREFIX}.{verb}.{each.name}", verb, [each])
                await listen(f"{PREFIX}.{verb}.{each.name}.{each.ident}", verb, [each])
        yield


async def _forget(connection: Connection, subscription: Any) -> None:
    if connection.is_connected:
        await subscription.unsubscribe()
