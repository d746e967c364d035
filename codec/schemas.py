"""JSON Schema of every contract, as `faas contracts --update` writes it to schemas/jsonschema.json."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from codec.folder import SCHEMAS
from subjects import registry
from subjects.contract import Model

COMMITTED = SCHEMAS / "jsonschema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(known: registry.Registry | None = None) -> dict[str, Any]:
    """Calls and events by name, each pointing at its models; every model once under $defs."""
    known = known or registry.load()
    models: set[type[Model]] = {event.payload for event in known.events.values()}
    for call in known.calls.values():
        models |= {call.input, call.output} | ({call.chunk} if call.chunk else set())
    ordered = sorted(models, key=lambda model: (model.__module__, model.__name__))
    refs, definitions = models_json_schema([(model, "validation") for model in ordered])
    return {
        "$schema": DIALECT,
        "calls": {
            name: {
                "input": refs[call.input, "validation"],
                "output": refs[call.output, "validation"],
                **({"chunk": refs[call.chunk, "validation"]} if call.chunk else {}),
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
        "events": {name: refs[event.payload, "validation"] for name, event in sorted(known.events.items())},
        "$defs": dict(sorted(definitions.get("$defs", {}).items())),
    }


def of(model: type[Model]) -> str:
    """The schema of one model with all that it refers to, on one line."""
    return json.dumps(model.model_json_schema(), separators=(",", ":"), ensure_ascii=False)


def text(known: registry.Registry | None = None) -> str:
    return json.dumps(json_schema(known), indent=2, ensure_ascii=False) + "\n"
