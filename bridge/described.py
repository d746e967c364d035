"""What every operation shares in the OpenAPI document: content types, headers, problems."""

from __future__ import annotations

from typing import Any

from bridge.exchange import MAX_BODY_BYTES, MAX_ID_CHARS
from bridge.preferences import MAX_TIMEOUT_S, MAX_WAIT_S
from codec import CONTENT_TYPES, JSON, PROTOBUF
from codec import headers as h
from codec.problem import PROBLEM_JSON, TITLES
from runtime.jobs import MAX_KEY_CHARS
from subjects.contract import AnyCall, Code
from subjects.grammar import TOKEN

Json = dict[str, Any]

EVENTS = "text/event-stream"
IDENT = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": r"^[\x20-\x7e]+$"}
EVENT_ID = r"^[a-z0-9][a-z0-9_-]{0,62}\.[0-9]{1,9}\.[0-9]{1,9}$"
HEADERS_TOO_LARGE, SLOW_BODY = 431, 408

PARAMETERS: dict[str, Json] = {
    h.IDEMPOTENCY_KEY: {
        "description": "The same key = the same effect and the same answer, for 8 days. Another message under it: 409.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS, "pattern": r"^[\x20-\x7e]+$"},
        "example": "order-17",
    },
    h.PREFER: {
        "description": "`respond-async`: answer 202 with a job (RFC 7240). `wait=<seconds>`: before that, wait so long "
        f"for the job's result; at most {MAX_WAIT_S:g}. What is not known is ignored.",
        "schema": {"type": "string", "enum": ["respond-async", "wait=20", "respond-async, wait=20"]},
        "example": "respond-async",
    },
    h.REQUEST_TIMEOUT: {
        "description": "Seconds that the caller waits; the operation's own limit holds beside it.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S, "multipleOf": 0.001},
        "example": 10,
    },
    h.TENANT: {
        "description": "Optional; must be the token's tenant, else 403.",
        "schema": {"type": "string", "pattern": TOKEN},
    },
    h.REQUEST_ID: {"description": "Of this request; made if absent; echoed.", "schema": IDENT},
    h.CORRELATION_ID: {
        "description": "Of the user's action; made if absent; carried through every call, job, event and log line.",
        "schema": IDENT,
    },
    h.TRACEPARENT: {
        "description": "W3C trace context. What is not one is ignored.",
        "schema": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
    },
    h.LAST_EVENT_ID: {
        "description": "The id of the last event that was read, of this same stream: what came after it follows.",
        "schema": {"type": "string", "pattern": EVENT_ID},
    },
}
EVERYWHERE = (h.REQUEST_TIMEOUT, h.TENANT, h.REQUEST_ID, h.CORRELATION_ID, h.TRACEPARENT)

HEADERS: dict[str, Json] = {
    h.REQUEST_ID: {"description": "Of this request; it is in the log.", "required": True, "schema": IDENT},
    h.CORRELATION_ID: {"description": "As it came, or made.", "required": True, "schema": IDENT},
    h.LOCATION: {"description": "The job.", "required": True, "schema": {"type": "string", "format": "uri-reference"}},
    h.PREFERENCE_APPLIED: {
        "description": "What was preferred, and done.",
        "schema": {"type": "string", "pattern": "^(respond-async|wait=[0-9.]+)$"},
    },
    h.RETRY_AFTER: {
        "description": "Whole seconds.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "maximum": 3600},
    },
    h.WWW_AUTHENTICATE: {"description": "`Bearer`", "required": True, "schema": {"type": "string"}},
}
ON_EVERY_ANSWER = (h.REQUEST_ID, h.CORRELATION_ID)

WHEN = {
    Code.INVALID: "The request is not valid; `errors` names each bad field.",
    Code.UNAUTHENTICATED: "The token is absent, wrong or expired.",
    Code.FORBIDDEN: "The token lacks the scope, or X-Tenant-ID is another tenant.",
    Code.NOT_FOUND: "What the request names is not there, or is another tenant's.",
    Code.CONFLICT: "In conflict with what is there, or the key was used for another message.",
    Code.TOO_LARGE: f"The body is over {MAX_BODY_BYTES} bytes, or the answer would be over 512 KiB.",
    Code.EXHAUSTED: "No capacity left just now, or a quota is used up.",
    Code.CANCELLED: "The work was cancelled.",
    Code.INTERNAL: "A fault of ours; its request id is in the log.",
    Code.UPSTREAM: "A provider failed or answered nonsense.",
    Code.UNAVAILABLE: "A part of the platform is away; ask again.",
    Code.TIMEOUT: "Not done in time; whether it took effect is not known without an Idempotency-Key.",
}
ALWAYS = (
    Code.INVALID, Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.TOO_LARGE, Code.EXHAUSTED, Code.INTERNAL,
    Code.UNAVAILABLE, Code.TIMEOUT,
)  # fmt: skip


def faults_of(call: AnyCall, *, in_path: bool) -> set[Code]:
    """The ways in which a call over HTTP can fail."""
    found = {*ALWAYS, *(Code if call.raises is None else call.raises)}
    if call.mutates or call.job:  # a key that was used for another message
        found.add(Code.CONFLICT)
    if call.job:  # while its caller waited
        found.add(Code.CANCELLED)
    if in_path:
        found.add(Code.NOT_FOUND)
    return found


def problems(faults: set[Code], *, with_body: bool) -> Json:
    """Responses by status, each pointing at the one that all share."""
    found = {code.http: code.value for code in faults} | {HEADERS_TOO_LARGE: "HEADERS_TOO_LARGE"}
    if with_body:
        found[SLOW_BODY] = "SLOW_BODY"
    return {str(status): {"$ref": f"#/components/responses/{name}"} for status, name in sorted(found.items())}


def shared_responses(problem: Json) -> dict[str, Json]:
    """Every problem once. problem: the schema of a problem document."""
    made = {code.value: _problem(code, code.http, WHEN[code], problem) for code in Code}
    for code, more in (
        (Code.UNAUTHENTICATED, h.WWW_AUTHENTICATE), (Code.EXHAUSTED, h.RETRY_AFTER), (Code.UNAVAILABLE, h.RETRY_AFTER),
    ):  # fmt: skip
        made[code.value]["headers"] |= headers(more)
    made["SLOW_BODY"] = _problem(Code.TIMEOUT, SLOW_BODY, "The body did not come in time.", problem)
    too_large = _problem(Code.TOO_LARGE, HEADERS_TOO_LARGE, "The request's line and headers are too large.", problem)
    made["HEADERS_TOO_LARGE"] = too_large | {"headers": {}}
    return made


def _problem(code: Code, status: int, when: str, schema: Json) -> Json:
    example = {
        "type": f"urn:motadata-faas:fault:{code.value.lower()}", "title": TITLES[code], "status": status,
        "detail": when, "code": code.value, "retryable": code.retryable, "request_id": "5f1c0",
        "correlation_id": "77ab2", "errors": [],
    }  # fmt: skip
    if code is Code.INVALID:
        example["errors"] = [{"path": "limit", "message": "Input should be less than or equal to 200"}]
    content: Json = {PROBLEM_JSON: {"schema": schema, "example": example}}
    for name in CONTENT_TYPES:
        if name != JSON:
            content[name] = {"schema": {} if name == PROTOBUF else schema}
    return {"description": f"{code.value}: {when}", "headers": headers(), "content": content}


def headers(*more: str) -> Json:
    """Those of every answer, and these."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*ON_EVERY_ANSWER, *more)}


def parameters(*names: str) -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def shared_parameters() -> Json:
    return {
        name: {"name": name, "in": "header", "required": False, **described} for name, described in PARAMETERS.items()
    }


def formats(schema: Json, message: str, example: Any = None) -> Json:
    """A message in every format. message: its name in the .proto files, whose bytes no JSON Schema describes."""
    made: Json = {}
    for name in sorted(CONTENT_TYPES):
        made[name] = {"schema": {}, "x-message": message} if name == PROTOBUF else {"schema": schema}
    if example is not None:
        made[JSON]["example"] = example
    return made
