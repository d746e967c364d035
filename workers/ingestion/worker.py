"""The table of ingestion."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import ingestion, jobs, rag
from workers.ingestion.deps import Deps
from workers.ingestion.handlers import get_file, list_files, process, register
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    yield Deps(objects=host.objects)


WORKER = Worker(
    "ingestion",
    lifespan,
    serves=[
        serve(ingestion.REGISTER, register),
        serve(ingestion.PROCESS, process),
        serve(ingestion.GET_FILE, get_file),
        serve(ingestion.LIST_FILES, list_files),
    ],
    calls=[ingestion.PROCESS, rag.INGEST, jobs.GET],
    needs=frozenset({"database", "objects", "pool"}),
)
