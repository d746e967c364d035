"""The OpenAPI document, made from the registry: every public operation with its real schemas."""

from __future__ import annotations

import re
from typing import Any

from pydantic.json_schema import models_json_schema

from codec.problem import PROBLEM_JSON, Problem
from runtime.settings import Settings
from subjects import jobs
from subjects.contract import HTTP_STATUS, AnyCall, Model
from subjects.ingestion import Uploaded
from subjects.registry import Registry

REF = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"{([a-z_]+)}")
_FAULTS = sorted(set(HTTP_STATUS.values()) - {499})
_HEADERS = {
    "Idempotency-Key": "same key = the same effect and the same answer, for 8 days",
    "Request-Timeout": "seconds",
    "X-Correlation-ID": "carried through every call, job, event and log line; made if absent",
    "X-Request-ID": "echoed; made if absent",
    "X-Tenant-ID": "must be the token's tenant",
}

Json = dict[str, Any]


def document(settings: Settings, registry: Registry) -> Json:
    """OpenAPI 3.1."""
    calls = [call for call in registry.calls.values() if call.public]
    models = _models(calls)
    refs, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REF, by_alias=True)
    schema_of = {model: refs[model, "validation"] for model in models}
    paths: Json = {}
    for call in calls:
        paths.setdefault(call.path, {})["post"] = _operation(call, schema_of, call.operation)
        for route in call.http:
            method, path = route.split(" ", 1)
            paths.setdefault(path, {})[method.lower()] = _resource(call, schema_of, method, path)
    paths |= _streams(schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Motadata FaaS", "version": settings.service_version},
        "security": [{"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _models(calls: list[AnyCall]) -> list[type[Model]]:
    found: dict[type[Model], None] = {Problem: None, jobs.Submitted: None, Uploaded: None}
    for call in calls:
        for model in (call.input, call.output, call.chunk):
            if model is not None:
                found[model] = None
    return list(found)


def _operation(call: AnyCall, schema_of: dict[type[Model], Json], name: str) -> Json:
    made: Json = {
        "operationId": f"{call.component}_{name}",
        "tags": [call.component],
        "summary": call.summary or name.replace("_", " ").capitalize(),
        "description": f"Scope: `{call.scope}`. At most {call.timeout_s:g} s.",
        "parameters": [_header(each) for each in _HEADERS] + ([_header("Prefer")] if call.job else []),
        "requestBody": {"required": True, "content": _both(schema_of[call.input])},
        "responses": _responses(call, schema_of),
    }
    return made


def _resource(call: AnyCall, schema_of: dict[type[Model], Json], method: str, path: str) -> Json:
    made = _operation(call, schema_of, f"{method.lower()}_{call.operation}")
    in_path = _PARAMETER.findall(path)
    properties = call.input.model_json_schema(ref_template=REF).get("properties", {})
    made["parameters"] += [
        {"name": name, "in": "path", "required": True, "schema": properties.get(name, {"type": "string"})}
        for name in in_path
    ]
    if method in ("GET", "DELETE"):
        del made["requestBody"]
        made["parameters"] += [
            {"name": name, "in": "query", "required": field.is_required(), "schema": properties[name]}
            for name, field in call.input.model_fields.items()
            if name not in in_path
        ]
    return made


def _responses(call: AnyCall, schema_of: dict[type[Model], Json]) -> Json:
    answers: Json = {"200": {"description": "The answer", "content": _both(schema_of[call.output])}}
    if call.chunk is not None:
        # An event's data is a chunk; the last one's the whole answer.
        answers["200"]["content"]["text/event-stream"] = {
            "schema": {"type": "string", "contentMediaType": "application/json", "contentSchema": schema_of[call.chunk]}
        }
    if call.job:
        answers["202"] = {"description": "Accepted as a job", "content": _both(schema_of[jobs.Submitted])}
    return answers | _problems(schema_of)


def _problems(schema_of: dict[type[Model], Json]) -> Json:
    content = {PROBLEM_JSON: {"schema": schema_of[Problem]}, "application/msgpack": {"schema": schema_of[Problem]}}
    return {str(status): {"description": "A problem document", "content": content} for status in _FAULTS}


def _streams(schema_of: dict[type[Model], Json]) -> Json:
    events = {"200": {"description": "Events: chunk, restart, done, error", "content": {"text/event-stream": {}}}}
    last = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}
    parts = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "collection": {"type": "string"},
            "source_id": {"type": "string"},
            "metadata": {"type": "string", "contentMediaType": "application/json"},
        },
    }

    def stream(name: str, ident: str, tag: str) -> Json:
        path = {"name": ident, "in": "path", "required": True, "schema": {"type": "string"}}
        responses = events | _problems(schema_of)
        return {"get": {"operationId": name, "tags": [tag], "parameters": [path, last], "responses": responses}}

    upload = {
        "operationId": "ingestion_upload",
        "tags": ["ingestion"],
        "summary": "Upload a file; it is processed as a job",
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": parts}}},
        "responses": {"202": {"description": "Stored", "content": _both(schema_of[Uploaded])}} | _problems(schema_of),
    }
    return {
        "/api/v1/jobs/{job_id}/events": stream("jobs_events", "job_id", "jobs"),
        "/api/v1/outputs/{output_id}": stream("outputs_read", "output_id", "outputs"),
        "/api/v1/ingestion/upload": {"post": upload},
    }


def _both(schema: Json) -> Json:
    return {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}


def _header(name: str) -> Json:
    described = _HEADERS.get(name, "respond-async: as a job; wait=<seconds>: for its result")
    return {"name": name, "in": "header", "required": False, "description": described, "schema": {"type": "string"}}
