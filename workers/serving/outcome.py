"""How a message ended: what to tell its caller, and what to do with it in its stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from runtime.output import OutputWriter
from subjects.contract import Fault, Model

Verdict = Literal["done", "dead", "stray", "again", "lost"]


@dataclass(frozen=True)
class Outcome:
    """done: ack. dead: dead-letter, then terminate. stray: the same, but it came under the id of another message, whose
    job and output it must not touch. again: deliver again after delay_s. lost: another process has it, so touch
    nothing. Exactly one of reply and fault is set when a caller may be told.
    output is where its chunks went, for the last one to follow; then is to be awaited once the answer is out."""

    verdict: Verdict
    reply: Model | None = None
    fault: Fault | None = None
    delay_s: float = 0.0
    attempt: int = 1
    output: OutputWriter | None = None
    then: Callable[[], Awaitable[None]] | None = None
