"""jobs.replay: sends jobs of the tenant again, page by page. What has ended stays as it is, unless forced.

Each page is planned and journaled before any of it is sent, and sent before the next is planned. So a replay whose
process died goes on at its last page, and what of that was sent already is found by its subject.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial

from nats.errors import Error as NatsError

from codec import headers as names
from runtime import jobs as wire
from runtime.stored import BATCH, first_since
from runtime.streams import API_TIMEOUT_S, JOBS
from subjects import grammar
from subjects import jobs as contracts
from subjects.contract import Code, Fault, Model
from workers.jobs.again import body_of, changed, contract_of, headers_again
from workers.jobs.deps import Deps
from workers.jobs.sift import Job, Sifted, Sifter, job_of, type_of
from workers.serving import Context
from workers.serving.route import Later

IN_FLIGHT = 64
PAGE_AT_MOST_S = 20.0  # a slow replay plans only so much ahead
HAND_BACK_AFTER_S = 300.0  # then it goes back to the stream and on from there: no attempt ever reaches its time limit
MAX_LANES = 10_000  # replays of one job that the stream still holds

Counts = dict[str, dict[str, int]]


class Bounds(Model):
    """Both included."""

    first: int
    last: int


class Planned(Model):
    sequence: int
    job_id: str
    key: str
    component: str
    operation: str


class Page(Model):
    """What is journaled. ended: there was nothing more, and all before it is sent."""

    last_sequence: int = 0
    left: int = 0
    ended: bool = False
    counts: Counts = {}
    run: list[Planned] = []


async def replay(ctx: Context[Deps], message: contracts.Replay) -> contracts.Replayed:
    """Raises Fault(INVALID) for a pattern, range or change that cannot be, FORBIDDEN for another tenant's subject,
    EXHAUSTED while the stream is full."""
    return await Replaying(ctx, message).run()


class Replaying:
    """One replay. Its id is its job's, so every attempt has the same."""

    def __init__(self, ctx: Context[Deps], message: contracts.Replay) -> None:
        if message.since is None and message.first_sequence is None:
            raise Fault(Code.INVALID, "say from where: since or first_sequence")
        if message.set and not message.force:
            raise Fault(Code.INVALID, "set needs force: under its own id a job stays what it was")
        self._ctx = ctx
        self._message = message
        self.id = str(ctx.job_id or ctx.key or ctx.identity.request_id)
        deps = ctx.deps
        self._sifter = Sifter(deps.connection, deps.inbox, ctx.identity, message, self.id)
        self._counts: Counts = defaultdict(lambda: defaultdict(int))
        self._named: list[contracts.ReplayedJob] = []
        self._seen = self._left = self._unsent = 0
        self._next_at = 0.0
        self._held: dict[int, Job] = {}

    async def run(self) -> contracts.Replayed:
        bounds = await self._ctx.step("bounds", self._bounds, Bounds)
        if bounds.first <= bounds.last:
            if self._message.dry_run:
                await self._count(bounds)
            else:
                await self._send_all(bounds)
        total: dict[str, int] = defaultdict(int)
        for counted in self._counts.values():
            for fate, number in counted.items():
                total[fate] += number
        return contracts.Replayed(
            replay_id=self.id,
            dry_run=self._message.dry_run,
            first_sequence=bounds.first,
            last_sequence=bounds.last,
            total=contracts.ReplayCounts(**total),
            operations={name: contracts.ReplayCounts(**counted) for name, counted in sorted(self._counts.items())},
            jobs=self._named,
        )

    async def _bounds(self) -> Bounds:
        """The stream as it is now: what comes later, this replay's own messages too, is none of its business."""
        message, connection = self._message, self._ctx.deps.connection
        try:
            state = (await connection.jetstream(timeout=API_TIMEOUT_S).stream_info(JOBS)).state
        except (NatsError, TimeoutError) as error:
            raise Fault(Code.UNAVAILABLE, "JetStream does not answer") from error
        last = min(message.last_sequence or state.last_seq, state.last_seq)
        first = max(message.first_sequence or 1, state.first_seq)
        if message.since is not None:
            asked = (first_since(connection, JOBS, message.since, each) for each in self._sifter.filters)
            found = await asyncio.gather(*asked)
            first = max(first, min((each for each in found if each is not None), default=last + 1))
        return Bounds(first=first, last=last)

    # --- a dry run ------------------------------------------------------------------------------------------------

    async def _count(self, bounds: Bounds) -> None:
        async for sifted in self._pages(bounds):
            await self._note(_page_of(sifted))

    async def _pages(self, bounds: Bounds) -> AsyncIterator[Sifted]:
        """Reads a page ahead, while the one before it is looked at."""
        reading = asyncio.create_task(self._sifter.read(bounds.first, bounds.last))
        try:
            while (found := await reading)[0]:
                page, left = found
                reading = asyncio.create_task(self._sifter.read(page[-1].sequence + 1, bounds.last))
                yield await self._sifter.sift(page, left)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError, Fault):
                await reading

    # --- in earnest -----------------------------------------------------------------------------------------------

    async def _send_all(self, bounds: Bounds) -> None:
        began, number = time.monotonic(), 0
        page = Page(last_sequence=bounds.first - 1)
        while not page.ended:
            number += 1
            page = await self._ctx.step(f"page-{number}", partial(self._advance, page, bounds), Page)
            await self._note(page)
            if self._ctx.job_id is not None and time.monotonic() - began > HAND_BACK_AFTER_S:
                raise Later(0.0, "a long replay goes on in another delivery")

    async def _advance(self, before: Page, bounds: Bounds) -> Page:
        """Send what the page before planned, then plan the next."""
        await self._send(before.run)
        rate = self._message.rate
        most = BATCH if rate is None else max(1, min(BATCH, int(rate * PAGE_AT_MOST_S)))
        page, left = await self._sifter.read(before.last_sequence + 1, bounds.last, most)
        if not page:
            return Page(last_sequence=before.last_sequence, ended=True)
        sifted = await self._sifter.sift(page, left)
        self._held = {job.stored.sequence: job for job in sifted.run}
        return _page_of(sifted)

    async def _send(self, planned: Sequence[Planned]) -> None:
        if planned and planned[0].sequence not in self._held:  # planned by a process that is no more
            wanted = {each.sequence for each in planned}
            page, _ = await self._sifter.read(planned[0].sequence, planned[-1].sequence)
            self._held = {each.sequence: job_of(self._ctx.tenant, each) for each in page if each.sequence in wanted}
        jobs = [self._held[each.sequence] for each in planned if each.sequence in self._held]
        at_once = IN_FLIGHT if self._message.rate is None else 1
        for start in range(0, len(jobs), at_once):
            if self._message.rate is not None:
                await self._pace(self._message.rate)
            await asyncio.gather(*map(self._send_one, jobs[start : start + at_once]))
            self._unsent = max(0, len(jobs) - start - at_once)
            await self._tell()

    async def _pace(self, rate: float) -> None:
        now = time.monotonic()
        if self._next_at > now:
            await asyncio.sleep(self._next_at - now)
        self._next_at = max(self._next_at, now) + 1 / rate

    async def _send_one(self, job: Job) -> None:
        given = headers_again(job.stored.headers)
        given[names.REPLAY] = self.id
        if self._message.force:
            await self._send_as_its_own(job, given)
        else:
            await self._send_as_it_was(job, given)

    async def _send_as_its_own(self, job: Job, given: dict[str, str]) -> None:
        """A job whose key is `<key>#<replay id>`: its id follows from that, so sending it again changes nothing."""
        message, data, tenant = self._message, job.stored.data, self._ctx.tenant
        for name in (names.REDRIVE, names.OUTPUT_TO):
            given.pop(name, None)
        given[names.IDEMPOTENCY_KEY] = forced_key(job.key, self.id)
        given[names.REPLAY_OF] = job.stored.headers.get(names.REPLAY_OF, job.job_id)
        if message.set:
            contract = contract_of(job.address.component, job.address.operation)
            assert contract is not None  # it was planned
            made = changed(contract.model, data, type_of(job.stored), message.set)
            data, more = body_of(made)
            given |= more
        own_id = wire.job_id(tenant, job.name, given[names.IDEMPOTENCY_KEY])
        subject = grammar.job(tenant, job.address.component, job.address.operation, own_id)
        await wire.publish_or_find(self._ctx.deps.connection.requests, subject, data, given)

    async def _send_as_it_was(self, job: Job, given: dict[str, str]) -> None:
        """The same job in its next lane, so that its worker finds in the inbox how far it is."""
        address, requests = job.address, self._ctx.deps.connection.requests
        for number in range(1, MAX_LANES):
            lane = f"r{number}"
            subject = grammar.job(address.tenant, address.component, address.operation, job.job_id, lane)
            stored = await wire.publish_or_find(requests, subject, job.stored.data, given)
            if stored is None or all(
                stored.headers.get(name) == given.get(name) for name in (names.REPLAY, names.REDRIVE)
            ):
                return
        raise Fault(Code.CONFLICT, f"job {job.job_id} was replayed {MAX_LANES - 1} times already")

    # --- what is told ---------------------------------------------------------------------------------------------

    async def _note(self, page: Page) -> None:
        for name, counted in page.counts.items():
            for fate, number in counted.items():
                self._counts[name][fate] += number
                self._seen += number
        for each in page.run[: contracts.MAX_NAMED - len(self._named)]:
            self._named.append(self._replayed(each))
        self._left = page.left
        if not self._message.dry_run:
            self._unsent = len(page.run)
        await self._tell()

    async def _tell(self) -> None:
        run = sum(counted["run"] for counted in self._counts.values())
        said = f"{run} to run" if self._message.dry_run else f"{run - self._unsent} sent"
        await self._ctx.progress(self._seen - self._unsent, self._seen + self._left, "messages", said)

    def _replayed(self, each: Planned) -> contracts.ReplayedJob:
        own_id = each.job_id
        if self._message.force:
            name = f"{each.component}.{each.operation}"
            own_id = wire.job_id(self._ctx.tenant, name, forced_key(each.key, self.id))
        return contracts.ReplayedJob(
            job_id=each.job_id, replayed_as=own_id, component=each.component, operation=each.operation
        )


def _page_of(sifted: Sifted) -> Page:
    counts: Counts = defaultdict(lambda: defaultdict(int))
    for name, fate in sifted.fates:
        counts[name][fate] += 1
    return Page(
        last_sequence=sifted.last_sequence,
        left=sifted.left,
        counts={name: dict(counted) for name, counted in counts.items()},
        run=[
            Planned(
                sequence=job.stored.sequence,
                job_id=job.job_id,
                key=job.key,
                component=job.address.component,
                operation=job.address.operation,
            )
            for job in sifted.run
        ],
    )


def forced_key(key: str, replay_id: str) -> str:
    """The Idempotency-Key of the job that a forced replay makes."""
    return f"{key}#{replay_id}"
