"""The OpenAPI document, made from the registry: every public operation and route, with its real schemas."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterable

from bridge import described
from bridge.arguments import ANYTHING, kind_of
from bridge.described import EVENTS, EVERYWHERE, Json, formats, headers, parameters, problems
from bridge.exchange import BODILESS
from bridge.fixed import fixed_paths
from codec import headers as h
from codec.problem import Problem
from codec.protos import named
from codec.schemas import Schemas
from runtime.settings import Settings
from subjects import ingestion, jobs
from subjects.contract import AnyCall, Model
from subjects.registry import Registry

REF = "#/components/schemas/{model}"
VERSION = "3.1.0"
SECURITY = "token"
_PARAMETER = re.compile(r"{([a-z0-9_]+)}")

ABOUT = """Every operation answers `POST /api/v1/<component>/<operation>`; resources answer by path as well.

**Formats.** JSON, msgpack and protobuf (messages in schemas/proto): `Content-Type` says what is sent, `Accept` what is
wanted back; absent = as the request, a request without one is JSON. Bytes are base64 text in JSON. A body is at most
1 MiB, 32 levels and 100,000 items. Unknown fields of a body are ignored.

**Paths and queries.** A path parameter fills the field of its name; another value in the body is 400. GET and DELETE:
query names are field names, a list repeats its name, numbers and true/false are written as in JSON, and whatever else
(an object, a list of lists) is JSON text; an unknown or repeated name is 400. A path is taken as it is: an empty
segment, `.` and `..` name nothing, `%2F` is a character and no border. HEAD answers like GET without the body (not for
event streams), OPTIONS with 204 and `Allow`, any other method with 405 and `Allow`.

**Lists** answer `{items, next_cursor}`; the cursor goes into the next request as it is; null = that was the last page.

**Failures** are problem documents (RFC 9457). `code` is one of a closed list, `retryable` says whether the same request
may succeed later.

**Jobs.** `Prefer: respond-async` makes a durable job of any operation that says so; long ones are jobs by default.

**Streams.** `Accept: text/event-stream` on any operation answers with events: `chunk` for each piece, `restart` when
another attempt begins (what came is void), at last either `done` with the whole answer or `error` with a problem. The
event's id goes into `Last-Event-ID` to join again at /api/v1/outputs/{output_id}.
"""


def document(settings: Settings, registry: Registry) -> Json:
    """OpenAPI 3.1."""
    calls = [call for call in registry.calls.values() if call.public]
    written: set[type[Model]] = {Problem, jobs.Submitted, jobs.Progress, ingestion.Uploaded}
    written |= {model for call in calls for model in (call.output, call.chunk) if model is not None}
    schemas = Schemas({call.input for call in calls}, written, ref=REF)
    definitions = dict(schemas.definitions)
    paths = fixed_paths(schemas)
    for call in calls:
        _add(paths, call.path, "post", Operation(call, schemas, definitions).made("post", call.path))
        for route in call.http:
            method, _, path = route.partition(" ")
            _add(paths, path, method.lower(), Operation(call, schemas, definitions).made(method.lower(), path))
    return {
        "openapi": VERSION,
        "info": {
            "title": "Motadata FaaS",
            "version": settings.service_version,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{SECURITY: []}],
        "tags": [{"name": name, "description": _about(name)} for name in _tags(calls)],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(definitions.items())),
            "responses": described.shared_responses(schemas.written(Problem)),
            "parameters": described.shared_parameters(),
            "headers": described.HEADERS,
            "securitySchemes": {
                SECURITY: {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Claims `tenant_id`, `sub` and `scope` (`<component>.<operation>`, `<component>.*` "
                    "or `*`). Each operation names its scope.",
                }
            },
        },
    }


def _add(paths: Json, path: str, method: str, operation: Json) -> None:
    methods = paths.setdefault(path, {})
    if method in methods:
        raise ValueError(f"{method} {path}: two operations have this route")
    methods[method] = operation


def _tags(calls: Iterable[AnyCall]) -> list[str]:
    return [*sorted({call.component for call in calls} | {"outputs"}), "platform"]


def _about(component: str) -> str:
    """What the contract's file says of itself."""
    told = {"outputs": "Streams of pieces, joined again.", "platform": "Probes and documents, without a token."}
    if component in told:
        return told[component]
    try:
        doc = importlib.import_module(f"subjects.{component}").__doc__ or ""
    except ImportError:  # a contract of a program that embeds the bridge
        return ""
    first = doc.strip().partition("\n")[0].partition(": ")[2]
    return first[:1].upper() + first[1:]


class Operation:
    """Describes one contract at its routes."""

    def __init__(self, call: AnyCall, schemas: Schemas, definitions: Json) -> None:
        self._call = call
        self._schemas = schemas
        self._definitions = definitions

    def made(self, method: str, path: str) -> Json:
        """The Operation Object of a route. method in lower case, as the document has it."""
        call, in_path = self._call, _PARAMETER.findall(path)
        with_body = method.upper() not in BODILESS
        return {
            "operationId": self._ident(method, path, in_path),
            "tags": [call.component],
            "summary": call.summary or call.operation.replace("_", " ").capitalize(),
            "description": self._description(),
            "security": [{SECURITY: [call.scope]}],
            "parameters": self._parameters(in_path, with_body=with_body),
            **({"requestBody": self._body(in_path)} if with_body else {}),
            "responses": self._answers()
            | problems(described.faults_of(call, in_path=bool(in_path)), with_body=with_body),
        }

    def _ident(self, method: str, path: str, in_path: list[str]) -> str:
        call = self._call
        if path == call.path and method == "post":
            return f"{call.component}_{call.operation}"
        return "_".join([call.component, method, call.operation, *(["by", *in_path] if in_path else [])])

    def _description(self) -> str:
        call = self._call
        said = [_doc(call.input), f"Scope `{call.scope}`. At most {call.timeout_s:g} s"]
        said[-1] += f", as a job {call.job_timeout_s:g} s." if call.job else "."
        if call.long:
            said.append("Answers 202 with a job unless `Prefer: wait` lets it end first.")
        elif call.job:
            said.append("`Prefer: respond-async` makes it a job.")
        return "\n\n".join(part for part in said if part)

    def _parameters(self, in_path: list[str], *, with_body: bool) -> list[Json]:
        call = self._call
        names = [*([h.IDEMPOTENCY_KEY] if call.mutates or call.job else []), *([h.PREFER] if call.job else [])]
        made = parameters(*names, *EVERYWHERE)
        fields = self._definitions[_name(self._schemas.read(call.input))].get("properties", {})
        model: type[Model] = call.input
        for name, field in model.model_fields.items():
            if name in in_path:
                made.append(self._parameter(name, fields[name], "path", required=True))
            elif not with_body:
                made.append(self._parameter(name, fields[name], "query", required=field.is_required()))
        return made

    def _parameter(self, name: str, schema: Json, where: str, *, required: bool) -> Json:
        made: Json = {"name": name, "in": where, "required": required}
        schema = _said(schema)
        if "description" in schema:
            made["description"] = schema.pop("description")
        model: type[Model] = self._call.input
        kind, repeated = kind_of(model, name)
        if kind == ANYTHING:
            made["content"] = {"application/json": {"schema": schema}}
        else:
            made["schema"] = schema
        if repeated:
            made |= {"style": "form", "explode": True}
        example = (self._call.example or {}).get(name)
        if example is not None:
            made["example"] = example
        return made

    def _body(self, in_path: list[str]) -> Json:
        call = self._call
        schema, example = self._schemas.read(call.input), call.example
        if in_path:
            schema = self._without(_name(schema), in_path)
            example = None if example is None else {k: v for k, v in example.items() if k not in in_path}
        return {"required": True, "content": formats(schema, named(call.input), example)}

    def _without(self, name: str, in_path: list[str]) -> Json:
        """The body of a resource: the path says these fields, and they need not be said again."""
        own = f"{name}.at.{'.'.join(in_path)}"
        made = copy.deepcopy(self._definitions[name])
        for each in in_path:
            made["properties"].pop(each)
        made["required"] = [each for each in made.get("required", []) if each not in in_path]
        if not made["required"]:
            del made["required"]
        self._definitions[own] = made
        return {"$ref": REF.format(model=own)}

    def _answers(self) -> Json:
        call, schemas = self._call, self._schemas
        whole = schemas.written(call.output)
        content = formats(whole, named(call.output), call.example_reply)
        content[EVENTS] = {"schema": {"type": "string"}, "x-events": self._events(whole)}
        answers: Json = {"200": {"description": "The answer", "headers": headers(), "content": content}}
        if call.job:
            waited = {h.LOCATION: {**described.HEADERS[h.LOCATION], "required": False, "description": "If it is a job"}}
            answers["200"]["headers"] |= waited | {
                h.PREFERENCE_APPLIED: {"$ref": f"#/components/headers/{h.PREFERENCE_APPLIED}"}
            }
            accepted = {"job_id": "j2ab", "status": "queued", "duplicate": False}
            answers["202"] = {
                "description": "Accepted as a job; `duplicate`: it was known already",
                "headers": headers(h.LOCATION, h.PREFERENCE_APPLIED),
                "content": formats(schemas.written(jobs.Submitted), named(jobs.Submitted), accepted),
            }
        return answers

    def _events(self, whole: Json) -> Json:
        """What the data of each event is. What neither streams nor is a job has no pieces."""
        call, schemas = self._call, self._schemas
        pieces: Json = {}
        if call.chunk is not None or call.job:
            piece: type[Model] = call.chunk or jobs.Progress
            pieces = {"chunk": schemas.written(piece), "restart": {"type": "object"}}
        return pieces | {"done": whole, "error": schemas.written(Problem)}


def _name(ref: Json) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _said(schema: Json) -> Json:
    """A field as a query can say it: null is to leave it out."""
    made = dict(schema)
    made.pop("title", None)
    some = [each for each in made.get("anyOf", []) if each != {"type": "null"}]
    if len(some) == 1 and len(some) != len(made["anyOf"]):
        del made["anyOf"]
        made = {**some[0], **{name: value for name, value in made.items() if name != "default"}}
    return made


def _doc(model: type[Model]) -> str:
    doc = model.__doc__ or ""
    return "" if doc == Model.__doc__ else re.sub(r"\s+", " ", doc).strip()
