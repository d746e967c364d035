"""The table of jobs: status, listing, waiting, cancelling; and the keeper that cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from store.keeper import Keeper
from subjects import jobs
from workers.jobs.handlers import Deps, cancel, get, list_jobs, wait
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
    ],
    needs=frozenset({"database"}),
)
