"""The message of a job as the stream JOBS keeps it: what is known of a job that no worker has touched yet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from codec import headers as names
from runtime.connection import Connection
from runtime.headers import STATUS
from runtime.jobs import ask_stream
from runtime.streams import JOBS
from subjects import grammar
from subjects.contract import Code, Fault


@dataclass(frozen=True)
class StoredJob:
    component: str
    operation: str
    digest: str
    stored_at: datetime | None


async def find(connection: Connection, tenant: str, job_id: str) -> StoredJob | None:
    """The last message on the job's subject; the tenant in the subject is the tenant check.

    Raises Fault(UNAVAILABLE) when JetStream does not answer.
    """
    wanted = json.dumps({"last_by_subj": grammar.job_anywhere(tenant, job_id)}).encode()
    reply = await ask_stream(connection.requests, f"$JS.API.DIRECT.GET.{JOBS}", wanted, b"")
    status = reply.headers.get(STATUS)
    if status == "404":
        return None
    if status is not None:
        raise Fault(Code.UNAVAILABLE, "the stream of jobs does not answer; ask again")
    address = grammar.parse(reply.headers["Nats-Subject"])
    digest = reply.headers.get(names.BODY_DIGEST, "")
    return StoredJob(address.component, address.operation, digest, _time(reply.headers.get("Nats-Time-Stamp")))


def _time(text: str | None) -> datetime | None:
    """RFC 3339 with up to nine digits of fraction; Python reads six."""
    if not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")
