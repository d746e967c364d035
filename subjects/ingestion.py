"""ingestion: files in. Upload, validate, extract, index."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from subjects.contract import Call, Event, EventPayload, Model
from subjects.grammar import TOKEN

StageName = Literal["received", "validated", "extracted", "indexed"]
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
    status: Literal["received", "processing", "indexed", "quarantined"]
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
PROCESS = Call("ingestion", "process", Process, Processed, timeout_s=300, mutates=True, long=True,
               summary="Validate, extract and index a file; starts by itself after upload")  # fmt: skip
GET_FILE = Call("ingestion", "get_file", GetFile, File, timeout_s=10, job=False, summary="A file with its stages")

FILE_RECEIVED = Event("ingestion", "file_received", FileReceived)
FILE_EXTRACTED = Event("ingestion", "file_extracted", FileExtracted)
FILE_FAILED = Event("ingestion", "file_failed", FileFailed)
