"""Replay, first half: reads messages of JOBS in order and says of each what becomes of it, changing nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

import codec
from codec import headers as names
from runtime.connection import Connection
from runtime.headers import MAX_BLOCK_BYTES, block
from runtime.identity import Identity
from runtime.jobs import redrive_of, run_key, stored_id
from runtime.stored import BATCH, SEQUENCE, TIME, Stored, nanoseconds, read_batch
from runtime.streams import API_TIMEOUT_S, JOBS
from store.inbox import Inbox, KeyState
from store.keeper import KEPT
from subjects import grammar
from subjects import jobs as contracts
from subjects.contract import Code, Fault
from workers.jobs.again import body_of, changed, contract_of, headers_again
from workers.serving.delivery import sniff

Fate = Literal["run", "finished", "waiting", "unreadable", "not_permitted", "skipped"]
MORE_HEADERS_BYTES = 512  # what a replay adds to a message's own
YIELD_EVERY = 32  # messages
UNKNOWN = "unknown"
"""Under this name stands whatever no contract knows, so that an answer never has more names than there are."""


@dataclass(frozen=True)
class Job:
    """A message of JOBS: which job it is of, and the key under which it works."""

    stored: Stored
    address: grammar.Address
    job_id: str
    key: str

    @property
    def name(self) -> str:
        return f"{self.address.component}.{self.address.operation}"


@dataclass(frozen=True)
class Sifted:
    """A page. fates: in the order of the messages, the operation and what becomes of it. run: those to send."""

    last_sequence: int
    left: int
    fates: list[tuple[str, Fate]]
    run: list[Job]


@dataclass(frozen=True)
class _Reached:
    """How far a component's consumer is."""

    delivered: int
    in_hand: int


class Sifter:
    """For one replay of one tenant. by: who asked for it; what they may not ask for is not done in their name."""

    def __init__(
        self, connection: Connection, inbox: Inbox, by: Identity, message: contracts.Replay, replay_id: str
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self._by = by
        self._message = message
        self._replay_id = replay_id
        self._pattern = grammar.job_pattern(by.tenant, message.subject)
        self._forgotten_before = datetime.now(UTC) - KEPT
        self.filters = self._pattern.filters(by.tenant)

    async def read(self, first: int, last: int, most: int = BATCH) -> tuple[list[Stored], int]:
        """The next page from a sequence on, at most up to another, and how many come after it. Empty: the end.

        Raises Fault(UNAVAILABLE, TIMEOUT).
        """
        batches = await asyncio.gather(
            *(read_batch(self._connection, JOBS, each, first, most) for each in self.filters)
        )
        # What one filter has beyond the end of another's unfinished batch must wait for the rest of that.
        ends = [batch[-1].sequence for batch in batches if batch and batch[-1].left]
        end = min([last, *ends])
        found = [each for batch in batches for each in batch]
        page = sorted((each for each in found if each.sequence <= end), key=lambda each: each.sequence)
        return page, sum(batch[-1].left for batch in batches if batch) + len(found) - len(page)

    async def sift(self, page: list[Stored], left: int) -> Sifted:
        """Raises Fault(UNAVAILABLE, TIMEOUT)."""
        read = []
        for number, stored in enumerate(page, 1):
            read.append(self._read(stored))
            if number % YIELD_EVERY == 0:  # a page takes 10 ms of CPU: others of this process need not wait for it
                await asyncio.sleep(0)
        found = [job for job, fate in read if job is not None and fate is None]
        states = await self._inbox.look(self._by.tenant, [(job.name, job.key) for job in found])
        reached = {each: await self._reached(each) for each in {job.address.component for job in found}}
        decided = {
            job.stored.sequence: self._fate(job, state, reached[job.address.component])
            for job, state in zip(found, states, strict=True)
        }
        fates = [
            (_shown(job), fate or decided[stored.sequence]) for stored, (job, fate) in zip(page, read, strict=True)
        ]
        run = [job for job in found if decided[job.stored.sequence] == "run"]
        return Sifted(page[-1].sequence, left, fates, run)

    def _read(self, stored: Stored) -> tuple[Job | None, Fate | None]:
        """What the message says by itself. No fate: that depends on how far its job is."""
        try:
            job = job_of(self._by.tenant, stored)
        except Fault:
            return None, "unreadable"
        if self._is_passed_over(job):
            return job, "skipped"
        contract = contract_of(job.address.component, job.address.operation)
        if contract is None:
            return job, "unreadable"
        try:
            its_own = Identity.from_message(self._by.tenant, stored.headers)
            if contract.scope is not None and not (its_own.allows(contract.scope) and self._by.allows(contract.scope)):
                return job, "not_permitted"
            data = stored.data
            if self._message.set:
                data, _ = body_of(changed(contract.model, data, type_of(stored), self._message.set))
            else:
                codec.decode(data, contract.model, type_of(stored))
            if not self._fits(data, stored):
                return job, "unreadable"
        except Fault as fault:
            return job, "not_permitted" if fault.code is Code.FORBIDDEN else "unreadable"
        return job, None

    def _fits(self, data: bytes, stored: Stored) -> bool:
        """Whether the broker takes it with the headers that it gets."""
        room = self._connection.max_payload - len(data) - MORE_HEADERS_BYTES
        return room > MAX_BLOCK_BYTES or room >= len(block(headers_again(stored.headers)))

    def _is_passed_over(self, job: Job) -> bool:
        """A replay never repeats itself, and other replays and what they made only where they are named."""
        if job.job_id == self._replay_id:
            return True
        if job.name == contracts.REPLAY.name:
            return self._pattern.component != contracts.REPLAY.component
        return names.REPLAY in job.stored.headers and not self._pattern.ident

    def _fate(self, job: Job, state: KeyState, reached: _Reached) -> Fate:
        if state == "done":
            return "run" if self._message.force else "finished"
        if state == "working" or job.stored.sequence > reached.delivered:
            return "waiting"
        if state == "open" and reached.in_hand:  # between two attempts, or handed back
            return "waiting"
        if state == "unknown" and not self._message.force and job.stored.stored_at < self._forgotten_before:
            return "finished"  # most likely: its row has had its time, and its message is kept for another's sake
        return "run"

    async def _reached(self, component: str) -> _Reached:
        try:
            info = await self._connection.jetstream(timeout=API_TIMEOUT_S).consumer_info(JOBS, component)
        except NotFoundError:  # nobody has ever worked on its jobs
            return _Reached(0, 0)
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error
        delivered = info.delivered.stream_seq if info.delivered is not None else 0
        return _Reached(delivered, info.num_ack_pending or 0)


def job_of(tenant: str, stored: Stored) -> Job:
    """Raises Fault(INVALID) on a subject that is none of a job."""
    address = grammar.parse(stored.subject)
    job_id = address.ident
    if not job_id:  # as its worker makes it: workers/serving/delivery.py
        job_id = stored_id(f"{tenant}\0{JOBS}\0{stored.headers[SEQUENCE]}\0{nanoseconds(stored.headers[TIME])}")
    return Job(stored, address, job_id, run_key(job_id, redrive_of(stored.headers)))


def _shown(job: Job | None) -> str:
    if job is None or contract_of(job.address.component, job.address.operation) is None:
        return UNKNOWN
    return job.name


def type_of(stored: Stored) -> str:
    return stored.headers.get(names.CONTENT_TYPE) or sniff(stored.data)
