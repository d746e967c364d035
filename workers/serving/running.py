"""What this process is doing right now, by the ids that a cancel may name."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class Running:
    """Tasks by (tenant, id). An id is a request id, an output id or a job id; one task may have several."""

    def __init__(self) -> None:
        self._tasks: defaultdict[tuple[str, str], set[Cancellable]] = defaultdict(set)

    def add(self, tenant: str, ident: str, task: Cancellable) -> None:
        self._tasks[tenant, ident].add(task)

    def remove(self, tenant: str, ident: str, task: Cancellable) -> None:
        tasks = self._tasks.get((tenant, ident))
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._tasks[tenant, ident]

    def cancel(self, tenant: str, ident: str) -> int:
        """Stop what runs under this id. Returns how many were told."""
        found = list(self._tasks.get((tenant, ident), ()))
        for task in found:
            task.cancel("caller")
        return len(found)


class Cancellable:
    """A task, and why it was stopped: its caller asked, its deadline passed, its claim was lost, or a drain."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.reason: str | None = None

    def cancel(self, reason: str) -> None:
        if self.reason is None and self.task is not None and not self.task.done():
            self.reason = reason
            self.task.cancel()
