"""The end of a message in one statement: its claim as done, its job's row, its events.

Inside the handler's transaction it saves round trips; where the handler wrote nothing it is the whole transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.database import Database, Transaction
from store.inbox import LeaseLost
from store.outbox import OutboxRow, columns

_FINISH = "SELECT finish_message($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) AS ours"


@dataclass(frozen=True)
class JobEnd:
    """status is succeeded, failed or cancelled; result and fault are JSON."""

    job_id: str
    status: str
    attempt: int
    result: Any = None
    fault: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ending:
    """What a message leaves in the books. operation is `<component>.<operation>`; reply and fault are as in Done."""

    operation: str
    key: str
    owner: str
    reply: bytes | None = None
    fault: bytes | None = None
    job: JobEnd | None = None
    events: Sequence[OutboxRow] = ()


async def finish(database: Database, tenant: str, ending: Ending, *, tx: Transaction | None = None) -> None:
    """Write it in the handler's transaction, or without one in a transaction of its own.

    Raises LeaseLost when the claim is not this owner's any more (nothing is written then; roll back what else there
    is), and OutcomeUnknown when a transaction of its own lost its connection.
    """
    job = ending.job
    told = None if job is None or job.fault is None else dict(job.fault)
    ended = (None, None, None, None, None) if job is None else (job.job_id, job.status, job.attempt, job.result, told)
    args = (tenant, ending.operation, ending.key, ending.owner, ending.reply, ending.fault, *ended)
    row = await (database.alone if tx is None else tx.fetchrow)(_FINISH, *args, *columns(ending.events))
    if row is None or not row["ours"]:
        raise LeaseLost
