"""Outputs that go on without their reader: a job's, and joining any output again, on any bridge."""

from __future__ import annotations

import asyncio
import re

from bridge.context import Bridge, permit
from bridge.exchange import Exchange
from bridge.results import end_of, error_item, job_of
from bridge.sse import EventStream
from codec import headers as h
from runtime.identity import Identity
from runtime.jobs import last_of
from runtime.output import OutputItem, OutputReader
from runtime.streams import OUT
from subjects import grammar, jobs
from subjects.contract import Code, Fault

Place = tuple[int, int]  # attempt and number of a piece

LOOK_EVERY_S = 5.0  # a quiet output is looked up this often in OUT, and the job behind it in its row
LATE_END_S = 0.5  # a job's row is final a moment before the last piece of its output is out
IDLE_TIMEOUT_S = 300.0  # of an output that is no job's: nobody tells when its worker died

_JOB_ID = re.compile(r"j[a-z2-7]{26}\Z")
_EVENT_ID = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})\.([0-9]{1,9})\.([0-9]{1,9})\Z")


class JobEvents:
    """GET /api/v1/jobs/{job_id}/events"""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def __call__(self, exchange: Exchange) -> None:
        """Raises Fault: FORBIDDEN, INVALID, NOT_FOUND; Gone."""
        permit(exchange.who(), jobs.GET)
        job_id = grammar.token(exchange.params["job_id"], "job id")
        after = last_event(exchange, job_id)
        await job_of(self._bridge, exchange.who(), job_id)
        await Reader(self._bridge, exchange, job_id, after=after, is_job=True).run()


class Outputs:
    """GET /api/v1/outputs/{output_id}: join an output again after Last-Event-ID, or read it from its beginning.

    Never starts work. An output's id is random and told only to the one who asked for it. A job's id may follow from
    its key, so its output is for those who may see jobs or ask for its operation.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    async def __call__(self, exchange: Exchange) -> None:
        """Raises Fault: FORBIDDEN, INVALID, NOT_FOUND; Gone."""
        ident = grammar.token(exchange.params["output_id"], "output id")
        after = last_event(exchange, ident)
        identity = exchange.who()
        is_job = _JOB_ID.match(ident) is not None
        if is_job:
            job = await job_of(self._bridge, identity, ident)
            if not identity.allows(f"{job.component}.{job.operation}"):
                permit(identity, jobs.GET)
        elif await last_of(self._bridge.connection.requests, OUT, grammar.output(identity.tenant, ident)) is None:
            raise Fault(Code.NOT_FOUND, f"nothing is kept of the output {ident}")
        await Reader(self._bridge, exchange, ident, after=after, is_job=is_job).run()


def last_event(exchange: Exchange, ident: str) -> Place | None:
    """The place that Last-Event-ID names. Raises Fault(INVALID) when it is not one of this output's."""
    value = exchange.header(h.LAST_EVENT_ID)
    if not value:
        return None
    found = _EVENT_ID.match(value)
    if found is None or found[1] != ident:
        raise Fault(Code.INVALID, f"{h.LAST_EVENT_ID} must be an id of this stream: {ident}.<attempt>.<number>")
    return int(found[2]), int(found[3])


class Reader:
    """One client that reads an output to its end. What it reads does not notice when it leaves."""

    def __init__(
        self,
        bridge: Bridge,
        exchange: Exchange,
        ident: str,
        *,
        after: Place | None = None,
        is_job: bool,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._bridge = bridge
        self._identity: Identity = exchange.who()
        self._ident = ident
        self._is_job = is_job
        self._reader = OutputReader(bridge.connection, self._identity.tenant, ident, after=after)
        self._events = EventStream(bridge, exchange, ident, headers)
        self._place = after or (1, 0)
        self._moved_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Raises Gone."""
        reader, events = self._reader, self._events
        await reader.start()
        try:
            async with events.watched(reader.wake):
                await events.open()
                look = True
                while not await self._send(look=look):
                    if events.interrupted:
                        await events.interrupt()
                        return
                    if look and (job := await self._ended()) is not None:
                        await self._send_end(job)
                        return
                    await events.beat()
                    look = not await reader.ready(LOOK_EVERY_S)
        finally:
            await reader.close()

    async def _send(self, *, look: bool) -> bool:
        """Send what there is. True = that was the end."""
        self._events.check()
        try:
            async for item in self._reader.take(look=look):
                await self._events.send(item)
                self._place, self._moved_at = (item.attempt, item.n), asyncio.get_running_loop().time()
                if item.kind in ("done", "error"):
                    return True
        except Fault as fault:  # the broker is away: what comes later is found in OUT
            if not fault.retryable:
                raise
        if not self._is_job and asyncio.get_running_loop().time() - self._moved_at > IDLE_TIMEOUT_S:
            silent = Fault(Code.TIMEOUT, f"nothing came for {IDLE_TIMEOUT_S:g} s on {self._ident}")
            await self._events.send(error_item(silent, self._identity, self._place))
            return True
        return False

    async def _ended(self) -> jobs.Job | None:
        """The job, if its row says that it has ended."""
        if not self._is_job:
            return None
        try:
            job = await job_of(self._bridge, self._identity, self._ident)
        except Fault:  # nobody can tell just now
            return None
        return job if job.status in jobs.FINAL else None

    async def _send_end(self, job: jobs.Job) -> None:
        """Its last piece may still be on its way; else make it from the row."""
        await self._reader.ready(LATE_END_S)
        if not await self._send(look=True):
            item: OutputItem = await end_of(self._bridge, self._identity, job, self._place)
            await self._events.send(item)
