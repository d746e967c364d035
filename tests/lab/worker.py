"""The lab's handlers and table."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from subjects.contract import Fault
from tests.lab import contract as lab
from workers.serving import Context, Host, Worker, on, serve

SCHEMA = """
CREATE TABLE IF NOT EXISTS lab_effects (tenant_id text NOT NULL, name text NOT NULL, job_id text);
CREATE TABLE IF NOT EXISTS lab_heard (tenant_id text NOT NULL, name text NOT NULL);
"""


@dataclass(frozen=True)
class Deps:
    pid: int


@asynccontextmanager
async def lifespan(host: Host) -> AsyncIterator[Deps]:
    yield Deps(os.getpid())


async def echo(ctx: Context[Deps], message: lab.Echo) -> lab.Echoed:
    return lab.Echoed(
        text=message.text,
        number=message.number,
        tenant=ctx.tenant,
        user=ctx.identity.user,
        served_by=ctx.deps.pid,
    )


async def broken(ctx: Context[Deps], message: lab.Echo) -> lab.Echoed:
    raise RuntimeError(f"canary-{message.text}")


async def cancels_itself(ctx: Context[Deps], message: lab.Echo) -> lab.Echoed:
    raise asyncio.CancelledError


def told(counter: str) -> int:
    """Count this call in a file, which outlives the process. Returns how many there were before."""
    if not counter:
        return 0
    path = Path(counter)
    before = path.stat().st_size if path.exists() else 0
    with path.open("ab") as file:
        file.write(b".")
    return before


async def write(ctx: Context[Deps], message: lab.Write) -> lab.Written:
    before = told(message.counter)
    await asyncio.sleep(message.sleep_s)
    if message.die:
        os.kill(os.getpid(), signal.SIGKILL)
    if message.fault is not None and (not message.faults or before < message.faults):
        raise Fault(message.fault, "as asked")
    tx = await ctx.begin()
    await tx.execute(
        "INSERT INTO lab_effects (tenant_id, name, job_id) VALUES ($1, $2, $3)", ctx.tenant, message.name, ctx.job_id
    )
    rows = await tx.fetchval("SELECT count(*) FROM lab_effects WHERE name = $1", message.name)
    ctx.emit(lab.WRITTEN, lab.Happened(entity_id=message.name, name=message.name))
    return lab.Written(name=message.name, rows=rows)


async def count(ctx: Context[Deps], message: lab.Count) -> lab.Counted:
    async with ctx.read() as tx:
        rows = await tx.fetchval("SELECT count(*) FROM lab_effects WHERE name = $1", message.name)
        heard = await tx.fetchval("SELECT count(*) FROM lab_heard WHERE name = $1", message.name)
    return lab.Counted(rows=rows, heard=heard)


async def pieces(ctx: Context[Deps], message: lab.Pieces) -> lab.Whole:
    told(message.counter)
    said = []
    for number in range(message.pieces):
        said.append(f"piece {number}. ")
        await ctx.chunk(lab.Piece(text=said[-1]))
        await asyncio.sleep(message.pause_s)
    return lab.Whole(text="".join(said))


async def steps(ctx: Context[Deps], message: lab.Steps) -> lab.Written:
    async def step(number: int) -> lab.Whole:
        told(message.counter and f"{message.counter}-{number}")
        return lab.Whole(text=str(number))

    for number in range(1, message.steps + 1):
        await ctx.step(f"step-{number}", partial(step, number), lab.Whole)
        if number == message.die_after and told(message.counter and f"{message.counter}-died") == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await ctx.progress(number, message.steps, "steps")
    tx = await ctx.begin()
    await tx.execute("INSERT INTO lab_effects (tenant_id, name) VALUES ($1, $2)", ctx.tenant, message.name)
    return lab.Written(name=message.name, rows=1)


async def hear(ctx: Context[Deps], message: lab.Happened) -> None:
    tx = await ctx.begin()
    await tx.execute("INSERT INTO lab_heard (tenant_id, name) VALUES ($1, $2)", ctx.tenant, message.name)


WORKER = Worker(
    "lab",
    lifespan,
    serves=[
        serve(lab.ECHO, echo),
        serve(lab.WRITE, write),
        serve(lab.COUNT, count),
        serve(lab.PIECES, pieces),
        serve(lab.STEPS, steps),
        serve(lab.BROKEN, broken),
        serve(lab.CANCELS_ITSELF, cancels_itself),
    ],
    consumes=[on(lab.WRITTEN, hear)],
    needs=frozenset({"database"}),
)
