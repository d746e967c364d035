"""contracts: every operation and event as JSON Schema, or the bridge's OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cli import session, show
from subjects import registry


def run(format: str, output: Path | None) -> None:
    if format not in FORMATS:
        raise typer.BadParameter(f"format is one of {', '.join(FORMATS)}")
    text = json.dumps(FORMATS[format](), indent=2, ensure_ascii=False)
    if output is None:
        show.line(text)
    else:
        output.write_text(text + "\n")


def _json_schema() -> dict[str, Any]:
    known = registry.load()
    return {
        "calls": {
            name: {
                "input": call.input.model_json_schema(),
                "output": call.output.model_json_schema(),
                **({"chunk": call.chunk.model_json_schema()} if call.chunk else {}),
                "timeout_s": call.timeout_s,
                "mutates": call.mutates,
                "job": call.job,
                "public": call.public,
            }
            for name, call in sorted(known.calls.items())
        },
        "events": {name: event.payload.model_json_schema() for name, event in sorted(known.events.items())},
    }


def _openapi() -> dict[str, Any]:
    from bridge.app import openapi

    return openapi(session.load())


FORMATS = {"jsonschema": _json_schema, "openapi": _openapi}
