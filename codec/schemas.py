"""JSON Schema of every contract, as `faas contracts --update` writes it to schemas/jsonschema.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from codec.folder import SCHEMAS
from subjects import registry
from subjects.contract import Model

COMMITTED = SCHEMAS / "jsonschema.json"
REF = "#/$defs/{model}"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class OnTheWire(GenerateJsonSchema):
    """Schemas as the wire means them: bytes are base64 text in JSON, and what we write has every field."""

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        made: JsonSchemaValue = {"type": "string", "contentEncoding": "base64"}
        self.update_with_validations(made, schema, self.ValidationsMapping.bytes)
        return made

    def field_is_required(
        self, field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField, total: bool
    ) -> bool:
        return self.mode == "serialization" or super().field_is_required(field, total)


class Schemas:
    """JSON Schemas of messages that others send us (defaults make fields optional) and of those that we write (every
    field is there). definitions: each once, by the name that the references end with."""

    def __init__(self, read: Iterable[type[Model]], written: Iterable[type[Model]], *, ref: str = REF) -> None:
        models: list[tuple[type[Model], JsonSchemaMode]] = [(model, "validation") for model in _ordered(read)]
        models += [(model, "serialization") for model in _ordered(written)]
        self._refs, made = models_json_schema(models, ref_template=ref, schema_generator=OnTheWire)
        self.definitions: dict[str, JsonSchemaValue] = dict(sorted(made.get("$defs", {}).items()))

    def read(self, model: type[Model]) -> JsonSchemaValue:
        return self._refs[model, "validation"]

    def written(self, model: type[Model]) -> JsonSchemaValue:
        return self._refs[model, "serialization"]


def _ordered(models: Iterable[type[Model]]) -> list[type[Model]]:
    return sorted(set(models), key=lambda model: (model.__module__, model.__name__))


def json_schema(known: registry.Registry | None = None) -> dict[str, Any]:
    """Calls and events by name, each pointing at its models; every model once under $defs."""
    known = known or registry.load()
    models: set[type[Model]] = {event.payload for event in known.events.values()}
    for call in known.calls.values():
        models |= {call.input, call.output} | ({call.chunk} if call.chunk else set())
    made = Schemas(models, ())
    return {
        "$schema": DIALECT,
        "calls": {
            name: {
                "input": made.read(call.input),
                "output": made.read(call.output),
                **({"chunk": made.read(call.chunk)} if call.chunk else {}),
                "mutates": call.mutates,
                "job": call.job,
                "long": call.long,
                "public": call.public,
                "http": list(call.http),
                "timeout_s": call.timeout_s,
                "job_timeout_s": call.job_timeout_s,
            }
            for name, call in sorted(known.calls.items())
        },
        "events": {name: made.read(event.payload) for name, event in sorted(known.events.items())},
        "$defs": made.definitions,
    }


def of(model: type[Model]) -> str:
    """The schema of one model with all that it refers to, on one line."""
    return json.dumps(model.model_json_schema(), separators=(",", ":"), ensure_ascii=False)


def text(known: registry.Registry | None = None) -> str:
    return json.dumps(json_schema(known), indent=2, ensure_ascii=False) + "\n"
