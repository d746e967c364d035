"""Read what a stream keeps of one subject, many messages a question (JetStream direct get, ADR-31)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from runtime import headers
from runtime.connection import Connection
from subjects.contract import Code, Fault

BATCH = 256
BATCH_BYTES = 4 * 1024 * 1024
BATCH_TIMEOUT_S = 5.0
SEQUENCE = "Nats-Sequence"


@dataclass(frozen=True)
class Stored:
    """A kept message. sequence is its number in the stream."""

    sequence: int
    headers: dict[str, str]
    data: bytes


async def read_stored(
    connection: Connection, stream: str, subject: str, *, from_sequence: int = 1
) -> AsyncIterator[Stored]:
    """Everything kept of the subject from a stream sequence on, in order, until the end as it is now.

    At most 256 messages or 4 MiB are held at a time. Raises Fault(UNAVAILABLE, TIMEOUT).
    """
    while True:
        batch = await _batch(connection, stream, subject, max(1, from_sequence))
        for stored in batch:
            yield stored
        if not batch:
            return
        from_sequence = batch[-1].sequence + 1


async def _batch(connection: Connection, stream: str, subject: str, from_sequence: int) -> list[Stored]:
    found: list[Stored] = []
    ended: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()

    def received(_subject: bytes, _reply: bytes, data: bytes, block: bytes | None) -> None:
        if ended.done():
            return
        given = headers.parse(block or b"")
        status = given.get(headers.STATUS)
        if status is None and len(found) < BATCH:
            found.append(Stored(int(given[SEQUENCE]), given, data))
        elif status is not None:  # 204 = end of batch, 404 = nothing (more) there
            ended.set_result(None if status in ("204", "404") else _unreadable(stream))

    inbox = connection.new_inbox()
    subscription = await connection.listen(inbox, received)
    try:
        question = {"seq": from_sequence, "batch": BATCH, "max_bytes": BATCH_BYTES, "next_by_subj": subject}
        await connection.send(f"$JS.API.DIRECT.GET.{stream}", json.dumps(question).encode(), inbox)
        fault = await asyncio.wait_for(ended, BATCH_TIMEOUT_S)
    except TimeoutError as error:
        raise Fault(Code.TIMEOUT, f"stream {stream} does not answer") from error
    finally:
        if not connection.is_closed:
            await subscription.unsubscribe()
    if fault is not None:
        raise fault
    return found


def _unreadable(stream: str) -> Fault:
    return Fault(Code.UNAVAILABLE, f"stream {stream} does not give its messages: run `faas migrate`")
