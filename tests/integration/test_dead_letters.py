"""Dead letters' rules: a redrive really runs, once; what it changes must fit; nobody sees or loses another's."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import StreamConfig

import codec
from runtime import streams
from runtime.client import Client
from runtime.connection import Connection, connect
from runtime.identity import Identity
from runtime.jobs import publish_first
from runtime.settings import Settings
from runtime.stored import read_stored
from stack import Stack
from subjects import jobs, registry
from subjects.contract import Code, Fault
from subjects.registry import Registry
from tests.broker import own_broker
from tests.lab import contract as lab
from tests.lab.fixtures import ended, rows
from tests.lab.worker import WORKER as LAB
from workers.jobs.worker import WORKER as JOBS
from workers.serving.boot import serving

WITHIN_S = 10.0


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's contracts are of the registry as well."""
    own = registry.load()
    more = Registry([*own.calls.values(), lab.WRITE, lab.BROKEN], [*own.events.values(), lab.WRITTEN])
    monkeypatch.setattr(registry, "load", lambda: more)


async def dead(client: Client, who: Identity, **message: Any) -> str:
    """The id of a lab.write that has died."""
    written = lab.Write.model_validate({"name": "dead", "fault": Code.INVALID, **message})
    made = await client.submit(lab.WRITE, written, identity=who)
    assert (await ended(client, who, made.job_id)).status == "failed"
    await lies(client, who, made.job_id)
    return made.job_id


async def lies(client: Client, who: Identity, job_id: str, component: str | None = None) -> jobs.DeadLetterDetail:
    """The letter, once it is there."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                wanted = jobs.GetDeadLetter(job_id=job_id, component=component)
                return await client.call(jobs.GET_DEAD_LETTER, wanted, identity=who)
            except Fault as fault:
                if fault.code is not Code.NOT_FOUND:
                    raise
            await asyncio.sleep(0.02)


async def letters(client: Client, who: Identity, **wanted: Any) -> list[jobs.DeadLetter]:
    found: list[jobs.DeadLetter] = []
    cursor = None
    while True:
        page = jobs.ListDeadLetters.model_validate({"cursor": cursor, **wanted})
        listed = await client.call(jobs.LIST_DEAD_LETTERS, page, identity=who)
        assert len(listed.items) <= page.limit
        found += listed.items
        cursor = listed.next_cursor
        if cursor is None:
            return found


async def redriven(client: Client, who: Identity, key: str | None = None, **wanted: Any) -> list[jobs.RedrivenJob]:
    message = jobs.Redrive.model_validate(wanted)
    return (await client.call(jobs.REDRIVE, message, identity=who, key=key)).items


def code_of(raised: pytest.ExceptionInfo[Fault]) -> Code:
    return raised.value.code


@pytest.mark.usefixtures("served")
async def test_a_dead_letter_is_edited_by_its_redrive_and_succeeds(
    client: Client, identity: Identity, stack: Stack, connection: Connection
) -> None:
    ident = await dead(client, identity, name="mended")
    shown = await lies(client, identity, ident)
    assert (shown.code, shown.reason, shown.attempts, shown.redrive) == ("INVALID", "as asked", 1, 0)
    assert isinstance(shown.body, dict)
    assert (shown.body["name"], shown.body["fault"], shown.body_from) == ("mended", "INVALID", "letter")
    assert shown.headers["X-Tenant-ID"] == identity.tenant
    assert shown.subject == f"job.{identity.tenant}.lab.write.{ident}"

    for changes, path in (({"sleep_s": "long"}, "sleep_s"), ({"no_such": 1}, "no_such"), ({"name.x": 1}, "name.x")):
        with pytest.raises(Fault) as raised:
            await redriven(client, identity, job_id=ident, set=changes)
        assert (code_of(raised), raised.value.errors[0].path) == (Code.INVALID, path)
    (would,) = await redriven(client, identity, job_id=ident, set={"fault": None}, dry_run=True)
    assert would.outcome == "would_run"
    assert len(await letters(client, identity)) == 1

    (done,) = await redriven(client, identity, job_id=ident, set={"fault": None})
    assert (done.outcome, done.redrive) == ("redriven", 1)
    job = await ended(client, identity, ident)
    assert (job.status, job.attempt, job.fault) == ("succeeded", 1, None)
    assert await rows(stack, identity.tenant, "mended") == 1
    assert await letters(client, identity) == []
    sent = [each async for each in read_stored(connection, "JOBS", f"job.{identity.tenant}.>")]
    assert [each.subject.split(".")[4:] for each in sent] == [[ident], [ident, "d1"]]
    assert sent[0].headers["X-Correlation-ID"] == sent[1].headers["X-Correlation-ID"]


@pytest.mark.usefixtures("served")
async def test_what_dies_again_has_the_next_redrive_number(
    client: Client, identity: Identity, stack: Stack, tmp_path: Path
) -> None:
    ident = await dead(client, identity, name="thrice", faults=2, counter=str(tmp_path / "runs"))
    for number in (1, 2):
        (done,) = await redriven(client, identity, job_id=ident)
        assert done.redrive == number
        job = await ended(client, identity, ident)
        if number == 1:
            assert job.status == "failed"
            assert (await lies(client, identity, ident)).redrive == 1
    assert (job.status, job.attempt) == ("succeeded", 1)
    assert await rows(stack, identity.tenant, "thrice") == 1
    assert (tmp_path / "runs").stat().st_size == 3


@pytest.mark.usefixtures("served")
async def test_a_redrive_repeated_or_asked_for_many_times_at_once_runs_once(
    client: Client, identity: Identity, tmp_path: Path
) -> None:
    ident = await dead(client, identity, counter=str(tmp_path / "runs"), sleep_s=0.2)
    answers = await asyncio.gather(
        *(redriven(client, identity, job_id=ident) for _ in range(8)),
        *(redriven(client, identity, key="same", job_id=ident) for _ in range(3)),
        return_exceptions=True,
    )
    told = [each[0].outcome if isinstance(each, list) else code_of_fault(each) for each in answers]
    assert told.count("redriven") in (1, 3)  # three askers have one key, so one answer
    assert set(told) <= {"redriven", "already", Code.NOT_FOUND}
    assert (await ended(client, identity, ident)).status == "failed"
    assert (await lies(client, identity, ident)).redrive == 1
    assert (tmp_path / "runs").stat().st_size == 2


@pytest.mark.usefixtures("served")
async def test_a_redrive_that_was_cut_short_is_finished_and_sends_nothing_twice(
    client: Client, identity: Identity, connection: Connection, tmp_path: Path
) -> None:
    ident = await dead(client, identity, faults=1, counter=str(tmp_path / "runs"))
    (letter,) = [each async for each in read_stored(connection, "DLQ", f"dlq.{identity.tenant}.>")]
    kept = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
    await redriven(client, identity, job_id=ident)
    assert (await ended(client, identity, ident)).status == "succeeded"
    await publish_first(connection.requests, letter.subject, letter.data, kept)  # as if it had not been removed
    (done,) = await redriven(client, identity, job_id=ident)
    assert (done.outcome, await letters(client, identity)) == ("already", [])

    # As if its process had died right after it was sent.
    other = await dead(client, identity, name="other", faults=1, counter=str(tmp_path / "others"))
    (letter,) = [each async for each in read_stored(connection, "DLQ", f"dlq.{identity.tenant}.>")]
    subject = f"job.{identity.tenant}.lab.write.{other}.d1"
    await publish_first(connection.requests, subject, letter.data, {"Redrive": "1"})
    assert (await redriven(client, identity, job_id=other))[0].outcome == "redriven"
    assert (await ended(client, identity, other)).job_id == other
    assert [(tmp_path / name).stat().st_size for name in ("runs", "others")] == [2, 2]
    assert await letters(client, identity) == []


def code_of_fault(error: object) -> Code:
    assert isinstance(error, Fault), error
    return error.code


@pytest.mark.usefixtures("served")
async def test_letters_are_listed_filtered_and_removed_in_pages(client: Client, identity: Identity) -> None:
    wrong = [await dead(client, identity) for _ in range(3)]
    gone = [await dead(client, identity, fault=Code.NOT_FOUND) for _ in range(2)]
    found = await letters(client, identity, limit=2)
    assert [each.job_id for each in found] == [*wrong, *gone]
    assert {each.job_id for each in await letters(client, identity, code="NOT_FOUND")} == set(gone)
    assert await letters(client, identity, component="rag") == []
    assert len(await letters(client, identity, component="lab", operation="write")) == 5
    after = found[2].dead_at
    assert [each.job_id for each in await letters(client, identity, since=after)] == [wrong[2], *gone]
    other = Identity.new(f"{identity.tenant}x")
    assert await letters(client, other) == []
    for asked in (
        client.call(jobs.GET_DEAD_LETTER, jobs.GetDeadLetter(job_id=wrong[0]), identity=other),
        client.call(jobs.REDRIVE, jobs.Redrive(job_id=wrong[0]), identity=other),
        client.call(jobs.PURGE_DEAD_LETTERS, jobs.PurgeDeadLetters(job_id=wrong[0]), identity=other),
    ):
        with pytest.raises(Fault) as raised:
            await asked
        assert code_of(raised) is Code.NOT_FOUND
    everything = jobs.PurgeDeadLetters(all=True)
    assert (await client.call(jobs.PURGE_DEAD_LETTERS, everything, identity=other)).removed == 0
    assert (await redriven(client, other, all=True)) == []

    async def purged(**wanted: Any) -> int:
        message = jobs.PurgeDeadLetters.model_validate(wanted)
        return (await client.call(jobs.PURGE_DEAD_LETTERS, message, identity=identity)).removed

    assert await purged(job_id=wrong[0]) == 1
    assert await purged(all=True, before=after) == 1
    assert await purged(all=True, code="NOT_FOUND") == 2
    assert [each.job_id for each in await letters(client, identity)] == [wrong[2]]
    for neither in ({}, {"job_id": wrong[2], "all": True}):
        with pytest.raises(Fault) as raised:
            await purged(**neither)
        assert code_of(raised) is Code.INVALID


@pytest.mark.usefixtures("served")
async def test_of_all_each_goes_or_tells_why_not(client: Client, identity: Identity, stack: Stack) -> None:
    for n in range(3):
        await dead(client, identity, name=f"all-{n}")
    await client.submit(lab.BROKEN, lab.Echo(text="x"), identity=identity, deadline_ms=1)  # dead: too late
    async with asyncio.timeout(WITHIN_S):
        while len(await letters(client, identity)) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    narrow = Identity.new(identity.tenant, scopes=frozenset({"jobs.*", "lab.broken"}))
    told = await redriven(client, narrow, all=True, set={"fault": None})
    assert {each.operation: (each.outcome, each.fault and each.fault.code) for each in told} == {
        "write": ("refused", Code.FORBIDDEN),
        "broken": ("refused", Code.INVALID),  # there is nothing of that name to set
    }
    told = await redriven(client, identity, all=True, operation="write", set={"fault": None})
    assert [each.outcome for each in told] == ["redriven"] * 3
    for each in told:
        assert (await ended(client, identity, each.job_id)).status == "succeeded"
    assert [each.operation for each in await letters(client, identity)] == ["broken"]


@pytest.mark.usefixtures("served")
async def test_a_redriven_job_that_is_only_queued_is_cancelled(
    client: Client, identity: Identity, stack: Stack
) -> None:
    ident = await dead(client, identity, name="stopped")
    await redriven(client, identity, job_id=ident, set={"fault": None, "sleep_s": 5})
    job = await client.call(jobs.CANCEL, jobs.CancelJob(job_id=ident), identity=identity)
    job = await ended(client, identity, ident)
    assert job.status == "cancelled"
    assert await rows(stack, identity.tenant, "stopped") == 0


@pytest.mark.usefixtures("served")
async def test_a_letter_without_room_for_its_body_is_shown_and_redriven_from_the_stream(
    client: Client, identity: Identity, stack: Stack
) -> None:
    long = "x" * (1024 * 1024 - 250)
    written = lab.Write(name="large", fault=Code.INVALID)
    body = written.model_dump() | {"padding": long}  # unknown to the contract, so ignored
    data = codec.encode_plain(body)
    await publish_first(client.connection.requests, f"job.{identity.tenant}.lab.write.jlarge", data, {})
    assert (await ended(client, identity, "jlarge")).status == "failed"
    shown = await lies(client, identity, "jlarge")
    assert (shown.body_from, shown.body_shown, shown.body_bytes) == ("stream", False, len(data))
    (done,) = await redriven(client, identity, job_id="jlarge", set={"fault": None})
    assert done.outcome == "redriven"
    assert (await ended(client, identity, "jlarge")).status == "succeeded"


@pytest.mark.usefixtures("served")
async def test_an_events_delivery_goes_back_to_the_one_subscription_that_died_of_it(
    client: Client, identity: Identity, stack: Stack, connection: Connection
) -> None:
    event_id = str(uuid.uuid4())
    # An event that its subscription cannot read, under the name of one that it can.
    await client.publish_event(lab.WRITTEN, identity.tenant, b'{"entity_id": "x"}', {}, event_id)
    async with asyncio.timeout(WITHIN_S):
        while not (found := await letters(client, identity)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (letter,) = found
    assert (letter.kind, letter.component, letter.operation) == ("event", "lab", "lab-written")
    (done,) = await redriven(client, identity, job_id=letter.job_id, set={"name": "heard"})
    assert done.outcome == "redriven"
    assert (await ended(client, identity, letter.job_id)).status == "succeeded"
    assert await rows(stack, identity.tenant, "heard", "lab_heard") == 1
    assert len([each async for each in read_stored(connection, "EVENTS", f"evt.{identity.tenant}.lab.written")]) == 1


async def test_while_a_stream_is_full_nothing_is_lost(settings: Settings, lab_tables: None, tmp_path: Path) -> None:
    """Neither the job whose letter finds no room, nor the letter whose job finds none."""
    async with own_broker() as broker:
        own = settings.model_copy(update={"nats_url": broker.url, "database_keeper_url": None})
        link = await connect(own, name="full")
        js, who = link.jetstream(), Identity.new("t" + uuid.uuid4().hex[:12])
        await js.add_stream(named("DLQ", max_msgs=1))
        await js.add_stream(named("JOBS", max_msgs=3))
        async with serving([LAB, JOBS], own, link):
            client = Client(link, own, source="tests")
            ident = await dead(client, who, name="first")
            second = await client.submit(lab.WRITE, lab.Write(name="second", fault=Code.INVALID), identity=who)
            assert (await ended(client, who, second.job_id)).status == "failed"
            await asyncio.sleep(0.2)
            assert [each.job_id for each in await letters(client, who)] == [ident]
            info = await js.consumer_info("JOBS", "lab")
            assert info.num_ack_pending == 1  # it stays, and is tried again
            await client.submit(lab.WRITE, lab.Write(name="third"), identity=who)
            with pytest.raises(Fault) as raised:
                await redriven(client, who, job_id=ident, set={"fault": None})
            assert code_of(raised) is Code.EXHAUSTED
            assert [each.job_id for each in await letters(client, who)] == [ident]
            job = await client.call(jobs.GET, jobs.GetJob(job_id=ident), identity=who)
            assert (job.status, job.fault and job.fault.code) == ("failed", Code.INVALID)
            await js.purge_stream("JOBS", subject=f"job.{who.tenant}.lab.write.{ident}")
            (done,) = await redriven(client, who, job_id=ident, set={"fault": None})
            assert done.outcome == "redriven"
            assert (await ended(client, who, ident)).status == "succeeded"
        await link.close()


def named(name: str, **more: Any) -> StreamConfig:
    found = next(each for each in streams.STREAMS if each.name == name)
    return StreamConfig(**{**vars(found), **more})
