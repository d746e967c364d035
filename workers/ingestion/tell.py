"""A short transaction that also tells of what it changed, for stages that end before the handler does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import codec
from store.transaction import Transaction
from subjects import grammar
from subjects.contract import Event, EventPayload
from workers.serving import Context

Tell = Callable[[Event[Any], EventPayload], None]


@asynccontextmanager
async def telling(ctx: Context[Any]) -> AsyncIterator[tuple[Transaction, Tell]]:
    """`async with telling(ctx) as (tx, tell)`: the rows and the events that tell() was given commit together."""
    outbox = ctx.host.books.outbox
    told: list[tuple[Event[Any], EventPayload]] = []
    async with ctx.read() as tx:
        yield tx, lambda event, payload: told.append((event, payload))
        rows = [
            outbox.row(
                grammar.event(ctx.tenant, event.component, event.occurred),
                ctx.event_headers(event),
                codec.encode(payload, ctx.host.settings.content_type),
            )
            for event, payload in told
        ]
        if rows:
            await outbox.add(tx, ctx.tenant, rows)
    if rows:
        outbox.notify(ctx.tenant, rows)
