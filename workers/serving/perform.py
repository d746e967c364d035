"""Runs a handler so that its effect happens once: claim the key, run outside any transaction, commit all in one.

A request without a key, or of an operation that changes nothing, just runs.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

import codec
from runtime.crash import crash_point
from runtime.output import OutputWriter
from store.ending import Ending, JobEnd, finish
from store.inbox import Claimed, Done, Inbox, LeaseLost
from store.pgerrors import OutcomeUnknown
from store.valkey_inbox import ValkeyInbox
from subjects import grammar
from subjects.contract import Call, Code, Fault, Model
from subjects.jobs import CANCELLED, FAILED, SUCCEEDED, JobChanged, JobFault, Status
from workers.serving.alongside import Alongside
from workers.serving.context import Context
from workers.serving.host import Host
from workers.serving.outcome import Outcome, Verdict
from workers.serving.route import Handler, Later
from workers.serving.settle import MAX_FAULTS, retry_delay_s

log = structlog.get_logger("workers.serving")


MAX_STORED_REPLY_BYTES = 64 * 1024
POLL_FIRST_S, POLL_MOST_S = 0.02, 0.5  # a duplicate looks at the row of the first, holding no connection
UNKNOWN_COMMIT_DELAY_S = 1.0
AFTER_COMMIT_TIMEOUT_S = 5.0
TOO_LARGE_TO_KEEP = Fault(
    Code.CONFLICT, "this key was used before and its effect stands, but its reply was too large to keep"
)
ENDED = {"succeeded": SUCCEEDED, "failed": FAILED, "cancelled": CANCELLED}


class Performer:
    """Performs the messages of one component in one process."""

    def __init__(self, host: Host, keys: Inbox | ValkeyInbox | None) -> None:
        self._host = host
        self._keys = keys  # where requests claim; jobs and events always claim in the database
        # A claim whose process died is free when the broker delivers its message again; renewed every third of it.
        self._lease_s = host.settings.job_ack_wait_s

    # --- requests -------------------------------------------------------------------------------------------------

    async def request(
        self, ctx: Context[Any], call: Call[Any, Any], handler: Handler, message: Model, digest: str
    ) -> Outcome:
        """The answer to a request: never raises, except when this process is stopping."""
        try:
            if ctx.key is None or self._keys is None:
                return Outcome("done", await self._run_now(ctx, handler, message), then=self._then(ctx))
            return await self._once(ctx, call, handler, message, digest)
        except Fault as fault:
            return Outcome("done", fault=fault)

    async def _run_now(self, ctx: Context[Any], handler: Handler, message: Model) -> Model:
        reply: Model = await self._handled(ctx, handler, message)
        if ctx.began or (ctx.emitted and isinstance(self._keys, Inbox)):
            await self._commit(ctx, None)
        return reply

    async def _once(
        self, ctx: Context[Any], call: Call[Any, Any], handler: Handler, message: Model, digest: str
    ) -> Outcome:
        assert self._keys is not None
        claim = await self._claim(ctx, self._keys, call.name, digest)
        if isinstance(claim, Done):
            return Outcome("done", **restored(claim, call.output))
        ctx.attempt = claim.attempts
        owner = claim.owner
        try:
            async with self._renewing(ctx, self._keys, call.name, owner):
                reply = await self._handled(ctx, handler, message)
            await self._finish(ctx, self._keys, call.name, owner, reply, None)
        except Fault as fault:
            await self._conclude(ctx, self._keys, call.name, owner, fault)
            raise
        except BaseException:
            with suppress(Fault):
                await self._keys.release(ctx.tenant, call.name, str(ctx.key), owner)
            raise
        return Outcome("done", reply, then=self._then(ctx))

    async def _conclude(
        self, ctx: Context[Any], keys: Inbox | ValkeyInbox, name: str, owner: str, fault: Fault
    ) -> None:
        """A fault that will not change is kept like an answer; one that may frees the key."""
        with suppress(Fault):
            if fault.retryable or fault.code in (Code.CANCELLED, Code.FORBIDDEN):
                await keys.release(ctx.tenant, name, str(ctx.key), owner)
            else:
                await self._finish(ctx, keys, name, owner, None, fault)

    # --- jobs and events --------------------------------------------------------------------------------------------

    async def durable(
        self, ctx: Context[Any], name: str, handler: Handler, message: Model, digest: str, output: type[Model] | None
    ) -> Outcome:
        """Perform a job (output given) or an event. Raises only when this process is stopping."""
        inbox = self._host.books.inbox
        claim = await self._claim(ctx, inbox, name, digest)
        if isinstance(claim, Done):
            return self._known(claim, output)
        ctx.attempt, ctx.resumed = claim.attempts - claim.hand_backs, claim.hand_backs > 0
        ctx.claimed.set()
        if ctx.output_id is not None:
            ctx.output = OutputWriter(self._host.connection, ctx.tenant, ctx.output_id, claim.attempts)
        try:
            return await self._attempt(ctx, name, handler, message, claim)
        except Later as later:
            await self._released(ctx, name, claim.owner, hand_back=True)
            return Outcome("again", delay_s=later.delay_s)
        except LeaseLost:
            return Outcome("lost")
        except OutcomeUnknown:
            return Outcome("again", delay_s=UNKNOWN_COMMIT_DELAY_S)
        except asyncio.CancelledError:  # this process is stopping: hand back at once
            await self._released(ctx, name, claim.owner, hand_back=True)
            raise

    def _known(self, done: Done, output: type[Model] | None) -> Outcome:
        """A redelivery of finished work: nothing runs, and a failure is dead-lettered if it was not yet."""
        kept = restored(done, output) if output is not None else {}
        verdict = "done" if done.fault is None else verdict_on(as_fault(done.fault))
        return Outcome(verdict, **kept, attempt=done.attempts)

    async def _attempt(self, ctx: Context[Any], name: str, handler: Handler, message: Model, claim: Claimed) -> Outcome:
        inbox = self._host.books.inbox
        try:
            async with self._renewing(ctx, inbox, name, claim.owner):
                reply = await self._handled(ctx, handler, message)
            await self._finish(ctx, inbox, name, claim.owner, reply, None)
        except (LeaseLost, OutcomeUnknown):
            raise
        except Fault as fault:
            if fault.retryable and claim.faults + 1 < MAX_FAULTS:
                await self._released(ctx, name, claim.owner, fault=True)
                return Outcome("again", fault=fault, delay_s=fault.retry_after_s or retry_delay_s(claim.faults + 1))
            await self._finish(ctx, inbox, name, claim.owner, None, fault)
            return Outcome(verdict_on(fault), fault=fault, attempt=claim.attempts, output=ctx.output)
        await self.afterwards(ctx)
        return Outcome("done", reply, attempt=claim.attempts, output=ctx.output)

    async def crashes(self, ctx: Context[Any], name: str) -> int:
        """How often a process died while it ran this: attempts begun that ended neither in a fault nor a hand-back."""
        while True:
            try:
                return await self._host.books.inbox.crashes(ctx.tenant, name, str(ctx.key))
            except Fault as fault:
                log.warning("waiting for the database", operation=name, code=fault.code.value)
                await asyncio.sleep(POLL_MOST_S)

    async def give_up(self, ctx: Context[Any], name: str, digest: str, fault: Fault) -> Outcome:
        """Record a job as failed without running it, and have it dead-lettered."""
        inbox = self._host.books.inbox
        claim = await self._claim(ctx, inbox, name, digest)
        if isinstance(claim, Done):
            return self._known(claim, None)
        ctx.attempt = claim.attempts
        await self._finish(ctx, inbox, name, claim.owner, None, fault)
        return Outcome(verdict_on(fault), fault=fault, attempt=claim.attempts)

    async def _released(
        self, ctx: Context[Any], name: str, owner: str, *, fault: bool = False, hand_back: bool = False
    ) -> None:
        """Free the claim and count why. With the database away the claim runs out by itself, and counts as a crash."""
        try:
            await self._host.books.inbox.release(
                ctx.tenant, name, str(ctx.key), owner, fault=fault, hand_back=hand_back
            )
        except Fault as failure:
            log.warning("claim not released", operation=name, code=failure.code.value)

    # --- the parts ----------------------------------------------------------------------------------------------------

    async def _handled(self, ctx: Context[Any], handler: Handler, message: Model) -> Any:
        """Run the handler. What it began is rolled back when it raises. A request waits where a job hands back."""
        while True:
            try:
                return await handler(ctx, message)
            except BaseException as error:
                await ctx.rollback(error)
                if not isinstance(error, Later) or ctx.job_id is not None:
                    raise
                if error.delay_s >= ctx.remaining_s():
                    raise Fault(Code.TIMEOUT, "not ready before the deadline") from error
                await asyncio.sleep(error.delay_s)

    async def _claim(self, ctx: Context[Any], keys: Inbox | ValkeyInbox, name: str, digest: str) -> Claimed | Done:
        """Claim the key, or wait for whoever has it. Raises Fault(CONFLICT) for another message under the same key,
        Fault(TIMEOUT) at the deadline; with the database away it waits for it as well, for nothing else can be done."""
        owner, wait_s = f"{self._host.owner}-{uuid.uuid4().hex[:12]}", POLL_FIRST_S
        while True:
            try:
                claim = await keys.claim(
                    ctx.tenant, name, str(ctx.key), digest=digest, lease_s=self._lease_s, owner=owner
                )
                if isinstance(claim, Claimed | Done):
                    return claim
            except Fault as fault:
                if not ctx.durable or not fault.retryable:
                    raise
                log.warning("waiting for the database", operation=name, code=fault.code.value)
                wait_s = POLL_MOST_S
            if not ctx.durable and ctx.remaining_s() <= wait_s:
                raise Fault(Code.TIMEOUT, "another message with this Idempotency-Key is still being worked on")
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, POLL_MOST_S)

    @asynccontextmanager
    async def _renewing(
        self, ctx: Context[Any], keys: Inbox | ValkeyInbox, name: str, owner: str
    ) -> AsyncIterator[None]:
        """Hold the claim while the handler works; hear of a cancel that only the job's row knows."""

        async def renew() -> None:
            while True:
                try:
                    if not await keys.renew(ctx.tenant, name, str(ctx.key), owner, lease_s=self._lease_s):
                        ctx.stop.cancel("lost")
                    elif jobs is not None and await jobs.cancel_requested(ctx.tenant, str(ctx.job_id)):
                        ctx.stop.cancel("caller")
                except Fault as fault:
                    log.warning("claim not renewed", operation=name, code=fault.code.value)
                await asyncio.sleep(self._lease_s / 3)

        jobs = self._host.books.jobs if ctx.job_id is not None else None
        try:
            async with Alongside(renew, self._lease_s / 3):
                yield
        except asyncio.CancelledError:
            if ctx.stop.reason == "lost":
                _uncancel()
                raise LeaseLost from None
            raise

    async def _finish(
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
                await self._commit(ctx, None)
            await keys.finish(ctx.tenant, name, str(ctx.key), owner, reply=kept, fault=problem)
            return
        job = self._job_end(ctx, name, reply, fault)
        await self._commit(ctx, Ending(name, str(ctx.key), owner, kept, problem, job))

    def _job_end(self, ctx: Context[Any], name: str, reply: Model | None, fault: Fault | None) -> JobEnd | None:
        """The final state of the job's row, and the event that tells of it."""
        if ctx.job_id is None:
            return None
        component, _, operation = name.partition(".")
        status: Status = "succeeded" if fault is None else "cancelled" if fault.code is Code.CANCELLED else "failed"
        told = None if fault is None else fault_of_job(fault)
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

    async def _commit(self, ctx: Context[Any], ending: Ending | None) -> None:
        """THE transaction: what the handler wrote, then the books, then COMMIT; events are published after it."""
        books, database = self._host.books, self._host.database
        rows = [
            books.outbox.row(
                grammar.event(ctx.tenant, event.component, event.occurred), ctx.event_headers(), codec.encode(payload)
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

    def _then(self, ctx: Context[Any]) -> Callable[[], Awaitable[None]] | None:
        return partial(self.afterwards, ctx) if ctx.emitted or ctx.afterwards else None

    async def afterwards(self, ctx: Context[Any]) -> None:
        """Best effort once the effect stands; of a request, once its answer is out. Raises nothing."""
        for event, payload in ctx.emitted:  # a component without a database: nothing to commit the fact with
            self._host.facts.publish(ctx.tenant, event, payload, ctx.event_headers())
        for fn in ctx.afterwards:
            try:
                async with asyncio.timeout(AFTER_COMMIT_TIMEOUT_S):
                    await fn()
            except (Fault, TimeoutError) as failure:
                log.warning("after commit", error=str(failure))


def fault_of_job(fault: Fault) -> JobFault:
    return JobFault(code=fault.code.value, detail=fault.detail, retryable=fault.retryable, errors=list(fault.errors))


def verdict_on(fault: Fault) -> Verdict:
    """What becomes of a job that ended in this fault for good: a cancelled one is wanted so, any other is kept dead."""
    return "done" if fault.code is Code.CANCELLED else "dead"


def as_fault(kept: bytes) -> Fault:
    problem = codec.decode(kept, codec.Problem)
    return Fault(Code(problem.code), problem.detail, errors=problem.errors)


def restored(done: Done, output: type[Model]) -> dict[str, Any]:
    """The kept answer of an earlier message under the same key, as fields of an Outcome."""
    if done.fault is not None:
        return {"fault": as_fault(done.fault)}
    if done.reply is None:
        return {"fault": TOO_LARGE_TO_KEEP}
    return {"reply": codec.decode(done.reply, output)}


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
