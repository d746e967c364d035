"""Build and parse subjects: the one place that knows their shape.

Every token is checked here, so `*`, `>`, dots, spaces and control characters never reach a subject.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from subjects.contract import Code, Fault

TOKEN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_token = re.compile(TOKEN[:-1] + r"\Z")
_three_tokens = re.compile(r"(req|evt)" + rf"\.({TOKEN[1:-1]})" * 3 + r"\Z")

REQUEST, JOB, EVENT, OUTPUT, DEAD_LETTER, CONTROL = "req", "job", "evt", "out", "dlq", "ctl"


def is_token(value: object) -> bool:
    return isinstance(value, str) and _token.match(value) is not None


def token(value: str, what: str) -> str:
    """The value itself, if it may stand in a subject. Raises Fault(INVALID)."""
    if not is_token(value):
        raise Fault(Code.INVALID, f"{what} must match {TOKEN}: lower-case letters, digits, - and _, at most 63")
    return value


def request(tenant: str, component: str, operation: str) -> str:
    return f"{REQUEST}.{token(tenant, 'tenant')}.{component}.{operation}"


def job(tenant: str, component: str, operation: str, job_id: str) -> str:
    return f"{JOB}.{token(tenant, 'tenant')}.{component}.{operation}.{token(job_id, 'job id')}"


def event(tenant: str, component: str, occurred: str) -> str:
    return f"{EVENT}.{token(tenant, 'tenant')}.{component}.{occurred}"


def output(tenant: str, output_id: str) -> str:
    return f"{OUTPUT}.{token(tenant, 'tenant')}.{token(output_id, 'output id')}"


def dead_letter(tenant: str, component: str, operation: str, job_id: str, redrive: int) -> str:
    return f"{DEAD_LETTER}.{token(tenant, 'tenant')}.{component}.{operation}.{token(job_id, 'job id')}.{redrive}"


def cancel(tenant: str, target_id: str) -> str:
    return f"{CONTROL}.{token(tenant, 'tenant')}.cancel.{token(target_id, 'id')}"


# Patterns that our own processes subscribe to or filter by.
def requests_of(component: str, operation: str) -> str:
    return f"{REQUEST}.*.{component}.{operation}"


def jobs_of(component: str) -> str:
    return f"{JOB}.*.{component}.>"


def events_of(component: str, occurred: str) -> str:
    return f"{EVENT}.*.{component}.{occurred}"


def job_anywhere(tenant: str, job_id: str) -> str:
    """The subject filter that finds a job by its id alone: the tenant in it is the tenant check."""
    return f"{JOB}.{token(tenant, 'tenant')}.*.*.{token(job_id, 'job id')}"


def outputs_of(tenant: str) -> str:
    return f"{OUTPUT}.{token(tenant, 'tenant')}.*"


CANCELS = f"{CONTROL}.*.cancel.*"


class Address(NamedTuple):
    """A parsed subject. ident is the job id, output id or cancelled id; empty for requests and events."""

    kind: str
    tenant: str
    component: str
    operation: str
    ident: str


def parse(subject: str) -> Address:
    """Read a subject of any kind. Raises Fault(INVALID) on a shape or token that wire.md does not have."""
    found = _three_tokens.match(subject)
    if found is not None:  # the common ones, in one step
        return Address(found[1], found[2], found[3], found[4], "")
    parts = subject.split(".")
    if not all(map(is_token, parts)):
        raise Fault(Code.INVALID, "the subject has a token that is not allowed")
    match parts:
        case ["job" | "dlq" as kind, tenant, component, operation, job_id, *_]:  # readers ignore tokens after the id
            return Address(kind, tenant, component, operation, job_id)
        case ["job", tenant, component, operation]:  # a plain publish: its id comes from the stored message
            return Address(JOB, tenant, component, operation, "")
        case ["out", tenant, output_id]:
            return Address(OUTPUT, tenant, "", "", output_id)
        case ["ctl", tenant, "cancel", target]:
            return Address(CONTROL, tenant, "", "cancel", target)
    raise Fault(Code.INVALID, "the subject is not one of req, job, evt, out, dlq, ctl with the tokens of its kind")
