"""Jobs that nobody will ever end: their row says queued or running, their message and claim are long gone.

The message went with a stream that was purged or restored by hand, or the process that put the row back into the queue
died before it sent the message. (Running jobs of a stream that was made anew are published again: see sweep.py.)
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import asyncpg
import structlog

import codec
from codec import headers as names
from runtime import jobs
from runtime.connection import Connection
from runtime.output import OutputWriter
from runtime.stored import read_last
from runtime.streams import JOBS
from store import sql
from subjects import grammar
from subjects.contract import Code, Fault
from subjects.jobs import CANCELLED, FAILED, JobChanged, JobFault

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]

LOST_AFTER = timedelta(hours=1)  # without a claim; a job that waits for its next attempt still has its message
LOOKS = 2000  # rows a pass, one or two questions to the stream each
MAX_SUSPECTS = 10_000
GONE = Fault(Code.INTERNAL, "its message is no longer in the stream of jobs and nobody works on it; submit it again")
STOPPED = Fault(Code.CANCELLED, "cancelled by its caller; its message is no longer in the stream of jobs")

_queries = sql.load("store", "keeper.sql")
_log = structlog.get_logger("store.lost")


class Lost:
    """Ends a job that two rounds in a row found without message and claim: one look may fall between a row that was
    put back and the message that follows it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._after = ("", "")
        self._last_round: frozenset[tuple[str, str]] = frozenset()
        self._this_round: set[tuple[str, str]] = set()

    async def end(self, connection: _Connection) -> None:
        """One pass; the next one goes on behind it. Raises Fault(UNAVAILABLE, TIMEOUT)."""
        rows = await connection.fetch(_queries.unclaimed, LOST_AFTER, *self._after, LOOKS)
        ended = 0
        for row in rows:
            who = row["tenant_id"], row["job_id"]
            if await self._has_message(*who):
                continue
            if who in self._last_round:
                ended += await self._end(connection, row)
            elif len(self._this_round) < MAX_SUSPECTS:
                self._this_round.add(who)
        if len(rows) == LOOKS:
            self._after = rows[-1]["tenant_id"], rows[-1]["job_id"]
        else:
            self._after = ("", "")
            self._last_round, self._this_round = frozenset(self._this_round), set()
        if ended:
            _log.warning("lost_jobs_ended", jobs=ended)

    async def _has_message(self, tenant: str, job_id: str) -> bool:
        for subject in grammar.job_anywhere(tenant, job_id):
            if await read_last(self._connection, JOBS, subject) is not None:
                return True
        return False

    async def _end(self, connection: _Connection, row: asyncpg.Record) -> bool:
        """Row and event together: the event is published before the row is committed, so that it is seen at least once.
        False when the job has moved meanwhile."""
        cancelled = row["cancel_requested"]
        status: Literal["cancelled", "failed"] = "cancelled" if cancelled else "failed"
        fault, event = (STOPPED, CANCELLED) if cancelled else (GONE, FAILED)
        told = JobFault(code=fault.code.value, detail=fault.detail, retryable=fault.retryable)
        tenant, job_id, attempt = row["tenant_id"], row["job_id"], row["attempt"]
        changed = JobChanged(
            entity_id=job_id,
            version=attempt + 1,
            component=row["component"],
            operation=row["operation"],
            status=status,
            attempt=attempt,
            fault=told,
        )
        given = row["headers"] or {}
        headers = {
            names.CONTENT_TYPE: codec.JSON,
            names.MESSAGE_ID: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tenant}/{job_id}/{attempt}/{status}")),
            **{name: given[name] for name in (names.CORRELATION_ID, names.USER) if name in given},
        }
        async with connection.transaction():
            known = tenant, job_id, row["status"], attempt
            if await connection.fetchval(_queries.end_lost, *known, status, told.model_dump()) is None:
                return False
            subject = grammar.event(tenant, event.component, event.occurred)
            await jobs.publish_kept(self._connection.requests, subject, codec.encode(changed, codec.JSON), headers)
        output_id = given.get(names.OUTPUT_TO, job_id)
        if grammar.is_token(output_id):
            writer = OutputWriter(self._connection, tenant, output_id, attempt + 1)
            await writer.end("error", codec.to_problem(fault, given.get(names.REQUEST_ID, "")))
        return True
