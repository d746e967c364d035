"""What of the last release outside clients can no longer rely on: its committed schemas compared with today's.

`schemas/released/` holds the release; a break that is meant stands in `schemas/breaks.json` with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codec import fieldlock, schemas
from codec.folder import SCHEMAS

RELEASED = SCHEMAS / "released"
MEANT = SCHEMAS / "breaks.json"
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")

Json = dict[str, Any]


@dataclass(frozen=True)
class Surface:
    """What a release promises: the JSON Schema document and the field numbers."""

    document: Json
    lock: fieldlock.Lock


def committed(folder: Path = SCHEMAS) -> Surface:
    names = (schemas.COMMITTED.name, fieldlock.COMMITTED.name)
    document, lock = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    return Surface(document, lock)


def meant() -> dict[str, str]:
    """The reasons of the breaks that are wanted, by what breaks() says of them."""
    found: dict[str, str] = json.loads(MEANT.read_text(encoding="utf-8"))
    return found


def breaks(old: Surface, new: Surface) -> list[str]:
    """One line for each thing that a client of the old may miss: `rag.query input question: is gone`."""
    found: list[str] = []
    for name, call in old.document["calls"].items():
        now = new.document["calls"].get(name)
        found += [f"{name}: the operation is gone"] if now is None else _call(name, call, now, old, new)
    for name, event in old.document["events"].items():
        now = new.document["events"].get(name)
        if now is None:
            found.append(f"{name}: the event is gone")
        else:
            found += _Comparison(old.document, new.document, "output", f"{name} event").root(event, now)
    return [*found, *_numbers(old.lock, new.lock)]


def _call(name: str, call: Json, now: Json, old: Surface, new: Surface) -> Iterator[str]:
    component, _, operation = name.partition(".")
    routes = [
        *call["http"],
        *([f"POST /api/v1/{component}/{operation}"] if call["public"] and not now["public"] else []),
    ]
    yield from (f"{name}: the route {route} is gone" for route in routes if route not in now["http"])
    if call["job"] and not now["job"]:
        yield f"{name}: is no longer to be had as a job"
    if call["long"] != now["long"]:
        yield f"{name}: answers {'202 with a job' if now['long'] else '200 with its output'} by default now"
    for side in ("input", "output", "chunk"):
        if side in call and side not in now:
            yield f"{name}: no longer streams"
        elif side in call:
            direction: Literal["input", "output"] = "input" if side == "input" else "output"
            yield from _Comparison(old.document, new.document, direction, f"{name} {side}").root(call[side], now[side])


class _Comparison:
    """Of one message. input: the old client writes, today's worker reads; output: the other way round."""

    def __init__(self, old: Json, new: Json, direction: Literal["input", "output"], where: str) -> None:
        self._old, self._new = old["$defs"], new["$defs"]
        self._is_input = direction == "input"
        self._where = where
        self._seen: set[tuple[str, str]] = set()

    def root(self, old: Json, new: Json) -> Iterator[str]:
        before, after = (each["$ref"].rpartition("/")[2].rpartition("__")[2] for each in (old, new))
        if before != after:  # its fields would be numbered anew
            yield f"{self._where}: is the message {after} now, not {before}"
        yield from self._schema(old, new, "")

    def _schema(self, old: Json, new: Json, path: str) -> Iterator[str]:
        refs = (old.get("$ref", ""), new.get("$ref", ""))
        if refs in self._seen:
            return
        if all(refs):
            self._seen.add(refs)
        before, after = _kinds(old, self._old), _kinds(new, self._new)
        if not (_covers(after, before) if self._is_input else _covers(before, after)):
            yield self._at(path, f"the type changed from {_names(before)} to {_names(after)}")
        for kind in before.keys() & after.keys():
            yield from self._same_kind(before[kind], after[kind], path)

    def _same_kind(self, old: Json, new: Json, path: str) -> Iterator[str]:
        yield from self._values(old, new, path)
        if self._is_input:
            yield from self._limits(old, new, path)
        fields, now = old.get("properties", {}), new.get("properties", {})
        for name, schema in fields.items():
            inside = f"{path}.{name}" if path else name
            if name not in now:
                yield self._at(inside, "is gone")
            else:
                yield from self._schema(schema, now[name], inside)
        if self._is_input:
            for name in sorted(set(new.get("required", [])) - set(old.get("required", []))):
                inside = f"{path}.{name}" if path else name
                yield self._at(inside, "is required now" if name in fields else "is new and required")
        for inner, mark in (("items", "[]"), ("additionalProperties", ".*")):
            if isinstance(old.get(inner), dict) and isinstance(new.get(inner), dict):
                yield from self._schema(old[inner], new[inner], path + mark)

    def _values(self, old: Json, new: Json, path: str) -> Iterator[str]:
        """Of a Literal. One more in an output is no break: readers expect values that they do not know."""
        before, after = (each.get("enum", [each["const"]] if "const" in each else None) for each in (old, new))
        if before is not None and after is not None:
            yield from (self._at(path, f"the value {value!r} is gone") for value in before if value not in after)
        elif after is not None and self._is_input:
            yield self._at(path, f"takes only {after} now")
        elif before is not None and not self._is_input:
            yield self._at(path, f"may be anything now, not only {before}")

    def _limits(self, old: Json, new: Json, path: str) -> Iterator[str]:
        for name in (*_LEAST, *_MOST):
            was, now = old.get(name), new.get(name)
            if now is not None and (was is None or (now > was if name in _LEAST else now < was)):
                yield self._at(path, f"{name} is {now} now, not {was}")
        if new.get("pattern") not in (None, old.get("pattern")):
            yield self._at(path, f"must match {new['pattern']} now")

    def _at(self, path: str, what: str) -> str:
        return f"{self._where} {path}: {what}" if path else f"{self._where}: {what}"


def _kinds(schema: Json, definitions: Json) -> dict[str, Json]:
    """The alternatives of a schema by kind; the models of a discriminated union by their tags."""
    if "$ref" in schema:
        return _kinds(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "discriminator" in schema:
        tags = schema["discriminator"]["mapping"]
        return {f"object {tag}": definitions[ref.rpartition("/")[2]] for tag, ref in tags.items()}
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return {kind: each for one in schema[several] for kind, each in _kinds(one, definitions).items()}
    kind, form = schema.get("type", "anything"), schema.get("format") or schema.get("contentEncoding")
    return {f"{kind} ({form})" if form else kind: schema}


def _covers(wide: dict[str, Json], narrow: dict[str, Json]) -> bool:
    """Whether everything that is narrow is wide as well."""
    return "anything" in wide or all(kind in wide or (kind == "integer" and "number" in wide) for kind in narrow)


def _names(kinds: dict[str, Json]) -> str:
    return " or ".join(sorted(kinds))


def _numbers(old: fieldlock.Lock, new: fieldlock.Lock) -> Iterator[str]:
    """Fields that stand under another number, or in another form, than protobuf clients know."""
    for message, entries in old.items():
        now = new.get(message, {})
        numbers = {text.split()[-1]: number for number, text in now.items() if not _is_reserved(text)}
        for number, text in entries.items():
            name, there = text.split()[-1], now.get(number)
            if there is None:
                yield f"protobuf {message} {name}: its number {number} is no longer kept"
            elif not _is_reserved(there) and there != text:
                yield f"protobuf {message} {name}: its number {number} is that of `{there}` now"
            elif there != text and name in numbers:
                yield f"protobuf {message} {name}: `{text}` = {number} is `{now[numbers[name]]}` = {numbers[name]} now"


def _is_reserved(text: str) -> bool:
    return text.startswith(f"{fieldlock.RESERVED} ")


def release() -> dict[Path, str]:
    """The files of a new release: today's schemas become what later ones are compared with; no break is left."""
    names = (schemas.COMMITTED, fieldlock.COMMITTED)
    return {**{RELEASED / path.name: path.read_text(encoding="utf-8") for path in names}, MEANT: "{}\n"}
