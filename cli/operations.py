"""call, submit and jobs: operations named on the command line, with JSON in and JSON or a table out."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any

import typer

import codec
from cli import session, show
from runtime.client import Client
from runtime.identity import Identity
from subjects import jobs, registry
from subjects.contract import AnyCall, Code, Fault, Model

LONGEST_WAIT_S = 50.0
"""One jobs.wait; a longer wait asks again."""
DEFAULT_JOB_WAIT_S = 3600.0


class Asker:
    """Asks on behalf of one tenant and user, and prints what comes back."""

    def __init__(self, tenant: str, user: str | None, *, as_json: bool) -> None:
        self._tenant = tenant
        self._user = user
        self._json = as_json

    def call(self, operation: str, body: str, *, stream: bool, key: str | None, timeout_s: float | None) -> None:
        contract = contract_of(operation)
        if stream and contract.chunk is None:
            raise typer.BadParameter(f"{operation} does not stream")
        message = message_of(contract, body)

        async def ask(client: Client) -> None:
            if stream:
                await self._stream(client, contract, message, key=key, timeout_s=timeout_s)
            else:
                answer = await client.call(contract, message, identity=self._identity(), timeout_s=timeout_s, key=key)
                show.model(answer, as_json=self._json)

        session.ask(ask)

    def submit(self, operation: str, body: str, *, wait: bool, key: str | None, timeout_s: float | None) -> None:
        contract = contract_of(operation)
        if not contract.job:
            raise typer.BadParameter(f"{operation} makes no sense as a job; use `faas call`")
        message = message_of(contract, body)

        async def ask(client: Client) -> None:
            submitted = await client.submit(contract, message, identity=self._identity(), key=key)
            if not wait:
                show.model(submitted, as_json=self._json)
                return
            job = await self._ended(client, submitted.job_id, timeout_s or DEFAULT_JOB_WAIT_S)
            show.model(job, as_json=self._json)
            if job.status != "succeeded":
                raise typer.Exit(session.FAULT_EXIT)

        session.ask(ask)

    def list_jobs(self, wanted: dict[str, Any]) -> None:
        message = codec.decode(codec.encode_plain(wanted, codec.JSON), jobs.ListJobs, codec.JSON)

        async def ask(client: Client) -> None:
            found = await client.call(jobs.LIST, message, identity=self._identity())
            if show.wants_json(self._json):
                show.model(found, as_json=True)
                return
            rows = [
                (j.job_id, f"{j.component}.{j.operation}", j.status, _progress(j), _at(j.created_at))
                for j in found.items
            ]
            show.table(("job", "operation", "status", "progress", "created"), rows)
            if found.next_cursor:
                show.line(f"more: --cursor {found.next_cursor}")

        session.ask(ask)

    def get_job(self, job_id: str) -> None:
        self._about(jobs.GET, {"job_id": job_id})

    def cancel_job(self, job_id: str) -> None:
        self._about(jobs.CANCEL, {"job_id": job_id})

    def wait_for_job(self, job_id: str, limit_s: float | None) -> None:
        async def ask(client: Client) -> None:
            job = await self._ended(client, job_id, limit_s or DEFAULT_JOB_WAIT_S)
            show.model(job, as_json=self._json)
            if job.status != "succeeded":
                raise typer.Exit(session.FAULT_EXIT)

        session.ask(ask)

    def _about(self, contract: AnyCall, fields: dict[str, str]) -> None:
        async def ask(client: Client) -> None:
            message = codec.decode(codec.encode_plain(fields, codec.JSON), contract.input, codec.JSON)
            show.model(await client.call(contract, message, identity=self._identity()), as_json=self._json)

        session.ask(ask)

    async def _stream(
        self, client: Client, contract: AnyCall, message: Model, *, key: str | None, timeout_s: float | None
    ) -> None:
        as_json = show.wants_json(self._json)
        async with client.stream(contract, message, identity=self._identity(), timeout_s=timeout_s, key=key) as stream:
            async for chunk in stream:
                text = getattr(chunk, "text", None)
                if as_json or text is None:
                    show.value({"chunk": chunk.model_dump(mode="json")}, as_json=True)
                else:
                    show.piece(text)
            if as_json:
                show.value({"result": stream.result.model_dump(mode="json")}, as_json=True)
            else:
                show.line("\n")
                show.model(stream.result, as_json=False)

    async def _ended(self, client: Client, job_id: str, limit_s: float) -> jobs.Job:
        """The job once it has ended. Raises Fault(TIMEOUT) after limit_s."""
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            message = jobs.WaitForJob(job_id=job_id, wait_s=min(left_s, LONGEST_WAIT_S))
            job = await client.call(jobs.WAIT, message, identity=self._identity())
            if job.status in jobs.FINAL:
                return job
        raise Fault(Code.TIMEOUT, f"job {job_id} has not ended after {limit_s:g} s; it goes on: faas jobs get {job_id}")

    def _identity(self) -> Identity:
        return Identity.new(self._tenant, self._user)


def contract_of(operation: str) -> AnyCall:
    """An unknown name is wrong usage."""
    known = registry.load().calls
    if operation not in known:
        raise typer.BadParameter(f"no operation {operation!r}; there are {', '.join(sorted(known))}")
    return known[operation]


def message_of(contract: AnyCall, body: str) -> Model:
    """The decoded message; one that does not fit its contract is a fault."""
    data = sys.stdin.buffer.read() if body == "-" else body.encode()
    with session.faults():
        message: Model = codec.decode(data, contract.input, codec.JSON)
    return message


def _progress(job: jobs.Job) -> str:
    if job.progress is None:
        return ""
    total = f"/{job.progress.total:g}" if job.progress.total is not None else ""
    return f"{job.progress.done:g}{total} {job.progress.unit}".strip()


def _at(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else ""
