"""A stream of events: read to its end, joined again after a cut where that is safe, closed when its reader leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType

import httpx

from client import sse
from client.errors import ServiceError
from client.transport import Asked, Transport
from codec import headers as h
from subjects.contract import Code

EVENT_STREAM = "text/event-stream"
OUTPUTS = "/api/v1/outputs/"


class EventStream:
    """`async with client.stream(...) as events: async for event in events: ...`, or just `async for`.

    Ends after Done. Failed is followed by its error, and a stream that was cut raises ServiceError(UNAVAILABLE): it
    never looks finished. A job's stream is joined again at its last event, at most max_rejoins times in a row without
    a new one; any other is not, because nobody works on it any more. job_id, correlation_id: once the answer began.
    """

    def __init__(self, transport: Transport, asked: Asked, *, job_id: str | None = None, last_id: str = "") -> None:
        self.job_id = job_id
        self.last_id = last_id
        self.correlation_id: str | None = None
        self._transport = transport
        self._asked = asked
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[sse.Event]:
        return self._events

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. A plain stream's work is cancelled by that, a job goes on."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[sse.Event, None]:
        config, loop = self._transport.config, asyncio.get_running_loop()
        until = loop.time() + config.stream_timeout_s
        asked, joins = self._asked, 0
        while True:
            response = await self._transport.attempts(asked, self._opened)
            seen, pause_s = self.last_id, random.uniform(0, config.backoff_from_s * 2 ** min(joins, 5))
            try:
                async with aclosing(self._pieces(response)) as pieces:
                    async for raw in pieces:
                        if loop.time() > until:
                            raise ServiceError(Code.TIMEOUT, f"the stream took over {config.stream_timeout_s:g} s")
                        pause_s = pause_s if raw.retry_s is None else raw.retry_s
                        event = sse.typed(raw)
                        if event is None:
                            continue
                        self.last_id = event.id or self.last_id
                        yield event
                        if isinstance(event, sse.Failed):
                            raise event.error
                        if isinstance(event, sse.Done):
                            return
            except httpx.TransportError:
                pass  # cut, as when the body ends before its end was told
            joins = joins + 1 if self.last_id == seen else 1
            if self.job_id is None or joins > config.max_rejoins:
                raise self._was_cut()
            await asyncio.sleep(min(pause_s, max(0.0, until - loop.time())))
            asked = self._join()

    async def _opened(self, response: httpx.Response) -> httpx.Response:
        if not response.headers.get(h.CONTENT_TYPE, "").startswith(EVENT_STREAM):
            raise ServiceError(
                Code.UPSTREAM, "the answer is no event stream: not an answer of the platform",
                status=response.status_code, retryable=False,
            )  # fmt: skip
        self.correlation_id = response.headers.get(h.CORRELATION_ID)
        location = response.headers.get(h.LOCATION, "")
        if self.job_id is None and "/jobs/" in location:
            self.job_id = location.rpartition("/")[2]
        return response

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[sse.Raw, None]:
        try:
            async with aclosing(response.aiter_bytes()) as body:  # type: ignore[type-var]
                async for raw in sse.events(body):
                    yield raw
        finally:
            await response.aclose()

    def _join(self) -> Asked:
        kept = {name: value for name, value in self._asked.headers.items() if name not in _OF_THE_FIRST}
        kept[h.ACCEPT] = EVENT_STREAM
        if self.last_id:
            kept[h.LAST_EVENT_ID] = self.last_id
        return replace(
            self._asked,
            method="GET",
            path=f"{OUTPUTS}{self.job_id}",
            headers=kept,
            content=None,
            params=None,
            safe=True,
        )

    def _was_cut(self) -> ServiceError:
        if self.job_id is None:
            detail = "the stream was cut and cannot be joined again; ask anew, or stream it as a job"
        else:
            detail = (
                f"the stream of {self.job_id} was cut too often; join it again after {self.last_id or 'its beginning'}"
            )
        return ServiceError(Code.UNAVAILABLE, detail, correlation_id=self.correlation_id)


_OF_THE_FIRST = frozenset({h.IDEMPOTENCY_KEY, h.PREFER, h.CONTENT_TYPE, h.REQUEST_ID, h.REQUEST_TIMEOUT})
