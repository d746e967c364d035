"""What the keeper does to the streams: remove finished jobs and old dead letters, publish running jobs again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo, StreamInfo
from nats.js.errors import NotFoundError

from runtime import jobs
from runtime.connection import Connection
from runtime.stored import first_since
from runtime.streams import API_TIMEOUT_S, DLQ, JOBS
from store import sql
from subjects import grammar
from subjects.contract import Code, Fault

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]

JOB_AGE = timedelta(days=7)
DEAD_LETTER_AGE = timedelta(days=30)
FULL_SHARE = 0.7
YOUNGER = (timedelta(days=2), timedelta(hours=12), timedelta(hours=1), timedelta(0))  # from FULL_SHARE on, in turn
CLOCK_SKEW = timedelta(minutes=1)
BATCH_ROWS = 100
MAX_CONSUMERS = 1024

_queries = sql.load("store", "keeper.sql")
_log = structlog.get_logger("store.sweep")


class Sweep:
    """Raises Fault(UNAVAILABLE) when JetStream does not answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs_created: datetime | None = None

    async def purge(self, _: _Connection) -> None:
        """Remove what each consumer has finished from JOBS after 7 days (sooner from 70 % full), dead letters after
        30 days. What no consumer filters, and what is above a consumer's floor, stays."""
        try:
            await self._purge_jobs()
            await self._purge_older(DLQ, DEAD_LETTER_AGE)
        except NotFoundError:
            return  # the streams are not there yet
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error

    async def _purge_jobs(self) -> None:
        js = self._jetstream()
        info = await js.stream_info(JOBS)  # before its consumers: what is stored later is above every floor
        done = finished_below(info.state.last_seq, await consumers_of(js, JOBS))
        ages: list[timedelta] = [JOB_AGE]
        if is_full(info):
            _log.warning("jobs_stream_fills_up", bytes=info.state.bytes, limit=info.config.max_bytes)
            ages += YOUNGER
        for age in ages:
            if age < JOB_AGE and not is_full(await js.stream_info(JOBS)):
                return
            limit = await self._first_since(JOBS, age, info)
            for filter_subject, below in done.items():
                upto = min(limit, below)
                if upto > info.state.first_seq:
                    await js.purge_stream(JOBS, seq=upto, subject=filter_subject)

    async def _purge_older(self, stream: str, age: timedelta) -> None:
        js = self._jetstream()
        info = await js.stream_info(stream)
        limit = await self._first_since(stream, age, info)
        if limit > info.state.first_seq:
            await js.purge_stream(stream, seq=limit)

    async def _first_since(self, stream: str, age: timedelta, info: StreamInfo) -> int:
        """The sequence of the first message stored no longer ago than age, or one after the last as info has it."""
        found = await first_since(self._connection, stream, datetime.now(UTC) - age)
        return info.state.last_seq + 1 if found is None else found

    async def republish(self, connection: _Connection) -> None:
        """Publish running jobs again whose stream was made anew after they began: their messages went with the old one.

        A job that is in the stream after all stays as it is; one that still works somewhere is found in the inbox.
        """
        try:
            created = (await self._jetstream().stream_info(JOBS)).created
        except NotFoundError:
            return
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error
        if created is None or created == self._jobs_created:
            return
        if self._jobs_created is not None:
            _log.error("jobs_stream_made_anew", created=created.isoformat(), lost="jobs that were queued and not begun")
        again, after = 0, ("", "")
        while rows := await connection.fetch(_queries.running_since_before, created + CLOCK_SKEW, *after, BATCH_ROWS):
            again += await self._publish_again(rows)
            after = rows[-1]["tenant_id"], rows[-1]["job_id"]
        self._jobs_created = created
        if again:
            _log.warning("jobs_published_again", jobs=again)

    async def _publish_again(self, rows: Sequence[asyncpg.Record]) -> int:
        """How many of these were not in the stream."""
        again = 0
        for row in rows:
            redrive = jobs.redrive_of(row["headers"])
            subject = grammar.job(
                row["tenant_id"], row["component"], row["operation"], row["job_id"], f"d{redrive}" if redrive else ""
            )
            kept = {name: value for name, value in row["headers"].items() if not name.startswith("Nats-")}
            try:
                again += not await jobs.publish_first(self._connection.requests, subject, row["body"], kept)
            except Fault as fault:
                if fault.code is not Code.CONFLICT:
                    raise
                _log.warning("job_id_has_another_message", job_id=row["job_id"])
        return again

    def _jetstream(self) -> JetStreamContext:
        return self._connection.jetstream(timeout=API_TIMEOUT_S)


def finished_below(last_sequence: int, consumers: Sequence[ConsumerInfo]) -> dict[str, int]:
    """For each consumer's filter, the sequence below which its messages are done.

    A consumer with nothing left is done with all that was stored, wherever its floor stands. One that does not filter
    a single component's jobs bounds the others as well.
    """
    bounds: dict[str, int] = {}
    for_all = last_sequence + 1
    for consumer in consumers:
        floor = consumer.ack_floor.stream_seq if consumer.ack_floor is not None else 0
        idle = not consumer.num_pending and not consumer.num_ack_pending
        below = last_sequence + 1 if idle else floor + 1
        own = consumer.config.filter_subject or ""
        match own.split("."):
            case [grammar.JOB, "*", component, ">"] if grammar.is_token(component):
                bounds[own] = min(below, bounds.get(own, below))
            case _:
                for_all = min(for_all, below)
    return {own: min(below, for_all) for own, below in bounds.items()}


def is_full(info: StreamInfo) -> bool:
    limit = info.config.max_bytes or 0
    return limit > 0 and info.state.bytes >= FULL_SHARE * limit


async def consumers_of(js: JetStreamContext, stream: str) -> list[ConsumerInfo]:
    """Every consumer of a stream. Raises nats-py's errors, and Fault(INTERNAL) beyond MAX_CONSUMERS."""
    found: list[ConsumerInfo] = []
    while len(found) < MAX_CONSUMERS:
        page = await js.consumers_info(stream, offset=len(found))
        found += page
        if not page:
            return found
    raise Fault(Code.INTERNAL, f"{stream} has more than {MAX_CONSUMERS} consumers")
