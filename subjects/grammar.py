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


def job(tenant: str, component: str, operation: str, job_id: str, lane: str = "") -> str:
    """lane: a token after the id (`r1` of a replay, `d1` of a redrive). The id says which job it is all the same."""
    last = f".{token(lane, 'lane')}" if lane else ""
    return f"{JOB}.{token(tenant, 'tenant')}.{component}.{operation}.{token(job_id, 'job id')}{last}"


def event(tenant: str, component: str, occurred: str) -> str:
    return f"{EVENT}.{token(tenant, 'tenant')}.{component}.{occurred}"


def output(tenant: str, output_id: str) -> str:
    return f"{OUTPUT}.{token(tenant, 'tenant')}.{token(output_id, 'output id')}"


def dead_letter(tenant: str, component: str, operation: str, job_id: str, redrive: int) -> str:
    return f"{DEAD_LETTER}.{token(tenant, 'tenant')}.{component}.{operation}.{token(job_id, 'job id')}.{redrive}"


def delivery_of(source: str, occurred: str) -> str:
    """What stands for an operation where a component hears an event."""
    return f"{source}-{occurred}"


def cancel(tenant: str, target_id: str) -> str:
    return f"{CONTROL}.{token(tenant, 'tenant')}.cancel.{token(target_id, 'id')}"


# Patterns that our own processes subscribe to or filter by.
def requests_of(component: str, operation: str) -> str:
    return f"{REQUEST}.*.{component}.{operation}"


def jobs_of(component: str) -> str:
    return f"{JOB}.*.{component}.>"


def events_of(component: str, occurred: str) -> str:
    return f"{EVENT}.*.{component}.{occurred}"


def job_anywhere(tenant: str, job_id: str) -> tuple[str, str]:
    """The subject filters that find a job by its id alone, as it was submitted and as it was sent again: the tenant in
    them is the tenant check."""
    found = f"{JOB}.{token(tenant, 'tenant')}.*.*.{token(job_id, 'job id')}"
    return found, f"{found}.>"


def dead_letters_of(tenant: str, component: str = "*", operation: str = "*", job_id: str = "*") -> str:
    """The tenant's dead letters, of every redrive number; `*` stands for any. Raises Fault(INVALID)."""
    given = (("component", component), ("operation", operation), ("job id", job_id))
    tokens = ".".join(value if value == "*" else token(value, what) for what, value in given)
    return f"{DEAD_LETTER}.{token(tenant, 'tenant')}.{tokens}.*"


class JobPattern(NamedTuple):
    """Which of a tenant's jobs are meant; `*` stands for any. An empty id means every id, and none."""

    component: str
    operation: str
    ident: str

    def filters(self, tenant: str) -> list[str]:
        """The subject filters that together let exactly these through."""
        tokens = [JOB, token(tenant, "tenant"), self.component, self.operation, *([self.ident] if self.ident else [])]
        found = ".".join(tokens)
        if self.operation == "*" and not self.ident:
            return [f"{JOB}.{tenant}.{self.component}.>"]
        return [found, f"{found}.>"]


def job_pattern(tenant: str, said: str) -> JobPattern:
    """`rag.ingest`, `rag.*`, `*`, or a subject `job.<tenant>.rag.ingest.>`, `...rag.ingest.<job id>`.

    Raises Fault(INVALID) for any other shape, Fault(FORBIDDEN) for a subject of another tenant.
    """
    shape = f"a pattern of jobs is `component.operation`, `component.*`, `*`, or `{JOB}.{tenant}.component.operation.>`"
    parts = said.split(".")
    if parts[0] == JOB:
        if len(parts) < 3:
            raise Fault(Code.INVALID, shape)
        if parts[1] != tenant:
            raise Fault(Code.FORBIDDEN, f"the pattern must begin with {JOB}.{tenant}: jobs of others are not to be had")
        parts = parts[2:]
        if parts[-1] == ">":
            parts = [*parts[:-1], "*", "*", "*"][: max(3, len(parts) - 1)]
    elif len(parts) > 2:
        raise Fault(Code.INVALID, shape)
    if len(parts) > 3 or not all(part == "*" or is_token(part) for part in parts):
        raise Fault(Code.INVALID, shape)
    component, operation, ident = (*parts, "*", "*")[:3]
    return JobPattern(component, operation, "" if ident == "*" else ident)


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
