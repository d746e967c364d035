"""Stream: a request whose answer comes in chunks first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

from codec import decode
from runtime.connection import Connection
from runtime.output_reader import OutputItem, OutputReader
from subjects import grammar
from subjects.contract import Code, Fault, Model

O = TypeVar("O", bound=Model)  # noqa: E741


class Stream(Generic[O]):
    """Made by Client.stream. Subscribes before it asks; leaving early cancels the work at the other end.

    Iterate for the chunks (models of the contract's `chunk`); then `result` is the whole answer. A failed request
    raises its Fault from the iteration, after the chunks that came.
    """

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        output_id: str,
        chunk: type[Model],
        ask: Callable[[], Awaitable[O]],
    ) -> None:
        self.output_id = output_id
        self._connection = connection
        self._tenant = tenant
        self._chunk = chunk
        self._ask = ask
        self._reader = OutputReader(connection, tenant, output_id, fresh=True)
        self._task: asyncio.Task[O] | None = None
        self._yielded = False

    @property
    def result(self) -> O:
        """The final reply. Raises the request's Fault; Fault(INTERNAL) before the iteration has ended."""
        if self._task is None or not self._task.done():
            raise Fault(Code.INTERNAL, "the stream has not ended: iterate over it first")
        return self._task.result()

    async def __aenter__(self) -> Stream[O]:
        await self._reader.start()
        self._task = asyncio.ensure_future(self._ask())
        self._task.add_done_callback(lambda _: self._reader.wake())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._task is not None and not self._task.done():
                await self._give_up(self._task)
            elif self._task is not None and not self._task.cancelled():
                self._task.exception()  # seen: whoever did not iterate did not want it
        finally:
            await self._reader.close()

    async def _give_up(self, task: asyncio.Task[O]) -> None:
        task.cancel()
        with contextlib.suppress(Fault):  # cut off: the deadline will end it there
            self._connection.write(grammar.cancel(self._tenant, self.output_id), b"")
        await asyncio.wait([task])

    async def __aiter__(self) -> AsyncIterator[Model]:
        if self._task is None:
            raise Fault(Code.INTERNAL, "open the stream with `async with` first")
        ended = False
        while not ended:
            finished = self._task.done()  # before taking: what came with the reply has come by then
            async for item in self._reader.take():
                ended = item.kind in ("done", "error")
                if item.kind == "chunk":
                    yield self._decoded(item)
                elif item.kind == "restart" and self._yielded:
                    raise Fault(Code.UNAVAILABLE, "the answer began anew after it had been read in part")
            if finished:
                break
            if not ended:
                await self._reader.ready()
        await self._task

    def _decoded(self, item: OutputItem) -> Model:
        self._yielded = True
        try:
            return decode(item.data, self._chunk, item.content_type)
        except Fault as error:
            raise Fault(Code.INTERNAL, "a chunk does not match its contract") from error
