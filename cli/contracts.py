"""contracts: every operation and event, described for others: JSON Schema, OpenAPI, AsyncAPI, .proto files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from cli import session, show
from codec import breaks, fieldlock, protos, schemas
from codec.folder import SCHEMAS
from subjects import registry

PROTO = "proto"


def run(format: str, output: Path | None, *, update: bool, release: bool) -> None:
    """Print one description, or write it to a file (.proto files: to a folder); update: the committed ones instead;
    release: these, and what later ones are compared with."""
    if update or release:
        _update()
        if release:
            _write(breaks.release())
    elif format == PROTO:
        _protos(output)
    elif format not in FORMATS:
        raise typer.BadParameter(f"format is one of {', '.join((*FORMATS, PROTO))}")
    elif output is None:
        show.line(_text(FORMATS[format]()).rstrip("\n"))
    else:
        output.write_text(_text(FORMATS[format]()), encoding="utf-8")


def _protos(folder: Path | None) -> None:
    made = protos.files()
    if folder is None:
        show.line("\n".join(made.values()))
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


def _update() -> None:
    """Everything under schemas/ that is made from the contracts; the numbers first, for the .proto files hold them."""
    from bridge.documents import committed

    lock = fieldlock.updated(fieldlock.committed(), protos.messages().values())
    made = {protos.COMMITTED / name: text for name, text in protos.files(lock=lock).items()}
    _write({schemas.COMMITTED: schemas.text(), fieldlock.COMMITTED: fieldlock.text(lock), **made})
    _write(committed(registry.load()))


def _write(made: dict[Path, str]) -> None:
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            show.line(f"wrote {path.relative_to(SCHEMAS.parent)}")


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _openapi() -> dict[str, Any]:
    from bridge.openapi import document

    return document(session.load(), registry.load())


def _asyncapi() -> dict[str, Any]:
    from bridge.asyncapi import document

    return document(session.load(), registry.load())


def _json_schema() -> dict[str, Any]:
    return schemas.json_schema(registry.load())


FORMATS = {"jsonschema": _json_schema, "openapi": _openapi, "asyncapi": _asyncapi}
