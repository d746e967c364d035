"""The message of a job as the stream JOBS keeps it: what is known of a job that no worker has touched yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from codec import headers as names
from runtime.connection import Connection
from runtime.streams import API_TIMEOUT_S, JOBS
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
    js = connection.jetstream(timeout=API_TIMEOUT_S)
    try:
        message = await js.get_last_msg(JOBS, grammar.job_anywhere(tenant, job_id))
    except NotFoundError:
        return None
    except (NatsError, TimeoutError) as error:
        raise Fault(Code.UNAVAILABLE, "JetStream does not answer; ask again") from error
    address = grammar.parse(message.subject or "")
    digest = (message.headers or {}).get(names.BODY_DIGEST, "")
    return StoredJob(address.component, address.operation, digest, getattr(message, "time", None))
