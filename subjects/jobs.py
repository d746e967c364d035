"""jobs: the platform's own component. Status, waiting, listing, cancelling and replay of jobs; dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from subjects.contract import Call, Code, Event, EventPayload, FieldError, Model
from subjects.grammar import TOKEN

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

JobId = Annotated[str, Field(pattern=TOKEN)]
Name = Annotated[str, Field(pattern=TOKEN)]
Changes = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=256)], JsonValue],
    Field(max_length=32, description="path in the message (dots between the parts) -> its new value"),
]
MAX_NAMED = 100
"""Jobs that the answer to a replay names, and dead letters that one redrive takes."""


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


class Replay(Model):
    """Which jobs to send again. At least one of since and first_sequence says from where."""

    subject: str = Field(min_length=1, max_length=256, description="`rag.ingest`, `rag.*` or `job.<tenant>.rag.>`")
    since: datetime | None = Field(None, description="stored at or after this moment; without a zone it is UTC")
    first_sequence: int | None = Field(None, ge=1, description="number in the stream JOBS, included")
    last_sequence: int | None = Field(None, ge=1, description="included; at most the last one when the replay begins")
    dry_run: bool = Field(False, description="count and send nothing")
    force: bool = Field(False, description="run anew what has ended, as jobs of their own")
    rate: float | None = Field(None, ge=0.1, le=10_000, description="messages a second; as fast as it goes if absent")
    set: Changes = Field(default={}, description="changes to every message; needs force")


class ReplayCounts(Model):
    """Messages of one operation, each counted once: run + finished + waiting + unreadable + not_permitted + skipped."""

    run: int = Field(0, description="sent again (by a dry run: would be)")
    finished: int = Field(0, description="has ended, so it stays as it is")
    waiting: int = Field(0, description="not begun or not ended; its own message will be worked on")
    unreadable: int = Field(0, description="does not match its contract (with its changes), or has none")
    not_permitted: int = Field(0, description="its own user or the caller may not ask for the operation")
    skipped: int = Field(0, description="made by a replay, or a replay itself, and not named")


class ReplayedJob(Model):
    """job_id is that of the job in the stream; replayed_as the same, or the job that a forced replay made of it."""

    job_id: str
    replayed_as: str
    component: str
    operation: str


class Replayed(Model):
    replay_id: str
    dry_run: bool
    first_sequence: int
    last_sequence: int
    total: ReplayCounts
    operations: dict[str, ReplayCounts] = Field(description="by `component.operation`")
    jobs: list[ReplayedJob] = Field(default=[], description=f"the first {MAX_NAMED} of those that run")


class DeadLetter(Model):
    """job_id is the dead job's; for an event that a subscription could not take it names that delivery, and operation
    is `<source>-<event>`. redrive: how often it had been redriven when it died."""

    job_id: str
    component: str
    operation: str
    kind: Literal["job", "event"]
    redrive: int
    code: str
    reason: str
    attempts: int
    dead_at: datetime | None = None
    subject: str = Field("", description="where the original was published")
    body_bytes: int = 0


class DeadLetterDetail(DeadLetter):
    headers: dict[str, str] = Field(default={}, description="those of this platform; of others nothing is shown")
    body: JsonValue = None
    body_from: Literal["letter", "stream", "nowhere"] = "letter"
    body_shown: bool = Field(True, description="false: it cannot be read as a message, or is over 256 KiB")


class DeadLetterFilter(Model):
    component: Name | None = None
    operation: Name | None = None
    code: Code | None = None
    since: datetime | None = Field(None, description="dead at or after this moment; without a zone it is UTC")


class ListDeadLetters(DeadLetterFilter):
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=64)


class DeadLetterList(Model):
    """Oldest first. A page may hold fewer than asked for, even none, while next_cursor says that there is more."""

    items: list[DeadLetter]
    next_cursor: str | None = None


class GetDeadLetter(Model):
    job_id: JobId
    component: Name | None = Field(None, description="where deliveries of one event died in several components")


class Redrive(DeadLetterFilter):
    """Either job_id or all (then of those that pass the filter, MAX_NAMED at a time: go on with next_cursor)."""

    job_id: JobId | None = None
    all: bool = False
    set: Changes = {}
    dry_run: bool = False
    cursor: str | None = Field(None, max_length=64)


class RedrivenJob(Model):
    """redrive: the number under which it runs. already: a redrive of this letter was accepted before."""

    job_id: str
    component: str
    operation: str
    redrive: int
    outcome: Literal["redriven", "already", "would_run", "refused"]
    fault: JobFault | None = None


class Redriven(Model):
    items: list[RedrivenJob]
    next_cursor: str | None = None


class PurgeDeadLetters(DeadLetterFilter):
    """Either job_id or all (then of those that pass the filter; go on with next_cursor)."""

    job_id: JobId | None = None
    all: bool = False
    before: datetime | None = Field(None, description="dead before this moment")
    cursor: str | None = Field(None, max_length=64)


class Purged(Model):
    removed: int
    next_cursor: str | None = None


class JobChanged(EventPayload):
    """entity_id is the job id."""

    component: str
    operation: str
    status: Status
    attempt: int = 0
    fault: JobFault | None = None


_JOB = {
    "job_id": "j2ab", "component": "rag", "operation": "ingest", "status": "succeeded", "attempt": 1, "progress": None,
    "result": {"document_id": "d5f1c0", "chunks": 1, "tokens": 12, "unchanged": False}, "fault": None,
    "cancel_requested": False, "created_at": "2026-01-05T10:00:00Z", "started_at": "2026-01-05T10:00:00Z",
    "finished_at": "2026-01-05T10:00:01Z",
}  # fmt: skip
GET = Call(
    "jobs", "get", GetJob, Job, timeout_s=10, job=False, http=("GET /api/v1/jobs/{job_id}",),
    summary="A job as it stands, with its result or fault", raises=(Code.NOT_FOUND,), example={"job_id": "j2ab"},
    example_reply=_JOB,
)  # fmt: skip
LIST = Call(
    "jobs", "list", ListJobs, JobList, timeout_s=10, job=False, http=("GET /api/v1/jobs",),
    summary="The jobs that have begun, newest first", raises=(), example={"status": "failed", "limit": 20},
    example_reply={"items": [_JOB], "next_cursor": None},
)  # fmt: skip
WAIT = Call(
    "jobs", "wait", WaitForJob, Job, timeout_s=60, job=False, raises=(Code.NOT_FOUND,),
    summary="The job once it ended, or as it stands after wait_s", example={"job_id": "j2ab", "wait_s": 10},
    example_reply=_JOB,
)  # fmt: skip
CANCEL = Call(
    "jobs", "cancel", CancelJob, Job, timeout_s=10, job=False, mutates=True, http=("DELETE /api/v1/jobs/{job_id}",),
    summary="Stop a job; one that has ended stays as it ended", raises=(Code.NOT_FOUND,), example={"job_id": "j2ab"},
    example_reply=_JOB | {"status": "cancelled", "result": None},
)  # fmt: skip

_LETTER = {
    "job_id": "j2ab", "component": "rag", "operation": "ingest", "kind": "job", "redrive": 0, "code": "INVALID",
    "reason": "the document holds no text", "attempts": 1, "dead_at": "2026-01-05T10:00:00Z",
    "subject": "job.acme.rag.ingest.j2ab", "body_bytes": 41,
}  # fmt: skip
_COUNTS = {"run": 2, "finished": 5, "waiting": 0, "unreadable": 0, "not_permitted": 0, "skipped": 0}

REPLAY = Call(
    "jobs",
    "replay",
    Replay,
    Replayed,
    timeout_s=60,
    mutates=True,
    long=True,
    summary="Send jobs of the tenant again: what has ended stays as it is, unless forced",
    raises=(Code.NOT_FOUND, Code.CONFLICT),
    example={"subject": "rag.ingest", "since": "2026-01-05T00:00:00Z", "dry_run": True},
    example_reply={
        "replay_id": "r7",
        "dry_run": True,
        "first_sequence": 1,
        "last_sequence": 7,
        "total": _COUNTS,
        "operations": {"rag.ingest": _COUNTS},
        "jobs": [{"job_id": "j2ab", "replayed_as": "j2ab", "component": "rag", "operation": "ingest"}],
    },
)
LIST_DEAD_LETTERS = Call(
    "jobs",
    "list_dead_letters",
    ListDeadLetters,
    DeadLetterList,
    timeout_s=30,
    job=False,
    http=("GET /api/v1/jobs/dead-letters",),
    summary="The tenant's dead letters, oldest first",
    raises=(),
    example={"component": "rag", "limit": 20},
    example_reply={"items": [_LETTER], "next_cursor": None},
)
GET_DEAD_LETTER = Call(
    "jobs",
    "get_dead_letter",
    GetDeadLetter,
    DeadLetterDetail,
    timeout_s=10,
    job=False,
    http=("GET /api/v1/jobs/dead-letters/{job_id}",),
    summary="A dead letter with what it says, and why it died",
    raises=(Code.NOT_FOUND,),
    example={"job_id": "j2ab"},
    example_reply=_LETTER
    | {
        "headers": {"X-User-ID": "ann"},
        "body": {"text": " ", "title": "Empty"},
        "body_from": "letter",
        "body_shown": True,
    },
)
REDRIVE = Call(
    "jobs",
    "redrive",
    Redrive,
    Redriven,
    timeout_s=60,
    job=False,
    mutates=True,
    http=("POST /api/v1/jobs/dead-letters/redrive", "POST /api/v1/jobs/dead-letters/{job_id}/redrive"),
    summary="Run dead jobs again under their own ids, their attempts counted anew",
    raises=(Code.NOT_FOUND, Code.CONFLICT),
    example={"job_id": "j2ab"},
    example_reply={
        "items": [
            {
                "job_id": "j2ab",
                "component": "rag",
                "operation": "ingest",
                "redrive": 1,
                "outcome": "redriven",
                "fault": None,
            }
        ],
        "next_cursor": None,
    },
)
PURGE_DEAD_LETTERS = Call(
    "jobs",
    "purge_dead_letters",
    PurgeDeadLetters,
    Purged,
    timeout_s=60,
    job=False,
    mutates=True,
    http=("DELETE /api/v1/jobs/dead-letters", "DELETE /api/v1/jobs/dead-letters/{job_id}"),
    summary="Remove dead letters for good",
    raises=(Code.NOT_FOUND,),
    example={"job_id": "j2ab"},
    example_reply={"removed": 1, "next_cursor": None},
)

STARTED = Event("jobs", "started", JobChanged)
SUCCEEDED = Event("jobs", "succeeded", JobChanged)
FAILED = Event("jobs", "failed", JobChanged)
CANCELLED = Event("jobs", "cancelled", JobChanged)
