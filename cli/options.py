"""The options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Tenant = Annotated[str, typer.Option("--tenant", "-t", help="On whose behalf.", envvar="FAAS_TENANT")]
User = Annotated[str | None, typer.Option("--user", "-u", help="The user, as X-User-ID.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on a terminal too; a pipe always gets it.")]
Operation = Annotated[str, typer.Argument(metavar="COMPONENT.OPERATION", help="Such as rag.query.")]
Body = Annotated[str, typer.Argument(metavar="JSON", help="The message; `-` reads it from standard input.")]
Key = Annotated[str | None, typer.Option("--key", help="Idempotency-Key: the same key has the same effect once.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.001, help="Seconds; else the contract's.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID")]
Letter = Annotated[str | None, typer.Argument(metavar="[ID]", help="As `faas dlq ls` shows it.")]
Component = Annotated[str | None, typer.Option("--component", help="Only of this component.")]
Status = Annotated[
    Literal["queued", "running", "succeeded", "failed", "cancelled"] | None,
    typer.Option("--status", help="Only those in this state."),
]
OfOperation = Annotated[str | None, typer.Option("--operation", help="Only of this operation, without component.")]
OfCode = Annotated[str | None, typer.Option("--code", help="Only what died of this fault, such as TIMEOUT.")]
Since = Annotated[str | None, typer.Option("--since", help="`2h`, `7d`, or an ISO time (UTC without a zone).")]
Before = Annotated[str | None, typer.Option("--before", help="Only older ones: `30d`, or an ISO time.")]
Cursor = Annotated[str | None, typer.Option("--cursor", help="next_cursor of the page before.")]
All = Annotated[bool, typer.Option("--all", help="All that the other options let through.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change the message; repeatable.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
