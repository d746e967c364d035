"""The cache: what was written is read, by its own tenant alone, within its quota, until it is invalidated."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.settings import Settings
from store.valkey import Valkey
from subjects import cache
from subjects.contract import Code, Fault
from tests.integration.test_valkey import own_valkey
from workers.cache.quota import INVALIDATED_A_CALL, SWEPT_A_CALL, WAITERS_A_TENANT, Quota
from workers.cache.tenants import Caches
from workers.cache.worker import WORKER
from workers.serving.boot import serving

SMALL = Quota(max_keys=10, max_bytes=1000, max_locks=3)


@pytest_asyncio.fixture
async def valkey(settings: Settings) -> AsyncIterator[Valkey]:
    valkey = await Valkey.open(settings.redis_url)
    yield valkey
    await valkey.close()


@pytest.fixture
def caches(valkey: Valkey) -> Caches:
    return Caches(valkey)


@pytest_asyncio.fixture
async def cache_served(settings: Settings) -> AsyncIterator[None]:
    own = await connect(settings, name="cache-here")
    async with serving([WORKER], settings, own):
        yield
    await own.close()


def entry(key: str, value: Any = 1, *, ttl_s: float | None = None, **fields: Any) -> cache.Set:
    """A write; its ttl_s may be shorter than the contract allows, so that tests need not wait."""
    return cache.Set.model_construct(**{**cache.Set(key=key, value=value, **fields).__dict__, "ttl_s": ttl_s})


async def held(caches: Caches, tenant: str) -> tuple[int, int]:
    stats = await caches.stats(tenant)
    return stats.keys, stats.bytes


async def get(caches: Caches, tenant: str, key: str) -> Any:
    [found] = await caches.get(tenant, [key])
    return found.value if found.found else None


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 0, -(2**63), 1.5, "", "ä\U0001f600", [], [1, ["x"]], {"a": {"b": None}}])
async def test_a_value_comes_back_as_it_was(caches: Caches, tenant: str, value: Any) -> None:
    await caches.set(tenant, [entry("k", value)])
    [found] = await caches.get(tenant, ["k"])
    assert (found.found, found.value, found.bytes, found.ttl_s) == (True, value, None, None)


async def test_bytes_come_back_as_bytes(caches: Caches, tenant: str) -> None:
    every = bytes(range(256))
    await caches.set(tenant, [cache.Set(key="k", bytes=every), cache.Set(key="none", bytes=b"")])
    found = await caches.get(tenant, ["k", "none", "missing"])
    assert [e.bytes for e in found] == [every, b"", None]
    assert [e.found for e in found] == [True, True, False]


async def test_the_version_of_a_key_only_grows(caches: Caches, tenant: str) -> None:
    seen = []
    for _ in range(3):
        for _ in range(3):
            [written] = await caches.set(tenant, [entry("k")])
            seen.append(written.version)
        await caches.delete(tenant, "k")
    assert seen == sorted(set(seen))


async def test_conditions_decide_whether_it_is_written(caches: Caches, tenant: str) -> None:
    async def put(value: int, **condition: Any) -> cache.SetResult:
        return (await caches.set(tenant, [entry("k", value, **condition)]))[0]

    assert (await put(0, if_version=7)).written is False
    first = await put(1, if_absent=True)
    assert first.written
    assert await put(2, if_absent=True) == cache.SetResult(written=False, version=first.version)
    assert await put(3, if_version=0) == cache.SetResult(written=False, version=first.version)
    second = await put(4, if_version=first.version)
    assert second.written
    assert second.version > first.version
    assert (await put(5, if_version=first.version)).version == second.version
    assert await get(caches, tenant, "k") == 4


async def test_of_many_writers_of_a_version_one_wins(caches: Caches, tenant: str) -> None:
    [first] = await caches.set(tenant, [entry("k", -1)])
    results = await asyncio.gather(*(caches.set(tenant, [entry("k", n, if_version=first.version)]) for n in range(40)))
    assert sum(result[0].written for result in results) == 1


async def test_a_value_over_the_limit_is_too_large(caches: Caches, tenant: str) -> None:
    await caches.set(tenant, [cache.Set(key="k", bytes=bytes(cache.MAX_VALUE_BYTES - 1))])
    with pytest.raises(Fault, match="TOO_LARGE"):
        await caches.set(tenant, [cache.Set(key="k", bytes=bytes(cache.MAX_VALUE_BYTES))])
    await caches.set(tenant, [entry("small")])
    with pytest.raises(Fault, match="TOO_LARGE"):
        await caches.get(tenant, ["k", "k", "small"])


# --- quota ----------------------------------------------------------------------------------------------------------


async def test_the_quota_counts_keys_and_bytes_exactly(valkey: Valkey, tenant: str) -> None:
    caches = Caches(valkey, SMALL)
    await caches.set(tenant, [entry(f"k{n}") for n in range(10)])
    with pytest.raises(Fault, match="10 keys") as caught:
        await caches.set(tenant, [entry("k10")])
    assert caught.value.code is Code.EXHAUSTED
    await caches.set(tenant, [entry("k1", 5)])  # overwriting needs no room
    await caches.delete(tenant, "k2")
    await caches.set(tenant, [entry("k10")])
    with pytest.raises(Fault, match="1000 bytes"):
        await caches.set(tenant, [cache.Set(key="k1", bytes=bytes(1000))])
    assert await get(caches, tenant, "k1") == 5
    assert (await caches.stats(tenant)).keys == 10


async def test_set_many_over_the_quota_writes_nothing(valkey: Valkey, tenant: str) -> None:
    caches = Caches(valkey, SMALL)
    with pytest.raises(Fault, match="EXHAUSTED"):
        await caches.set(tenant, [entry(f"k{n}") for n in range(11)])
    assert await held(caches, tenant) == (0, 0)


async def test_what_has_expired_is_gone_from_reads_and_from_the_quota(valkey: Valkey, tenant: str) -> None:
    count = 3 * SWEPT_A_CALL + 5  # more than one script sweeps
    caches = Caches(valkey, Quota(max_keys=count))
    for at in range(0, count, 100):
        batch = range(at, min(at + 100, count))
        await caches.set(tenant, [entry(f"k{n}", "x" * 20, ttl_s=0.2, tags=["t"]) for n in batch])
    with pytest.raises(Fault, match="EXHAUSTED"):
        await caches.set(tenant, [entry("one more")])
    await asyncio.sleep(0.25)
    assert await get(caches, tenant, "k1") is None
    await caches.set(tenant, [entry("one more")])
    assert (await caches.stats(tenant)).keys == 1
    assert (await caches.invalidate(tenant, tag="t"))[0] == 0


async def test_after_any_operations_the_books_are_those_of_a_plain_dict(caches: Caches, tenant: str) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance, model = random.Random(seed), dict[str, tuple[int, tuple[str, ...]]]()
    for _ in range(400):
        key = chance.choice("abcdefgh") * chance.randint(1, 3)
        match chance.randrange(6):
            case 0 | 1 | 2:
                value, tags = "v" * chance.randrange(50), tuple(chance.sample("xyz", chance.randrange(3)))
                await caches.set(tenant, [entry(key, value, tags=list(tags))])
                packed = len(value) + (1 if len(value) < 32 else 2)
                model[key] = (len(key) + 1 + packed + len(tags), tags)
            case 3:
                assert (await caches.delete(tenant, key))[0] == (model.pop(key, None) is not None)
            case 4:
                gone = [name for name in model if name.startswith(key)]
                assert (await caches.invalidate(tenant, prefix=key))[0] == len(gone)
                model = {name: kept for name, kept in model.items() if name not in gone}
            case _:
                tag = chance.choice("xyz")
                gone = [name for name, (_, tags) in model.items() if tag in tags]
                assert (await caches.invalidate(tenant, tag=tag))[0] == len(gone)
                model = {name: kept for name, kept in model.items() if name not in gone}
        assert await held(caches, tenant) == (len(model), sum(size for size, _ in model.values()))
    await caches.invalidate(tenant)
    assert await held(caches, tenant) == (0, 0)


# --- tenants and names ------------------------------------------------------------------------------------------------

HOSTILE = [
    "*",
    "?",
    "[a-z]",
    "a:b",
    ":m",
    "{x}",
    "}:cache",
    "\x00",
    "\n",
    "ÿ",
    "\U0010ffff",
    "a" * 512,
    " ",
    "%s",
    "k",
    "ke",
]


async def test_keys_of_any_characters_never_meet(caches: Caches, tenant: str) -> None:
    other = tenant + "x"
    for who in (tenant, other):
        await caches.set(who, [entry(key, f"{who}/{n}", tags=[key[:128]]) for n, key in enumerate(HOSTILE)])
    for who in (tenant, other):
        assert [e.value for e in await caches.get(who, HOSTILE)] == [f"{who}/{n}" for n in range(len(HOSTILE))]
    for n, key in enumerate(HOSTILE):
        await caches.delete(other, key)
        assert await get(caches, tenant, key) == f"{tenant}/{n}"
    assert (await caches.stats(other)).keys == 0
    assert (await caches.stats(tenant)).keys == len(HOSTILE)


async def test_a_prefix_takes_its_keys_and_no_other(caches: Caches, tenant: str) -> None:
    keys = ["a", "ab", "ab*", "ab:1", "abÿ", "ab\U0010ffff", "ac", "aB", "b", "[ab"]
    await caches.set(tenant, [entry(key) for key in keys])
    assert (await caches.invalidate(tenant, prefix="ab"))[0] == 5
    assert [e.found for e in await caches.get(tenant, keys)] == [not key.startswith("ab") for key in keys]


async def test_invalidating_more_than_a_script_takes_leaves_none_and_keeps_later_writes(
    caches: Caches, tenant: str
) -> None:
    count = 2 * INVALIDATED_A_CALL + 3
    for at in range(0, count, 200):
        await caches.set(tenant, [entry(f"p{n:05}", tags=["t"]) for n in range(at, min(at + 200, count))])

    async def write() -> None:
        for n in range(30):
            await caches.set(tenant, [entry(f"p9new{n}", tags=["t"])])

    writing = asyncio.create_task(write())
    dropped, _ = await caches.invalidate(tenant, tag="t")
    await writing
    kept = (await caches.stats(tenant)).keys
    assert count <= dropped <= count + 30
    assert dropped + kept == count + 30


# --- single flight ----------------------------------------------------------------------------------------------------


async def test_of_many_callers_one_computes_and_the_others_get_its_value(
    cache_served: None, client: Client, identity: Identity
) -> None:
    computed = 0

    async def caller() -> Any:
        nonlocal computed
        found = await client.call(cache.GET_OR_LOCK, cache.GetOrLock(key="k", wait_s=5), identity=identity)
        if found.state == "locked":
            computed += 1
            await asyncio.sleep(0.2)
            message = cache.Set(key="k", value="computed", lock=found.lock)
            assert (await client.call(cache.SET, message, identity=identity)).written
            return "computed"
        assert found.state == "hit"
        return found.entry.value

    assert await asyncio.gather(*(caller() for _ in range(WAITERS_A_TENANT))) == ["computed"] * WAITERS_A_TENANT
    assert computed == 1


async def test_waiters_never_take_the_place_of_the_holders_set(
    cache_served: None, client: Client, identity: Identity
) -> None:
    ask = cache.GetOrLock(key="k", wait_s=20)
    found = await client.call(cache.GET_OR_LOCK, ask, identity=identity)
    waiting = [asyncio.create_task(client.call(cache.GET_OR_LOCK, ask, identity=identity)) for _ in range(120)]
    await asyncio.sleep(0.3)
    await client.call(cache.SET, cache.Set(key="k", value=1, lock=found.lock), identity=identity)
    states = [reply.state for reply in await asyncio.gather(*waiting)]
    assert set(states) <= {"hit", "busy"}
    assert states.count("hit") >= WAITERS_A_TENANT


async def test_a_lock_that_runs_out_goes_to_a_waiter_and_its_late_holder_writes_nothing(
    caches: Caches, tenant: str
) -> None:
    first = await caches.look(tenant, "k", lock_s=1, first=True)
    assert first.lock
    assert (await caches.look(tenant, "k", lock_s=1, first=False)).lock is None
    await asyncio.sleep(1.05)
    second = await caches.look(tenant, "k", lock_s=30, first=False)
    assert second.lock
    assert not (await caches.set(tenant, [entry("k", "late", lock=first.lock)]))[0].written
    assert (await caches.set(tenant, [entry("k", "mine", lock=second.lock)]))[0].written


@pytest.mark.parametrize("how", ["key", "prefix", "tag", "all"])
async def test_what_was_computed_from_something_invalidated_is_not_written(
    caches: Caches, tenant: str, how: str
) -> None:
    taken = await caches.look(tenant, "k", lock_s=30, first=True)
    match how:
        case "key":
            await caches.delete(tenant, "k")
        case "prefix":
            await caches.invalidate(tenant, prefix="k")
        case "tag":
            await caches.invalidate(tenant, tag="t")
        case _:
            await caches.invalidate(tenant)
    assert not (await caches.set(tenant, [entry("k", "stale", lock=taken.lock)]))[0].written
    again = await caches.look(tenant, "k", lock_s=30, first=False)
    assert (await caches.set(tenant, [entry("k", "fresh", lock=again.lock)]))[0].written


async def test_locks_are_bounded(valkey: Valkey, tenant: str) -> None:
    caches = Caches(valkey, SMALL)
    for n in range(3):
        assert (await caches.look(tenant, f"k{n}", lock_s=1, first=True)).lock
    with pytest.raises(Fault, match="3 locks"):
        await caches.look(tenant, "k3", lock_s=1, first=True)
    await asyncio.sleep(1.05)
    assert (await caches.look(tenant, "k3", lock_s=1, first=True)).lock


# --- over the bus -----------------------------------------------------------------------------------------------------


async def test_every_operation_over_the_bus(
    cache_served: None, client: Client, identity: Identity, connection: Connection
) -> None:
    heard: asyncio.Queue[cache.Invalidated] = asyncio.Queue()

    async def hear(payload: cache.Invalidated, _identity: Identity) -> None:
        await heard.put(payload)

    subscription = await client.subscribe(cache.INVALIDATED, hear, tenant=identity.tenant)
    await connection.flush()
    many = [cache.Set(key="b", value=2, ttl_s=60), cache.Set(key="c", bytes=b"3", tags=["t"])]
    assert (await client.call(cache.SET, cache.Set(key="a", value={"x": 1}), identity=identity)).written
    await client.call(cache.SET_MANY, cache.SetMany(entries=many), identity=identity)
    assert (await client.call(cache.GET, cache.Get(key="a"), identity=identity)).value == {"x": 1}
    found = await client.call(cache.GET_MANY, cache.GetMany(keys=["a", "b", "c", "d"]), identity=identity)
    assert [e.found for e in found.entries] == [True, True, True, False]
    assert found.entries[1].ttl_s == 60
    assert found.entries[2].bytes == b"3"
    with pytest.raises(Fault, match="twice"):
        await client.call(cache.SET_MANY, cache.SetMany(entries=[many[0], many[0]]), identity=identity)
    assert (await client.call(cache.DELETE, cache.Delete(key="a"), identity=identity)).deleted
    assert (await client.call(cache.INVALIDATE, cache.Invalidate(tag="t"), identity=identity)).count == 1
    stats = await client.call(cache.STATS, cache.StatsRequest(), identity=identity)
    assert (stats.keys, stats.hits, stats.misses) == (1, 4, 1)
    told = await asyncio.wait_for(heard.get(), 5)
    assert (told.entity_id, told.count) == ("tag:t", 1)
    await subscription.unsubscribe()


async def test_the_same_idempotency_key_writes_once(cache_served: None, client: Client, identity: Identity) -> None:
    message = cache.Set(key="k", value=1)
    results = await asyncio.gather(*(client.call(cache.SET, message, identity=identity, key="once") for _ in range(20)))
    assert len({result.version for result in results}) == 1
    with pytest.raises(Fault, match="CONFLICT"):
        await client.call(cache.SET, cache.Set(key="k", value=2), identity=identity, key="once")


async def test_with_valkey_down_every_operation_is_a_quick_fault(settings: Settings, tenant: str) -> None:
    async with own_valkey() as server:
        own = settings.model_copy(update={"redis_url": server.url})
        connection = await connect(own, name="cache-sick")
        client, identity = Client(connection, own, source="tests"), Identity.new("sick-" + tenant)
        async with serving([WORKER], own, connection):
            await client.call(cache.SET, cache.Set(key="k", value=1), identity=identity)
            for sick, well in ((signal.SIGSTOP, signal.SIGCONT), (signal.SIGKILL, None)):
                server.signal(sick)
                for message in (cache.Get(key="k"), cache.Get(key="other")):
                    started = time.monotonic()
                    with pytest.raises(Fault) as caught:
                        await client.call(cache.GET, message, identity=identity)
                    assert caught.value.code is Code.UNAVAILABLE
                    assert time.monotonic() - started < 0.4
                if well is not None:
                    server.signal(well)
                    await _served(client, identity)
        await connection.close()


async def _served(client: Client, identity: Identity, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            assert (await client.call(cache.GET, cache.Get(key="k"), identity=identity)).value == 1
            return
        except Fault:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
