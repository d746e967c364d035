"""The stage that has rag index the text: one job of rag, watched until it ends."""

from __future__ import annotations

import asyncio
from pathlib import PurePath

from subjects import jobs, rag
from subjects.contract import Code, Fault
from subjects.ingestion import STAGES, File
from workers.ingestion.deps import Deps
from workers.ingestion.extraction import Extraction, text_id
from workers.serving import Context, Later

# Looked at, not waited for: jobs.wait would hold a slot of the jobs component for each file on its way.
FIRST_LOOK_S, MOST_LOOK_S = 0.1, 2.0
LOOK_TIMEOUT_S = 5.0
RESERVE_S = 15.0  # before the deadline the job is handed back, to go on watching in its next delivery
LATER_S = 1.0


async def submit_index(ctx: Context[Deps], file: File, extraction: Extraction) -> jobs.Submitted:
    """Submit rag.ingest under a key of the file: again gives the same job."""
    return await ctx.submit(
        rag.INGEST,
        rag.Ingest(
            file_id=text_id(file.file_id),
            title=extraction.title or PurePath(file.name).stem[:500],
            source_id=file.source_id,
            collection=file.collection,
            metadata=file.metadata,
        ),
        key=f"ingestion/{file.file_id}",
    )


async def index(ctx: Context[Deps], file: File, extraction: Extraction, job_id: str) -> rag.Ingested:
    """The result of the index job. Raises Fault(INVALID) when it failed for good, Later when it goes on for long."""
    pause_s = FIRST_LOOK_S
    while ctx.remaining_s() > RESERVE_S:
        job = await _look(ctx, file, extraction, job_id)
        if job is not None and job.status in jobs.FINAL:
            return _result(job)
        if job is not None and job.progress is not None:
            told = job.progress
            total = f" of {told.total:g}" if told.total is not None else ""
            message = f"indexed: {told.done:g}{total} {told.unit}"
            await ctx.progress(STAGES.index("indexed"), len(STAGES), "stages", message)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, MOST_LOOK_S)
    raise Later(LATER_S, f"job {job_id} is still indexing")


async def _look(ctx: Context[Deps], file: File, extraction: Extraction, job_id: str) -> jobs.Job | None:
    """The job as it stands; None when it cannot be seen now. One that is nowhere (its stream was lost) is submitted
    again under its key."""
    try:
        return await ctx.call(jobs.GET, jobs.GetJob(job_id=job_id), timeout_s=LOOK_TIMEOUT_S)
    except Fault as fault:
        if fault.code == Code.NOT_FOUND:
            await submit_index(ctx, file, extraction)
        elif not fault.retryable:
            raise
        return None


def _result(job: jobs.Job) -> rag.Ingested:
    if job.status == "succeeded":
        return rag.Ingested.model_validate(job.result)
    reason = job.fault.detail if job.fault is not None else job.status
    raise Fault(Code.INVALID, f"its text could not be indexed: {reason}")
