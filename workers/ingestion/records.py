"""The row of a file: what its owner is told about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypedDict

from pydantic import JsonValue

from store import cursors
from store.sql import load
from store.transaction import Record as Row
from store.transaction import Transaction
from subjects.ingestion import STAGES, File, FileList, ListFiles, Register, Stage, StageName

queries = load("workers.ingestion")

StageStatus = Literal["pending", "running", "done", "failed"]


class StageEntry(TypedDict):
    status: StageStatus
    at: str
    error: str | None


@dataclass(frozen=True)
class Record:
    """A file as told, and what only we need: why it is quarantined, and how many chunks it became."""

    file: File
    reason: str | None
    chunks: int | None


def entry(status: StageStatus, error: str | None = None) -> StageEntry:
    return StageEntry(status=status, at=datetime.now(UTC).isoformat(), error=error)


async def insert(tx: Transaction, message: Register, type_: str, job_id: str) -> bool:
    """False when there is a file of this id."""
    found = await tx.fetchval(
        queries.insert_file,
        *(tx.tenant, message.file_id, message.name, message.size, message.sha256, type_, message.collection),
        *(message.source_id or message.file_id, message.metadata, {"received": entry("done")}, job_id),
    )
    return found is not None


async def find(tx: Transaction, file_id: str) -> Record | None:
    row = await tx.fetchrow(queries.get_file, tx.tenant, file_id)
    return None if row is None else _record(row)


async def newest(tx: Transaction, message: ListFiles) -> FileList:
    """A page of files, newest first. Raises Fault(INVALID) on a cursor that is not ours."""
    created_at, file_id = (None, None) if message.cursor is None else cursors.read(message.cursor, datetime, str)
    rows = await tx.fetch(
        queries.newest_files, tx.tenant, message.collection, message.status, created_at, file_id, message.limit + 1
    )
    page = rows[: message.limit]
    more = cursors.make(page[-1]["created_at"], page[-1]["file_id"]) if len(rows) > message.limit else None
    return FileList(items=[_record(row).file for row in page], next_cursor=more)


async def set_stage(tx: Transaction, file_id: str, stage: StageName, now: StageEntry) -> None:
    await tx.execute(queries.set_stage, tx.tenant, file_id, stage, now)


async def set_extracted(tx: Transaction, file_id: str, type_: str, pages: int | None) -> bool:
    """False when it was said before."""
    found = await tx.fetchval(queries.set_extracted, tx.tenant, file_id, type_, pages, entry("done"))
    return found is not None


async def set_index_job(tx: Transaction, file_id: str, job_id: str) -> None:
    await tx.execute(queries.set_index_job, tx.tenant, file_id, job_id, entry("running"))


async def set_indexed(tx: Transaction, file_id: str, document_id: str, chunks: int) -> None:
    await tx.execute(queries.set_indexed, tx.tenant, file_id, entry("done"), document_id, chunks)


async def quarantine(tx: Transaction, file_id: str, stage: StageName, reason: str) -> bool:
    """False when it had ended before."""
    found = await tx.fetchval(queries.quarantine, tx.tenant, file_id, stage, entry("failed", reason), reason)
    return found is not None


def _record(row: Row) -> Record:
    told = dict(row)
    stages: dict[str, dict[str, JsonValue]] = told["stages"]
    told["stages"] = [
        Stage.model_validate({"status": "pending", **stages.get(name, {}), "name": name}) for name in STAGES
    ]
    return Record(File.model_validate(told), row["reason"], row["chunks"])
