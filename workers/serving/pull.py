"""Pulls messages of one durable consumer: a slot first, then one message for each free slot.

nats-py's fetch answers TimeoutError alike for an empty stream, a deleted consumer and a lost server, so the pull
protocol is spoken here: one inbox, requests that expire, heartbeats, and status messages read by their code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from runtime import headers, metrics
from runtime.connection import Connection
from workers.serving.delivery import Delivery
from workers.serving.slots import Slots

log = structlog.get_logger("workers.serving")

EXPIRES_S = 5.0  # a pull request's life at the server
HEARTBEAT_S = 1.0
SILENCE_S = 2.5  # no message and no heartbeat for so long: the pull was lost, ask again
IDLE_WAIT_S = 0.5  # the pump looks after itself at least so often
CONSUMER_GONE = {"404 Consumer Not Found", "409 Consumer Deleted", "503", "409 Consumer is push based"}

WAITING = metrics.Observed(
    "faas.consumer.waiting", "", "Messages that wait in the stream, as the last one taken told.", "gauge",
    ("messaging.consumer.group.name",),
)  # fmt: skip


class Pull:
    """Feeds start(msg, release) as slots allow. The caller calls release exactly once for each message."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        durable: str,
        slots: int,
        start: Callable[[Delivery, Callable[[], None]], None],
        recreate: Callable[[], Awaitable[Any]],
    ) -> None:
        self._connection = connection
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._durable = durable
        self._slots = Slots(slots)
        self._start = start
        self._recreate = recreate
        self._requested = 0
        self._heard = 0.0
        self._gone = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._subscription: Any = None
        self._inbox = ""
        self._last = b""  # the ack subject of the last message: its end says how many wait behind it
        self._forget = WAITING.watch(self._waiting)

    def _waiting(self) -> list[tuple[tuple[str, ...], float]]:
        pending = self._last.rpartition(b".")[2]
        return [((self._durable,), int(pending))] if pending.isdigit() else []

    async def begin(self) -> None:
        self._inbox = self._connection.new_inbox()
        self._subscription = await self._connection.listen(self._inbox, self._on_message)
        self._task = asyncio.create_task(self._pump(), name=f"pull {self._durable}")

    async def stop(self) -> None:
        """Ask for nothing more. A message that arrives after this is left to be delivered again."""
        self._stopping = True
        self._forget()
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._subscription is not None and not self._connection.is_closed:
            await self._subscription.unsubscribe()

    async def _pump(self) -> None:
        while not self._stopping:
            try:
                await self._look()
            except Exception:  # the owner of the work: it must outlive any hiccup of the broker
                log.exception("pull failed; trying again", consumer=self._durable)
                await asyncio.sleep(IDLE_WAIT_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), IDLE_WAIT_S)
            self._wake.clear()

    async def _look(self) -> None:
        if not self._connection.is_connected:
            self._requested = 0
            return
        if self._gone:
            await self._recreate()
            log.warning("consumer was gone; made again", consumer=self._durable)
            self._gone, self._requested = False, 0
        if self._requested and time.monotonic() - self._heard > SILENCE_S:
            self._requested = 0
        free = self._slots.size - self._slots.running - self._requested
        # While some are still on their way, ask again only for a good handful: one request a message is half the cost.
        if free <= 0 or (self._requested and free < self._slots.size // 2):
            return
        if not self._requested:
            self._heard = time.monotonic()
        self._requested += free
        ask = {"batch": free, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        self._connection.write(self._next, json.dumps(ask).encode(), self._inbox)

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> None:
        self._heard = time.monotonic()
        if not reply:
            self._on_status(headers.parse(block) if block else {})
            return
        if not reply.startswith(b"$JS.ACK."):
            return
        self._requested = max(0, self._requested - 1)
        self._last = reply
        try:
            delivery = Delivery.of(subject, reply, data, block)
        except ValueError:
            # It would come back for ever and can be answered, kept or run by nobody.
            self._connection.write(reply.decode("ascii"), b"+TERM")
            raise
        # Never more than the slots, because never more was requested; a straggler of a lost pull may wait.
        if self._stopping or not self._slots.offer(lambda: self._start(delivery, self._release)):
            self._connection.write(delivery.reply, b"-NAK")

    def _on_status(self, status_line: dict[str, str]) -> None:
        status, description = status_line.get(headers.STATUS, ""), status_line.get(headers.DESCRIPTION, "")
        if status == "100":
            return
        if status == "503" or f"{status} {description}" in CONSUMER_GONE:
            self._gone = True
            self._wake.set()
            return
        self._requested = max(0, self._requested - int(status_line.get("Nats-Pending-Messages", self._requested)))
        self._wake.set()

    def _release(self) -> None:
        self._slots.release()
        self._wake.set()

    @property
    def idle(self) -> bool:
        return self._slots.idle
