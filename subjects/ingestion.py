"""ingestion: files in. Upload, validate, extract, index."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from subjects.contract import Call, Code, Event, EventPayload, Model
from subjects.grammar import TOKEN

StageName = Literal["received", "validated", "extracted", "indexed"]
FileStatus = Literal["received", "processing", "indexed", "quarantined"]
STAGES: tuple[StageName, ...] = ("received", "validated", "extracted", "indexed")


class Stage(Model):
    name: StageName
    status: Literal["pending", "running", "done", "failed"]
    at: datetime | None = None
    error: str | None = None


class File(Model):
    file_id: str
    name: str
    size: int
    sha256: str
    type: str = Field(description="MIME type, found from the content")
    collection: str
    source_id: str
    metadata: dict[str, JsonValue] = {}
    status: FileStatus
    stages: list[Stage]
    document_id: str | None = None
    pages: int | None = None
    job_id: str | None = Field(None, description="the job that processes it")
    index_job_id: str | None = Field(None, description="the rag.ingest job that indexes its text")
    created_at: datetime


class Register(Model):
    """Make a file known whose bytes the bridge has streamed into the object store. Platform processes only."""

    file_id: str = Field(pattern=TOKEN)
    name: str = Field(max_length=255)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    collection: str = Field("default", pattern=TOKEN)
    source_id: str | None = Field(None, max_length=255)
    metadata: dict[str, JsonValue] = Field(default={}, max_length=64)


class Uploaded(Model):
    file_id: str
    job_id: str
    sha256: str
    size: int
    type: str


class Process(Model):
    file_id: str = Field(pattern=TOKEN)


class Processed(Model):
    file_id: str
    document_id: str
    chunks: int
    pages: int | None = None


class GetFile(Model):
    file_id: str = Field(pattern=TOKEN)


class ListFiles(Model):
    collection: str | None = Field(None, pattern=TOKEN)
    status: FileStatus | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=512)


class FileList(Model):
    items: list[File]
    next_cursor: str | None = None


class FileReceived(EventPayload):
    name: str
    size: int
    sha256: str


class FileExtracted(EventPayload):
    type: str
    characters: int
    pages: int | None = None


class FileFailed(EventPayload):
    stage: StageName
    reason: str


REGISTER = Call("ingestion", "register", Register, Uploaded, timeout_s=30, mutates=True, job=False, public=False)
PROCESS = Call(
    "ingestion", "process", Process, Processed, timeout_s=300, mutates=True, long=True,
    summary="Validate, extract and index a file; starts by itself after upload",
    raises=(Code.NOT_FOUND, Code.CONFLICT, Code.UPSTREAM), example={"file_id": "f3kq7"},
    example_reply={"file_id": "f3kq7", "document_id": "d5f1c0", "chunks": 12, "pages": 3},
)  # fmt: skip
_FILE = {
    "file_id": "f3kq7", "name": "moon.pdf", "size": 48120, "sha256": "9f86d081" * 8, "type": "application/pdf",
    "collection": "default", "source_id": "f3kq7", "metadata": {}, "status": "indexed",
    "stages": [{"name": name, "status": "done", "at": "2026-01-05T10:00:00Z", "error": None} for name in STAGES],
    "document_id": "d5f1c0", "pages": 3, "job_id": "j2ab", "index_job_id": "j7cd",
    "created_at": "2026-01-05T10:00:00Z",
}  # fmt: skip
GET_FILE = Call(
    "ingestion", "get_file", GetFile, File, timeout_s=10, job=False, http=("GET /api/v1/ingestion/files/{file_id}",),
    summary="A file with its stages", raises=(Code.NOT_FOUND,), example={"file_id": "f3kq7"}, example_reply=_FILE,
)  # fmt: skip
LIST_FILES = Call(
    "ingestion", "list_files", ListFiles, FileList, timeout_s=10, job=False, http=("GET /api/v1/ingestion/files",),
    summary="The files, newest first", raises=(), example={"status": "indexed", "limit": 50},
    example_reply={"items": [_FILE], "next_cursor": None},
)  # fmt: skip

FILE_RECEIVED = Event("ingestion", "file_received", FileReceived)
FILE_EXTRACTED = Event("ingestion", "file_extracted", FileExtracted)
FILE_FAILED = Event("ingestion", "file_failed", FileFailed)
