"""Faults to and from replies: a problem document (RFC 9457) in the body, ADR-32's two headers beside it."""

from __future__ import annotations

from collections.abc import Mapping

from codec import headers as h
from codec.formats import MSGPACK
from codec.messages import decode, encode
from subjects.contract import Code, Fault, FieldError, Model

PROBLEM_JSON = "application/problem+json"
TYPE = "urn:motadata-faas:fault:"
MAX_HEADER = 200
MAX_RETRY_AFTER_S = 3600.0

TITLES: dict[Code, str] = {
    Code.INVALID: "The message is not valid",
    Code.UNAUTHENTICATED: "Not authenticated",
    Code.FORBIDDEN: "Not allowed",
    Code.NOT_FOUND: "Not found",
    Code.CONFLICT: "In conflict with what is there",
    Code.TOO_LARGE: "Too large",
    Code.EXHAUSTED: "No capacity left",
    Code.CANCELLED: "Cancelled",
    Code.INTERNAL: "Internal error",
    Code.UPSTREAM: "An upstream failed",
    Code.UNAVAILABLE: "Not available",
    Code.TIMEOUT: "Took too long",
}


class Problem(Model):
    """RFC 9457, with our members. All have defaults so that a stranger's sparse document can be read."""

    type: str = "about:blank"
    title: str = ""
    status: int = 500
    detail: str = ""
    code: str = Code.INTERNAL.value
    retryable: bool = False
    request_id: str | None = None
    correlation_id: str | None = None
    errors: list[FieldError] = []


def to_problem(fault: Fault, request_id: str | None = None, correlation_id: str | None = None) -> Problem:
    return Problem(
        type=TYPE + fault.code.value.lower(),
        title=TITLES[fault.code],
        status=fault.code.http,
        detail=_clean(fault.detail),
        code=fault.code.value,
        retryable=fault.retryable,
        request_id=request_id,
        correlation_id=correlation_id,
        errors=list(fault.errors),
    )


def fault_reply(
    fault: Fault, content_type: str = MSGPACK, request_id: str | None = None, correlation_id: str | None = None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of the reply that says so."""
    headers = {
        h.CONTENT_TYPE: content_type,
        h.ERROR_CODE: fault.code.value,
        h.ERROR: one_line(fault.detail),
    }
    if request_id:
        headers[h.REQUEST_ID] = request_id
    if correlation_id:
        headers[h.CORRELATION_ID] = correlation_id
    if fault.retry_after_s is not None:
        headers[h.RETRY_AFTER] = retry_after(fault.retry_after_s)
    return headers, encode(to_problem(fault, request_id, correlation_id), content_type)


def fault_from(headers: Mapping[str, str] | None, body: bytes) -> Fault | None:
    """The fault that a reply tells of; None when it tells of none. What is garbled is still a fault, INTERNAL."""
    if not headers or h.ERROR_CODE not in headers:
        return None
    code = _code(headers[h.ERROR_CODE])
    detail, errors = one_line(headers.get(h.ERROR) or "") or TITLES[code], ()
    try:
        problem = decode(body, Problem, headers.get(h.CONTENT_TYPE))
        detail, errors = problem.detail or detail, tuple(problem.errors)  # type: ignore[assignment]
    except Fault:
        pass  # a stranger's error: its headers say enough
    return Fault(code, detail, errors=errors, retry_after_s=_seconds(headers.get(h.RETRY_AFTER)))


def retry_after(seconds: float) -> str:
    """Whole seconds, at least one: a Retry-After of 0 asks for a storm."""
    return str(max(1, round(min(seconds, MAX_RETRY_AFTER_S))))


def one_line(text: str) -> str:
    """Text that may stand in a header: printable ASCII, at most 200 characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_HEADER]).strip()


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def _code(value: str) -> Code:
    """By name, or by number as other ADR-32 services write it."""
    try:
        return Code(value)
    except ValueError:
        return next((code for code in Code if str(code.http) == value), Code.INTERNAL)


def _seconds(value: str | None) -> float | None:
    if value is None or len(value) > 16 or not value.isascii() or not value.isdigit():
        return None
    return min(float(value), MAX_RETRY_AFTER_S)
