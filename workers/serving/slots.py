"""Slots bound the work in flight; the gate lets a suspected poison run alone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

JOB_SLOTS = 16  # jobs of one component in flight in one process
EVENT_SLOTS = 8  # events of one subscription in flight in one process


class Slots:
    """size running at once, size more waiting; what comes on top is refused.

    With a backlog as long as the slots, 70 % load refuses nothing for good; without one, every tenth call.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.running = 0
        self._backlog: deque[Callable[[], None]] = deque()

    def offer(self, start: Callable[[], None]) -> bool:
        """Run start now or when a slot is free; False when both slots and backlog are full."""
        if self.running < self.size:
            self.running += 1
            start()
            return True
        if len(self._backlog) < self.size:
            self._backlog.append(start)
            return True
        return False

    def release(self) -> None:
        """One that was started has ended: its slot goes to the longest waiting."""
        if self._backlog:
            self._backlog.popleft()()
        else:
            self.running -= 1

    @property
    def idle(self) -> bool:
        return self.running == 0

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._backlog)


class AloneTooLate(Exception):
    """The others in this process did not get done in time."""


class Gate:
    """Many may pass together, or one alone. A waiting one closes the gate for newcomers, so that it gets its turn.

    A job with a crash behind it runs alone in its process: if it kills the process again, it takes nobody along.
    """

    def __init__(self) -> None:
        self._together = 0
        self._alone = False
        self._waiting_alone = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone and not self._waiting_alone)
            self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            await self._wake()

    @asynccontextmanager
    async def alone(self, wait_s: float) -> AsyncIterator[None]:
        """Raises AloneTooLate when the others are not done within wait_s."""
        async with self._changed:
            self._waiting_alone += 1
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait_for(lambda: not self._alone and not self._together)
                self._alone = True
            except TimeoutError as error:
                raise AloneTooLate from error
            finally:
                self._waiting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            self._alone = False
            await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()
