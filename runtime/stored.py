"""Read what a stream keeps, many messages a question (JetStream direct get, ADR-31)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runtime import headers
from runtime.connection import Connection
from runtime.jobs import ask_stream
from subjects.contract import Code, Fault

BATCH = 256
BATCH_BYTES = 4 * 1024 * 1024
BATCH_TIMEOUT_S = 5.0
SEQUENCE, SUBJECT, PENDING, TIME = "Nats-Sequence", "Nats-Subject", "Nats-Num-Pending", "Nats-Time-Stamp"


@dataclass(frozen=True)
class Stored:
    """A kept message. sequence is its number in the stream."""

    sequence: int
    headers: dict[str, str]
    data: bytes

    @property
    def subject(self) -> str:
        return self.headers[SUBJECT]

    @property
    def left(self) -> int:
        """How many of its filter come after it."""
        return int(self.headers[PENDING])

    @property
    def stored_at(self) -> datetime:
        """To the microsecond."""
        return moment(self.headers[TIME])


def in_utc(said: datetime) -> datetime:
    """A moment without a zone is meant in UTC. Raises OverflowError at the ends of time."""
    return said.astimezone(UTC) if said.tzinfo is not None else said.replace(tzinfo=UTC)


def moment(stamp: str) -> datetime:
    """RFC 3339 with up to nine digits of fraction; Python reads six."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00")


def nanoseconds(stamp: str) -> int:
    """The same as nanoseconds since 1970."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(f"{fraction:0<9}")


async def read_stored(
    connection: Connection, stream: str, subject: str, *, from_sequence: int = 1
) -> AsyncIterator[Stored]:
    """Everything kept of the subject from a stream sequence on, in order, until the end as it is now.

    At most 256 messages or 4 MiB are held at a time. Raises Fault(UNAVAILABLE, TIMEOUT).
    """
    while True:
        batch = await read_batch(connection, stream, subject, max(1, from_sequence))
        for stored in batch:
            yield stored
        if not batch:
            return
        from_sequence = batch[-1].sequence + 1


async def read_one(connection: Connection, stream: str, sequence: int) -> Stored | None:
    """The message with this number; None when it is not kept (any more). Raises Fault(UNAVAILABLE, TIMEOUT)."""
    return await _only(connection, stream, {"seq": sequence})


async def read_last(connection: Connection, stream: str, subject: str) -> Stored | None:
    """The last message of a filter. Raises Fault(UNAVAILABLE, TIMEOUT)."""
    return await _only(connection, stream, {"last_by_subj": subject})


async def first_since(connection: Connection, stream: str, since: datetime, subject: str = ">") -> int | None:
    """The sequence of the first message of a filter that was stored at this moment or later; None: there is none.

    Raises Fault(UNAVAILABLE, TIMEOUT), and Fault(INVALID) for a moment at the ends of time.
    """
    try:
        at = in_utc(since).isoformat().replace("+00:00", "Z")
    except OverflowError as error:
        raise Fault(Code.INVALID, "no message can be so old or so new") from error
    found = await _only(connection, stream, {"batch": 1, "start_time": at, "next_by_subj": subject})
    return None if found is None else found.sequence


async def _only(connection: Connection, stream: str, question: dict[str, Any]) -> Stored | None:
    asked = json.dumps(question).encode()
    reply = await ask_stream(connection.requests, f"$JS.API.DIRECT.GET.{stream}", asked, b"")
    status = reply.headers.get(headers.STATUS)
    if status == "404":
        return None
    if status is not None:
        raise _unreadable(stream)
    return Stored(int(reply.headers[SEQUENCE]), reply.headers, reply.data)


async def read_batch(
    connection: Connection, stream: str, subject: str, from_sequence: int, most: int = BATCH
) -> list[Stored]:
    """The next of a filter, in order: at most 256 messages, and about 4 MiB. Raises Fault(UNAVAILABLE, TIMEOUT)."""
    most = min(most, BATCH)
    found: list[Stored] = []
    ended: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()

    def received(_subject: bytes, _reply: bytes, data: bytes, block: bytes | None) -> None:
        if ended.done():
            return
        given = headers.parse(block or b"")
        status = given.get(headers.STATUS)
        if status is None and len(found) < most:
            found.append(Stored(int(given[SEQUENCE]), given, data))
        elif status is not None:  # 204 = end of batch, 404 = nothing (more) there
            ended.set_result(None if status in ("204", "404") else _unreadable(stream))

    inbox = connection.new_inbox()
    subscription = await connection.listen(inbox, received)
    try:
        question = {"seq": from_sequence, "batch": most, "max_bytes": BATCH_BYTES, "next_by_subj": subject}
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
