"""Outbox: an event is stored with the state that it tells of, and published after the commit.

The process that committed publishes its own rows at once and removes them in the next batch. What it could not publish
is taken by the keeper's relay 5 s later; the event id makes a second copy harmless.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

import structlog

from runtime.crash import crash_point
from store import sql
from store.database import Database
from store.transaction import Transaction
from subjects.contract import Fault

WAITING_ROWS = 10_000
BATCH_ROWS = 200
LINGER_S = 0.02  # removals of so long go into one statement a tenant
STOP_WITHIN_S = 3.0

_queries = sql.load("store", "outbox.sql")
_log = structlog.get_logger("store.outbox")


class Publisher(Protocol):
    async def publish_kept(self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str) -> None:
        """Store a message in the stream of its subject, once for a message id. Raises Fault."""


@dataclass(frozen=True)
class OutboxRow:
    subject: str
    headers: Mapping[str, str]
    body: bytes
    event_id: uuid.UUID = field(default_factory=uuid.uuid4)


class Outbox:
    """Adds rows within a transaction, and publishes them in the background while the `async with` is open."""

    def __init__(self, database: Database, publisher: Publisher) -> None:
        self._database = database
        self._publisher = publisher
        self._waiting: asyncio.Queue[tuple[str, OutboxRow]] = asyncio.Queue(WAITING_ROWS)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Outbox:
        self._task = asyncio.create_task(self._run(), name="outbox")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish what waits for at most STOP_WITHIN_S; the relay takes the rest."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                while not self._waiting.empty():
                    await self._publish(self._take())
        except TimeoutError:
            _log.info("outbox_left_to_the_relay", rows=self._waiting.qsize())

    @staticmethod
    def row(subject: str, headers: Mapping[str, str], body: bytes) -> OutboxRow:
        """A message under an event id of its own. Another process sends what this one did not: headers are complete."""
        return OutboxRow(subject, headers, body)

    async def add(self, tx: Transaction, tenant: str, rows: Sequence[OutboxRow]) -> None:
        """Store events with the state they tell of."""
        await tx.execute(_queries.add, tenant, *columns(rows))

    def notify(self, tenant: str, rows: Sequence[OutboxRow]) -> None:
        """The transaction with these rows is committed: publish them soon. Never waits; beyond WAITING_ROWS the relay
        does it."""
        for row in rows:
            try:
                self._waiting.put_nowait((tenant, row))
            except asyncio.QueueFull:
                _log.warning("outbox_full", waiting=WAITING_ROWS)
                return

    async def _run(self) -> None:
        while True:
            first = await self._waiting.get()
            try:
                await self._publish([first, *self._take(BATCH_ROWS - 1)])
            except Exception:  # the relay has these rows; this loop has all that come after
                _log.exception("outbox_batch_raised")
            await asyncio.sleep(LINGER_S)

    def _take(self, most: int = BATCH_ROWS) -> list[tuple[str, OutboxRow]]:
        return [self._waiting.get_nowait() for _ in range(min(most, self._waiting.qsize()))]

    async def _publish(self, batch: Sequence[tuple[str, OutboxRow]]) -> None:
        """Publish a batch and remove what the broker has; the relay repeats the others."""
        sent = await publish_all(self._publisher, [row for _, row in batch])
        crash_point("after_publish")
        published = defaultdict(list)
        for (tenant, row), fault in zip(batch, sent, strict=True):
            if fault is None:
                published[tenant].append(row.event_id)
        for tenant, event_ids in published.items():
            try:
                await self._database.alone(_queries.remove, tenant, event_ids)
            except Fault as fault:
                _log.warning("outbox_not_removed", rows=len(event_ids), code=fault.code.value)


async def publish_all(publisher: Publisher, rows: Sequence[OutboxRow]) -> list[Fault | None]:
    """Publish side by side; for each row the Fault that stopped it, or None."""

    async def one(row: OutboxRow) -> Fault | None:
        try:
            await publisher.publish_kept(row.subject, row.body, row.headers, str(row.event_id))
        except Fault as fault:
            return fault
        return None

    return list(await asyncio.gather(*(one(row) for row in rows)))


def columns(rows: Sequence[OutboxRow]) -> tuple[list[uuid.UUID], list[str], list[dict[str, str]], list[bytes]]:
    """The rows as one array a column: one statement whatever their number."""
    return (
        [row.event_id for row in rows],
        [row.subject for row in rows],
        [dict(row.headers) for row in rows],
        [row.body for row in rows],
    )
