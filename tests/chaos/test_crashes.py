"""SIGKILL wherever it hurts: accepted = effects + dead letters, each effect once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from runtime.client import Client
from runtime.connection import Connection
from runtime.crash import POINTS
from runtime.identity import Identity
from stack import Stack
from subjects import grammar, jobs
from subjects.contract import Code
from tests.lab import contract as lab
from tests.lab.fixtures import Processes, ended, rows

pytestmark = pytest.mark.usefixtures("jobs_served")

WITHIN_S = 40.0
QUIET_S = 4.5  # twice ack_wait: what would be delivered again has been


async def status(client: Client, identity: Identity, job_id: str) -> str:
    return (await client.call(jobs.GET, jobs.GetJob(job_id=job_id), identity=identity)).status


async def test_a_kill_at_each_crash_point_leaves_one_effect(
    client: Client, identity: Identity, processes: Processes, stack: Stack, tmp_path: Path
) -> None:
    points = [point for point in POINTS if point != "after_dead_letter"]
    for point in points:
        mark = tmp_path / point
        await processes.start(FAAS_CRASH_POINT=f"{point}:{mark}")
        submitted = await client.submit(lab.WRITE, lab.Write(name=point), identity=identity)
        await processes.keep(partial(died_and_done, mark.exists, client, identity, submitted.job_id), WITHIN_S)
        await processes.kill()
    await processes.start()

    async def heard() -> bool:
        return all([await rows(stack, identity.tenant, point, "lab_heard") for point in points])

    await processes.keep(heard, WITHIN_S)  # what its process did not publish, the relay does after 5 s
    await asyncio.sleep(QUIET_S)
    for point in points:
        assert await rows(stack, identity.tenant, point) == 1, point
        assert await rows(stack, identity.tenant, point, "lab_heard") == 1, point


async def died_and_done(died: Callable[[], bool], client: Client, identity: Identity, job_id: str) -> bool:
    return died() and await status(client, identity, job_id) == "succeeded"


async def test_a_kill_after_the_dead_letter_leaves_one_dead_letter(
    client: Client, identity: Identity, processes: Processes, connection: Connection, tmp_path: Path
) -> None:
    mark = tmp_path / "died"
    await processes.start(FAAS_CRASH_POINT=f"after_dead_letter:{mark}")
    submitted = await client.submit(lab.WRITE, lab.Write(name="dead", fault=Code.INVALID), identity=identity)

    async def done() -> bool:
        return mark.exists() and await status(client, identity, submitted.job_id) == "failed"

    await processes.keep(done, WITHIN_S)
    await asyncio.sleep(QUIET_S)
    assert await dead_letters(connection, identity.tenant) == [submitted.job_id]


async def test_a_poison_is_dead_after_its_third_crash_and_its_neighbours_are_done(
    client: Client, identity: Identity, processes: Processes, stack: Stack, connection: Connection, tmp_path: Path
) -> None:
    counter = tmp_path / "runs"
    await processes.start()
    good = [await client.submit(lab.WRITE, lab.Write(name="good", sleep_s=0.3), identity=identity) for _ in range(12)]
    poison = await client.submit(lab.WRITE, lab.Write(name="poison", die=True, counter=str(counter)), identity=identity)
    good += [await client.submit(lab.WRITE, lab.Write(name="good", sleep_s=0.3), identity=identity) for _ in range(12)]

    async def done() -> bool:
        return await status(client, identity, poison.job_id) == "failed"

    await processes.keep(done, WITHIN_S)
    for each in good:
        assert (await ended(client, identity, each.job_id)).status == "succeeded"
    assert counter.stat().st_size == 3
    assert await dead_letters(connection, identity.tenant) == [poison.job_id]
    assert await rows(stack, identity.tenant, "good") == len(good)


async def test_finished_steps_are_not_repeated(
    client: Client, identity: Identity, processes: Processes, tmp_path: Path
) -> None:
    counter = tmp_path / "step"
    await processes.start()
    message = lab.Steps(name="steps", steps=4, die_after=2, counter=str(counter))
    submitted = await client.submit(lab.STEPS, message, identity=identity)

    async def done() -> bool:
        return await status(client, identity, submitted.job_id) == "succeeded"

    await processes.keep(done, WITHIN_S)
    assert [(tmp_path / f"step-{number}").stat().st_size for number in range(1, 5)] == [1, 1, 1, 1]


async def test_random_kills_under_load_lose_nothing_and_double_nothing(
    client: Client, identity: Identity, processes: Processes, stack: Stack
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    await processes.start(2)
    accepted = []
    for round_ in range(2):
        for number in range(40):
            message = lab.Write(name=f"load-{round_}-{number}", sleep_s=0.02)
            accepted.append((message.name, await client.submit(lab.WRITE, message, identity=identity)))
        await asyncio.sleep(dice.uniform(0.1, 0.6))
        dice.choice([each for each in processes.running if each.returncode is None]).kill()

    async def done() -> bool:
        return all([await status(client, identity, made.job_id) == "succeeded" for _, made in accepted[-10:]])

    await processes.keep(done, WITHIN_S)
    for _, made in accepted:
        assert (await ended(client, identity, made.job_id)).status == "succeeded"
    counts = [await rows(stack, identity.tenant, name) for name, _ in accepted]
    assert counts == [1] * len(accepted)


async def dead_letters(connection: Connection, tenant: str) -> list[str]:
    """Job ids of the tenant's dead letters."""
    js = connection.jetstream()
    info = await js.stream_info("DLQ", subjects_filter=f"dlq.{tenant}.>")
    found = info.state.subjects or {}
    return [grammar.parse(subject).ident for subject, count in found.items() for _ in range(count)]
