"""Answers as they are kept with their key, and what a kept one comes to."""

from __future__ import annotations

from typing import Any

import codec
from store.inbox import Done
from subjects.contract import Code, Fault, Model
from workers.serving.outcome import Verdict

TOO_LARGE_TO_KEEP = Fault(
    Code.CONFLICT, "this key was used before and its effect stands, but its reply was too large to keep"
)


def verdict_on(fault: Fault) -> Verdict:
    """What becomes of a job that ended in this fault for good: a cancelled one is wanted so, any other is kept dead."""
    return "done" if fault.code is Code.CANCELLED else "dead"


def as_fault(kept: bytes) -> Fault:
    problem = codec.decode(kept, codec.Problem)
    return Fault(Code(problem.code), problem.detail, errors=problem.errors)


def restored(done: Done, output: type[Model]) -> dict[str, Any]:
    """The kept answer of an earlier message under the same key, as fields of an Outcome."""
    if done.fault is not None:
        return {"fault": as_fault(done.fault)}
    if done.reply is None:
        return {"fault": TOO_LARGE_TO_KEEP}
    return {"reply": codec.decode(done.reply, output)}
