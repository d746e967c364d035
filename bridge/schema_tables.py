"""JSON Schemas as tables for a reader: fields, types with links, limits."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from bridge.html import folded, line, table

Json = dict[str, Any]

LIMITS = (
    ("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("exclusiveMaximum", "< {}"),
    ("minLength", "at least {} characters"), ("maxLength", "at most {} characters"), ("minItems", "at least {}"),
    ("maxItems", "at most {}"), ("minProperties", "at least {} fields"), ("maxProperties", "at most {} fields"),
    ("pattern", "matches {}"), ("default", "default {}"), ("contentEncoding", "{}"),
)  # fmt: skip


def anchor(name: str) -> str:
    return f"schema-{name}"


def kind(schema: Json) -> str:
    """A type as HTML; a named one is a link."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f'<a href="#{escape(anchor(name))}">{escape(name)}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind(each) for each in schema[several]))
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    named = schema.get("type", "any JSON")
    if named == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if named == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {kind(schema['additionalProperties'])}"
    return escape(str(schema.get("format", named)))


def limits(schema: Json) -> str:
    """What else must hold, also within `or null`."""
    told = []
    for each in [schema, *(part for part in schema.get("anyOf", []) if part.get("type") != "null")]:
        for name, form in LIMITS:
            if name in each and (name != "default" or each[name] not in (None, {}, [])):
                told.append(form.format(each[name] if isinstance(each[name], str) else json.dumps(each[name])))
    return f'<span class="limits">{escape("; ".join(dict.fromkeys(told)))}</span>' if told else ""


def fields(schema: Json) -> str:
    """The table of an object's fields."""
    needed = set(schema.get("required", ()))
    return table(
        ("Field", "Type", "What"),
        (
            (
                f"<code>{escape(name)}</code>{must(name in needed)}",
                kind(each),
                " ".join(filter(None, (line(each.get("description", "")), limits(each)))),
            )
            for name, each in schema.get("properties", {}).items()
        ),
    )


def must(needed: bool) -> str:
    return '<br><span class="must">required</span>' if needed else ""


def named(name: str, schema: Json) -> str:
    """A section of its own for a named schema."""
    about = f'<p class="about">{line(" ".join(schema["description"].split()))}</p>' if "description" in schema else ""
    body = fields(schema) or f"<p>{kind(schema)} {limits(schema)}</p>"
    ident = escape(anchor(name))
    return f'<section id="{ident}"><h3><a href="#{ident}">{escape(name)}</a></h3>{about}{body}</section>'


def shown(schema: Json, definitions: Json, *, title: str, unfolded: bool = False) -> str:
    """A message where it is used: its name and, folded, its fields."""
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    inside = definitions.get(name, schema)
    return f"<p>{kind(schema)}</p>" + (folded(title, fields(inside), unfolded=unfolded))
