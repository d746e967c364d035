"""What a tenant may hold, and what one call may do to the server: every number of the cache in one place."""

from __future__ import annotations

from dataclasses import dataclass

from subjects.contract import Code, Fault

SWEPT_A_CALL = 256  # expired entries whose index goes with one script: under 2 ms of the server
INVALIDATED_A_CALL = 512  # entries dropped by one script
MAX_REPLY_BYTES = 511 * 1024  # values of one get_many
POLL_FIRST_S, POLL_MOST_S = 0.02, 0.1  # how often a waiter of get_or_lock looks
WAITERS = 24  # of one process: waiters take slots, and the holder's set must still find one
WAITERS_A_TENANT = 8


@dataclass(frozen=True)
class Quota:
    """Of one tenant. bytes counts keys, encoded values and tags."""

    max_keys: int = 100_000
    max_bytes: int = 256 * 1024 * 1024
    max_locks: int = 10_000

    def exhausted(self, what: bytes) -> Fault:
        """The fault of a write that does not fit; what is `keys`, `bytes` or `full` (locks)."""
        allowed = {
            b"keys": f"{self.max_keys} keys",
            b"bytes": f"{self.max_bytes} bytes",
            b"full": f"{self.max_locks} locks",
        }[what]
        return Fault(
            Code.EXHAUSTED,
            f"the tenant's cache holds its {allowed}: delete or invalidate keys, or give them a shorter ttl_s",
        )


QUOTA = Quota()
