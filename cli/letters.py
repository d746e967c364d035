"""dlq: lists, shows, redrives and purges the dead letters of a tenant."""

from __future__ import annotations

import sys
from typing import Any

import typer

import codec
from cli import session, show
from runtime.client import Client
from runtime.identity import Identity, new_id
from subjects import jobs
from subjects.contract import AnyCall

REASON_CHARS = 60


class Letters:
    """Asks on behalf of one tenant and user, and prints what comes back."""

    def __init__(self, tenant: str, user: str | None, *, as_json: bool) -> None:
        self._identity = Identity.new(tenant, user)
        self._json = as_json

    def ls(self, wanted: dict[str, Any]) -> None:
        message = _read(jobs.LIST_DEAD_LETTERS, wanted)

        async def ask(client: Client) -> None:
            found = await client.call(jobs.LIST_DEAD_LETTERS, message, identity=self._identity)
            if show.wants_json(self._json):
                show.model(found, as_json=True)
                return
            rows = [
                (
                    each.job_id,
                    f"{each.component}.{each.operation}",
                    each.code,
                    str(each.attempts),
                    each.dead_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if each.dead_at else "",
                    each.reason[:REASON_CHARS],
                )
                for each in found.items
            ]
            show.table(("id", "operation", "code", "attempts", "dead", "reason"), rows)
            if found.next_cursor:
                show.line(f"more: --cursor {found.next_cursor}")

        session.ask(ask)

    def show(self, job_id: str, component: str | None) -> None:
        fields = {"job_id": job_id} if component is None else {"job_id": job_id, "component": component}
        message = _read(jobs.GET_DEAD_LETTER, fields)

        async def ask(client: Client) -> None:
            letter = await client.call(jobs.GET_DEAD_LETTER, message, identity=self._identity)
            show.model(letter, as_json=self._json)

        session.ask(ask)

    def redrive(self, wanted: dict[str, Any]) -> None:
        """Page by page; exit code 1 when one of them was refused."""
        message = _read(jobs.REDRIVE, wanted)

        async def ask(client: Client) -> None:
            items: list[jobs.RedrivenJob] = []
            page = message
            while True:
                # One key a page: what is asked again after a lost answer has its answer, and runs nothing twice.
                done = await client.call(jobs.REDRIVE, page, identity=self._identity, key=new_id())
                items += done.items
                if done.next_cursor is None:
                    break
                page = page.model_copy(update={"cursor": done.next_cursor})
            self._show_redriven(items)
            if any(each.outcome == "refused" for each in items):
                raise typer.Exit(session.FAULT_EXIT)

        session.ask(ask)

    def _show_redriven(self, items: list[jobs.RedrivenJob]) -> None:
        if show.wants_json(self._json):
            show.value({"items": [each.model_dump(mode="json") for each in items]}, as_json=True)
            return
        rows = [
            (
                each.job_id,
                f"{each.component}.{each.operation}",
                each.outcome.replace("_", " "),
                each.fault.detail if each.fault else "",
            )
            for each in items
        ]
        show.table(("id", "operation", "outcome", "why not"), rows)

    def purge(self, wanted: dict[str, Any]) -> None:
        message = _read(jobs.PURGE_DEAD_LETTERS, wanted)

        async def ask(client: Client) -> None:
            removed, page = 0, message
            while True:
                done = await client.call(jobs.PURGE_DEAD_LETTERS, page, identity=self._identity)
                removed += done.removed
                if done.next_cursor is None:
                    break
                page = page.model_copy(update={"cursor": done.next_cursor})
            show.value({"removed": removed}, as_json=self._json)

        session.ask(ask)


def confirmed(what: str, is_sure: bool) -> None:
    """Asks on a terminal; a script must say --yes."""
    if is_sure:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter(f"this removes {what} for good: say --yes")
    typer.confirm(f"Remove {what} for good?", abort=True)


def _read(call: AnyCall, fields: dict[str, Any]) -> Any:
    with session.faults():
        message = codec.decode(codec.encode_plain(fields, codec.JSON), call.input, codec.JSON)
    return message
