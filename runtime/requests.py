"""The request table of a connection: one inbox subscription, one future per question that is open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Protocol

from codec import headers as h
from codec.problem import fault_from
from runtime import headers
from subjects.contract import Code, Fault

MAX_OPEN = 65_536
REPEAT_SHARE = 0.1  # at most this part of a process's calls is repeated ...
REPEAT_BURST = 20.0  # ... beyond these, so that a quiet process may repeat at all

Listener = Callable[[bytes, bytes, bytes, bytes | None], None]


class Wire(Protocol):
    """What the table needs of the connection."""

    def write(self, subject: str, payload: bytes, reply: str = "", block: bytes = b"") -> None: ...


@dataclass(frozen=True)
class Reply:
    """A received answer: the body and the header block as it came."""

    data: bytes
    block: bytes | None = None

    @cached_property
    def headers(self) -> dict[str, str]:
        """Raises Fault(INTERNAL) when the block cannot be read."""
        try:
            return headers.parse(self.block) if self.block else {}
        except ValueError as error:
            raise Fault(Code.INTERNAL, "the headers of the reply cannot be read") from error

    @property
    def no_responders(self) -> bool:
        return self.block is not None and self.block.startswith(headers.NO_RESPONDERS)

    @property
    def failed(self) -> bool:
        return self.block is not None and _ERROR_CODE in self.block

    @property
    def fault(self) -> Fault | None:
        """What the reply says went wrong; None when it is an answer."""
        return fault_from(self.headers, self.data) if self.failed else None

    @property
    def content_type(self) -> str | None:
        return self.headers.get(h.CONTENT_TYPE)


_ERROR_CODE = h.ERROR_CODE.encode()


class RepeatBudget:
    """Every call earns a tenth of a repeat: repeats cannot multiply a load that nobody can carry."""

    def __init__(self) -> None:
        self._left = REPEAT_BURST

    def earn(self) -> None:
        if self._left < REPEAT_BURST:
            self._left += REPEAT_SHARE

    def spend(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Requests:
    """Owned by the connection, which feeds it the messages of the inbox `<prefix>.*`."""

    def __init__(self, wire: Wire, prefix: str) -> None:
        self._wire = wire
        self._prefix = f"{prefix}."
        self._cut = len(self._prefix)
        self._numbers = count(1)
        self._open: dict[bytes, tuple[asyncio.Future[Reply], str]] = {}
        self.budget = RepeatBudget()

    @property
    def subject(self) -> str:
        return f"{self._prefix}*"

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, subject: str, payload: bytes, block: bytes, timeout_s: float) -> Reply:
        """Send one message and wait for its one reply. The subject must be valid (built by subjects.grammar).

        Raises Fault: TIMEOUT, TOO_LARGE, UNAVAILABLE (closed, or cut off with a full buffer), FORBIDDEN (the broker
        refused the subject), EXHAUSTED (more than 65,536 questions are open).
        """
        if timeout_s <= 0:
            raise Fault(Code.TIMEOUT, "the deadline has passed")
        if len(self._open) >= MAX_OPEN:
            raise Fault(Code.EXHAUSTED, f"more than {MAX_OPEN} requests of this process are open")
        number = str(next(self._numbers))
        key = number.encode()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._open[key] = (future, subject)
        timer = loop.call_later(timeout_s, _expire, future)
        try:
            self._wire.write(subject, payload, self._prefix + number, block)
            return await future
        finally:
            timer.cancel()
            del self._open[key]

    def on_reply(self, subject: bytes, _reply: bytes, data: bytes, block: bytes | None) -> None:
        """The listener of the inbox."""
        found = self._open.get(subject[self._cut :])
        if found is not None and not found[0].done():
            found[0].set_result(Reply(data, block))

    def refuse(self, subject: str) -> None:
        """The broker does not let this process publish on the subject: its askers need not wait for a timeout."""
        for future, asked in list(self._open.values()):
            if asked.lower() == subject and not future.done():
                future.set_exception(Fault(Code.FORBIDDEN, "the broker refuses to publish on this subject"))


def _expire(future: asyncio.Future[Reply]) -> None:
    if not future.done():
        future.set_exception(Fault(Code.TIMEOUT, "no reply before the deadline"))
