"""Publishes the events of components that have no database, so no outbox: best effort, in the background, bounded."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

import structlog

import codec
from codec import headers as names
from runtime.client import Client
from subjects.contract import Event, EventPayload, Fault

log = structlog.get_logger("workers.serving")

QUEUE = 10_000  # events waiting in one process; more are dropped and counted
FLUSH_S = 3.0  # at the end of the process


class Facts:
    """One task that publishes what publish() was given, in order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: asyncio.Queue[tuple[str, Event[Any], bytes, dict[str, str]]] = asyncio.Queue(QUEUE)
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    async def __aenter__(self) -> Facts:
        self._task = asyncio.create_task(self._publish(), name="facts")
        return self

    async def __aexit__(self, *exc: object) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), FLUSH_S)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def publish(self, tenant: str, event: Event[Any], payload: EventPayload, headers: dict[str, str]) -> None:
        try:
            self._queue.put_nowait((tenant, event, codec.encode(payload, headers[names.CONTENT_TYPE]), headers))
        except asyncio.QueueFull:
            self.dropped += 1
            log.warning("event dropped: too many are waiting", event_name=event.name, dropped=self.dropped)

    async def _publish(self) -> None:
        while True:
            tenant, event, data, headers = await self._queue.get()
            try:
                await self._client.publish_event(event, tenant, data, headers, event_id=str(uuid.uuid4()))
            except Fault as fault:
                self.dropped += 1
                log.warning("event not published", event_name=event.name, code=fault.code.value)
            finally:
                self._queue.task_done()
