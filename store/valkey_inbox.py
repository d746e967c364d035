"""The inbox in Valkey, for requests of components without a database: 24 h, best effort.

As long as Valkey stands the same key has the same effect and the same answer. When it is down a request simply runs.
"""

from __future__ import annotations

from typing import Any

from runtime import telemetry
from store.inbox import MAX_KEY_BYTES, Claimed, Done, Waiting
from store.valkey import Arg, Script, Valkey, key
from subjects.contract import Code, Fault

KEPT_MS = 24 * 3600 * 1000
KEPT_RECORDS = 20_000  # of one operation of a tenant: the oldest go first, or a busy tenant would fill the server
EXPIRED_A_CLAIM = 8

_COMPONENT = "inbox"
_SCRIPT = Script.load("store", "valkey_inbox.lua")
_log = telemetry.get_logger(__name__)


class ValkeyInbox:
    """Claims of one process, in the shape of store.inbox.Inbox. Only claim raises, and only about the key itself."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    async def claim(
        self, tenant: str, operation: str, key: str, *, digest: str, lease_s: float, owner: str
    ) -> Claimed | Waiting | Done:
        """Take the key, or say who has it; without Valkey everybody has it.

        Raises Fault(INVALID) for a key over 1,024 bytes and Fault(CONFLICT) for another message under this key.
        """
        if not key or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
            raise Fault(Code.INVALID, f"an Idempotency-Key has 1 to {MAX_KEY_BYTES} bytes")
        limits = (KEPT_MS, KEPT_RECORDS, EXPIRED_A_CLAIM)
        found = await self._act(tenant, operation, key, "claim", digest, owner, int(lease_s * 1000), *limits)
        if found is None:
            return Claimed(owner, 1)
        match found[0]:
            case b"claimed":
                return Claimed(owner, found[1])
            case b"done":
                return Done(found[2], found[3], found[1])
            case b"waiting":
                return Waiting()
        raise Fault(Code.CONFLICT, "this Idempotency-Key was used for another message; use a new key")

    async def renew(self, tenant: str, operation: str, key: str, owner: str, *, lease_s: float) -> bool:
        """Prolong the lease from now. False: somebody else has it. Without Valkey it is still ours."""
        found = await self._act(tenant, operation, key, "renew", owner, int(lease_s * 1000))
        return found is None or bool(found)

    async def release(self, tenant: str, operation: str, key: str, owner: str) -> bool:
        """Free the key for the next attempt."""
        return bool(await self._act(tenant, operation, key, "release", owner))

    async def finish(
        self, tenant: str, operation: str, key: str, owner: str, *, reply: bytes | None, fault: bytes | None
    ) -> bool:
        """Keep the answer for who asks again. False: the claim was lost, and the answer is not kept."""
        kind, body = ("fault", fault) if fault is not None else ("reply", reply)
        stored: tuple[Arg, ...] = ("state", "done") if body is None else (kind, body)
        return bool(await self._act(tenant, operation, key, "finish", owner, *stored))

    async def _act(self, tenant: str, operation: str, name: str, *args: Arg) -> Any:
        record = key(tenant, _COMPONENT, operation, name)
        index = key(tenant, _COMPONENT, operation)
        try:
            return await self._valkey.script(_SCRIPT, [record, index], args)
        except Fault as fault:
            _log.warning("idempotency_key_not_kept", action=args[0], operation=operation, code=fault.code.value)
            return None
