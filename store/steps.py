"""Steps: results of a job's outside calls, so that a redelivered job does not make them again."""

from __future__ import annotations

from store import sql
from store.database import Database
from store.transaction import Transaction
from subjects.contract import Code, Fault

MAX_RESULT_BYTES = 1024 * 1024
MAX_NAME_BYTES = 512

_queries = sql.load("store", "steps.sql")


class Steps:
    """The journal. Each method is a transaction of its own, so a step counts once it is done, whatever comes after."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant: str, job_id: str, name: str) -> bytes | None:
        """The stored result; None: the step has not been done."""
        async with self._database.transaction(tenant) as tx:
            result: bytes | None = await tx.fetchval(_queries.get, tenant, job_id, name)
        return result

    async def put(self, tenant: str, job_id: str, name: str, result: bytes) -> None:
        """Store a result; the first one stays. Raises Fault(TOO_LARGE) over MAX_RESULT_BYTES, and Fault(INVALID) for a
        name over MAX_NAME_BYTES."""
        if len(result) > MAX_RESULT_BYTES:
            raise Fault(
                Code.TOO_LARGE,
                f"step {name[:80]} made {len(result)} bytes, more than {MAX_RESULT_BYTES}; store a reference",
            )
        if not name or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise Fault(Code.INVALID, f"a step's name has 1 to {MAX_NAME_BYTES} bytes")
        async with self._database.transaction(tenant) as tx:
            await tx.execute(_queries.put, tenant, job_id, name, result)

    async def clear(self, tx: Transaction, tenant: str, job_id: str) -> None:
        """Forget a job's steps. The keeper does so 8 days after; until then a redriven job finds them."""
        await tx.execute(_queries.clear, tenant, job_id)
