"""The end of a message in one statement: its claim as done, its job's row, its events.

Inside the handler's transaction it saves round trips; where the handler wrote nothing it is the whole transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

from store import sql
from store.database import Database
from store.inbox import LeaseLost
from store.outbox import OutboxRow, columns
from store.together import Together
from store.transaction import Transaction

_queries = sql.load("store", "ending.sql")


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


_together: WeakKeyDictionary[Database, Together[Ending, bool]] = WeakKeyDictionary()


async def finish(database: Database, tenant: str, ending: Ending, *, tx: Transaction | None = None) -> None:
    """Write it in the handler's transaction, or without one in a transaction that it may share with other endings of
    this tenant.

    Raises LeaseLost when the claim is not this owner's any more (nothing is written then; roll back what else there
    is), and OutcomeUnknown when a transaction without tx lost its connection.
    """
    if tx is None:
        ours = await _endings(database).ask(tenant, ending)
    else:
        ours = await tx.fetchval(_queries.finish_one, tenant, *_books(ending), *columns(ending.events))
    if not ours:
        raise LeaseLost


def _endings(database: Database) -> Together[Ending, bool]:
    together = _together.get(database)
    if together is None:
        pool = ref(database)  # weak: the table must not keep what it is keyed by

        async def run(tenant: str, endings: Sequence[Ending]) -> Sequence[bool]:
            database = pool()
            assert database is not None  # finish() holds it while it waits
            return await _finish_all(database, tenant, endings)

        together = _together[database] = Together(run, name=sql.name_of(_queries.finish_all))
    return together


async def _finish_all(database: Database, tenant: str, endings: Sequence[Ending]) -> Sequence[bool]:
    # In one order everywhere, so that two processes never wait for each other in a circle.
    order = sorted(range(len(endings)), key=lambda n: (endings[n].operation, endings[n].key))
    books = [list(column) for column in zip(*(_books(endings[n]) for n in order), strict=True)]
    events = [(place, event) for place, n in enumerate(order, 1) for event in endings[n].events]
    event_of = [place for place, _ in events]
    rows = await database.alone(_queries.finish_all, tenant, *books, event_of, *columns([event for _, event in events]))
    placed = dict(zip(order, rows[0]["ours"], strict=True))
    return [placed[n] for n in range(len(endings))]


def _books(ending: Ending) -> tuple[Any, ...]:
    """What is written of an ending, events aside, in the order of finish_message."""
    job = ending.job
    if job is None:
        ended: tuple[Any, ...] = (None, None, None, None, None)
    else:
        fault = None if job.fault is None else dict(job.fault)
        ended = (job.job_id, job.status, job.attempt, job.result, fault)
    return (ending.operation, ending.key, ending.owner, ending.reply, ending.fault, *ended)
