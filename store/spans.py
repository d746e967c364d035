"""Spans of what is asked of Postgres: the transaction, and each statement by its name. Never a text or a parameter."""

from __future__ import annotations

from contextlib import AbstractContextManager

from runtime import metrics
from runtime.tracing import Attribute, Kind, Span, begin, current, ending, within
from store import sql

SYSTEM: dict[str, Attribute | None] = {"db.system.name": "postgresql"}
CONNECTIONS = metrics.Observed(
    "db.client.connection.count", "", "Connections of the pools.", "updown",
    ("db.client.connection.pool.name", "db.client.connection.state"),
)  # fmt: skip


def transacting() -> Span | None:
    """A transaction of the message that this task handles."""
    return within("transaction", Kind.CLIENT, SYSTEM | {"db.operation.name": "transaction"})


def statement(of: Span | None, text: str) -> AbstractContextManager[None]:
    """One statement of a transaction."""
    return ending(None if of is None else begin(*_named(sql.name_of(text), of.traceparent)))


def shared(name: str) -> AbstractContextManager[None]:
    """A named statement that does the work of several messages: each has its own span of it, from asking to answer."""
    parent = current()
    return ending(None if parent is None else begin(*_named(name, parent.traceparent)))


def _named(name: str, parent: str) -> tuple[str, Kind, str, dict[str, Attribute | None]]:
    return name, Kind.CLIENT, parent, {**SYSTEM, "db.operation.name": name, "db.query.summary": name}
