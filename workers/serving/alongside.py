"""Work that goes along with other work, and is only begun when that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType


class Alongside:
    """`async with Alongside(fn, after_s):` runs fn beside the block from after_s on, and ends it with the block.

    A message that is done sooner pays for a timer, not for a task.
    """

    def __init__(self, fn: Callable[[], Awaitable[None]], after_s: float) -> None:
        self._fn = fn
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._after_s <= 0:
            self._begin()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._begin)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _begin(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        await self._fn()
