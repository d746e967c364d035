"""jobs: the platform's own component. Status, waiting, listing and cancelling of durable jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from subjects.contract import Call, Event, EventPayload, FieldError, Model
from subjects.grammar import TOKEN

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

JobId = Annotated[str, Field(pattern=TOKEN)]


class Submitted(Model):
    """The answer to a submit: accepted, or known already."""

    job_id: str
    status: Literal["queued"] = "queued"
    duplicate: bool = False


class Progress(Model):
    done: float
    total: float | None = None
    unit: str = ""
    message: str = ""


class JobFault(Model):
    code: str
    detail: str
    retryable: bool
    errors: list[FieldError] = []


class Job(Model):
    job_id: str
    component: str
    operation: str
    status: Status
    attempt: int = 0
    progress: Progress | None = None
    result: JsonValue = Field(None, description="the operation's output, once succeeded")
    fault: JobFault | None = None
    cancel_requested: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class GetJob(Model):
    job_id: JobId


class WaitForJob(Model):
    job_id: JobId
    wait_s: float = Field(20.0, ge=0, le=55)


class ListJobs(Model):
    component: str | None = None
    status: Status | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=512)


class JobList(Model):
    items: list[Job]
    next_cursor: str | None = None


class CancelJob(Model):
    job_id: JobId


class JobChanged(EventPayload):
    """entity_id is the job id."""

    component: str
    operation: str
    status: Status
    attempt: int = 0
    fault: JobFault | None = None


GET = Call("jobs", "get", GetJob, Job, timeout_s=10, job=False, http=("GET /api/v1/jobs/{job_id}",))
LIST = Call("jobs", "list", ListJobs, JobList, timeout_s=10, job=False, http=("GET /api/v1/jobs",))
WAIT = Call(
    "jobs",
    "wait",
    WaitForJob,
    Job,
    timeout_s=60,
    job=False,
    summary="The job once it ended, or as it stands after wait_s",
)
CANCEL = Call(
    "jobs", "cancel", CancelJob, Job, timeout_s=10, job=False, mutates=True, http=("DELETE /api/v1/jobs/{job_id}",)
)

STARTED = Event("jobs", "started", JobChanged)
SUCCEEDED = Event("jobs", "succeeded", JobChanged)
FAILED = Event("jobs", "failed", JobChanged)
CANCELLED = Event("jobs", "cancelled", JobChanged)
