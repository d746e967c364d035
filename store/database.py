"""Postgres: one bounded pool, and transactions that see one tenant's rows.

Statements run only inside `Database.transaction(tenant)`. It opens with one simple query that also names the tenant,
so row-level security holds from the first statement, and the setting ends with the transaction: outside of one, reads
find nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg
from pgvector.asyncpg import register_vector

from store.pgerrors import FAILURES, OutcomeUnknown, is_lost, to_fault, unavailable
from subjects.contract import Code, Fault
from subjects.grammar import token

CONNECT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 5.0
COMMIT_TIMEOUT_S = 10.0
ROLLBACK_TIMEOUT_S = 2.0
RELEASE_TIMEOUT_S = 2.0
PING_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 20.0  # longer than statement_timeout: the server's answer is the better one
IDLE_CONNECTION_S = 300.0
STATEMENT_CACHE = 512

SESSION = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "jit": "off",
    "TimeZone": "UTC",
}
# Search statements: a plan per tenant, not the first tenant's; a filtered HNSW scan goes on until it has enough rows.
SEARCH = (
    "; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL hnsw.ef_search = 100"
    "; SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.max_scan_tuples = 200000"
)
# A lost claim or progress row is made again: no need to wait for the disk.
RELAXED = "; SET LOCAL synchronous_commit = off"

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

    def __init__(self, connection: _Connection, tenant: str) -> None:
        self.tenant = tenant
        self._connection: _Connection | None = connection
        self._lost = False
        self._temporary = 0

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        try:
            return await self._open().fetch(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        try:
            return await self._open().fetchrow(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def fetchval(self, sql: str, *args: object) -> Any:
        try:
            return await self._open().fetchval(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement; the answer is its command tag, such as `UPDATE 1`."""
        try:
            return await self._open().execute(sql, *args)
        except FAILURES as error:
            raise self._failed(error) from error

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        try:
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
        try:
            connection = self._open()
            await connection.execute(
                f"CREATE TEMPORARY TABLE {copy} ON COMMIT DROP AS SELECT {names} FROM {table} WITH NO DATA"  # noqa: S608
            )
            await connection.copy_records_to_table(copy, records=records, columns=list(columns), schema_name="pg_temp")
            tag = await connection.execute(
                f"INSERT INTO {table} ({names}) SELECT {names} FROM pg_temp.{copy} {on_conflict}"  # noqa: S608
            )
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

    async def __aenter__(self) -> Transaction:
        connection = await _acquire(self._pool)
        try:
            await connection.execute(self._opening)
        except BaseException as error:
            await self._give_back(connection, broken=True)
            raise to_fault(error) or error from error
        self._transaction = Transaction(connection, self._tenant)
        return self._transaction

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        await _release(self._pool, connection, broken=broken)


class Database:
    """The pool of one process and role. It is private: whoever needs rows asks for a transaction."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str, *, min_size: int = 1, max_size: int = 10, name: str) -> Database:
        """Connect. name is shown in pg_stat_activity. Raises Fault(UNAVAILABLE | TIMEOUT)."""
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=min_size,
                max_size=max_size,
                init=prepare,
                reset=_keep,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                max_inactive_connection_lifetime=IDLE_CONNECTION_S,
                statement_cache_size=STATEMENT_CACHE,
                server_settings={**SESSION, "application_name": name},
            )
        except FAILURES as error:
            raise to_fault(error) or error from error
        return cls(pool)

    def transaction(self, tenant: str, *, search: bool = False, relaxed: bool = False) -> TransactionScope:
        """A transaction under the tenant's row-level security.

        search sets what vector statements need. relaxed does not wait for the disk at COMMIT: only for rows that a
        crash may lose without harm (claims, progress). Raises Fault(INVALID) for a tenant that is no token, and
        Fault(UNAVAILABLE) when no connection becomes free in ACQUIRE_TIMEOUT_S.
        """
        opening = f"BEGIN; SET LOCAL app.tenant = '{token(tenant, 'tenant')}'"  # the token grammar has no quote
        if search:
            opening += SEARCH
        if relaxed:
            opening += RELAXED
        return TransactionScope(self._pool, tenant, opening)

    def untenanted(self) -> TransactionScope:
        """A transaction of no tenant: the keeper's role sees its four tables, any other role sees no row."""
        return TransactionScope(self._pool, "", "BEGIN")

    async def alone(self, sql: str, *args: object, timeout_s: float = COMMAND_TIMEOUT_S) -> list[Record]:
        """The rows of one statement that is a transaction by itself: one round trip instead of three.

        For the store's own SQL functions that begin with act_for(tenant); any other statement finds no row, as it has
        no tenant. Raises OutcomeUnknown when the connection is lost before the answer.
        """
        connection, broken = await _acquire(self._pool), False
        try:
            return await connection.fetch(sql, *args, timeout=timeout_s)
        except FAILURES as error:
            broken = is_lost(error)
            if broken:
                raise OutcomeUnknown from error
            raise to_fault(error) or error from error
        finally:
            await _release(self._pool, connection, broken=broken)

    async def ping(self) -> None:
        """Raise Fault(UNAVAILABLE | TIMEOUT) unless the database answers and has pgvector."""
        found = await self.alone(
            "SELECT extversion FROM pg_extension WHERE extname = 'vector'", timeout_s=PING_TIMEOUT_S
        )
        if not found:
            raise unavailable("the database has no pgvector extension; run store/bootstrap.sql as its superuser")

    async def close(self) -> None:
        """Close every connection, by force after CLOSE_TIMEOUT_S."""
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT_S)
        except FAILURES:
            self._pool.terminate()


async def _acquire(pool: _Pool) -> _Connection:
    try:
        return await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    except TimeoutError as error:
        raise unavailable(f"no database connection became free within {ACQUIRE_TIMEOUT_S:g} s") from error
    except FAILURES as error:
        raise to_fault(error) or error from error


async def _release(pool: _Pool, connection: _Connection, *, broken: bool) -> None:
    if broken:
        with suppress(asyncpg.InterfaceError):  # asyncpg took a dead connection back by itself
            connection.terminate()
    with suppress(*FAILURES):
        await pool.release(connection, timeout=RELEASE_TIMEOUT_S)  # a cancelled query must end first; then it is cut


async def _keep(connection: object) -> None:
    """Instead of asyncpg's RESET ALL, a round trip: only SET LOCAL is used here, and it ends with its transaction."""


async def prepare(connection: asyncpg.Connection[Record]) -> None:
    """Give a new connection the codecs: jsonb is any JSON value, vector is pgvector's."""
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_jsonb_encode, decoder=_jsonb_decode, format="binary"
    )
    await register_vector(connection)


def _jsonb_encode(value: object) -> bytes:
    # Binary, because COPY knows no text codec; the first byte is the version of jsonb's wire format.
    return b"\x01" + json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _jsonb_decode(data: bytes) -> Any:
    return json.loads(data[1:])
