"""What each operation of the cache does with the tenant's entries."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from subjects import cache
from subjects.contract import Code, Fault
from workers.cache.quota import POLL_FIRST_S, POLL_MOST_S, WAITERS, WAITERS_A_TENANT
from workers.cache.tenants import Caches
from workers.serving import Context

REPLY_MARGIN_S = 0.25  # a waiter answers `busy` before its own deadline


@dataclass(frozen=True)
class Deps:
    caches: Caches
    waiting: Counter[str] = field(default_factory=Counter)  # waiters of get_or_lock now, by tenant


async def get(ctx: Context[Deps], message: cache.Get) -> cache.Entry:
    """The entry, or found: false."""
    return (await ctx.deps.caches.get(ctx.tenant, [message.key]))[0]


async def get_many(ctx: Context[Deps], message: cache.GetMany) -> cache.GetManyResult:
    """As many entries as keys, as of one moment. Raises Fault(TOO_LARGE)."""
    return cache.GetManyResult(entries=await ctx.deps.caches.get(ctx.tenant, message.keys))


async def set_one(ctx: Context[Deps], message: cache.Set) -> cache.SetResult:
    """Write if the conditions hold. Raises Fault: TOO_LARGE, EXHAUSTED."""
    return (await ctx.deps.caches.set(ctx.tenant, [message]))[0]


async def set_many(ctx: Context[Deps], message: cache.SetMany) -> cache.SetManyResult:
    """Each entry by its own conditions, all at one moment. Raises Fault: INVALID (a key twice), TOO_LARGE, EXHAUSTED
    (then none is written)."""
    if len({entry.key for entry in message.entries}) != len(message.entries):
        raise Fault(Code.INVALID, "entries names a key twice: send it once")
    return cache.SetManyResult(results=await ctx.deps.caches.set(ctx.tenant, message.entries))


async def delete(ctx: Context[Deps], message: cache.Delete) -> cache.DeleteResult:
    """Forget one key, and whatever is being computed for it."""
    deleted, _ = await ctx.deps.caches.delete(ctx.tenant, message.key)
    return cache.DeleteResult(deleted=deleted)


async def invalidate(ctx: Context[Deps], message: cache.Invalidate) -> cache.InvalidateResult:
    """Forget a key, the keys of a prefix or a tag, or all, and tell it."""
    caches = ctx.deps.caches
    if message.key is not None:
        entity = message.key
        deleted, version = await caches.delete(ctx.tenant, message.key)
        count = int(deleted)
    elif message.prefix is not None:
        entity = f"prefix:{message.prefix}"
        count, version = await caches.invalidate(ctx.tenant, prefix=message.prefix)
    elif message.tag is not None:
        entity = f"tag:{message.tag}"
        count, version = await caches.invalidate(ctx.tenant, tag=message.tag)
    else:
        entity = "all"
        count, version = await caches.invalidate(ctx.tenant)
    ctx.emit(cache.INVALIDATED, cache.Invalidated(entity_id=entity, version=version, count=count))
    return cache.InvalidateResult(count=count)


async def get_or_lock(ctx: Context[Deps], message: cache.GetOrLock) -> cache.GetOrLockResult:
    """The value; or the lock, for one caller; or, for the others, the value once it is there or `busy` after wait_s.

    Where too many wait in this process already, `busy` comes at once. Raises Fault(EXHAUSTED): too many locks.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + min(message.wait_s, ctx.remaining_s() - REPLY_MARGIN_S)
    found = await ctx.deps.caches.look(ctx.tenant, message.key, lock_s=message.lock_s, first=True)
    pause_s = POLL_FIRST_S
    with _place(ctx.deps.waiting, ctx.tenant) as may_wait:
        while may_wait and not found.entry.found and found.lock is None and loop.time() < until:
            # Full jitter: many waiters of one key must not look at the same moment.
            await asyncio.sleep(min(random.uniform(pause_s / 2, pause_s), until - loop.time()))
            pause_s = min(pause_s * 1.5, POLL_MOST_S)
            found = await ctx.deps.caches.look(ctx.tenant, message.key, lock_s=message.lock_s, first=False)
    if found.entry.found:
        return cache.GetOrLockResult(state="hit", entry=found.entry)
    return cache.GetOrLockResult(state="locked" if found.lock else "busy", entry=found.entry, lock=found.lock)


async def stats(ctx: Context[Deps], message: cache.StatsRequest) -> cache.Stats:
    """Hits and misses since the server began, what is held now, and the quota."""
    return await ctx.deps.caches.stats(ctx.tenant)


@contextmanager
def _place(waiting: Counter[str], tenant: str) -> Iterator[bool]:
    """A place among the waiters, if there is one."""
    may_wait = waiting[tenant] < WAITERS_A_TENANT and waiting.total() < WAITERS
    if not may_wait:
        yield False
        return
    waiting[tenant] += 1
    try:
        yield True
    finally:
        waiting[tenant] -= 1
        if waiting[tenant] <= 0:
            del waiting[tenant]
