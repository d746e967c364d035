"""The commands about durable work: jobs, replay and dead letters. Each imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import DEMO_TENANT
from cli.options import (
    All,
    Before,
    Component,
    Cursor,
    DryRun,
    JobId,
    Json,
    Letter,
    OfCode,
    OfOperation,
    Sets,
    Since,
    Status,
    Tenant,
    Timeout,
    User,
)

jobs = typer.Typer(help="Durable jobs of a tenant.", no_args_is_help=True)
dlq = typer.Typer(help="Dead letters of a tenant: work that was given up.", no_args_is_help=True)


@jobs.command("ls")
def jobs_ls(
    tenant: Tenant = DEMO_TENANT,
    component: Component = None,
    status: Status = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", help="next_cursor of the page before.")] = None,
    json: Json = False,
) -> None:
    """The latest jobs."""
    from cli.operations import Asker

    wanted = {"component": component, "status": status, "limit": limit, "cursor": cursor}
    Asker(tenant, None, as_json=json).list_jobs({name: value for name, value in wanted.items() if value is not None})


@jobs.command("get")
def jobs_get(job_id: JobId, tenant: Tenant = DEMO_TENANT, json: Json = False) -> None:
    """One job."""
    from cli.operations import Asker

    Asker(tenant, None, as_json=json).get_job(job_id)


@jobs.command("cancel")
def jobs_cancel(job_id: JobId, tenant: Tenant = DEMO_TENANT, json: Json = False) -> None:
    """Cancel a job: within a second when it runs, leaving no partial effect."""
    from cli.operations import Asker

    Asker(tenant, None, as_json=json).cancel_job(job_id)


@jobs.command("wait")
def jobs_wait(job_id: JobId, tenant: Tenant = DEMO_TENANT, timeout: Timeout = None, json: Json = False) -> None:
    """Until the job has ended; 1 when it did not succeed."""
    from cli.operations import Asker

    Asker(tenant, None, as_json=json).wait_for_job(job_id, timeout)


def replay(
    subject: Annotated[str, typer.Option("--subject", "-s", help="rag.ingest, rag.*, or job.TENANT.rag.ingest.>")],
    tenant: Tenant = DEMO_TENANT,
    user: User = None,
    since: Since = None,
    seq: Annotated[str | None, typer.Option("--seq", metavar="A:B", help="Numbers of the stream, included.")] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Run anew what has ended, as jobs of their own.")] = False,
    rate: Annotated[float | None, typer.Option("--rate", min=0.1, max=10_000, help="Messages a second.")] = None,
    sets: Sets = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the replay and do not watch it.")] = False,
    json: Json = False,
) -> None:
    """Send jobs again that the stream still holds. What has ended stays as it is, unless forced."""
    from cli import given
    from cli import replay as command

    if since is None and seq is None:
        raise typer.BadParameter("say from where: --since or --seq")
    wanted: dict[str, object] = {
        "subject": subject,
        "dry_run": dry_run,
        "force": force,
        "set": given.changes(sets or []),
    }
    if rate is not None:
        wanted["rate"] = rate
    if since is not None:
        wanted["since"] = given.moment(since, "--since").isoformat()
    command.run(tenant, user, wanted | (given.sequences(seq) if seq else {}), detach=detach, as_json=json)


@dlq.command("ls")
def dlq_ls(
    tenant: Tenant = DEMO_TENANT,
    component: Component = None,
    operation: OfOperation = None,
    code: OfCode = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200)] = 50,
    cursor: Cursor = None,
    json: Json = False,
) -> None:
    """Dead letters, oldest first."""
    from cli.letters import Letters

    found = _filter(component, operation, code, since) | _given(limit=limit, cursor=cursor)
    Letters(tenant, None, as_json=json).ls(found)


@dlq.command("show")
def dlq_show(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    tenant: Tenant = DEMO_TENANT,
    component: Component = None,
    json: Json = False,
) -> None:
    """One dead letter: why and when, its headers, and what it said."""
    from cli.letters import Letters

    Letters(tenant, None, as_json=json).show(job_id, component)


@dlq.command("redrive")
def dlq_redrive(
    job_id: Letter = None,
    tenant: Tenant = DEMO_TENANT,
    user: User = None,
    all: All = False,
    component: Component = None,
    operation: OfOperation = None,
    code: OfCode = None,
    since: Since = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run dead work again, under its own id, its attempts counted anew."""
    from cli import given
    from cli.letters import Letters

    _one_or_all(job_id, all)
    wanted = _filter(component, operation, code, since) | _given(job_id=job_id, all=all, dry_run=dry_run)
    Letters(tenant, user, as_json=json).redrive(wanted | {"set": given.changes(sets or [])})


@dlq.command("purge")
def dlq_purge(
    job_id: Letter = None,
    tenant: Tenant = DEMO_TENANT,
    all: All = False,
    component: Component = None,
    operation: OfOperation = None,
    code: OfCode = None,
    since: Since = None,
    before: Before = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Remove dead letters for good."""
    from cli import given
    from cli.letters import Letters, confirmed

    _one_or_all(job_id, all)
    wanted = _filter(component, operation, code, since) | _given(job_id=job_id, all=all)
    if before is not None:
        wanted["before"] = given.moment(before, "--before").isoformat()
    if all:
        confirmed(f"dead letters of tenant {tenant}", yes)
    Letters(tenant, None, as_json=json).purge(wanted)


def _filter(component: str | None, operation: str | None, code: str | None, since: str | None) -> dict[str, object]:
    from cli import given

    found = _given(component=component, operation=operation, code=code.upper() if code else None)
    return found if since is None else found | {"since": given.moment(since, "--since").isoformat()}


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _one_or_all(job_id: str | None, everything: bool) -> None:
    if (job_id is None) == (not everything):
        raise typer.BadParameter("say either an ID or --all")
