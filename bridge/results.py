"""How a job ended, told to a client that waited for it."""

from __future__ import annotations

from dataclasses import replace

from bridge.context import Bridge
from codec import JSON, Problem, encode, encode_plain, to_problem
from codec import headers as h
from runtime.identity import Identity
from runtime.jobs import last_of
from runtime.output import OutputItem
from runtime.streams import OUT
from subjects import grammar, jobs
from subjects.contract import Code, Fault


async def job_of(bridge: Bridge, identity: Identity, job_id: str) -> jobs.Job:
    """The job as it stands, whatever the token's scopes: whether the caller may see it is the route's to check.

    Raises Fault(NOT_FOUND, UNAVAILABLE, TIMEOUT).
    """
    ours = replace(identity, scopes=frozenset({jobs.GET.scope}))
    return await bridge.client.call(jobs.GET, jobs.GetJob(job_id=job_id), identity=ours)


async def waited(bridge: Bridge, identity: Identity, job_id: str, wait_s: float) -> jobs.Job | None:
    """The job once it has ended, or as it stands after wait_s; None when nobody can tell."""
    ours = replace(identity, scopes=frozenset({jobs.WAIT.scope}))
    try:
        return await bridge.client.call(jobs.WAIT, jobs.WaitForJob(job_id=job_id, wait_s=wait_s), identity=ours)
    except Fault:
        return None


def fault_of(job: jobs.Job) -> Fault:
    """Why a job did not succeed."""
    told = job.fault
    if told is None:
        return Fault(Code.CANCELLED if job.status == "cancelled" else Code.INTERNAL, f"the job {job.status}")
    code = Code(told.code) if told.code in Code.__members__ else Code.INTERNAL
    return Fault(code, told.detail, errors=told.errors)


async def result_of(bridge: Bridge, identity: Identity, job: jobs.Job) -> tuple[bytes, str]:
    """A succeeded job's output and its format. One too large for its row is still the last piece of its output.

    Raises Fault(NOT_FOUND) when that is no longer kept either.
    """
    if job.result is not None:
        return encode_plain(job.result, JSON), JSON
    last = await last_of(bridge.connection.requests, OUT, grammar.output(identity.tenant, job.job_id))
    if last is None or last.headers.get(h.CHUNK_END) != "done":
        raise Fault(Code.NOT_FOUND, f"the result of {job.job_id} was too large to keep and its output has expired")
    return last.data, last.content_type or JSON


async def end_of(bridge: Bridge, identity: Identity, job: jobs.Job, place: tuple[int, int]) -> OutputItem:
    """The last piece of an ended job's output, made from its row. place: of the last piece before it."""
    attempt, n = place
    try:
        if job.status != "succeeded":
            raise fault_of(job)
        data, content_type = await result_of(bridge, identity, job)
        return OutputItem("done", attempt, n, data, content_type)
    except Fault as fault:
        return error_item(fault, identity, place)


def error_item(fault: Fault, identity: Identity, place: tuple[int, int]) -> OutputItem:
    problem: Problem = to_problem(fault, identity.request_id, identity.correlation_id)
    return OutputItem("error", *place, encode(problem, JSON), JSON)
