"""Migrations: numbered SQL files, each applied once, in its own transaction, under an advisory lock."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from store.pgerrors import FAILURES, to_fault
from subjects.contract import Code, Fault

CONNECT_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 120
STATEMENT_TIMEOUT_S = 600
ADVISORY_LOCK = 0x6D6F7461_00000001  # "mota", 1: migrations

SOURCE = Path(__file__).resolve().parent.parent
_filename = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql\Z")

_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@dataclass(frozen=True)
class Migration:
    """name is `<folder>/<file without .sql>`, such as `store/0001_tenancy`."""

    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def discover(source: Path = SOURCE) -> list[Migration]:
    """The platform's files, then each component's, in the order of their numbers.

    Raises Fault(INVALID) on a file name that is not `NNNN_name.sql` and on a number used twice in a folder.
    """
    folders = [source / "store", *sorted(path.parent for path in source.glob("workers/*/migrations"))]
    found: list[Migration] = []
    for folder in folders:
        seen: set[str] = set()
        for path in sorted((folder / "migrations").glob("*.sql")):
            match = _filename.match(path.name)
            if match is None or match[1] in seen:
                raise Fault(Code.INVALID, f"{folder.name}/migrations/{path.name}: want NNNN_name.sql, each number once")
            seen.add(match[1])
            found.append(Migration(f"{folder.name}/{path.stem}", path.read_text(encoding="utf-8")))
    return found


async def migrate(owner_dsn: str, *, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is new, as faas_owner; the answer is the names applied now.

    Two at once wait for each other. Raises Fault(CONFLICT) when a file was changed after it was applied,
    Fault(UNAVAILABLE | TIMEOUT) when the database is away or locked, and asyncpg's own error for SQL that fails (that
    file leaves no trace).
    """
    wanted = discover() if migrations is None else list(migrations)
    try:
        connection = await asyncpg.connect(
            owner_dsn,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={
                "application_name": "faas migrate",
                "lock_timeout": f"{LOCK_TIMEOUT_S}s",
                "statement_timeout": f"{STATEMENT_TIMEOUT_S}s",
                "client_min_messages": "warning",
            },
        )
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
            return await _apply(connection, wanted)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)
    except FAILURES as error:
        raise to_fault(error) or error from error


async def _apply(connection: asyncpg.Connection[asyncpg.Record], wanted: Sequence[Migration]) -> list[str]:
    await connection.execute(_LEDGER)
    applied = {
        row["name"]: row["checksum"] for row in await connection.fetch("SELECT name, checksum FROM schema_migrations")
    }
    new: list[str] = []
    for migration in wanted:
        known = applied.get(migration.name)
        if known is None:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", migration.name, migration.checksum
                )
            new.append(migration.name)
        elif known != migration.checksum:
            raise Fault(
                Code.CONFLICT, f"migration {migration.name} was changed after it was applied; write a new one instead"
            )
    return new
