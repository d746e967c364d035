"""Which of the traces that begin here are recorded: by the standard names, or so many a second."""

from __future__ import annotations

import time
from typing import Protocol

TRACES_A_S = 20.0  # new traces of one process, if OTEL_TRACES_SAMPLER does not say otherwise

_LOW_64_BITS = 2**64 - 1


class Sampler(Protocol):
    """Whether a trace that begins here is recorded. every_hop: asked for each span, whatever its parent says."""

    every_hop: bool

    def __call__(self, trace_id: str) -> bool: ...


class Rate:
    """So many a second, and a second's worth at once: each moves the time from which a further one is too early."""

    every_hop = False

    def __init__(self, a_second: float) -> None:
        self._apart_s = 1 / a_second
        self._free_at = 0.0

    def __call__(self, trace_id: str = "") -> bool:
        now = time.monotonic()
        if self._free_at - now > 1 - self._apart_s:
            return False
        self._free_at = max(self._free_at, now) + self._apart_s
        return True


class Ratio:
    """This part of all traces, the same ones in every process: by the low 64 bits of the trace id."""

    def __init__(self, ratio: float, *, every_hop: bool) -> None:
        self._below = round(min(max(ratio, 0.0), 1.0) * 2**64)
        self.every_hop = every_hop

    def __call__(self, trace_id: str) -> bool:
        return int(trace_id, 16) & _LOW_64_BITS < self._below


def sampler(name: str = "", argument: str = "") -> Sampler:
    """By the names of OTEL_TRACES_SAMPLER; without one, TRACES_A_S. Raises ValueError on what it cannot be."""
    plain = name.strip().lower().removeprefix("parentbased_")
    every_hop = plain == name.strip().lower()
    match plain:
        case "":
            return Rate(TRACES_A_S)
        case "always_on":
            return Ratio(1.0, every_hop=every_hop)
        case "always_off":
            return Ratio(0.0, every_hop=every_hop)
        case "traceidratio":
            return Ratio(float(argument) if argument.strip() else 1.0, every_hop=every_hop)
    raise ValueError(f"OTEL_TRACES_SAMPLER cannot be {name!r}: use parentbased_traceidratio, always_on or always_off")
