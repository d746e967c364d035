"""What a caller prefers (RFC 7240) and how long it waits."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bridge.exchange import Exchange
from codec import headers as h
from subjects.contract import Code, Fault

MAX_WAIT_S = 55.0
MAX_TIMEOUT_S = 3600.0
RESPOND_ASYNC = "respond-async"


@dataclass(frozen=True)
class Preferences:
    """respond_async: as a job. wait_s: for its result, before the answer is 202; None = nothing said."""

    respond_async: bool = False
    wait_s: float | None = None


NONE = Preferences()


def preferences(exchange: Exchange) -> Preferences:
    """`Prefer: respond-async, wait=20`. What we do not know is ignored, as the RFC asks."""
    value = exchange.header(h.PREFER)
    if value is None:
        return NONE
    respond_async, wait_s = False, None
    for part in value[:1024].split(","):
        name, _, argument = part.partition(";")[0].strip().partition("=")
        name = name.strip().lower()
        if name == RESPOND_ASYNC:
            respond_async = True
        elif name == "wait":
            wait_s = min(_seconds(argument.strip().strip('"'), f"{h.PREFER}: wait"), MAX_WAIT_S)
    return Preferences(respond_async, wait_s)


def timeout_s(exchange: Exchange) -> float | None:
    """`Request-Timeout: <seconds>`; None when nothing is said. Raises Fault(INVALID)."""
    value = exchange.header(h.REQUEST_TIMEOUT)
    if value is None:
        return None
    seconds = _seconds(value, h.REQUEST_TIMEOUT)
    if seconds <= 0:
        raise Fault(Code.INVALID, f"{h.REQUEST_TIMEOUT} must be more than 0 seconds")
    return min(seconds, MAX_TIMEOUT_S)


def deadline_ms(seconds: float | None) -> int | None:
    return None if seconds is None else int((time.time() + seconds) * 1000)


def _seconds(text: str, name: str) -> float:
    digits = text.replace(".", "", 1)
    if len(text) > 12 or not digits.isascii() or not digits.isdecimal():
        raise Fault(Code.INVALID, f"{name} must be a number of seconds")
    return float(text)


def left_s(headers: dict[str, str]) -> float:
    """Seconds until the Deadline header of a message on the bus."""
    return int(headers[h.DEADLINE]) / 1000 - time.time()
