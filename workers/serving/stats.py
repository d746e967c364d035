"""What became of the messages of each operation in this process: counted once, where a message ends, and told by
$SRV.STATS, by /metrics and to the collector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runtime.message_spans import processed
from subjects.contract import Fault

MAX_ERROR_CHARS = 500
UNKNOWN = "(unknown)"  # an operation that is none of ours: its callers make the names up, so they are no labels


class Tally:
    """How many ended, how many of them in a fault, how long they took together, and how that is spread.
    ended() costs about 0.3 us. kind: request or job."""

    __slots__ = ("_labels", "_well", "ended_count", "faults", "last_error", "took_s")

    def __init__(self, kind: str, component: str, operation: str) -> None:
        self._labels = (kind, component, operation)
        self._well = processed(*self._labels)
        self.ended_count = 0
        self.faults = 0
        self.last_error = ""
        """Code and detail of the last fault: never a body, nor the text of an exception."""
        self.took_s = 0.0

    def ended(self, took_s: float, fault: Fault | None) -> None:
        """One message ended after took_s of work, in this fault or well."""
        self.ended_count += 1
        self.took_s += took_s
        if fault is None:
            self._well.add(took_s)
            return
        processed(*self._labels, fault.code).add(took_s)
        self.faults += 1
        self.last_error = "".join(c if c.isprintable() else "?" for c in str(fault)[:MAX_ERROR_CHARS])


class Operation(NamedTuple):
    """Requests are counted by their answers, refusals included; jobs apart, by the attempts at them that were settled:
    one that is given back and tried again counts again."""

    requests: Tally
    jobs: Tally


class Stats:
    """The tallies of one component in one process, by operation."""

    def __init__(self, component: str, operations: Iterable[str]) -> None:
        self.operations = {
            name: Operation(Tally("request", component, name), Tally("job", component, name)) for name in operations
        }
        self.requests = {name: each.requests for name, each in self.operations.items()}
        self._unknown = Tally("request", component, UNKNOWN)

    def of_subject(self, subject: str) -> Tally:
        """subject: the request's, readable or not: its last token says whose endpoint it came to. What names an
        operation that the component does not have is counted together, and is no endpoint's."""
        return self.requests.get(subject.rpartition(".")[2], self._unknown)

    def job(self, operation: str) -> Tally | None:
        """None for what is no operation: an event that is delivered as a job, say."""
        found = self.operations.get(operation)
        return None if found is None else found.jobs
