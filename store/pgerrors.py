"""What went wrong in Postgres, said as a Fault.

Data that Postgres cannot hold is INVALID and never retried; a database that is away or too slow is UNAVAILABLE or
TIMEOUT; broken rules of the schema (unique, foreign key, check) stay asyncpg's own errors: only the caller knows what
they mean. So do errors in a statement itself, which are bugs.
"""

from __future__ import annotations

import asyncpg
from asyncpg.exceptions import DataError as ServerDataError
from asyncpg.exceptions._base import DataError as ClientDataError

from subjects.contract import Code, Fault

# InternalClientError: asyncpg was in the middle of reading the server's last words when it was asked for more.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
RETRY_AFTER_S = 1.0

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresSystemError,
)
_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCachedStatementError,  # the schema changed under a prepared statement
    asyncpg.OutdatedSchemaCacheError,
)


class OutcomeUnknown(Fault):
    """COMMIT was sent and its answer never came: it happened or it did not. Run it again through the inbox."""

    def __init__(self) -> None:
        super().__init__(
            Code.UNAVAILABLE, "the database went away while committing; ask again with the same key", retry_after_s=1.0
        )


def unavailable(detail: str) -> Fault:
    return Fault(Code.UNAVAILABLE, detail, retry_after_s=RETRY_AFTER_S)


def to_fault(error: BaseException) -> Fault | None:
    """The Fault that an error means, or None when it is the caller's to judge."""
    match error:
        case ServerDataError() | ClientDataError() | asyncpg.ProgramLimitExceededError():
            return Fault(Code.INVALID, "a value cannot be stored: NUL, a lone surrogate, NaN or a number out of range")
        case asyncpg.QueryCanceledError() | asyncpg.IdleInTransactionSessionTimeoutError():
            return Fault(Code.TIMEOUT, "the database did not finish in time")
        case _ if isinstance(error, _BUSY):
            return unavailable("the database is busy with a conflicting change; ask again")
        case _ if isinstance(error, _LOST):
            return unavailable("the database is not available")
        case asyncpg.PostgresError():
            return None
        case TimeoutError():
            return Fault(Code.TIMEOUT, "the database did not answer in time")
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() | OSError():
            return unavailable("the connection to the database was lost")
    return None


def is_lost(error: BaseException) -> bool:
    """Whether the connection that raised it must not be used again."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(error, (*_LOST, asyncpg.IdleInTransactionSessionTimeoutError)) and not isinstance(
            error, asyncpg.QueryCanceledError
        )
    return isinstance(error, FAILURES) and not isinstance(error, ClientDataError)
