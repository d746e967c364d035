"""Answers from the cache component: a key names the collection's version, so a cached answer never outlives a change.

The cache may fail or forget: then the answer is made again.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import codec
from subjects import cache, rag
from subjects.contract import Fault, Model
from workers.rag.deps import Deps
from workers.serving import Context

TTL_S = 300
TIMEOUT_S = 0.5  # a slow cache must not make an answer slower than none
MAX_BYTES = 256 * 1024

M = TypeVar("M", bound=Model)


def key_of(kind: str, message: rag.Search | rag.Query, version: int) -> str:
    return f"rag/{kind}/{message.collection}/{version}/{codec.digest(message)}"


def tag_of(collection: str) -> str:
    return f"rag/{collection}"


async def recall(ctx: Context[Deps], key: str, model: type[M]) -> M | None:
    """The kept answer, or None when there is none or the cache cannot be asked."""
    try:
        entry = await ctx.call(cache.GET, cache.Get(key=key), timeout_s=TIMEOUT_S)
        if not entry.found or entry.bytes is None:
            return None
        return codec.decode(entry.bytes, model)
    except Fault as fault:
        ctx.log.info("cache not asked", code=fault.code.value)
        return None


def keep(ctx: Context[Deps], key: str, collection: str, answer: Model) -> None:
    """Keep an answer, after it is out."""
    data = codec.encode(answer)
    if len(data) <= MAX_BYTES:
        message = cache.Set(key=key, bytes=data, ttl_s=TTL_S, tags=[tag_of(collection)])
        ctx.after_commit(partial(_set, ctx, message))


def forget(ctx: Context[Deps], collection: str) -> None:
    """Drop what is kept of a collection, once its change stands. Nobody would find it: this frees the room."""
    ctx.after_commit(partial(_invalidate, ctx, cache.Invalidate(tag=tag_of(collection))))


async def _set(ctx: Context[Deps], message: cache.Set) -> None:
    await ctx.call(cache.SET, message, timeout_s=TIMEOUT_S)


async def _invalidate(ctx: Context[Deps], message: cache.Invalidate) -> None:
    await ctx.call(cache.INVALIDATE, message, timeout_s=TIMEOUT_S)
