"""The routes that are no contract's, as the OpenAPI document has them: uploads, event streams, probes, documents."""

from __future__ import annotations

from bridge import described
from bridge.described import EVENTS, EVERYWHERE, Json, formats, headers, parameters, problems
from bridge.upload import MAX_FILE_BYTES, MAX_NAME_CHARS, SCOPE
from codec import headers as h
from codec.problem import Problem
from codec.protos import named
from codec.schemas import Schemas
from subjects import jobs
from subjects.contract import Code
from subjects.grammar import TOKEN
from subjects.ingestion import Register, Uploaded

SECURITY = "token"
HTML, TEXT = "text/html", "text/plain"

_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
_CHECKS = {"type": "object", "additionalProperties": {"type": "string"}, "description": "name -> `ok` or why not"}
_READY = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ready"}, "checks": _CHECKS},
}
_NOT_READY = {
    "type": "object",
    "required": ["detail", "checks"],
    "properties": {"detail": {"const": "Service not ready"}, "checks": _CHECKS},
}


def fixed_paths(schemas: Schemas) -> Json:
    """Paths to their methods."""
    return {
        "/api/v1/ingestion/upload": {"post": _upload(schemas)},
        "/api/v1/jobs/{job_id}/events": {
            "get": _stream(
                schemas, "jobs", "job_id", jobs.GET.scope, "A job's output and progress as it comes, to its end"
            )
        },
        "/api/v1/outputs/{output_id}": {
            "get": _stream(
                schemas, "outputs", "output_id", None, "Join an output again after Last-Event-ID, or from its beginning"
            )
        },
        "/healthz": {"get": _healthz("healthz")},
        "/health": {"get": _healthz("health")},
        "/readyz": {"get": _readyz()},
        "/metrics": {"get": _open("metrics", "Measurements, for Prometheus", {TEXT: {"schema": {"type": "string"}}})},
        "/openapi.json": {"get": _open("openapi", "This document", _object())},
        "/asyncapi.json": {"get": _open("asyncapi", "What is said over NATS, as AsyncAPI 3", _object())},
        "/docs": {"get": _open("docs", "This document, to be read", {HTML: {"schema": {"type": "string"}}})},
        "/docs/events": {
            "get": _open("docs_events", "The AsyncAPI document, to be read", {HTML: {"schema": {"type": "string"}}})
        },
    }


def _object() -> Json:
    return {"application/json": {"schema": {"type": "object"}}}


def _open(name: str, summary: str, content: Json) -> Json:
    return {
        "operationId": name,
        "tags": ["platform"],
        "summary": summary,
        "security": [],
        "parameters": parameters(h.REQUEST_ID, h.CORRELATION_ID),
        "responses": {
            "200": {"description": summary, "headers": headers(), "content": content},
            **problems({Code.INVALID, Code.INTERNAL}, with_body=False),
        },
    }


def _healthz(name: str) -> Json:
    content = {"application/json": {"schema": _STATUS, "example": {"status": "ok"}}}
    return _open(name, "The process runs", content)


def _readyz() -> Json:
    content = {"application/json": {"schema": _READY, "example": {"status": "ready"}}}
    made = _open("readyz", "Whether requests should be sent here", content)
    example = {"detail": "Service not ready", "checks": {"nats": "ok", "postgres": "no answer within 2 s"}}
    made["responses"]["503"] = {
        "description": "Not ready",
        "headers": headers(),
        "content": {"application/json": {"schema": _NOT_READY, "example": example}},
    }
    return made


def _stream(schemas: Schemas, tag: str, ident: str, scope: str | None, summary: str) -> Json:
    faults = {*described.ALWAYS, Code.NOT_FOUND} - {Code.TOO_LARGE}
    events: Json = {
        "chunk": {"description": "a piece, as its operation says, or the progress of a job"},
        "restart": {"type": "object"},
        "done": {"description": "the operation's answer"},
        "error": schemas.written(Problem),
    }
    content = {EVENTS: {"schema": {"type": "string"}, "x-events": events}}
    said = f"Scope `{scope}`." if scope else "A job's output needs the scope of its operation, or `jobs.get`."
    return {
        "operationId": f"{tag}_events",
        "tags": [tag],
        "summary": summary,
        "description": f"{said} By any number of readers, on any bridge; it never starts work.",
        "security": [{SECURITY: [scope] if scope else []}],
        "parameters": [
            *parameters(h.LAST_EVENT_ID, *(name for name in EVERYWHERE if name != h.REQUEST_TIMEOUT)),
            {"name": ident, "in": "path", "required": True, "schema": {"type": "string", "pattern": TOKEN}},
        ],
        "responses": {
            "200": {"description": "Events, the last done or error", "headers": headers(), "content": content},
            **problems(faults, with_body=False),
        },
    }


def _upload(schemas: Schemas) -> Json:
    known = Register.model_json_schema()["properties"]
    parts: Json = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {
                "type": "string",
                "contentMediaType": "application/octet-stream",
                "description": f"at most {MAX_FILE_BYTES >> 20} MiB, its name {MAX_NAME_CHARS} characters",
            },
            "collection": {"type": "string", "pattern": known["collection"]["pattern"]},
            "source_id": {"type": "string", "maxLength": 255},
            "metadata": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": "an object of at most 64 fields, as JSON text",
            },
        },
    }
    example = {"file_id": "f3kq7", "job_id": "j2ab", "sha256": "9f86d081" * 8, "size": 48120, "type": "application/pdf"}
    return {
        "operationId": "ingestion_upload",
        "tags": ["ingestion"],
        "summary": "Upload a file; a job extracts, cuts and indexes it",
        "description": f"Scope `{SCOPE}`. Other parts than these are 400. It is streamed: at most 15 minutes.",
        "security": [{SECURITY: [SCOPE]}],
        "parameters": parameters(h.IDEMPOTENCY_KEY, *(name for name in EVERYWHERE if name != h.REQUEST_TIMEOUT)),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": parts}}},
        "responses": {
            "202": {
                "description": "Stored; the job has begun or will",
                "headers": headers(h.LOCATION),
                "content": formats(schemas.written(Uploaded), named(Uploaded), example),
            },
            **problems({*described.ALWAYS, Code.CONFLICT}, with_body=True),
        },
    }
