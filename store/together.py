"""Joins what many tasks ask about one tenant's rows into one statement.

Nothing waits for company: the first question goes at once, and what comes while it is under way goes together after it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from runtime.tracing import current
from store.spans import shared
from subjects.contract import Code, Fault

MOST_TOGETHER = 32
ABREAST = 2  # statements of one tenant at a time; the second uses the time that the first waits for the disk

Q = TypeVar("Q")
A = TypeVar("A")


class Together(Generic[Q, A]):
    """run answers a tenant's questions in order, in one transaction; name is the statement's. undo, if given, gets
    the answer to a question whose asker was cancelled meanwhile."""

    def __init__(
        self,
        run: Callable[[str, Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        name: str,
        undo: Callable[[str, Q, A], Awaitable[None]] | None = None,
    ) -> None:
        self._run = run
        self._name = name
        self._undo = undo
        self._waiting: defaultdict[str, deque[tuple[Q, asyncio.Future[A]]]] = defaultdict(deque)
        self._running: defaultdict[str, int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, tenant: str, question: Q) -> A:
        """The answer to this question. Raises what run raises, for the question alone where it is its own fault."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting[tenant].append((question, answer))
        if self._running[tenant] < ABREAST:
            self._running[tenant] += 1
            # In a context of its own: it works for many, so that no message's ids and span may stand in it.
            task = asyncio.get_running_loop().create_task(self._drain(tenant), name="books", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if current() is None:
            return await answer
        with shared(self._name):
            return await answer

    async def _drain(self, tenant: str) -> None:
        waiting = self._waiting[tenant]
        try:
            while waiting:
                batch = [waiting.popleft() for _ in range(min(MOST_TOGETHER, len(waiting)))]
                open_ones = [(question, answer) for question, answer in batch if not answer.done()]
                if open_ones:
                    await self._answer(tenant, open_ones)
        finally:
            self._running[tenant] -= 1
            if not waiting and not self._running[tenant]:  # a tenant leaves nothing behind in this process
                self._waiting.pop(tenant, None)
                self._running.pop(tenant, None)

    async def _answer(self, tenant: str, batch: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._run(tenant, [question for question, _ in batch])
        except Exception as error:  # handed to those who asked
            if len(batch) > 1 and not (isinstance(error, Fault) and error.code in (Code.UNAVAILABLE, Code.TIMEOUT)):
                for one in batch:  # one question spoils the statement for all: find out which
                    await self._answer(tenant, [one])
                return
            for _, asked in batch:
                if not asked.done():
                    asked.set_exception(error)
            return
        for (question, asked), answer in zip(batch, answers, strict=True):
            if not asked.done():
                asked.set_result(answer)
            elif self._undo is not None:
                await self._undo(tenant, question, answer)
