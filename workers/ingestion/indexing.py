"""The stage that has rag index the text: one job of rag, watched until it ends."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import PurePath

from subjects import jobs, rag
from subjects.contract import Code, Fault
from subjects.ingestion import STAGES, File
from workers.ingestion.deps import Deps
from workers.ingestion.extraction import Extraction, text_id
from workers.serving import Context, Later

# Looked at, not waited for: jobs.wait would hold a slot of the jobs component for each file on its way. Nor watched for
# long: a job with a crash behind it runs alone in its process, which may be the one that has to index.
FIRST_LOOK_S, MOST_LOOK_S = 0.05, 0.5
WATCH_S = 3.0  # in the first attempt; then the job is handed back and looks once in each delivery
LOOK_TIMEOUT_S = 5.0
LATER_LEAST_S, LATER_MOST_S = 1.0, 10.0
LATER_SHARE = 0.2  # of the time that indexing has taken so far: the end is noticed at most so much later


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
    """The result of the index job. Raises Fault(INVALID) when it failed for good, Later while it goes on."""
    pause_s, until = FIRST_LOOK_S, time.monotonic() + (WATCH_S if ctx.attempt == 1 else 0.0)
    while True:
        job = await _look(ctx, file, extraction, job_id)
        if job is not None and job.status in jobs.FINAL:
            return _result(job)
        if job is not None and job.progress is not None:
            await ctx.progress(STAGES.index("indexed"), len(STAGES), "stages", _message(job.progress))
        if time.monotonic() > until:
            raise Later(_delay_s(job), f"job {job_id} is still indexing")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, MOST_LOOK_S)


def _message(told: jobs.Progress) -> str:
    total = f" of {told.total:g}" if told.total is not None else ""
    return f"indexed: {told.done:g}{total} {told.unit}".rstrip()


def _delay_s(job: jobs.Job | None) -> float:
    if job is None or job.created_at is None:
        return LATER_LEAST_S
    taken_s = (datetime.now(UTC) - job.created_at).total_seconds()
    return min(max(taken_s * LATER_SHARE, LATER_LEAST_S), LATER_MOST_S)


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
