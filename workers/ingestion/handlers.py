"""The operations: register a file, process it, tell how it stands."""

from __future__ import annotations

import asyncio
import time

from store.objects import Objects
from subjects import jobs, rag
from subjects.contract import Code, Fault, Model
from subjects.ingestion import (
    FILE_EXTRACTED,
    FILE_FAILED,
    FILE_RECEIVED,
    PROCESS,
    STAGES,
    File,
    FileExtracted,
    FileFailed,
    FileList,
    FileReceived,
    GetFile,
    ListFiles,
    Process,
    Processed,
    Register,
    StageName,
    Uploaded,
)
from workers.ingestion import extract, records, sniff
from workers.ingestion.deps import Deps
from workers.ingestion.extraction import TEXT_SUFFIX, Extraction, extract_text
from workers.ingestion.indexing import index, submit_index
from workers.ingestion.records import Record, entry
from workers.ingestion.tell import telling
from workers.serving import Context, Later

MAX_FILE_BYTES = 256 << 20
MAX_FILE_ID = 63 - len(TEXT_SUFFIX)  # the text's object is named after the file
HEAD_TIMEOUT_S = 10.0
ROW_LOOKS, ROW_LOOK_S = 10, 0.05  # the job may come before the commit of the row that it is about
ROW_LATER_S = 2.0
ROW_WITHIN_S = 600.0  # then the upload was never finished, and nobody was told that it was


class Seen(Model):
    """When a job first looked for its file, unix seconds."""

    at: float


async def register(ctx: Context[Deps], message: Register) -> Uploaded:
    """Make an uploaded file known and start its processing.

    The job is submitted before the row is committed: whatever dies between, a caller who was told "accepted" has both,
    and a job without a row gives up after ROW_WITHIN_S. Raises Fault: INVALID (the id), TOO_LARGE, NOT_FOUND (no bytes
    under this id), CONFLICT (the id is another file's).
    """
    if len(message.file_id) > MAX_FILE_ID:
        raise Fault(Code.INVALID, f"a file id has at most {MAX_FILE_ID} characters")
    if message.size > MAX_FILE_BYTES:
        raise Fault(Code.TOO_LARGE, f"a file has at most {MAX_FILE_BYTES >> 20} MiB")
    head = await _head(ctx.deps.objects, ctx.tenant, message.file_id) if message.size else b""
    found = sniff.sniff(head, message.name, whole=message.size <= len(head))
    submitted = await ctx.submit(PROCESS, Process(file_id=message.file_id), key=message.file_id)
    tx = await ctx.begin()
    if await records.insert(tx, message, found, submitted.job_id):
        ctx.emit(
            FILE_RECEIVED,
            FileReceived(entity_id=message.file_id, name=message.name, size=message.size, sha256=message.sha256),
        )
    else:
        known = await records.find(tx, message.file_id)
        if known is None or known.file.sha256 != message.sha256:
            raise Fault(Code.CONFLICT, "another file has this id; use a new one")
        found = known.file.type
    return Uploaded(
        file_id=message.file_id, job_id=submitted.job_id, sha256=message.sha256, size=message.size, type=found
    )


async def get_file(ctx: Context[Deps], message: GetFile) -> File:
    """A file with its stages. Raises Fault(NOT_FOUND)."""
    async with ctx.read() as tx:
        record = await records.find(tx, message.file_id)
    if record is None:
        raise Fault(Code.NOT_FOUND, f"there is no file {message.file_id}")
    return record.file


async def list_files(ctx: Context[Deps], message: ListFiles) -> FileList:
    """Files, newest first. Raises Fault(INVALID) on a cursor that is not ours."""
    async with ctx.read() as tx:
        return await records.newest(tx, message)


async def process(ctx: Context[Deps], message: Process) -> Processed:
    """Validate, extract and index. Each stage is journaled: a redelivered job goes on where the last one died.

    Raises Fault: INVALID or TOO_LARGE with the reason when the file cannot be indexed (it is quarantined then), and
    retryable ones of the store, the pool and rag.
    """
    record = await _record_of(ctx, message.file_id)
    if record.file.status == "quarantined":
        raise Fault(Code.INVALID, record.reason or "the file is quarantined")
    if record.file.status == "indexed" and record.file.document_id is not None:
        return Processed(
            file_id=record.file.file_id,
            document_id=record.file.document_id,
            chunks=record.chunks or 0,
            pages=record.file.pages,
        )
    return await _Processing(ctx, record.file).run()


class _Processing:
    """One file on its way through the stages."""

    def __init__(self, ctx: Context[Deps], file: File) -> None:
        self._ctx = ctx
        self._file = file
        self._stage: StageName = "validated"

    async def run(self) -> Processed:
        try:
            return await self._stages()
        except Fault as fault:
            if fault.retryable:
                await self._note(entry("running", f"{fault.detail}; it is tried again"))
            elif fault.code is Code.FORBIDDEN:  # the caller's lack, not the file's: its dead letter may be redriven
                await self._note(entry("failed", fault.detail))
            else:
                await self._quarantine(fault.detail)
            raise
        except asyncio.CancelledError:
            if self._ctx.stop.reason == "caller":
                await self._quarantine("cancelled by its owner")
            raise

    async def _stages(self) -> Processed:
        ctx, file = self._ctx, self._file
        await self._at("validated")
        if file.type not in sniff.CONTAINERS:  # those are looked into when they are opened
            extract.check_supported(file.type)
        await self._note(entry("done"))
        await self._at("extracted")
        extraction = await ctx.step("extracted", lambda: extract_text(ctx, file), Extraction)
        await self._extracted(extraction)
        await self._at("indexed")
        submitted = await ctx.step("submitted", lambda: submit_index(ctx, file, extraction), jobs.Submitted)
        async with ctx.read() as tx:
            await records.set_index_job(tx, file.file_id, submitted.job_id)
        ingested = await index(ctx, file, extraction, submitted.job_id)
        await ctx.progress(len(STAGES), len(STAGES), "stages", "done")
        return await self._indexed(ingested, extraction)

    async def _at(self, stage: StageName) -> None:
        self._stage = stage
        await self._ctx.progress(STAGES.index(stage), len(STAGES), "stages", stage)
        done = {each.name for each in self._file.stages if each.status == "done"}
        if stage not in done:
            await self._note(entry("running"))

    async def _note(self, now: records.StageEntry) -> None:
        async with self._ctx.read() as tx:
            await records.set_stage(tx, self._file.file_id, self._stage, now)

    async def _extracted(self, extraction: Extraction) -> None:
        fact = FileExtracted(
            entity_id=self._file.file_id,
            version=2,
            type=extraction.type,
            characters=extraction.characters,
            pages=extraction.pages,
        )
        async with telling(self._ctx) as (tx, tell):
            if await records.set_extracted(tx, self._file.file_id, extraction.type, extraction.pages):
                tell(FILE_EXTRACTED, fact)

    async def _indexed(self, ingested: rag.Ingested, extraction: Extraction) -> Processed:
        tx = await self._ctx.begin()
        await records.set_indexed(tx, self._file.file_id, ingested.document_id, ingested.chunks)
        return Processed(
            file_id=self._file.file_id,
            document_id=ingested.document_id,
            chunks=ingested.chunks,
            pages=extraction.pages,
        )

    async def _quarantine(self, reason: str) -> None:
        """In a transaction of its own: the handler's is rolled back by the fault that follows."""
        fact = FileFailed(entity_id=self._file.file_id, version=3, stage=self._stage, reason=reason)
        async with telling(self._ctx) as (tx, tell):
            if await records.quarantine(tx, self._file.file_id, self._stage, reason):
                tell(FILE_FAILED, fact)


async def _record_of(ctx: Context[Deps], file_id: str) -> Record:
    """The file's row, which may be about to be committed. Raises Fault(NOT_FOUND) when it never was."""
    for look in range(ROW_LOOKS):
        async with ctx.read() as tx:
            record = await records.find(tx, file_id)
        if record is not None:
            return record
        if ctx.job_id is None:
            break
        await asyncio.sleep(ROW_LOOK_S * (look + 1))

    async def now() -> Seen:
        return Seen(at=time.time())

    if ctx.job_id is not None and time.time() - (await ctx.step("seen", now, Seen)).at < ROW_WITHIN_S:
        raise Later(ROW_LATER_S, f"file {file_id} is not registered yet")
    raise Fault(Code.NOT_FOUND, f"there is no file {file_id}")


async def _head(objects: Objects, tenant: str, file_id: str) -> bytes:
    head = b""
    async for chunk in objects.open(tenant, file_id, timeout_s=HEAD_TIMEOUT_S):
        head += chunk
        if len(head) >= sniff.HEAD_BYTES:
            break
    return head
