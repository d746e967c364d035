"""Dead letters of one tenant as the stream DLQ keeps them: found, paged through, shown, removed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

import codec
from codec import headers as names
from runtime.connection import Connection
from runtime.stored import Stored, first_since, read_batch, read_one
from runtime.streams import API_TIMEOUT_S, DLQ, EVENTS, JOBS
from store import cursors
from subjects import grammar, jobs
from subjects.contract import Code, Fault
from workers.jobs.again import contract_of
from workers.serving.delivery import sniff

MAX_OF_ONE_ID = 100  # subscriptions that one event died in, and redrives of it
SCANNED_AT_MOST = 2000  # letters a page looks at, whatever its filter finds among them
SCANNED_BYTES = 64 * 1024 * 1024
SHOWN_BODY_BYTES = 256 * 1024
NO_SUCH_MESSAGE = frozenset({10037, 10043, 10057})  # of a delete: somebody was faster
REMOVED_AT_ONCE = 32
STREAM_OF = {grammar.JOB: JOBS, grammar.EVENT: EVENTS}

# What a letter shows of its headers: names of ours. Anybody may have written the others, secrets included.
SHOWN = frozenset(
    {
        names.CONTENT_TYPE, names.ACCEPT, names.TENANT, names.USER, names.SCOPES, names.CORRELATION_ID,
        names.REQUEST_ID, names.TRACEPARENT, names.IDEMPOTENCY_KEY, names.BODY_DIGEST, names.DEADLINE, names.OUTPUT_TO,
        names.REPLAY, names.REPLAY_OF, names.REDRIVE,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Letter:
    stored: Stored
    address: grammar.Address
    redrive: int

    @property
    def headers(self) -> dict[str, str]:
        return self.stored.headers

    @property
    def kind(self) -> Literal["job", "event"]:
        contract = contract_of(self.address.component, self.address.operation)
        told = self.headers.get(names.DEAD_SUBJECT, "").startswith(f"{grammar.EVENT}.")
        return contract.kind if contract is not None else "event" if told else "job"

    @property
    def content_type(self) -> str:
        return self.headers.get(names.CONTENT_TYPE) or sniff(self.stored.data)


@dataclass(frozen=True)
class Page:
    letters: list[Letter]
    cursor: str | None


class Letters:
    """Reads and removes for one tenant. Every method raises Fault(UNAVAILABLE, TIMEOUT)."""

    def __init__(self, connection: Connection, tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant

    async def of(self, job_id: str, component: str | None = None) -> list[Letter]:
        """All that bear this id, oldest first. Raises Fault(NOT_FOUND) when there is none."""
        subject = grammar.dead_letters_of(self._tenant, component or "*", "*", job_id)
        found = _letters(await read_batch(self._connection, DLQ, subject, 1, MAX_OF_ONE_ID))
        if not found:
            raise Fault(Code.NOT_FOUND, f"there is no dead letter {job_id}")
        return found

    async def one(self, job_id: str, component: str | None = None) -> Letter:
        """The last letter of one dead job or delivery. Raises Fault(NOT_FOUND), and Fault(INVALID) when several
        subscriptions could not take the same event."""
        found = await self.of(job_id, component)
        places = {(each.address.component, each.address.operation) for each in found}
        if len(places) > 1:
            where = ", ".join(sorted({each.address.component for each in found}))
            raise Fault(Code.INVALID, f"several letters bear the id {job_id}: name the component, one of {where}")
        return found[-1]

    async def page(
        self, wanted: jobs.DeadLetterFilter, limit: int, cursor: str | None, *, before: datetime | None = None
    ) -> Page:
        """At most limit letters that pass the filter, oldest first. Raises Fault(INVALID) on a bad cursor."""
        subject = grammar.dead_letters_of(self._tenant, wanted.component or "*", wanted.operation or "*")
        sequence = await self._first(wanted.since, subject) if cursor is None else cursors.number(cursor)
        until = None if before is None else before if before.tzinfo is not None else before.replace(tzinfo=UTC)
        found: list[Letter] = []
        scanned = scanned_bytes = 0
        while sequence is not None:
            batch = await read_batch(self._connection, DLQ, subject, sequence)
            for letter in _letters(batch):
                if until is not None and letter.stored.stored_at >= until:
                    return Page(found, None)
                if wanted.code is None or letter.headers.get(names.DEAD_CODE) == wanted.code.value:
                    found.append(letter)
                    if len(found) == limit:
                        return Page(found, cursors.make(letter.stored.sequence + 1) if letter.stored.left else None)
            if not batch or not batch[-1].left:
                return Page(found, None)
            sequence = batch[-1].sequence + 1
            scanned += len(batch)
            scanned_bytes += sum(len(each.data) for each in batch)
            if scanned >= SCANNED_AT_MOST or scanned_bytes >= SCANNED_BYTES:
                return Page(found, cursors.make(sequence))
        return Page(found, None)

    async def _first(self, since: datetime | None, subject: str) -> int | None:
        return 1 if since is None else await first_since(self._connection, DLQ, since, subject)

    async def body(self, letter: Letter) -> bytes | None:
        """What the dead message said. One that left no room for the reason is in its own stream, as long as that keeps
        it; None: not any more."""
        if letter.stored.data:
            return letter.stored.data
        subject = letter.headers.get(names.DEAD_SUBJECT, "")
        sequence = letter.headers.get(names.DEAD_SEQUENCE, "")
        stream = STREAM_OF.get(subject.partition(".")[0])
        if stream is None or not sequence.isdecimal() or subject.split(".")[1:2] != [self._tenant]:
            return None
        original = await read_one(self._connection, stream, int(sequence))
        return original.data if original is not None and original.subject == subject else None

    async def remove(self, letters: list[Letter]) -> int:
        """How many of them were still there."""
        removed = 0
        for start in range(0, len(letters), REMOVED_AT_ONCE):
            some = letters[start : start + REMOVED_AT_ONCE]
            removed += sum(await asyncio.gather(*(self._remove(each.stored.sequence) for each in some)))
        return removed

    async def _remove(self, sequence: int) -> bool:
        try:
            return await self._connection.jetstream(timeout=API_TIMEOUT_S).delete_msg(DLQ, sequence)
        except NotFoundError:
            return False
        except APIError as error:
            if error.err_code in NO_SUCH_MESSAGE:
                return False
            raise Fault(Code.UNAVAILABLE, "the stream of dead letters does not let go of a letter") from error
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error


def told(letter: Letter) -> jobs.DeadLetter:
    return jobs.DeadLetter.model_validate(_fields(letter))


def in_full(letter: Letter, body: bytes | None) -> jobs.DeadLetterDetail:
    """The letter with its headers and its body as JSON."""
    value: Any = None
    is_shown = False
    if body is not None and len(body) <= SHOWN_BODY_BYTES:
        try:
            value, is_shown = _as_json(letter, body), True
        except (Fault, ValueError):
            is_shown = False
    return jobs.DeadLetterDetail.model_validate(
        _fields(letter)
        | {
            "headers": {name: value for name, value in letter.headers.items() if name in SHOWN},
            "body": value,
            "body_from": "nowhere" if body is None else "letter" if letter.stored.data else "stream",
            "body_shown": is_shown,
            "body_bytes": len(body or b""),
        }
    )


def _as_json(letter: Letter, body: bytes) -> Any:
    if letter.content_type in (codec.MSGPACK, codec.JSON):
        plain = codec.decode_plain(body, letter.content_type)
    else:  # its fields have no names without the contract
        contract = contract_of(letter.address.component, letter.address.operation)
        if contract is None:
            raise ValueError("no contract reads this")
        plain = codec.decode(body, contract.model, letter.content_type).model_dump(exclude_unset=True)
    return json.loads(codec.encode_plain(plain, codec.JSON))


def _fields(letter: Letter) -> dict[str, Any]:
    given, address = letter.headers, letter.address
    attempts = given.get(names.DEAD_ATTEMPTS, "")
    return {
        "job_id": address.ident,
        "component": address.component,
        "operation": address.operation,
        "kind": letter.kind,
        "redrive": letter.redrive,
        "code": given.get(names.DEAD_CODE, ""),
        "reason": given.get(names.DEAD_REASON, ""),
        "attempts": int(attempts) if attempts.isdecimal() else 0,
        "dead_at": letter.stored.stored_at,
        "subject": given.get(names.DEAD_SUBJECT, ""),
        "body_bytes": len(letter.stored.data),
    }


def _letters(batch: list[Stored]) -> list[Letter]:
    """What anybody else put into the stream is no letter."""
    found = []
    for stored in batch:
        tokens = stored.subject.split(".")
        if len(tokens) == 6 and tokens[5].isdecimal() and all(map(grammar.is_token, tokens)):
            found.append(Letter(stored, grammar.parse(stored.subject), int(tokens[5])))
    return found
