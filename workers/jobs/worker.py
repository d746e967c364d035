"""The table of jobs: status, listing, waiting, cancelling, replay, dead letters; and the keeper that cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from store.keeper import Keeper
from subjects import jobs
from workers.jobs.deps import Deps
from workers.jobs.handlers import cancel, get, list_jobs, wait
from workers.jobs.redrive import get_dead_letter, list_dead_letters, purge, redrive
from workers.jobs.replay import replay
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    """Runs the keeper where its role's address is known; one of all processes leads, by advisory lock."""
    dsn = host.settings.database_keeper_url
    keeper = None
    if dsn is not None:
        keeper = asyncio.create_task(Keeper(dsn, host.connection).run(), name="keeper")
    try:
        yield Deps(host.connection, host.books.jobs, host.books.inbox)
    finally:
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})


WORKER = Worker(
    "jobs",
    lifespan,
    serves=[
        serve(jobs.GET, get),
        serve(jobs.LIST, list_jobs),
        serve(jobs.WAIT, wait),
        serve(jobs.CANCEL, cancel),
        serve(jobs.REPLAY, replay),
        serve(jobs.LIST_DEAD_LETTERS, list_dead_letters),
        serve(jobs.GET_DEAD_LETTER, get_dead_letter),
        serve(jobs.REDRIVE, redrive),
        serve(jobs.PURGE_DEAD_LETTERS, purge),
    ],
    needs=frozenset({"database"}),
)
