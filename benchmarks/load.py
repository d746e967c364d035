"""A closed loop: so many in flight, for so long; what came out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

WARM_UP_S = 0.3


@dataclass
class Samples:
    """Latencies in seconds, and the rate of each round."""

    latencies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, latencies: Sequence[float], seconds: float) -> None:
        self.latencies += latencies
        self.rates.append(len(latencies) / seconds)

    @property
    def rate(self) -> float:
        """The median round's: one round that something else disturbed does not count."""
        return median(self.rates)

    def percentile(self, part: float) -> float:
        return sorted(self.latencies)[min(len(self.latencies) - 1, int(part * len(self.latencies)))]


async def closed_loop(
    samples: Samples, ask: Callable[[], Awaitable[object]], *, in_flight: int, seconds: float
) -> None:
    """One round: in_flight askers, each asking again as soon as it has its answer."""
    latencies: list[float] = []
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    async def one_after_another() -> None:
        while (asked := time.perf_counter()) < end:
            await ask()
            if asked >= begin:
                latencies.append(time.perf_counter() - asked)

    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    samples.add(latencies, seconds)
