"""What became of the messages of each operation in this process: counted where a message ends, told by $SRV.STATS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from subjects.contract import Fault

MAX_ERROR_CHARS = 500


class Tally:
    """How many ended, how many of them in a fault, and how long they took together. ended() costs about 0.1 us."""

    __slots__ = ("ended_count", "faults", "last_error", "took_s")

    def __init__(self) -> None:
        self.ended_count = 0
        self.faults = 0
        self.last_error = ""
        """Code and detail of the last fault: never a body, nor the text of an exception."""
        self.took_s = 0.0

    def ended(self, took_s: float, fault: Fault | None) -> None:
        """One message ended after took_s of work, in this fault or well."""
        self.ended_count += 1
        self.took_s += took_s
        if fault is not None:
            self.faults += 1
            self.last_error = "".join(c if c.isprintable() else "?" for c in str(fault)[:MAX_ERROR_CHARS])


class Operation(NamedTuple):
    """Requests are counted by their answers, refusals included; jobs apart, by the attempts at them that were settled:
    one that is given back and tried again counts again."""

    requests: Tally
    jobs: Tally


class Stats:
    """The tallies of one component in one process, by operation."""

    def __init__(self, operations: Iterable[str]) -> None:
        self.operations = {name: Operation(Tally(), Tally()) for name in operations}
        self._requests = {name: each.requests for name, each in self.operations.items()}
        self._jobs = {name: each.jobs for name, each in self.operations.items()}

    def request_ended(self, subject: str, took_s: float, fault: Fault | None) -> None:
        """subject: the request's, readable or not: its last token says whose endpoint it came to. An operation that
        the component does not have is no endpoint and is not counted here."""
        tally = self._requests.get(subject.rpartition(".")[2])
        if tally is not None:
            tally.ended(took_s, fault)

    def job_ended(self, operation: str, took_s: float, fault: Fault | None) -> None:
        tally = self._jobs.get(operation)
        if tally is not None:
            tally.ended(took_s, fault)
