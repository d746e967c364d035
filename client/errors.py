"""What a caller catches: one class, made from the bridge's problem documents and from what happens on the way."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping, Sequence
from datetime import UTC

from codec import JSON, MSGPACK, Problem, decode
from codec import headers as h
from codec.problem import PROBLEM_JSON, TITLES
from subjects.contract import Code, Fault, FieldError

MAX_RETRY_AFTER_S = 3600.0
FIRST_SERVER_ERROR = 500
FURTHER_STATUSES = {405: Code.INVALID, 408: Code.TIMEOUT, 425: Code.UNAVAILABLE, 431: Code.TOO_LARGE}


class ServiceError(Fault):
    """A call that failed: a Fault, with what HTTP knows of it.

    status: None when no answer came. retryable: asking the same again may help (this client did so already, where it
    was safe). retry_after_s: not before so many seconds. sent False: nothing of the request has left this process.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        status: int | None = None,
        errors: Sequence[FieldError] = (),
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        correlation_id: str | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(code, detail, errors=errors, retry_after_s=retry_after_s)
        self.status = status
        self.request_id = request_id
        self.correlation_id = correlation_id
        self.sent = sent
        self._retryable = code.retryable if retryable is None else retryable

    @property
    def retryable(self) -> bool:
        return self._retryable

    @property
    def is_outage(self) -> bool:
        """Whether the service failed, and not the request: what a circuit breaker counts."""
        if self.status is not None:
            return self.status >= FIRST_SERVER_ERROR
        return self.code in (Code.UNAVAILABLE, Code.TIMEOUT, Code.UPSTREAM)


class NotFound(ServiceError):
    """404."""


class Conflict(ServiceError):
    """409: the same Idempotency-Key with another body, or a state that does not allow it."""


class CircuitOpen(ServiceError):
    """Nothing was sent: the service failed so often lately that it is left alone for retry_after_s."""


_CLASSES: dict[Code, type[ServiceError]] = {Code.NOT_FOUND: NotFound, Code.CONFLICT: Conflict}


def from_answer(status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    """The error that an answer tells of. What is no problem document is read by its status; its text is not kept: it
    is somebody else's."""
    problem = _problem(headers.get(h.CONTENT_TYPE, ""), body)
    if problem is None:
        code = _by_status(status)
        detail = f"{TITLES[code]} (status {status}, without a problem document: not an answer of the platform)"
        retryable, errors = code.retryable, ()
    else:
        code = Code(problem.code) if problem.code in Code.__members__ else _by_status(status)
        detail, retryable, errors = problem.detail or TITLES[code], problem.retryable, tuple(problem.errors)  # type: ignore[assignment]
    return _CLASSES.get(code, ServiceError)(
        code,
        detail,
        status=status,
        errors=errors,
        retryable=retryable,
        retry_after_s=_retry_after_s(headers.get(h.RETRY_AFTER)),
        request_id=headers.get(h.REQUEST_ID) or (problem.request_id if problem else None),
        correlation_id=headers.get(h.CORRELATION_ID) or (problem.correlation_id if problem else None),
    )


def from_event(data: bytes) -> ServiceError:
    """The error that the last event of a stream tells of."""
    try:
        problem = decode(data, Problem, JSON)
    except Fault:
        return ServiceError(Code.INTERNAL, "the stream ended with an error that cannot be read")
    code = Code(problem.code) if problem.code in Code.__members__ else Code.INTERNAL
    return _CLASSES.get(code, ServiceError)(
        code,
        problem.detail or TITLES[code],
        status=problem.status,
        errors=problem.errors,
        retryable=problem.retryable,
        request_id=problem.request_id,
        correlation_id=problem.correlation_id,
    )


def _problem(content_type: str, body: bytes) -> Problem | None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (PROBLEM_JSON, JSON, MSGPACK):
        return None
    try:
        problem = decode(body, Problem, MSGPACK if kind == MSGPACK else JSON)
    except Fault:
        return None
    return problem if "code" in problem.model_fields_set else None


def _by_status(status: int) -> Code:
    found = FURTHER_STATUSES.get(status) or next((code for code in Code if code.http == status), None)
    return found or (Code.UPSTREAM if status >= FIRST_SERVER_ERROR else Code.INVALID)


def _retry_after_s(value: str | None) -> float | None:
    """Whole seconds, or a date, which is what proxies write."""
    if value is None or not value.isascii():
        return None
    if value.isdigit() and len(value) <= 9:
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, at.timestamp() - time.time()), MAX_RETRY_AFTER_S)
