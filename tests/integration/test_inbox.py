"""The rules of a key: one effect, one answer, one owner at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from stack import Stack
from store.database import Database
from store.ending import Ending, JobEnd, finish
from store.inbox import Claimed, Done, Inbox, LeaseLost, Waiting
from store.jobs import Jobs
from store.outbox import Outbox
from store.steps import Steps
from subjects.contract import Code, Fault

OPERATION = "rag.ingest"
LEASE_S = 30.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def database(stack: Stack) -> AsyncIterator[Database]:
    database = await Database.open(stack.database_url, max_size=16, name="test")
    yield database
    await database.close()


@pytest.fixture
def inbox(database: Database) -> Inbox:
    return Inbox(database)


async def claim(
    inbox: Inbox, tenant: str, owner: str, *, key: str = "k", digest: str = "d", lease_s: float = LEASE_S
) -> Claimed | Waiting | Done:
    return await inbox.claim(tenant, OPERATION, key, digest=digest, lease_s=lease_s, owner=owner)


async def test_of_fifty_at_once_one_gets_the_key(inbox: Inbox, tenant: str) -> None:
    claims = await asyncio.gather(*(claim(inbox, tenant, f"o{n}") for n in range(50)))
    assert sum(isinstance(found, Claimed) for found in claims) == 1
    assert sum(isinstance(found, Waiting) for found in claims) == 49


async def test_two_tenants_with_the_same_key_do_not_meet(inbox: Inbox, tenant: str) -> None:
    assert isinstance(await claim(inbox, tenant, "a"), Claimed)
    assert isinstance(await claim(inbox, f"{tenant}-b", "b"), Claimed)


async def test_an_answer_is_given_again(database: Database, inbox: Inbox, tenant: str) -> None:
    await claim(inbox, tenant, "a")
    async with database.transaction(tenant) as tx:
        await inbox.finish(tx, tenant, OPERATION, "k", "a", reply=b"answer", fault=None)
    assert await claim(inbox, tenant, "b") == Done(b"answer", None, 1)


async def test_another_message_under_the_same_key_is_a_conflict(inbox: Inbox, tenant: str) -> None:
    await claim(inbox, tenant, "a")
    with pytest.raises(Fault) as raised:
        await claim(inbox, tenant, "b", digest="other")
    assert raised.value.code is Code.CONFLICT


async def test_an_expired_lease_goes_to_the_next_and_the_first_can_finish_nothing(
    database: Database, inbox: Inbox, tenant: str
) -> None:
    await claim(inbox, tenant, "a", lease_s=0.0)
    taken = await claim(inbox, tenant, "b")
    assert taken == Claimed("b", 2)
    with pytest.raises(LeaseLost):
        async with database.transaction(tenant) as tx:
            await inbox.finish(tx, tenant, OPERATION, "k", "a", reply=b"late", fault=None)
    assert not await inbox.renew(tenant, OPERATION, "k", "a", lease_s=LEASE_S)
    assert not await inbox.release(tenant, OPERATION, "k", "a")
    assert await inbox.renew(tenant, OPERATION, "k", "b", lease_s=LEASE_S)


async def test_the_same_owner_may_claim_again_and_it_is_one_attempt(inbox: Inbox, tenant: str) -> None:
    assert await claim(inbox, tenant, "a") == Claimed("a", 1)
    assert await claim(inbox, tenant, "a") == Claimed("a", 1)


async def test_what_ended_in_no_fault_and_no_hand_back_was_a_crash(inbox: Inbox, tenant: str) -> None:
    assert await inbox.crashes(tenant, OPERATION, "k") == 0
    await claim(inbox, tenant, "a")
    await inbox.release(tenant, OPERATION, "k", "a", fault=True)
    await claim(inbox, tenant, "b")
    await inbox.release(tenant, OPERATION, "k", "b", hand_back=True)
    assert await inbox.crashes(tenant, OPERATION, "k") == 0
    await claim(inbox, tenant, "c", lease_s=0.0)
    assert await inbox.crashes(tenant, OPERATION, "k") == 1
    assert await claim(inbox, tenant, "d") == Claimed("d", 4, faults=1, hand_backs=1)


@pytest.mark.parametrize("key", ["", "x" * 1025, "\ud800", "a\0b"])
async def test_a_key_that_cannot_be_kept_is_invalid(inbox: Inbox, tenant: str, key: str) -> None:
    with pytest.raises(Fault) as raised:
        await claim(inbox, tenant, "a", key=key)
    assert raised.value.code is Code.INVALID


async def test_one_statement_ends_a_message(database: Database, inbox: Inbox, tenant: str) -> None:
    await claim(inbox, tenant, "a", key="j1")
    row = Outbox.row(f"evt.{tenant}.jobs.succeeded", {"X-Tenant-ID": tenant}, b"body")
    ending = Ending(OPERATION, "j1", "a", reply=b"r", job=JobEnd("j1", "succeeded", 1, result={"n": 1}), events=[row])
    await finish(database, tenant, ending)
    assert await claim(inbox, tenant, "b", key="j1") == Done(b"r", None, 1)
    job = await Jobs(database).get(tenant, "j1")
    assert job is not None
    assert (job.component, job.operation, job.status, job.result) == ("rag", "ingest", "succeeded", {"n": 1})
    async with database.transaction(tenant) as tx:
        kept = await tx.fetchrow("SELECT subject, headers, body FROM outbox WHERE event_id = $1", row.event_id)
    assert kept is not None
    assert (kept["subject"], kept["headers"], kept["body"]) == (row.subject, row.headers, row.body)


async def test_an_end_without_the_claim_writes_nothing(database: Database, inbox: Inbox, tenant: str) -> None:
    await claim(inbox, tenant, "a", key="j1", lease_s=0.0)
    await claim(inbox, tenant, "b", key="j1")
    ending = Ending(OPERATION, "j1", "a", reply=b"r", job=JobEnd("j1", "succeeded", 1))
    with pytest.raises(LeaseLost):
        await finish(database, tenant, ending)
    with pytest.raises(LeaseLost):
        async with database.transaction(tenant) as tx:
            await finish(database, tenant, ending, tx=tx)
    assert await Jobs(database).get(tenant, "j1") is None


async def test_a_statement_of_its_own_leaves_no_tenant_behind(database: Database, inbox: Inbox, tenant: str) -> None:
    for n in range(16):
        await claim(inbox, tenant, "a", key=f"k{n}")
    for _ in range(16):
        assert await database.alone("SELECT * FROM inbox") == []


async def test_a_transaction_cannot_act_for_another_tenant(database: Database, tenant: str) -> None:
    ending = Ending(OPERATION, "k", "a")
    with pytest.raises(Exception, match="another tenant"):
        async with database.transaction(f"{tenant}-b") as tx:
            await finish(database, tenant, ending, tx=tx)


async def test_a_finished_job_runs_no_more(database: Database, tenant: str) -> None:
    jobs = Jobs(database)
    message = {"component": "rag", "operation": "ingest", "attempt": 1, "headers": {"A": "b"}, "body": b"x"}
    assert not await jobs.running(tenant, "j1", **message)  # type: ignore[arg-type]
    assert not await jobs.progress(tenant, "j1", {"done": 1})
    asked = await jobs.request_cancel(tenant, "j1", component="rag", operation="ingest")
    assert asked is not None
    assert asked.cancel_requested
    assert await jobs.progress(tenant, "j1", {"done": 2})
    assert await jobs.cancel_requested(tenant, "j1")
    async with database.transaction(tenant) as tx:
        await jobs.finish(tx, tenant, "j1", component="rag", operation="ingest", status="cancelled", attempt=1)
    await jobs.running(tenant, "j1", **message)  # type: ignore[arg-type]
    await jobs.progress(tenant, "j1", {"done": 3})
    job = await jobs.get(tenant, "j1")
    assert job is not None
    assert (job.status, job.progress) == ("cancelled", {"done": 2})
    assert await jobs.request_cancel(tenant, "j1", component="rag", operation="ingest") is None
    async with database.transaction(tenant) as tx:
        assert await tx.fetchval("SELECT body IS NULL AND headers IS NULL FROM jobs WHERE job_id = 'j1'")


async def test_pages_of_jobs_hold_each_job_once(database: Database, tenant: str) -> None:
    jobs = Jobs(database)
    async with database.transaction(tenant) as tx:  # all of the same moment: the id decides
        for n in range(7):
            await jobs.finish(tx, tenant, f"j{n}", component="rag", operation="ingest", status="failed", attempt=1)
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page, cursor = await jobs.list(tenant, component="rag", status="failed", limit=2, cursor=cursor)
        seen += [job.job_id for job in page]
    assert cursor is None
    assert sorted(seen) == [f"j{n}" for n in range(7)]
    assert await jobs.list(f"{tenant}-b") == ([], None)
    for bad in ("x", "e30=", "é", "W10="):
        with pytest.raises(Fault) as raised:
            await jobs.list(tenant, cursor=bad)
        assert raised.value.code is Code.INVALID


async def test_a_step_keeps_its_first_result(database: Database, tenant: str) -> None:
    steps = Steps(database)
    assert await steps.get(tenant, "j1", "embed") is None
    await steps.put(tenant, "j1", "embed", b"first")
    await steps.put(tenant, "j1", "embed", b"second")
    assert await steps.get(tenant, "j1", "embed") == b"first"
    assert await steps.get(f"{tenant}-b", "j1", "embed") is None
    with pytest.raises(Fault) as raised:
        await steps.put(tenant, "j1", "big", b"x" * (1024 * 1024 + 1))
    assert raised.value.code is Code.TOO_LARGE


async def test_many_ends_at_once_are_each_their_own(database: Database, inbox: Inbox, tenant: str) -> None:
    async def work(n: int) -> Claimed | Waiting | Done:
        name, lost = f"j{n}", n % 5 == 0
        found = await claim(inbox, tenant, "a", key=name, lease_s=0.0 if lost else LEASE_S)
        assert isinstance(found, Claimed)
        if lost:
            assert isinstance(await claim(inbox, tenant, "b", key=name), Claimed)
        bad = n % 7 == 3  # cannot be stored, and spoils the statement that it shares
        event = Outbox.row(f"evt.{tenant}.jobs.succeeded", {"N": str(n)}, b"%d" % n)
        job = JobEnd(name, "succeeded", 1, result={"n": "\0" if bad else n})
        try:
            await finish(database, tenant, Ending(OPERATION, name, "a", b"%d" % n, job=job, events=[event]))
        except LeaseLost:
            assert lost
        except Fault as fault:
            refused[n] = fault.code
        return await claim(inbox, tenant, "c", key=name)

    refused: dict[int, Code] = {}
    found = await asyncio.gather(*(work(n) for n in range(70)))
    assert refused == {n: Code.INVALID for n in range(70) if n % 7 == 3}
    fine = {n for n in range(70) if n % 5 and n % 7 != 3}
    assert {n for n, end in enumerate(found) if end == Done(b"%d" % n, None, 1)} == fine
    assert not any(isinstance(end, Done) for n, end in enumerate(found) if n not in fine)
    async with database.transaction(tenant) as tx:
        jobs = await tx.fetch("SELECT job_id, result FROM jobs")
        events = await tx.fetch("SELECT headers, body FROM outbox")
    assert {(row["job_id"], row["result"]["n"]) for row in jobs} == {(f"j{n}", n) for n in fine}
    assert {(row["headers"]["N"], row["body"]) for row in events} == {(str(n), b"%d" % n) for n in fine}


async def test_a_claim_of_a_task_that_was_cancelled_is_handed_back(inbox: Inbox, tenant: str) -> None:
    task = asyncio.create_task(claim(inbox, tenant, "a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        found = await claim(inbox, tenant, "b")
        if isinstance(found, Claimed):
            break
        await asyncio.sleep(0.02)
    assert isinstance(found, Claimed)
    assert found.attempts - 1 == found.hand_backs


async def test_two_processes_with_the_same_keys_wait_for_each_other_in_no_circle(stack: Stack, tenant: str) -> None:
    pools = [await Database.open(stack.database_url, max_size=4, name="test") for _ in range(2)]
    keys = [f"k{n}" for n in range(60)]
    asked = [
        claim(inbox, tenant, f"p{place}", key=key)
        for place, inbox in enumerate(map(Inbox, pools))
        for key in (keys if place else reversed(keys))
    ]
    found = await asyncio.gather(*asked)
    assert sum(isinstance(one, Claimed) for one in found) == 60
    for pool in pools:
        await pool.close()
