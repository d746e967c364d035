"""Postgres: one bounded pool, and transactions that see one tenant's rows.

Statements run only inside `Database.transaction(tenant)`. It opens with one simple query that also names the tenant,
so row-level security holds from the first statement, and the setting ends with the transaction: outside of one, reads
find nothing.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import asyncpg
from pgvector.asyncpg import register_vector

from store.pgerrors import FAILURES, OutcomeUnknown, is_lost, to_fault, unavailable
from store.spans import CONNECTIONS
from store.transaction import Record, TransactionScope, acquire, release
from subjects.grammar import token

CONNECT_TIMEOUT_S = 5.0
PING_TIMEOUT_S = 2.0
NO_PGVECTOR = "the database has no pgvector extension; run store/bootstrap.sql as its superuser"
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

if TYPE_CHECKING:  # generic for the type checker only
    _Pool = asyncpg.Pool[Record]


class Database:
    """The pool of one process and role. It is private: whoever needs rows asks for a transaction."""

    def __init__(self, pool: _Pool, name: str) -> None:
        self._pool = pool
        self._name = name
        self._forget = CONNECTIONS.watch(self._connections)

    def _connections(self) -> list[tuple[tuple[str, ...], float]]:
        size, idle = self._pool.get_size(), self._pool.get_idle_size()
        return [((self._name, "idle"), idle), ((self._name, "used"), size - idle)]

    @classmethod
    async def open(cls, dsn: str, *, min_size: int = 1, max_size: int = 10, name: str) -> Database:
        """Connect. name is shown in pg_stat_activity. Raises Fault(UNAVAILABLE | TIMEOUT)
        when it is away, and Fault(UNAVAILABLE) when it has no pgvector."""
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
        return cls(pool, name)

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
        connection, broken = await acquire(self._pool), False
        try:
            return await connection.fetch(sql, *args, timeout=timeout_s)
        except FAILURES as error:
            broken = is_lost(error)
            if broken:
                raise OutcomeUnknown from error
            raise to_fault(error) or error from error
        finally:
            await release(self._pool, connection, broken=broken)

    async def ping(self) -> None:
        """Raise Fault(UNAVAILABLE | TIMEOUT) unless the database answers and has pgvector."""
        try:
            found = await self.alone(
                "SELECT extversion FROM pg_extension WHERE extname = 'vector'", timeout_s=PING_TIMEOUT_S
            )
        except OutcomeUnknown as error:
            raise unavailable("the database is not available") from error
        if not found:
            raise unavailable(NO_PGVECTOR)

    async def close(self) -> None:
        """Close every connection, by force after CLOSE_TIMEOUT_S."""
        self._forget()
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT_S)
        except FAILURES:
            self._pool.terminate()


async def _keep(connection: object) -> None:
    """Instead of asyncpg's RESET ALL, a round trip: only SET LOCAL is used here, and it ends with its transaction."""


async def prepare(connection: asyncpg.Connection[Record]) -> None:
    """Give a new connection the codecs: jsonb is any JSON value, vector is pgvector's.

    Raises Fault(UNAVAILABLE) when the database has no pgvector.
    """
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=_jsonb_encode, decoder=_jsonb_decode, format="binary"
    )
    try:
        await register_vector(connection)
    except ValueError as error:  # asyncpg's way to say that there is no such type
        raise unavailable(NO_PGVECTOR) from error


def _jsonb_encode(value: object) -> bytes:
    # Binary, because COPY knows no text codec; the first byte is the version of jsonb's wire format.
    return b"\x01" + json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _jsonb_decode(data: bytes) -> Any:
    return json.loads(data[1:])
