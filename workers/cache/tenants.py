"""The caches of all tenants in one Valkey: each method is one atomic script, or a bounded number of the same one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import codec
from runtime import metrics
from store.valkey import Arg, Script, Valkey, key
from subjects import cache
from subjects.contract import Code, Fault
from workers.cache.quota import INVALIDATED_A_CALL, MAX_REPLY_BYTES, QUOTA, SWEPT_A_CALL, Quota

LOOKUPS = metrics.Counter("faas.cache.lookups", "", "Keys that were asked for.", ("result",))
VALUE, BYTES = b"v", b"b"  # the first byte of what is kept


def _script(name: str) -> Script:
    return Script.load("workers.cache.lua", "tenant.lua", name)


GET, SET, DELETE = _script("get.lua"), _script("set.lua"), _script("delete.lua")
INVALIDATE, LOCK, STATS = _script("invalidate.lua"), _script("lock.lua"), _script("stats.lua")


@dataclass(frozen=True)
class Looked:
    """One look of get_or_lock: an entry that was found, a lock that is now ours, or neither."""

    entry: cache.Entry
    lock: str | None = None


@dataclass(frozen=True)
class Caches:
    """Every method raises Fault(UNAVAILABLE) within about 200 ms when Valkey does not answer."""

    valkey: Valkey
    quota: Quota = QUOTA

    async def get(self, tenant: str, keys: Sequence[str]) -> list[cache.Entry]:
        """Raises Fault(TOO_LARGE) when the values together are over 511 KiB."""
        found = await self._run(GET, tenant, MAX_REPLY_BYTES, *map(_raw, keys))
        if found == [b"too large"]:
            raise Fault(Code.TOO_LARGE, f"the values together have over {MAX_REPLY_BYTES} bytes: ask for fewer keys")
        entries = [_entry(*fields) for fields in found]
        for entry in entries:
            LOOKUPS.add("hit" if entry.found else "miss")
        return entries

    async def set(self, tenant: str, entries: Sequence[cache.Set]) -> list[cache.SetResult]:
        """Write all entries or none. Raises Fault: TOO_LARGE (a value), EXHAUSTED (over the quota)."""
        quota = self.quota
        args: list[Arg] = [quota.max_keys, quota.max_bytes, SWEPT_A_CALL]
        for entry in entries:
            args += _written(entry)
        found = await self._swept(SET, tenant, args)
        if isinstance(found[0], bytes):
            raise quota.exhausted(found[0])
        return [cache.SetResult(written=bool(written), version=version) for written, version in found]

    async def delete(self, tenant: str, name: str) -> tuple[bool, int]:
        """Whether it was there, and a version newer than the entry's."""
        there, version = await self._run(DELETE, tenant, _raw(name))
        return bool(there), version

    async def invalidate(self, tenant: str, *, prefix: str = "", tag: str = "") -> tuple[int, int]:
        """Drop the entries whose key begins with prefix (of this tag): how many, and up to which version.

        Large ones go in several scripts; whatever was written before the call is gone when it returns, what is
        written during it stays.
        """
        first, last = b"[" + _raw(prefix) if prefix else b"-", b"[" + _raw(prefix) + b"\xff" if prefix else b"+"
        count = version = 0
        for _ in range(self.quota.max_keys // INVALIDATED_A_CALL + 2):
            args = (_raw(tag), first, last, version, INVALIDATED_A_CALL)
            version, dropped, at = await self._run(INVALIDATE, tenant, *args)
            count += dropped
            if not at:
                break
            first = b"(" + at
        return count, version

    async def look(self, tenant: str, name: str, *, lock_s: int, first: bool) -> Looked:
        """One look of get_or_lock. Raises Fault(EXHAUSTED) when the tenant holds too many locks."""
        token = secrets.token_hex(12)
        args = (_raw(name), lock_s * 1000, token, self.quota.max_locks, int(first))
        state, *fields = await self._run(LOCK, tenant, *args)
        match state:
            case b"hit":
                return Looked(_entry(*fields))
            case b"locked":
                return Looked(_entry(), fields[0].decode())
            case b"full":
                raise self.quota.exhausted(state)
        return Looked(_entry())

    async def stats(self, tenant: str) -> cache.Stats:
        hits, misses, keys, size = await self._swept(STATS, tenant, [SWEPT_A_CALL])
        quota = self.quota
        return cache.Stats(
            hits=hits, misses=misses, keys=keys, bytes=size, max_keys=quota.max_keys, max_bytes=quota.max_bytes
        )

    async def _swept(self, script: Script, tenant: str, args: Sequence[Arg]) -> Any:
        """Run a script until no expired entry stands in its way; each run sweeps some of them."""
        for _ in range(self.quota.max_keys // SWEPT_A_CALL + 2):
            found = await self._run(script, tenant, *args)
            if found != [b"sweep"]:
                return found
        raise Fault(Code.UNAVAILABLE, "the cache is busy forgetting expired keys: try again", retry_after_s=1)

    async def _run(self, script: Script, tenant: str, *args: Arg) -> Any:
        return await self.valkey.script(script, [key(tenant, "cache")], args)


def _raw(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Fault(Code.INVALID, "a key must be valid Unicode: it has a lone surrogate") from error


def _written(entry: cache.Set) -> list[Arg]:
    """An entry as set.lua reads it."""
    if entry.bytes is not None:
        value = BYTES + entry.bytes
    else:
        value = VALUE + codec.encode_plain(entry.value, codec.MSGPACK)
    if len(value) > cache.MAX_VALUE_BYTES:
        raise Fault(Code.TOO_LARGE, f"a value has at most {cache.MAX_VALUE_BYTES} bytes encoded, this has {len(value)}")
    if_version = -1 if entry.if_version is None else entry.if_version
    tags = [_raw(tag) for tag in dict.fromkeys(entry.tags)]
    ttl_ms = (entry.ttl_s or 0) * 1000
    return [_raw(entry.key), value, ttl_ms, int(entry.if_absent), if_version, entry.lock or "", len(tags), *tags]


def _entry(kept: bytes | None = None, version: int | None = None, left_ms: int = -1) -> cache.Entry:
    if kept is None:
        return cache.Entry(found=False)
    ttl_s = None if left_ms < 0 else -(-left_ms // 1000)
    if kept[:1] == BYTES:
        return cache.Entry(found=True, bytes=kept[1:], version=version, ttl_s=ttl_s)
    value: Any = codec.decode_plain(kept[1:], codec.MSGPACK)
    return cache.Entry(found=True, value=value, version=version, ttl_s=ttl_s)
