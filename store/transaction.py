"""Transactions of one tenant: statements inside, COMMIT or ROLLBACK at the end, and a connection that is given back
whole or not at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg

from runtime.tracing import Span
from store.pgerrors import FAILURES, OutcomeUnknown, is_lost, to_fault, unavailable
from store.spans import statement, transacting
from subjects.contract import Code, Fault

ACQUIRE_TIMEOUT_S = 5.0
COMMIT_TIMEOUT_S = 10.0
ROLLBACK_TIMEOUT_S = 2.0
RELEASE_TIMEOUT_S = 2.0

LOST_BEFORE_COMMIT = "the connection to the database was lost before the commit; nothing was changed"

_identifier = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")

Record = asyncpg.Record
if TYPE_CHECKING:  # generic for the type checker only
    from asyncpg.pool import PoolConnectionProxy

    _Connection = PoolConnectionProxy[Record]
    _Pool = asyncpg.Pool[Record]


class Transaction:
    """One open transaction of one tenant. Every method raises Fault(INVALID | TIMEOUT | UNAVAILABLE), or asyncpg's
    own error for a broken constraint."""

    def __init__(self, connection: _Connection, tenant: str, span: Span | None = None) -> None:
        self.tenant = tenant
        self._span = span
        self._connection: _Connection | None = connection
        self._lost = False
        self._temporary = 0

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        try:
            if self._span is None:
                return await self._open().fetch(sql, *args)
            with statement(self._span, sql):
                return await self._open().fetch(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        try:
            if self._span is None:
                return await self._open().fetchrow(sql, *args)
            with statement(self._span, sql):
                return await self._open().fetchrow(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def fetchval(self, sql: str, *args: object) -> Any:
        try:
            if self._span is None:
                return await self._open().fetchval(sql, *args)
            with statement(self._span, sql):
                return await self._open().fetchval(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement; the answer is its command tag, such as `UPDATE 1`."""
        try:
            if self._span is None:
                return await self._open().execute(sql, *args)
            with statement(self._span, sql):
                return await self._open().execute(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        try:
            with statement(self._span, sql):
                await self._open().executemany(sql, rows)
        except FAILURES as error:
            raise self._failed(error) from error

    async def copy_into(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[object]], *, on_conflict: str = ""
    ) -> int:
        """Insert many rows; the answer is how many.

        COPY itself is refused under row-level security, so the rows go into a temporary table and from there, under
        the policy, into theirs. on_conflict is an ON CONFLICT clause of the caller's own SQL.
        """
        for name in (table, *columns):
            if _identifier.match(name) is None:
                raise ValueError(f"{name!r} is not a plain lower-case SQL name")
        self._temporary += 1
        copy, names = f"copied_{self._temporary}", ", ".join(columns)
        made = f"CREATE TEMPORARY TABLE {copy} ON COMMIT DROP AS SELECT {names} FROM {table} WITH NO DATA"  # noqa: S608
        moved = f"INSERT INTO {table} ({names}) SELECT {names} FROM pg_temp.{copy} {on_conflict}"  # noqa: S608
        try:
            with statement(self._span, f"COPY {table}"):
                connection = self._open()
                await connection.execute(made)
                await connection.copy_records_to_table(
                    copy, records=records, columns=list(columns), schema_name="pg_temp"
                )
                tag = await connection.execute(moved)
        except FAILURES as error:
            raise self._failed(error) from error
        return int(tag.rsplit(" ", 1)[1])

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part that may fail (a unique violation, say) without losing the rest."""
        await self.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            await self.execute("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part")
            raise
        await self.execute("RELEASE SAVEPOINT part")

    def _open(self) -> _Connection:
        if self._connection is None:
            raise Fault(Code.INTERNAL, "the transaction has ended")
        return self._connection

    def _failed(self, error: BaseException) -> BaseException:
        self._lost = self._lost or is_lost(error)
        return to_fault(error) or error


class TransactionScope:
    """`async with` around one transaction: commits at a normal exit, rolls back at any exception."""

    def __init__(self, pool: _Pool, tenant: str, opening: str) -> None:
        self._pool = pool
        self._tenant = tenant
        self._opening = opening
        self._transaction: Transaction | None = None
        self._span: Span | None = None

    async def __aenter__(self) -> Transaction:
        self._span = transacting()
        try:
            connection = await acquire(self._pool)
            try:
                await connection.execute(self._opening)
            except BaseException as error:
                await self._give_back(connection, broken=True)
                raise to_fault(error) or error from error
        except BaseException:
            if self._span is not None:
                self._span.end("NOT_BEGUN")
            raise
        self._transaction = Transaction(connection, self._tenant, self._span)
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._end(error)
        finally:
            if self._span is not None:
                self._span.end(None if error is None else "ROLLBACK")

    async def _end(self, error: BaseException | None) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        connection, transaction._connection = transaction._connection, None
        assert connection is not None
        if error is None and not transaction._lost:
            await self._commit(connection)
        elif transaction._lost:
            await self._give_back(connection, broken=True)
            if error is None:
                raise unavailable(LOST_BEFORE_COMMIT)
        else:
            await self._roll_back(connection)

    async def _commit(self, connection: _Connection) -> None:
        # Shielded: a cancelled caller must not leave a COMMIT half sent. The wait is bounded by COMMIT_TIMEOUT_S.
        try:
            commit = asyncio.ensure_future(connection.execute("COMMIT", timeout=COMMIT_TIMEOUT_S))
        except asyncpg.InterfaceError as error:  # at once: the connection is gone already, and nothing was sent
            await self._give_back(connection, broken=True)
            raise unavailable(LOST_BEFORE_COMMIT) from error
        try:
            tag = await asyncio.shield(commit)
        except asyncio.CancelledError:
            await asyncio.wait({commit})
            await self._give_back(connection, broken=commit.exception() is not None)
            raise
        except FAILURES as error:
            await self._give_back(connection, broken=True)
            if is_lost(error):
                raise OutcomeUnknown from error
            raise to_fault(error) or error from error
        await self._give_back(connection)
        if tag != "COMMIT":  # a failed statement was swallowed: Postgres answers COMMIT with ROLLBACK
            raise Fault(Code.INTERNAL, "the transaction had failed before its commit")

    async def _roll_back(self, connection: _Connection) -> None:
        broken = True
        try:
            await connection.execute("ROLLBACK", timeout=ROLLBACK_TIMEOUT_S)
            broken = False
        except FAILURES:
            pass  # the connection goes, and the transaction with it; the first error is the one to tell
        finally:
            await self._give_back(connection, broken=broken)

    async def _give_back(self, connection: _Connection, *, broken: bool = False) -> None:
        await release(self._pool, connection, broken=broken)


async def acquire(pool: _Pool) -> _Connection:
    try:
        return await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    except TimeoutError as error:
        raise unavailable(f"no database connection became free within {ACQUIRE_TIMEOUT_S:g} s") from error
    except FAILURES as error:
        raise to_fault(error) or error from error


async def release(pool: _Pool, connection: _Connection, *, broken: bool) -> None:
    if broken:
        with suppress(asyncpg.InterfaceError):  # asyncpg took a dead connection back by itself
            connection.terminate()
    with suppress(*FAILURES):
        await pool.release(connection, timeout=RELEASE_TIMEOUT_S)  # a cancelled query must end first; then it is cut
