"""Dead letters as operations: list, show, redrive, purge."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

from nats.errors import Error as NatsError

from codec import headers as names
from runtime import jobs as wire
from runtime.stored import read_last
from runtime.streams import API_TIMEOUT_S, JOBS, OUT
from store.inbox import Claimed, Done, LeaseLost
from store.jobs import JobRow
from subjects import grammar, jobs
from subjects.contract import Code, Fault
from workers.jobs.again import Contract, body_of, changed, contract_of, headers_again
from workers.jobs.deps import Deps
from workers.jobs.letters import Letter, Letters, in_full, told
from workers.serving import Context

PURGED_AT_ONCE = 1000
CLAIM_LEASE_S = 10.0
ANOTHER_ENDS_WITHIN_S, LOOK_EVERY_S = 5.0, 0.05
NOTHING_STORED = frozenset({Code.EXHAUSTED, Code.TOO_LARGE, Code.INVALID})  # after these it is known


async def list_dead_letters(ctx: Context[Deps], message: jobs.ListDeadLetters) -> jobs.DeadLetterList:
    """Raises Fault(INVALID) on a bad cursor."""
    page = await _letters(ctx).page(message, message.limit, message.cursor)
    return jobs.DeadLetterList(items=[told(each) for each in page.letters], next_cursor=page.cursor)


async def get_dead_letter(ctx: Context[Deps], message: jobs.GetDeadLetter) -> jobs.DeadLetterDetail:
    """Raises Fault(NOT_FOUND), and Fault(INVALID) when the component must be named."""
    letters = _letters(ctx)
    letter = await letters.one(message.job_id, message.component)
    return in_full(letter, await letters.body(letter))


async def purge(ctx: Context[Deps], message: jobs.PurgeDeadLetters) -> jobs.Purged:
    """Raises Fault(NOT_FOUND) for an id that has no letter, Fault(INVALID) on neither or both of job_id and all."""
    _one_or_all(message.job_id, message.all)
    letters = _letters(ctx)
    if message.job_id is not None:
        return jobs.Purged(removed=await letters.remove(await letters.of(message.job_id, message.component)))
    page = await letters.page(message, PURGED_AT_ONCE, message.cursor, before=message.before)
    return jobs.Purged(removed=await letters.remove(page.letters), next_cursor=page.cursor)


async def redrive(ctx: Context[Deps], message: jobs.Redrive) -> jobs.Redriven:
    """Send dead jobs again. One that is asked for by its id raises what stands in its way: NOT_FOUND, INVALID (its
    changes), FORBIDDEN (the caller may not ask for the operation), CONFLICT. Of all, each tells its own fault, and
    EXHAUSTED, UNAVAILABLE or TIMEOUT ends the lot: what was redriven until then is gone from the letters."""
    _one_or_all(message.job_id, message.all)
    letters = _letters(ctx)
    if message.job_id is not None:
        letter = await letters.one(message.job_id, message.component)
        return jobs.Redriven(items=[await Redriving(ctx, message, letter, letters).run()])
    page = await letters.page(message, jobs.MAX_NAMED, message.cursor)
    items = []
    for letter in page.letters:
        redriving = Redriving(ctx, message, letter, letters)
        try:
            items.append(await redriving.run())
        except Fault as fault:
            if fault.retryable:
                raise
            items.append(redriving.told("refused", fault))
    return jobs.Redriven(items=items, next_cursor=page.cursor)


class Redriving:
    """One letter's way back. A redrive number is claimed in the inbox, so that it is sent once, whoever asks how often;
    its message has the job's id in a lane of its own, and the job works under a key of its own."""

    def __init__(self, ctx: Context[Deps], message: jobs.Redrive, letter: Letter, letters: Letters) -> None:
        self._ctx = ctx
        self._message = message
        self._letter = letter
        self._letters = letters
        self._number = letter.redrive + 1

    async def run(self) -> jobs.RedrivenJob:
        contract = self._contract()
        data, headers = await self._made(contract)
        if self._message.dry_run:
            return self.told("would_run")
        inbox, tenant, key = self._ctx.deps.inbox, self._ctx.tenant, self._key()
        digest = hashlib.sha256(data).hexdigest()
        claim = await self._claimed(key, digest)
        if isinstance(claim, Done):
            await self._letters.remove([self._letter])
            return self.told("already")
        try:
            await self._send(data, headers)
            await self._letters.remove([self._letter])
            async with self._ctx.host.database.transaction(tenant) as tx:
                await inbox.finish(tx, tenant, jobs.REDRIVE.name, key, claim.owner, reply=b"", fault=None)
        except LeaseLost:  # somebody took over after the lease had run out, and found it sent
            return self.told("already")
        except BaseException:
            with suppress(Fault):
                await inbox.release(tenant, jobs.REDRIVE.name, key, claim.owner)
            raise
        return self.told("redriven")

    def told(self, outcome: str, fault: Fault | None = None) -> jobs.RedrivenJob:
        address = self._letter.address
        problem = None
        if fault is not None:
            problem = jobs.JobFault(
                code=fault.code.value, detail=fault.detail, retryable=fault.retryable, errors=list(fault.errors)
            )
        return jobs.RedrivenJob.model_validate(
            {
                "job_id": address.ident,
                "component": address.component,
                "operation": address.operation,
                "redrive": self._number,
                "outcome": outcome,
                "fault": problem,
            }
        )

    def _contract(self) -> Contract:
        address = self._letter.address
        contract = contract_of(address.component, address.operation)
        if contract is None:
            raise Fault(Code.NOT_FOUND, f"nobody serves {address.component}.{address.operation} any more; purge it")
        if not contract.sent_by_job:
            raise Fault(
                Code.CONFLICT, f"{address.component} takes no jobs, so an event's delivery cannot go back to it"
            )
        if contract.scope is not None and not self._ctx.identity.allows(contract.scope):
            raise Fault(Code.FORBIDDEN, f"to redrive it needs the scope {contract.scope}")
        return contract

    async def _made(self, contract: Contract) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the message. Raises Fault before anything is sent or changed."""
        data = await self._letters.body(self._letter)
        if data is None:
            raise Fault(
                Code.NOT_FOUND, "the letter had no room for the message, and its stream does not keep it any more"
            )
        headers = headers_again(self._letter.headers)
        headers.pop(names.OUTPUT_TO, None)  # what was told there has ended
        headers[names.REDRIVE] = str(self._number)
        if self._message.set:
            made = changed(contract.model, data, self._letter.content_type, self._message.set)
            data, more = body_of(made)
            headers |= more
        return data, headers

    def _key(self) -> str:
        address = self._letter.address
        return f"{address.component}.{address.operation}/{wire.run_key(address.ident, self._number)}"

    async def _claimed(self, key: str, digest: str) -> Claimed | Done:
        """Whoever else redrives this letter right now is waited for. Raises Fault(CONFLICT) when that was with other
        changes."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ANOTHER_ENDS_WITHIN_S
        owner = f"redrive-{self._ctx.identity.request_id}"
        while True:
            claim = await self._ctx.deps.inbox.claim(
                self._ctx.tenant, jobs.REDRIVE.name, key, digest=digest, lease_s=CLAIM_LEASE_S, owner=owner
            )
            if isinstance(claim, Claimed | Done):
                return claim
            if loop.time() > until:
                raise Fault(Code.UNAVAILABLE, "this letter is being redriven by somebody else; ask again")
            await asyncio.sleep(LOOK_EVERY_S)

    async def _send(self, data: bytes, headers: dict[str, str]) -> None:
        address, connection = self._letter.address, self._ctx.deps.connection
        subject = grammar.job(address.tenant, address.component, address.operation, address.ident, f"d{self._number}")
        if await read_last(connection, JOBS, subject) is not None:
            return  # sent by a process that died right after
        before = await self._reopened()
        try:
            await self._forget_output()
            await wire.publish_or_find(connection.requests, subject, data, headers)
        except Fault as fault:
            if before is not None and fault.code in NOTHING_STORED:
                await self._ctx.deps.jobs.restore(address.tenant, before)
            raise

    async def _reopened(self) -> JobRow | None:
        """The job is queued again before anybody can begin it. Another message needs other steps."""
        tenant, job_id = self._ctx.tenant, self._letter.address.ident
        async with self._ctx.host.database.transaction(tenant) as tx:
            if self._message.set:
                await self._ctx.host.books.steps.clear(tx, tenant, job_id)
            return await self._ctx.deps.jobs.reopen(tx, tenant, job_id)

    async def _forget_output(self) -> None:
        """Who joins the job's output now must not be told how it ended the last time."""
        subject = grammar.output(self._ctx.tenant, self._letter.address.ident)
        try:
            await self._ctx.deps.connection.jetstream(timeout=API_TIMEOUT_S).purge_stream(OUT, subject=subject)
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error


def _letters(ctx: Context[Deps]) -> Letters:
    return Letters(ctx.deps.connection, ctx.tenant)


def _one_or_all(job_id: str | None, everything: bool) -> None:
    if (job_id is None) == (not everything):
        raise Fault(Code.INVALID, "say either job_id or all: true")
