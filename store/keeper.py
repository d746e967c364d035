"""Keeper: relays what a process could not publish, removes what is old, publishes again what a broken stream lost, ends
what is lost for good, and warns of consumers that fall behind.

Any number of processes run one; an advisory lock on its own connection makes one of them work. Its role sees the four
tables of the books and nothing of a component.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from codec import headers as names
from runtime import jobs
from runtime.connection import Connection
from store import sql
from store.database import CONNECT_TIMEOUT_S, SESSION, prepare
from store.lag import LAG, Lag
from store.lost import Lost
from store.outbox import OutboxRow, publish_all
from store.pgerrors import FAILURES
from store.sweep import Sweep
from subjects.contract import Fault

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]

ADVISORY_LOCK = 0x6D6F7461_00000002  # "mota", 2: the keeper
KEPT = timedelta(days=8)
BATCH_ROWS = 200
FORGET_ROWS = 1000
FORGET_BATCHES = 50  # a pass; the rest waits for the next one
COMMAND_TIMEOUT_S = 20.0
STAND_BY_S = 5.0

_queries = sql.load("store", "keeper.sql")
_log = structlog.get_logger("store.keeper")


@dataclass
class Duty:
    """Something done every so often. do is never run twice at once."""

    name: str
    every_s: float
    do: Callable[[_Connection], Awaitable[None]]
    due_at: float = 0.0


class Keeper:
    """`await Keeper(dsn, connection).run()` until it is cancelled. dsn is of the role faas_keeper."""

    def __init__(self, dsn: str, connection: Connection, *, kept: timedelta = KEPT) -> None:
        self._dsn = dsn
        self._connection = connection
        self._kept = kept
        self._sweep = Sweep(connection)
        self._lag = Lag(connection)
        self._duties = [
            Duty("relay", 1.0, self.relay),
            Duty("republish", 15.0, self._sweep.republish),
            Duty("streams", 60.0, self._sweep.purge),
            Duty("lag", 60.0, self._lag.look),
            Duty("lost", 600.0, Lost(connection).end),
            Duty("retention", 600.0, self.forget),
        ]

    async def run(self) -> None:
        """Try for the lock, work while its connection lives; over and over."""
        unwatch = LAG.watch(self._lag.read)
        try:
            while True:
                try:
                    await self._lead()
                except (*FAILURES, Fault) as error:
                    _log.warning("keeper_lost_its_database", error=type(error).__name__)
                self._lag.forget()
                _end_if_cancelled()
                await asyncio.sleep(STAND_BY_S)
        finally:
            unwatch()

    async def _lead(self) -> None:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings={**SESSION, "application_name": "faas keeper"},
        )
        try:
            await prepare(connection)
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
                return  # another process leads; its lock ends with its connection
            _log.info("keeper_leads")
            while True:
                await self._work(connection)
                _end_if_cancelled()
                await asyncio.sleep(min(duty.every_s for duty in self._duties))
        finally:
            with suppress(*FAILURES):
                await connection.close(timeout=CONNECT_TIMEOUT_S)

    async def _work(self, connection: _Connection) -> None:
        for duty in self._duties:
            if time.monotonic() < duty.due_at:
                continue
            duty.due_at = time.monotonic() + duty.every_s
            try:
                await duty.do(connection)
            except Fault as fault:
                _log.warning("keeper_duty_failed", duty=duty.name, code=fault.code.value, detail=fault.detail)
            except asyncpg.PostgresError as error:  # its connection lives: the other duties go on
                if connection.is_closed():
                    raise
                _log.error("keeper_duty_failed", duty=duty.name, error=type(error).__name__)

    async def relay(self, connection: _Connection) -> None:
        """Publish outbox rows whose own process did not within 5 s. One that the broker refuses is tried ever later."""
        full = True
        while full and self._connection.healthy:
            async with connection.transaction():
                due = await connection.fetch(_queries.due, BATCH_ROWS)
                full = len(due) == BATCH_ROWS
                if not due:
                    return
                rows = [OutboxRow(row["subject"], row["headers"], row["body"], row["event_id"]) for row in due]
                faults = await publish_all(self, rows)
                refused = [row.event_id for row, fault in zip(rows, faults, strict=True) if fault is not None]
                stored = [row.event_id for row, fault in zip(rows, faults, strict=True) if fault is None]
                await connection.execute(_queries.relayed, stored)
                await connection.execute(_queries.postpone, refused)
            _log.info("outbox_relayed", rows=len(stored), refused=len(refused))

    async def publish_kept(self, subject: str, data: bytes, headers: Mapping[str, str], message_id: str) -> None:
        """As the typed client's, without its repeats: the relay comes by again. Raises Fault."""
        await jobs.publish_kept(self._connection.requests, subject, data, {**headers, names.MESSAGE_ID: message_id})

    async def forget(self, connection: _Connection) -> None:
        """Remove rows that ended more than 8 days ago, FORGET_ROWS a statement so that nobody waits for it."""
        for name in ("forget_inbox", "forget_jobs", "forget_steps"):
            removed = 0
            for _ in range(FORGET_BATCHES):
                tag = await connection.execute(getattr(_queries, name), self._kept, FORGET_ROWS)
                removed += (count := int(tag.rsplit(" ", 1)[1]))
                if count < FORGET_ROWS:
                    break
            if removed:
                _log.info("rows_forgotten", what=name.removeprefix("forget_"), rows=removed)


def _end_if_cancelled() -> None:
    """asyncpg drops a cancellation that comes in the moment in which what it waits for is done (Python 3.11)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
