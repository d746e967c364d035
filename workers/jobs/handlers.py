"""What jobs does with a job's row and its stored message."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict

import codec
from codec import headers as names
from runtime.jobs import run_key
from store.ending import Ending, JobEnd, finish
from store.inbox import Claimed
from store.jobs import JobRow
from subjects import grammar, jobs
from subjects.contract import Code, Fault
from workers.jobs.deps import Deps
from workers.jobs.stored import find
from workers.serving import Context

LOOK_EVERY_S = 1.0  # while waiting, in case the end's chunk was missed
CANCEL_LEASE_S = 10.0
BY_CALLER = Fault(Code.CANCELLED, "cancelled by its caller before it began")


async def get(ctx: Context[Deps], message: jobs.GetJob) -> jobs.Job:
    """The job's row, else what the stream knows of it. Raises Fault(NOT_FOUND)."""
    row = await ctx.deps.jobs.get(ctx.tenant, message.job_id)
    if row is not None:
        return as_job(row)
    stored = await find(ctx.deps.connection, ctx.tenant, message.job_id)
    if stored is None:
        raise Fault(Code.NOT_FOUND, f"there is no job {message.job_id}")
    return jobs.Job(
        job_id=message.job_id,
        component=stored.component,
        operation=stored.operation,
        status="queued",
        created_at=stored.stored_at,
    )


async def list_jobs(ctx: Context[Deps], message: jobs.ListJobs) -> jobs.JobList:
    """Jobs that have begun, newest first; one that is only queued has no row yet. Raises Fault(INVALID) on a bad
    cursor."""
    items, next_cursor = await ctx.deps.jobs.list(
        ctx.tenant,
        component=message.component,
        status=message.status,
        limit=message.limit,
        cursor=message.cursor,
    )
    return jobs.JobList(items=[as_job(row) for row in items], next_cursor=next_cursor)


async def wait(ctx: Context[Deps], message: jobs.WaitForJob) -> jobs.Job:
    """The job once it has ended, or as it stands after wait_s. Raises Fault(NOT_FOUND)."""
    ended = asyncio.Event()

    def on_output(_subject: bytes, _reply: bytes, _data: bytes, block: bytes | None) -> None:
        if block is not None and names.CHUNK_END.encode() in block:
            ended.set()

    subscription = await ctx.deps.connection.listen(grammar.output(ctx.tenant, message.job_id), on_output)
    try:
        until = asyncio.get_running_loop().time() + min(message.wait_s, max(0.0, ctx.remaining_s() - 1.0))
        while True:
            job = await get(ctx, jobs.GetJob(job_id=message.job_id))
            left_s = until - asyncio.get_running_loop().time()
            if job.status in jobs.FINAL or left_s <= 0:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), min(left_s, LOOK_EVERY_S))
            ended.clear()
    finally:
        await subscription.unsubscribe()


async def cancel(ctx: Context[Deps], message: jobs.CancelJob) -> jobs.Job:
    """Stop a job. One that has ended stays as it is; one that has not begun never will; one that runs is told at once
    and its row says so, which the running process reads at its next pulse. Raises Fault(NOT_FOUND)."""
    deps = ctx.deps
    job = await get(ctx, jobs.GetJob(job_id=message.job_id))
    if job.status in jobs.FINAL:
        return job
    stored = await find(deps.connection, ctx.tenant, message.job_id)
    name = f"{job.component}.{job.operation}"
    owner = f"cancel-{ctx.identity.request_id}"
    digest = stored.digest if stored is not None else ""
    key = run_key(message.job_id, stored.redrive if stored is not None else 0)
    claim = await deps.inbox.claim(ctx.tenant, name, key, digest=digest, lease_s=CANCEL_LEASE_S, owner=owner)
    if isinstance(claim, Claimed):
        return await _never_begin(ctx, job, name, key, owner, claim.attempts - 1)
    await deps.jobs.request_cancel(ctx.tenant, message.job_id, component=job.component, operation=job.operation)
    await deps.connection.publish(grammar.cancel(ctx.tenant, message.job_id), b"")
    return await get(ctx, jobs.GetJob(job_id=message.job_id))


async def _never_begin(ctx: Context[Deps], job: jobs.Job, name: str, key: str, owner: str, attempts: int) -> jobs.Job:
    """Nobody is working on it: end it in its place. Its message is acked when it is delivered."""
    told = jobs.JobFault(code=BY_CALLER.code.value, detail=BY_CALLER.detail, retryable=False)
    problem = codec.encode(codec.to_problem(BY_CALLER))
    end = JobEnd(job.job_id, "cancelled", attempts, fault=told.model_dump())
    tx = await ctx.begin()
    await finish(ctx.host.database, ctx.tenant, Ending(name, key, owner, fault=problem, job=end), tx=tx)
    changed = jobs.JobChanged(
        entity_id=job.job_id, component=job.component, operation=job.operation, status="cancelled", fault=told
    )
    ctx.emit(jobs.CANCELLED, changed)
    return job.model_copy(update={"status": "cancelled", "fault": told, "attempt": attempts})


def as_job(row: JobRow) -> jobs.Job:
    return jobs.Job.model_validate(asdict(row))
