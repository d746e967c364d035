"""The table of the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from subjects import cache
from workers.cache.handlers import (
    Deps,
    delete,
    get,
    get_many,
    get_or_lock,
    invalidate,
    set_many,
    set_one,
    stats,
)
from workers.cache.tenants import Caches
from workers.serving import Host, Worker, serve


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    """Valkey may be away when the process starts: then each call says so until it is back."""
    yield Deps(Caches(host.valkey))


WORKER = Worker(
    "cache",
    lifespan,
    serves=[
        serve(cache.GET, get),
        serve(cache.GET_MANY, get_many),
        serve(cache.SET, set_one),
        serve(cache.SET_MANY, set_many),
        serve(cache.DELETE, delete),
        serve(cache.INVALIDATE, invalidate),
        serve(cache.GET_OR_LOCK, get_or_lock),
        serve(cache.STATS, stats),
    ],
    keys="valkey",
    needs=frozenset({"valkey"}),
)
