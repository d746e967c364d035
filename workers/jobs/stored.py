"""The message of a job as the stream JOBS keeps it: what is known of a job that no worker has touched yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from codec import headers as names
from runtime.connection import Connection
from runtime.jobs import redrive_of
from runtime.stored import read_last
from runtime.streams import JOBS
from subjects import grammar


@dataclass(frozen=True)
class StoredJob:
    component: str
    operation: str
    digest: str
    redrive: int
    stored_at: datetime


async def find(connection: Connection, tenant: str, job_id: str) -> StoredJob | None:
    """The last message of the job, be it the first or one that was sent again; the tenant in the subject is the tenant
    check.

    Raises Fault(UNAVAILABLE) when JetStream does not answer.
    """
    filters = grammar.job_anywhere(tenant, job_id)
    found = await asyncio.gather(*(read_last(connection, JOBS, each) for each in filters))
    last = max((each for each in found if each is not None), key=lambda each: each.sequence, default=None)
    if last is None:
        return None
    address = grammar.parse(last.subject)
    digest = last.headers.get(names.BODY_DIGEST, "")
    return StoredJob(address.component, address.operation, digest, redrive_of(last.headers), last.stored_at)
