"""bench: loads one operation of the running platform in a closed loop, and prints its rate and its times."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cli import session, show
from cli.operations import contract_of, message_of
from runtime.client import Client
from runtime.identity import Identity
from subjects.contract import AnyCall, Code, Fault, Model

WARM_UP_S = 0.5
PERCENTILES = (0.50, 0.90, 0.99)


@dataclass
class Load:
    """What a closed loop has seen since begin: seconds of each answer, and how often each fault was one."""

    begin: float
    end: float
    took_s: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    async def one_after_another(self, client: Client, contract: AnyCall, message: Model, identity: Identity) -> None:
        while (asked := time.perf_counter()) < self.end:
            try:
                await client.call(contract, message, identity=identity)
            except Fault as fault:
                if fault.code in (Code.INVALID, Code.FORBIDDEN, Code.NOT_FOUND):
                    raise  # it will say so each time
                if asked >= self.begin:
                    self.faults[fault.code.value] += 1
                continue
            if asked >= self.begin:
                self.took_s.append(time.perf_counter() - asked)

    def summary(self, operation: str, in_flight: int) -> dict[str, Any]:
        """Rates a second, times in milliseconds."""
        ordered, seconds = sorted(self.took_s), self.end - self.begin
        at = {f"p{part * 100:.0f}_ms": _ms(ordered, part) for part in PERCENTILES}
        return {
            "operation": operation,
            "in_flight": in_flight,
            "seconds": round(seconds, 2),
            "answers": len(ordered),
            "answers_per_s": round(len(ordered) / seconds, 1),
            **at,
            "max_ms": _ms(ordered, 1.0),
            "faults": dict(self.faults),
        }


def run(operation: str, body: str, *, tenant: str, in_flight: int, seconds: float, as_json: bool) -> None:
    contract = contract_of(operation)
    message = message_of(contract, body)
    settings = session.load()

    async def work() -> dict[str, Any]:
        async with session.client(settings) as client:
            identity = Identity.new(tenant)
            await client.call(contract, message, identity=identity)  # a mistake is told once, before the load
            begin = time.perf_counter() + WARM_UP_S
            load = Load(begin, begin + seconds)
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(load.one_after_another(client, contract, message, identity))
            return load.summary(operation, in_flight)

    found = session.run(_one_fault(work()))
    if show.wants_json(as_json):
        show.value(found, as_json=True)
    else:
        show.table(("", ""), [(name, _shown(value)) for name, value in found.items()])


async def _one_fault(work: Any) -> Any:
    """The first of the askers' faults stands for all of them."""
    try:
        return await work
    except* Fault as many:
        first: Any = many
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    raise first


def _ms(ordered: list[float], part: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3, 2)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return "-" if value is None else str(value)
