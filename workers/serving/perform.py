"""Runs a handler so that its effect happens once: claim the key, run outside any transaction, commit all in one.

A request without a key, or of an operation that changes nothing, just runs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from runtime.output import OutputWriter
from store.inbox import Claimed, Done, Inbox, LeaseLost
from store.pgerrors import OutcomeUnknown
from store.valkey_inbox import ValkeyInbox
from subjects.contract import Call, Code, Fault, Model
from workers.serving.alongside import Alongside
from workers.serving.commit import Committer
from workers.serving.context import Context
from workers.serving.host import Host
from workers.serving.kept import as_fault, restored, verdict_on
from workers.serving.outcome import Outcome
from workers.serving.route import Handler, Later
from workers.serving.settle import MAX_FAULTS, retry_delay_s

log = structlog.get_logger("workers.serving")


POLL_FIRST_S, POLL_MOST_S = 0.02, 0.5  # a duplicate looks at the row of the first, holding no connection
UNKNOWN_COMMIT_DELAY_S = 1.0


class Performer:
    """Performs the messages of one component in one process."""

    def __init__(self, host: Host, keys: Inbox | ValkeyInbox | None) -> None:
        self._host = host
        self._committer = Committer(host)
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
                return Outcome("done", await self._run_now(ctx, handler, message), then=self._committer.then(ctx))
            return await self._once(ctx, call, handler, message, digest)
        except Fault as fault:
            return Outcome("done", fault=fault)

    async def _run_now(self, ctx: Context[Any], handler: Handler, message: Model) -> Model:
        reply: Model = await self._handled(ctx, handler, message)
        if ctx.began or (ctx.emitted and isinstance(self._keys, Inbox)):
            await self._committer.commit(ctx, None)
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
            await self._committer.finish(ctx, self._keys, call.name, owner, reply, None)
        except LeaseLost as error:
            raise Fault(Code.UNAVAILABLE, "another process took over this key; ask again with it") from error
        except Fault as fault:
            await self._conclude(ctx, self._keys, call.name, owner, fault)
            raise
        except BaseException:
            with suppress(Fault):
                await self._keys.release(ctx.tenant, call.name, str(ctx.key), owner)
            raise
        return Outcome("done", reply, then=self._committer.then(ctx))

    async def _conclude(
        self, ctx: Context[Any], keys: Inbox | ValkeyInbox, name: str, owner: str, fault: Fault
    ) -> None:
        """A fault that will not change is kept like an answer; one that may frees the key."""
        with suppress(Fault, LeaseLost):
            if fault.retryable or fault.code in (Code.CANCELLED, Code.FORBIDDEN):
                await keys.release(ctx.tenant, name, str(ctx.key), owner)
            else:
                await self._committer.finish(ctx, keys, name, owner, None, fault)

    # --- jobs and events --------------------------------------------------------------------------------------------

    async def durable(
        self, ctx: Context[Any], name: str, handler: Handler, message: Model, digest: str, output: type[Model] | None
    ) -> Outcome:
        """Perform a job (output given) or an event. Raises only when this process is stopping."""
        inbox = self._host.books.inbox
        try:
            claim = await self._claim(ctx, inbox, name, digest)
        except Fault as fault:  # only what will never change: another message under this id
            return Outcome("stray", fault=fault)
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
                await ctx.last_progress()
            await self._committer.finish(ctx, inbox, name, claim.owner, reply, None)
        except (LeaseLost, OutcomeUnknown):
            raise
        except Fault as fault:
            if fault.retryable and claim.faults + 1 < MAX_FAULTS:
                await self._released(ctx, name, claim.owner, fault=True)
                # The hint is the least to wait: alone, it would use up every attempt while a callee starts again.
                delay_s = max(fault.retry_after_s or 0.0, retry_delay_s(claim.faults + 1))
                return Outcome("again", fault=fault, delay_s=delay_s)
            await self._committer.finish(ctx, inbox, name, claim.owner, None, fault)
            return Outcome(verdict_on(fault), fault=fault, attempt=claim.attempts, output=ctx.output)
        await self._committer.afterwards(ctx)
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
        try:
            claim = await self._claim(ctx, inbox, name, digest)
        except Fault as refused:
            return Outcome("stray", fault=refused)
        if isinstance(claim, Done):
            return self._known(claim, None)
        ctx.attempt = claim.attempts
        await self._committer.finish(ctx, inbox, name, claim.owner, None, fault)
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


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
