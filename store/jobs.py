"""Job rows: what became of each job. The final row is part of the transaction that holds the job's effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from store import cursors, sql
from store.database import Database
from store.transaction import Record, Transaction

_queries = sql.load("store", "jobs.sql")


@dataclass(frozen=True)
class JobRow:
    """One job. progress, result and fault are JSON; result only up to 64 KiB."""

    job_id: str
    component: str
    operation: str
    status: str
    attempt: int
    progress: Any
    result: Any
    fault: Any
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Jobs:
    """Rows of the jobs table. All methods raise what Transaction does; those without tx are their own transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def running(
        self,
        tenant: str,
        job_id: str,
        *,
        component: str,
        operation: str,
        attempt: int,
        headers: Mapping[str, str],
        body: bytes,
    ) -> bool:
        """Say that the job runs, and keep its message so that it can be published again. A finished job stays finished.

        The answer is whether somebody asked to cancel it.
        """
        async with self._database.transaction(tenant, relaxed=True) as tx:
            found = await tx.fetchval(
                _queries.running, tenant, job_id, component, operation, attempt, dict(headers), body
            )
        return bool(found)

    async def progress(
        self, tenant: str, job_id: str, progress: Mapping[str, Any], *, tx: Transaction | None = None
    ) -> bool:
        """Note how far a running job is; nothing for one that has no running row. The answer is as of running()."""
        if tx is not None:
            return bool(await tx.fetchval(_queries.progress, tenant, job_id, dict(progress)))
        async with self._database.transaction(tenant, relaxed=True) as tx:
            return bool(await tx.fetchval(_queries.progress, tenant, job_id, dict(progress)))

    async def finish(
        self,
        tx: Transaction,
        tenant: str,
        job_id: str,
        *,
        component: str,
        operation: str,
        status: str,
        attempt: int,
        result: Any = None,
        fault: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the final state, succeeded, failed or cancelled, within the transaction that holds the effect."""
        told = None if fault is None else dict(fault)
        await tx.execute(_queries.finish, tenant, job_id, f"{component}.{operation}", status, attempt, result, told)

    async def reopen(self, tx: Transaction, tenant: str, job_id: str) -> JobRow | None:
        """A failed job is queued once more. The answer is its row as it was; None: there is none that failed."""
        row = await tx.fetchrow(_queries.reopen, tenant, job_id)
        return None if row is None else _job(row)

    async def restore(self, tenant: str, before: JobRow) -> None:
        """Undo reopen()."""
        async with self._database.transaction(tenant) as tx:
            told = None if before.fault is None else dict(before.fault)
            times = before.started_at, before.finished_at
            await tx.execute(_queries.restore, tenant, before.job_id, before.attempt, told, *times)

    async def cancel_requested(self, tenant: str, job_id: str) -> bool:
        async with self._database.transaction(tenant) as tx:
            return bool(await tx.fetchval(_queries.cancel_requested, tenant, job_id))

    async def request_cancel(self, tenant: str, job_id: str, *, component: str, operation: str) -> JobRow | None:
        """Ask that the job stops; a job that is only queued gets its row by this. None: it is finished already."""
        async with self._database.transaction(tenant) as tx:
            row = await tx.fetchrow(_queries.request_cancel, tenant, job_id, component, operation)
        return None if row is None else _job(row)

    async def get(self, tenant: str, job_id: str) -> JobRow | None:
        async with self._database.transaction(tenant) as tx:
            row = await tx.fetchrow(_queries.get, tenant, job_id)
        return None if row is None else _job(row)

    async def list(
        self,
        tenant: str,
        *,
        component: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[JobRow], str | None]:
        """Newest first, and the cursor of the next page. Raises Fault(INVALID) for a cursor that is not ours."""
        created_at, job_id = (None, None) if cursor is None else cursors.read(cursor, datetime, str)
        async with self._database.transaction(tenant) as tx:
            rows = await tx.fetch(_queries.newest, tenant, component, status, created_at, job_id, limit + 1)
        page = [_job(row) for row in rows[:limit]]
        return page, cursors.make(page[-1].created_at, page[-1].job_id) if len(rows) > limit else None


def _job(row: Record) -> JobRow:
    return JobRow(**{name: row[name] for name in JobRow.__dataclass_fields__})
