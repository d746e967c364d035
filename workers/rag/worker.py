"""The table of rag."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import cache, gateway, rag
from workers.rag.asking import query, search
from workers.rag.deps import Deps
from workers.rag.documents import delete_document, get_document, list_documents, update_document
from workers.rag.ingesting import ingest
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    yield Deps(host.objects)


WORKER = Worker(
    "rag",
    lifespan,
    serves=[
        serve(rag.INGEST, ingest),
        serve(rag.QUERY, query),
        serve(rag.SEARCH, search),
        serve(rag.GET_DOCUMENT, get_document),
        serve(rag.LIST_DOCUMENTS, list_documents),
        serve(rag.UPDATE_DOCUMENT, update_document),
        serve(rag.DELETE_DOCUMENT, delete_document),
    ],
    calls=[gateway.EMBED, gateway.GENERATE, cache.GET, cache.SET, cache.INVALIDATE],
    needs=frozenset({"database", "objects", "pool"}),
)
