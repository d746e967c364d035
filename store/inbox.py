"""Inbox: the same key has the same effect and the same answer, whoever asks again and whatever dies.

A claim is a short lease in the database's own time. The handler runs outside any transaction; the final transaction
writes the reply only if the claim is still its owner's. The SQL function claim_key decides who has a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from store import sql
from store.database import Database
from store.together import Together
from store.transaction import Record, Transaction
from subjects.contract import Code, Fault

MAX_KEY_BYTES = 1024

_queries = sql.load("store", "inbox.sql")

KeyState = Literal["unknown", "done", "working", "open"]
"""working: somebody holds its claim. open: begun and not ended, held by nobody."""
_Claim = tuple[str, str, str, str, timedelta]  # operation, key, digest, owner, lease


@dataclass(frozen=True)
class Claimed:
    """The key is this owner's until the lease ends. attempts counts this one; faults and hand_backs count releases."""

    owner: str
    attempts: int
    faults: int = 0
    hand_backs: int = 0


@dataclass(frozen=True)
class Waiting:
    """Another owner works on it: look again later, holding nothing."""


@dataclass(frozen=True)
class Done:
    """It ended before. reply or fault as it was stored; neither when it was too large to keep."""

    reply: bytes | None
    fault: bytes | None
    attempts: int = 1


class LeaseLost(Exception):
    """The claim ran out and went to another owner: roll back, and leave the message alone."""


class Inbox:
    """Claims of one process. Each method but finish is a transaction of its own; all raise what Transaction does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claims: Together[_Claim, Record] = Together(
            self._claim, name=sql.name_of(_queries.claim), undo=self._unclaim
        )

    async def claim(
        self, tenant: str, operation: str, key: str, *, digest: str, lease_s: float, owner: str
    ) -> Claimed | Waiting | Done:
        """Take the key, or say who has it. The same owner may ask again: it is one attempt.

        Raises Fault(INVALID) for a key over MAX_KEY_BYTES and Fault(CONFLICT) for another message under this key.
        """
        if not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
            raise Fault(Code.INVALID, f"an Idempotency-Key has 1 to {MAX_KEY_BYTES} bytes")
        row = await self._claims.ask(tenant, (operation, key, digest, owner, timedelta(seconds=lease_s)))
        match row["state"]:
            case "claimed":
                return Claimed(owner, row["attempts"], row["faults"], row["hand_backs"])
            case "done":
                return Done(row["reply"], row["fault"], row["attempts"])
            case "waiting":
                return Waiting()
        raise Fault(Code.CONFLICT, "this Idempotency-Key was used for another message; use a new key")

    async def _claim(self, tenant: str, claims: Sequence[_Claim]) -> list[Record]:
        # In one order everywhere, so that two processes with the same keys wait for each other and never in a circle.
        order = sorted(range(len(claims)), key=lambda n: claims[n][:2])
        columns = [list(column) for column in zip(*(claims[n] for n in order), strict=True)]
        rows = await self._database.alone(_queries.claim, tenant, *columns)
        placed = dict(zip(order, rows, strict=True))
        return [placed[n] for n in range(len(claims))]

    async def _unclaim(self, tenant: str, claim: _Claim, row: Record) -> None:
        if row["state"] == "claimed":  # for a task that was cancelled while it asked
            with suppress(Fault):  # then the lease runs out by itself
                await self.release(tenant, claim[0], claim[1], claim[3], hand_back=True)

    async def look(self, tenant: str, keys: Sequence[tuple[str, str]]) -> list[KeyState]:
        """How it stands with each (operation, key), in their order, touching none."""
        operations, names = [operation for operation, _ in keys], [key for _, key in keys]
        async with self._database.transaction(tenant) as tx:
            return [row["state"] for row in await tx.fetch(_queries.look, tenant, operations, names)]

    async def renew(self, tenant: str, operation: str, key: str, owner: str, *, lease_s: float) -> bool:
        """Prolong the lease from now. False: it is not this owner's any more, so stop working."""
        async with self._database.transaction(tenant, relaxed=True) as tx:
            lease = timedelta(seconds=lease_s)
            return await tx.execute(_queries.renew, tenant, operation, key, owner, lease) == "UPDATE 1"

    async def release(
        self, tenant: str, operation: str, key: str, owner: str, *, fault: bool = False, hand_back: bool = False
    ) -> bool:
        """Free the key for the next attempt, and count why: a retryable fault, or a process that is draining."""
        async with self._database.transaction(tenant, relaxed=True) as tx:
            counts = int(fault), int(hand_back)
            return await tx.execute(_queries.release, tenant, operation, key, owner, *counts) == "UPDATE 1"

    async def finish(
        self,
        tx: Transaction,
        tenant: str,
        operation: str,
        key: str,
        owner: str,
        *,
        reply: bytes | None,
        fault: bytes | None,
    ) -> None:
        """Store the answer within the transaction that holds the effect. Raises LeaseLost when it is not ours."""
        if await tx.execute(_queries.finish, tenant, operation, key, owner, reply, fault) != "UPDATE 1":
            raise LeaseLost

    async def crashes(self, tenant: str, operation: str, key: str) -> int:
        """How many attempts ended in no answer, fault or hand-back: their process died, or still works."""
        async with self._database.transaction(tenant) as tx:
            return await tx.fetchval(_queries.crashes, tenant, operation, key) or 0
