"""Numbered output, the reading side: live first, then what stream OUT keeps; each chunk once and in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from nats.aio.subscription import Subscription

from codec import MSGPACK, fault_reply
from codec import headers as h
from runtime import headers, streams
from runtime.connection import Connection
from runtime.stored import read_stored
from subjects import grammar
from subjects.contract import Code, Fault

Kind = Literal["chunk", "restart", "done", "error"]

MAX_LIVE = 4096
MAX_LIVE_BYTES = 16 * 1024 * 1024
LOOK_FIRST_S = 0.05  # what was published just before we subscribed may reach OUT just after we looked
LOOK_AGAIN_S = 5.0  # later a quiet output is looked up this often: what was live during a reconnect is lost
FILL_WITHIN_S = 2.0
FILL_EVERY_S = 0.05
IDLE_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class OutputItem:
    """A piece of an output. (attempt, n) is its place, to re-join after. restart: forget what came, it begins anew.

    done: data is the final reply; error: data is a problem document. After either nothing comes.
    """

    kind: Kind
    attempt: int
    n: int
    data: bytes = b""
    content_type: str = MSGPACK


class OutputReader:
    """One reader of one output. after: the place of the last piece that was seen, None = from the beginning.

    `fresh`: nobody can have written yet, so OUT is asked only to fill a gap.
    """

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        output_id: str,
        *,
        after: tuple[int, int] | None = None,
        fresh: bool = False,
    ) -> None:
        self._connection = connection
        self._output_id = output_id
        self._subject = grammar.output(tenant, output_id)
        self._attempt, self._n = after or (0, 0)
        self._caught_up = fresh
        self._next_sequence = 1
        self._live: deque[OutputItem] = deque()
        self._live_bytes = 0
        self._lost_live = False
        self._awake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._forget = connection.on_reconnect(self._look_again)

    async def start(self) -> None:
        """Subscribe. What is published from now on is not missed."""
        if self._subscription is None:
            self._subscription = await self._connection.listen(self._subject, self._on_live)

    async def close(self) -> None:
        self._forget()
        if self._subscription is not None and not self._connection.is_closed:
            subscription, self._subscription = self._subscription, None
            await subscription.unsubscribe()

    def wake(self) -> None:
        """Let ready() return, though nothing may have come."""
        self._awake.set()

    async def ready(self, timeout_s: float | None = None) -> bool:
        """Wait until something came (or wake() was called). False = the time is over."""
        try:
            await asyncio.wait_for(self._awake.wait(), timeout_s)
        except TimeoutError:
            return False
        self._awake.clear()
        return True

    async def take(self, *, look: bool = False) -> AsyncIterator[OutputItem]:
        """What there is now, without waiting; look: ask OUT as well. Raises Fault(UNAVAILABLE, TIMEOUT)."""
        if look or not self._caught_up or self._lost_live:
            self._caught_up, self._lost_live = True, False
            try:
                async for item in self._from_out():
                    yield item
            except Fault:
                self._lost_live = True  # not read, so still to be read
                raise
        while self._live:
            item = self._live.popleft()
            self._live_bytes -= len(item.data)
            if self._is_gap(item):
                try:
                    async for filled in self._fill(item):
                        yield filled
                except Fault:
                    self._live.appendleft(item)
                    self._live_bytes += len(item.data)
                    raise
            for accepted in self._accept(item):
                yield accepted

    async def items(self, idle_timeout_s: float = IDLE_TIMEOUT_S) -> AsyncIterator[OutputItem]:
        """Everything until the end. When nothing comes for idle_timeout_s, or a piece is no longer kept: an `error`
        item that names the output. Raises Fault(UNAVAILABLE, TIMEOUT) when OUT has to be asked and does not answer."""
        loop = asyncio.get_running_loop()
        await self.start()
        last_at, look, pause_s = loop.time(), False, LOOK_FIRST_S
        while True:
            async for item in self.take(look=look):
                yield item
                last_at = loop.time()
                if item.kind in ("done", "error"):
                    return
            idle_s = idle_timeout_s - (loop.time() - last_at)
            if idle_s <= 0:
                yield self._error(Code.TIMEOUT, f"nothing came for {idle_timeout_s:g} s on {self._output_id}")
                return
            look = not await self.ready(min(pause_s, idle_s))
            if look:
                pause_s = min(4 * pause_s, LOOK_AGAIN_S)

    def _on_live(self, _subject: bytes, _reply: bytes, data: bytes, block: bytes | None) -> None:
        item = _item(headers.parse(block or b""), data)
        if len(self._live) >= MAX_LIVE or self._live_bytes + len(data) > MAX_LIVE_BYTES:
            self._lost_live = True  # a slow reader: OUT has it
        else:
            self._live.append(item)
            self._live_bytes += len(data)
        self._awake.set()

    def _look_again(self) -> None:
        self._next_sequence = 1  # OUT is in memory: a broker that was started again counts anew
        self._lost_live = True
        self._awake.set()

    def _seen(self, item: OutputItem) -> bool:
        return (item.attempt, item.n) <= (self._attempt, self._n)

    def _is_gap(self, item: OutputItem) -> bool:
        if self._seen(item):
            return False
        return item.n != (self._n + 1 if item.attempt == self._attempt else 1)

    def _accept(self, item: OutputItem) -> list[OutputItem]:
        if self._seen(item):
            return []
        begun = self._attempt != 0 and item.attempt != self._attempt
        self._attempt, self._n = item.attempt, item.n
        return [OutputItem("restart", item.attempt, 0), item] if begun else [item]

    async def _from_out(self) -> AsyncIterator[OutputItem]:
        """What OUT keeps beyond what was seen. A lost piece matters unless a later attempt begins anew."""
        lost: OutputItem | None = None
        async for stored in read_stored(
            self._connection, streams.OUT, self._subject, from_sequence=self._next_sequence
        ):
            try:
                item = _item(stored.headers, stored.data)
            except ValueError:
                continue  # not written by a writer of ours
            if self._is_gap(item) or (lost is not None and item.attempt == lost.attempt):
                lost = item
                continue
            lost = None
            self._next_sequence = stored.sequence + 1
            for accepted in self._accept(item):
                yield accepted
        if lost is not None:
            yield self._error(Code.NOT_FOUND, self._gone())

    async def _fill(self, item: OutputItem) -> AsyncIterator[OutputItem]:
        """Read OUT until the item's forerunners are there, at most 2 s: it may lag behind the live message."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FILL_WITHIN_S
        while self._is_gap(item):
            async for filled in self._from_out():
                yield filled
                if filled.kind == "error":
                    return
            if self._is_gap(item):
                if loop.time() > until:
                    yield self._error(Code.NOT_FOUND, self._gone())
                    return
                await asyncio.sleep(FILL_EVERY_S)

    def _gone(self) -> str:
        return f"the pieces of {self._output_id} after {self._attempt}.{self._n} are no longer kept; read its result"

    def _error(self, code: Code, detail: str) -> OutputItem:
        given, body = fault_reply(Fault(code, detail))
        # Beyond every number: nothing of this attempt is accepted after it.
        self._live.clear()
        return OutputItem("error", self._attempt, self._n, body, given[h.CONTENT_TYPE])


async def read_output(
    connection: Connection,
    tenant: str,
    output_id: str,
    *,
    after: tuple[int, int] | None = None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> AsyncIterator[OutputItem]:
    """Read an output (of a stream or a job: the output id or job id) from its beginning or after a place.

    Any number of readers, on any process, at any time while it is kept. Raises Fault(INVALID, UNAVAILABLE, TIMEOUT).
    """
    reader = OutputReader(connection, tenant, output_id, after=after)
    try:
        async for item in reader.items(idle_timeout_s):
            yield item
    finally:
        await reader.close()


def _item(given: dict[str, str], data: bytes) -> OutputItem:
    """Raises ValueError when the numbers are not there or not numbers."""
    attempt, n = int(given.get(h.ATTEMPT) or "1"), int(given.get(h.CHUNK) or "")
    if attempt < 1 or n < 1:
        raise ValueError("an output is numbered from 1")
    end = given.get(h.CHUNK_END)
    kind: Kind = "chunk" if end is None else "done" if end == "done" else "error"
    return OutputItem(kind, attempt, n, data, given.get(h.CONTENT_TYPE) or MSGPACK)
