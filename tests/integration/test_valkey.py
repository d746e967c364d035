"""The Valkey client: quick when the server is sick, and never another key's value."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from stack import valkey as server
from stack.process import Server
from store.inbox import Claimed, Done, Waiting
from store.valkey import MAX_PENDING, Script, Valkey, key
from store.valkey_inbox import ValkeyInbox
from subjects.contract import Code, Fault

QUICK_S = 0.25
UNICODE = st.characters(exclude_categories=["Cs"])
ECHO = Script("return {KEYS[1], ARGV[1]}")


@asynccontextmanager
async def own_valkey() -> AsyncIterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="faas-v-", dir="/tmp"))
    running = await server.start(home, port=0)
    try:
        yield running
    finally:
        await running.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest_asyncio.fixture
async def valkey(settings: Any) -> AsyncIterator[Valkey]:
    valkey = await Valkey.open(settings.redis_url)
    yield valkey
    await valkey.close()


async def fault_of(work: Awaitable[Any]) -> tuple[Fault, float]:
    started = time.monotonic()
    with pytest.raises(Fault) as caught:
        await work
    return caught.value, time.monotonic() - started


async def healed(valkey: Valkey, within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await valkey.ping()
        except Fault:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@given(st.lists(st.text(UNICODE)), st.lists(st.text(UNICODE)))
def test_keys_of_different_parts_never_collide(one: list[str], other: list[str]) -> None:
    assert (key("t", "c", *one) == key("t", "c", *other)) == (one == other)


def test_a_key_with_a_lone_surrogate_is_invalid() -> None:
    with pytest.raises(Fault, match="INVALID"):
        key("t", "c", "\ud800")


def test_a_tenant_that_is_no_token_has_no_keys() -> None:
    for tenant in ("", "a}b", "a:b", "*", "A"):
        with pytest.raises(Fault, match="INVALID"):
            key(tenant, "cache", "x")


async def test_commands_that_arrive_together_each_get_their_own_reply(valkey: Valkey, tenant: str) -> None:
    async def one(n: int) -> None:
        name = key(tenant, "test", str(n))
        await valkey.command("SET", name, str(n), "EX", 60)
        assert await valkey.script(ECHO, [name], [n]) == [name, str(n).encode()]
        assert await valkey.run(lambda redis: redis.get(name)) == str(n).encode()
        assert await valkey.command("GET", name) == str(n).encode()

    await asyncio.gather(*map(one, range(200)))


async def test_a_bad_command_fails_alone(valkey: Valkey, tenant: str) -> None:
    name = key(tenant, "test", "x")
    commands = [("SET", name, "1", "EX", 60), ("LPUSH", name, "1"), ("GET", name)]
    asked = [valkey.command(*command) for command in commands]
    good, bad, also_good = await asyncio.gather(*asked, return_exceptions=True)
    assert (good, also_good) == (True, b"1")
    assert isinstance(bad, Fault)
    assert bad.code is Code.INTERNAL
    assert "WRONGTYPE" not in str(bad)


async def test_a_cancelled_command_leaves_nobody_anothers_value() -> None:
    async with own_valkey() as running:
        valkey = await Valkey.open(running.url)
        try:
            for n in range(50):
                await valkey.command("SET", f"k{n}", f"v{n}")
            for round_no in range(100):
                tasks = [asyncio.ensure_future(valkey.command("GET", f"k{n}")) for n in range(50)]
                tasks += [
                    asyncio.ensure_future(valkey.run(lambda redis, n=n: redis.get(f"k{n}")))  # type: ignore[misc]
                    for n in range(8)
                ]
                for _ in range(round_no % 7):
                    await asyncio.sleep(0)
                for task in tasks[round_no % 3 :: 3]:
                    task.cancel()
                replies = await asyncio.gather(*tasks, return_exceptions=True)
                for n, reply in zip([*range(50), *range(8)], replies, strict=True):
                    assert isinstance(reply, asyncio.CancelledError) or reply == f"v{n}".encode()
        finally:
            await valkey.close()


async def test_a_server_that_is_down_is_a_quick_fault_and_serves_after_its_return() -> None:
    async with own_valkey() as running:
        valkey = await Valkey.open(running.url)
        try:
            await valkey.ping()
            running.signal(signal.SIGKILL)
            for _ in range(10):
                fault, took_s = await fault_of(valkey.command("GET", "x"))
                assert fault.code is Code.UNAVAILABLE
                assert took_s < QUICK_S
                await asyncio.sleep(0.02)
            await running.restart()
            await healed(valkey)
        finally:
            await valkey.close()


async def test_a_frozen_server_is_a_quick_fault_for_every_caller_and_recovers() -> None:
    async with own_valkey() as running:
        valkey = await Valkey.open(running.url)
        try:
            await asyncio.gather(*(valkey.command("SET", f"k{n}", f"v{n}") for n in range(600)))
            running.signal(signal.SIGSTOP)
            faults = await asyncio.gather(*(fault_of(valkey.command("GET", f"k{n}")) for n in range(600)))
            assert {fault.code for fault, _ in faults} == {Code.UNAVAILABLE}
            assert max(took_s for _, took_s in faults) < QUICK_S + 0.15  # 600 callers on a busy machine
            for _ in range(10):
                _, took_s = await fault_of(valkey.command("GET", "k1"))
                assert took_s < QUICK_S
            running.signal(signal.SIGCONT)
            await healed(valkey)
            # Replies to commands that timed out must not be read by later ones.
            values = await asyncio.gather(*(valkey.command("GET", f"k{n}") for n in range(600)))
            assert values == [f"v{n}".encode() for n in range(600)]
        finally:
            running.signal(signal.SIGCONT)
            await valkey.close()


async def test_a_process_starts_without_its_cache_server() -> None:
    valkey = await Valkey.open("redis://127.0.0.1:1/0")
    fault, took_s = await fault_of(valkey.ping())
    assert fault.code is Code.UNAVAILABLE
    assert took_s < QUICK_S
    await valkey.close()


async def test_what_waits_is_bounded(valkey: Valkey) -> None:
    asked = await asyncio.gather(*(valkey.command("PING") for _ in range(MAX_PENDING + 100)), return_exceptions=True)
    refused = [found for found in asked if isinstance(found, Fault) and found.code is Code.EXHAUSTED]
    assert len(refused) == 100


async def test_the_same_key_has_one_owner_and_one_answer(valkey: Valkey, tenant: str) -> None:
    inbox = ValkeyInbox(valkey)

    async def claim(owner: str, digest: str = "d", lease_s: float = 5) -> Claimed | Waiting | Done:
        return await inbox.claim(tenant, "cache.set", "k", digest=digest, lease_s=lease_s, owner=owner)

    claims = await asyncio.gather(*(claim(f"o{n}") for n in range(50)))
    owners = [found.owner for found in claims if isinstance(found, Claimed)]
    assert len(owners) == 1
    assert claims.count(Waiting()) == 49
    with pytest.raises(Fault, match="CONFLICT"):
        await claim("o99", digest="other")
    assert await inbox.renew(tenant, "cache.set", "k", owners[0], lease_s=5)
    assert not await inbox.renew(tenant, "cache.set", "k", "thief", lease_s=5)
    assert not await inbox.finish(tenant, "cache.set", "k", "thief", reply=b"no", fault=None)
    assert await inbox.finish(tenant, "cache.set", "k", owners[0], reply=b"yes", fault=None)
    assert await claim("o1") == Done(b"yes", None, 1)


async def test_a_released_or_expired_claim_goes_to_the_next(valkey: Valkey, tenant: str) -> None:
    inbox = ValkeyInbox(valkey)
    for attempt in (1, 2):
        found = await inbox.claim(tenant, "cache.set", "k", digest="d", lease_s=0.05, owner=f"o{attempt}")
        assert found == Claimed(f"o{attempt}", attempt)
        if attempt == 1:
            assert await inbox.release(tenant, "cache.set", "k", "o1")
    await asyncio.sleep(0.06)
    assert await inbox.claim(tenant, "cache.set", "k", digest="d", lease_s=5, owner="o3") == Claimed("o3", 3)
    assert not await inbox.finish(tenant, "cache.set", "k", "o2", reply=b"late", fault=None)


async def test_without_valkey_a_request_simply_runs() -> None:
    valkey = await Valkey.open("redis://127.0.0.1:1/0")
    inbox = ValkeyInbox(valkey)
    assert await inbox.claim("t", "cache.set", "k", digest="d", lease_s=5, owner="o") == Claimed("o", 1)
    assert await inbox.renew("t", "cache.set", "k", "o", lease_s=5)
    await inbox.finish("t", "cache.set", "k", "o", reply=b"", fault=None)
    await valkey.close()
