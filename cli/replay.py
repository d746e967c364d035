"""replay: submits jobs.replay and watches it, with a bar on a terminal and the summary as JSON in a pipe."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import typer

import codec
from cli import session, show
from runtime.client import Client
from runtime.identity import Identity
from subjects import jobs
from subjects.contract import Model

LOOK_EVERY_S = 0.25
"""While a bar is drawn."""
WAIT_S = 50.0
"""One jobs.wait; the next follows."""
COUNTS = tuple(jobs.ReplayCounts.model_fields)


def run(tenant: str, user: str | None, wanted: dict[str, Any], *, detach: bool, as_json: bool) -> None:
    message = _read(wanted)

    async def ask(client: Client) -> None:
        identity = Identity.new(tenant, user)
        submitted = await client.submit(jobs.REPLAY, message, identity=identity)
        if detach:
            show.model(submitted, as_json=as_json)
            return
        try:
            job = await _watched(client, identity, submitted.job_id, drawn=not show.wants_json(as_json))
        except asyncio.CancelledError:
            about = f"{submitted.job_id} --tenant {tenant}"
            print(f"\nthe replay goes on: faas jobs get {about}; to stop it: faas jobs cancel {about}", file=sys.stderr)
            raise
        _show(job, as_json)
        if job.status != "succeeded":
            raise typer.Exit(session.FAULT_EXIT)

    session.ask(ask)


def _read(wanted: dict[str, Any]) -> jobs.Replay:
    with session.faults():
        return codec.decode(codec.encode_plain(wanted, codec.JSON), jobs.Replay, codec.JSON)


async def _watched(client: Client, identity: Identity, job_id: str, *, drawn: bool) -> jobs.Job:
    """The job once it has ended."""
    if not drawn:
        while True:
            message = jobs.WaitForJob(job_id=job_id, wait_s=WAIT_S)
            job = await client.call(jobs.WAIT, message, identity=identity)
            if job.status in jobs.FINAL:
                return job
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        line = bar.add_task("queued", total=None)
        while True:
            job = await client.call(jobs.GET, jobs.GetJob(job_id=job_id), identity=identity)
            if job.progress is not None:
                said, done = job.progress.message or job.status, job.progress.done
                bar.update(line, description=said, completed=done, total=job.progress.total)
            if job.status in jobs.FINAL:
                return job
            await asyncio.sleep(LOOK_EVERY_S)


def _show(job: jobs.Job, as_json: bool) -> None:
    if job.result is None or show.wants_json(as_json):
        made: Model | None = job if job.result is None else None
        show.value((made.model_dump(mode="json") if made else job.result), as_json=as_json)
        return
    told = jobs.Replayed.model_validate(job.result)
    rows = [(name, *_numbers(counts)) for name, counts in told.operations.items()]
    show.table(("operation", *COUNTS), [*rows, ("all", *_numbers(told.total))])
    if told.dry_run:
        show.line("a dry run: nothing was sent")
    elif told.total.run:
        show.line(f"replay {told.replay_id}: {told.total.run} sent")


def _numbers(counts: jobs.ReplayCounts) -> tuple[str, ...]:
    return tuple(str(getattr(counts, name)) for name in COUNTS)
