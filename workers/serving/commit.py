"""THE transaction of a message: the handler's writes, its claim, its job's row and its events, all or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

import codec
from runtime.crash import crash_point
from store.ending import Ending, JobEnd, finish
from store.inbox import Inbox
from store.valkey_inbox import ValkeyInbox
from subjects import grammar
from subjects.contract import Code, Fault, Model
from subjects.jobs import CANCELLED, FAILED, SUCCEEDED, JobChanged, JobFault, Status
from workers.serving.context import Context
from workers.serving.host import Host

log = structlog.get_logger("workers.serving")

MAX_STORED_REPLY_BYTES = 64 * 1024
AFTER_COMMIT_TIMEOUT_S = 5.0
ENDED = {"succeeded": SUCCEEDED, "failed": FAILED, "cancelled": CANCELLED}


class Committer:
    """Commits for one process."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def finish(
        self,
        ctx: Context[Any],
        keys: Inbox | ValkeyInbox,
        name: str,
        owner: str,
        reply: Model | None,
        fault: Fault | None,
    ) -> None:
        """Commit the end of a message: the handler's writes, the claim as done, the job's row, the events."""
        body = None if reply is None else codec.encode(reply)
        kept = body if body is not None and len(body) <= MAX_STORED_REPLY_BYTES else None
        problem = None if fault is None else codec.encode(codec.to_problem(fault))
        if fault is not None:
            ctx.emitted.clear()
        if isinstance(keys, ValkeyInbox):
            if ctx.began:
                await self.commit(ctx, None)
            await keys.finish(ctx.tenant, name, str(ctx.key), owner, reply=kept, fault=problem)
            return
        job = _job_end(ctx, name, reply, fault)
        await self.commit(ctx, Ending(name, str(ctx.key), owner, kept, problem, job))

    async def commit(self, ctx: Context[Any], ending: Ending | None) -> None:
        """THE transaction: what the handler wrote, then the books, then COMMIT; events are published after it."""
        books, database = self._host.books, self._host.database
        rows = [
            books.outbox.row(
                grammar.event(ctx.tenant, event.component, event.occurred),
                ctx.event_headers(event),
                codec.encode(payload, self._host.settings.content_type),
            )
            for event, payload in ctx.emitted
        ]
        crash_point("before_tx")
        if ctx.began or ending is None:
            tx = await ctx.begin()
            try:
                if ending is not None:
                    await finish(database, ctx.tenant, replace(ending, events=rows), tx=tx)
                elif rows:
                    await books.outbox.add(tx, ctx.tenant, rows)
                crash_point("mid_tx")
            except BaseException as error:
                await ctx.rollback(error)
                raise
            await ctx.commit()
        else:
            await finish(database, ctx.tenant, replace(ending, events=rows))
        crash_point("after_commit")
        books.outbox.notify(ctx.tenant, rows)
        ctx.emitted.clear()

    def then(self, ctx: Context[Any]) -> Callable[[], Awaitable[None]] | None:
        return partial(self.afterwards, ctx) if ctx.emitted or ctx.afterwards else None

    async def afterwards(self, ctx: Context[Any]) -> None:
        """Best effort once the effect stands; of a request, once its answer is out. Raises nothing."""
        for event, payload in ctx.emitted:  # a component without a database: nothing to commit the fact with
            self._host.facts.publish(ctx.tenant, event, payload, ctx.event_headers(event))
        for fn in ctx.afterwards:
            try:
                async with asyncio.timeout(AFTER_COMMIT_TIMEOUT_S):
                    await fn()
            except (Fault, TimeoutError) as failure:
                log.warning("after commit", error=str(failure))


def _job_end(ctx: Context[Any], name: str, reply: Model | None, fault: Fault | None) -> JobEnd | None:
    """The final state of the job's row, and the event that tells of it."""
    if ctx.job_id is None:
        return None
    component, _, operation = name.partition(".")
    status: Status = "succeeded" if fault is None else "cancelled" if fault.code is Code.CANCELLED else "failed"
    told = None if fault is None else _told(fault)
    result = None if reply is None else codec.encode(reply, codec.JSON)
    kept = json.loads(result) if result is not None and len(result) <= MAX_STORED_REPLY_BYTES else None
    changed = JobChanged(
        entity_id=ctx.job_id,
        version=ctx.attempt,
        component=component,
        operation=operation,
        status=status,
        attempt=ctx.attempt,
        fault=told,
    )
    ctx.emit(ENDED[status], changed)
    return JobEnd(ctx.job_id, status, ctx.attempt, kept, None if told is None else told.model_dump())


def _told(fault: Fault) -> JobFault:
    return JobFault(code=fault.code.value, detail=fault.detail, retryable=fault.retryable, errors=list(fault.errors))
