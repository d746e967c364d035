"""/docs: the OpenAPI document as a page to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from html import escape
from typing import Any
from urllib.parse import quote, urlencode

from bridge.html import Entry, Json, code, folded, line, page, pretty, table, text, verb
from bridge.schema_tables import anchor, kind, limits, must, named, shown

METHODS = ("get", "put", "post", "delete")
PREFIX = "/api/v1"
BRIDGE, TOKEN = "$BRIDGE_URL", "$TOKEN"


def render(document: Json) -> bytes:
    """The whole page."""
    operations = list(_operations(document))
    definitions: Json = document["components"]["schemas"]
    groups: list[tuple[str, list[Entry]]] = []
    body = [f"<h1>{escape(document['info']['title'])}: HTTP</h1>", text(document["info"]["description"])]
    for tag in document["tags"]:
        own = [each for each in operations if tag["name"] in each[2]["tags"]]
        groups.append((tag["name"], [
            Entry(each["operationId"], method.upper(), path.removeprefix(PREFIX), each["summary"])
            for method, path, each in own
        ]))  # fmt: skip
        body.append(f'<h2 id="tag-{escape(tag["name"])}">{escape(tag["name"])}</h2>{text(tag["description"])}')
        body += [_Section(document, definitions, *each).html() for each in own]
    body.append("<h2>Schemas</h2>")
    body += [named(name, schema) for name, schema in definitions.items()]
    groups.append(("schemas", [Entry(anchor(name), "", name) for name in definitions]))
    about = (
        'HTTP · <a href="/docs/events">Events</a> · <a href="/openapi.json">openapi.json</a> · '
        f"{escape(document['info']['version'])}"
    )
    return page(document["info"]["title"], about, groups, "".join(body))


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield method, path, methods[method]


class _Section:
    def __init__(self, document: Json, definitions: Json, method: str, path: str, operation: Json) -> None:
        self._document = document
        self._definitions = definitions
        self._method = method.upper()
        self._path = path
        self._operation = operation
        self._parameters = [self._resolved(each) for each in operation.get("parameters", [])]

    def _resolved(self, node: Json) -> Json:
        if "$ref" not in node:
            return node
        found: Any = self._document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return dict(found)

    def html(self) -> str:
        operation, ident = self._operation, escape(self._operation["operationId"])
        path = f'<a href="#{ident}"><code>{escape(self._path)}</code></a>'
        return (
            f'<section id="{ident}"><h3>{verb(self._method)}{path}</h3>'
            f'<p class="what">{line(operation["summary"])}</p>'
            f'<div class="about">{text(operation.get("description", ""))}</div>'
            f"{self._fields()}{self._body()}{self._answers()}<h4>Try it</h4>{code(self.curl())}</section>"
        )

    def _fields(self) -> str:
        own = [each for each in self._parameters if each["in"] != "header"]
        shared = [each for each in self._parameters if each["in"] == "header"]
        titled = f"<h4>Parameters</h4>{_parameters(own)}" if own else ""
        return titled + folded(f"{len(shared)} headers that may be sent", _parameters(shared)) if shared else titled

    def _body(self) -> str:
        if "requestBody" not in self._operation:
            return ""
        content: Json = self._operation["requestBody"]["content"]
        first = content.get("application/json") or next(iter(content.values()))
        example = first.get("example")
        return (
            f'<h4>Body</h4><p class="about">{_formats(content)}</p>'
            f"{shown(first['schema'], self._definitions, title='Fields', unfolded=True)}"
            f"{'' if example is None else pretty(example)}"
        )

    def _answers(self) -> str:
        rows: dict[bool, list[tuple[str, str, str]]] = {True: [], False: []}
        examples = []
        for status, given in self._operation["responses"].items():
            answer = self._resolved(given)
            content: Json = answer.get("content", {})
            told = (f"<code>{escape(status)}</code>", _answer(answer["description"], content), _formats(content))
            rows[status[0] == "2"].append(told)
            first = content.get("application/json", {})
            if "example" in first and status[0] == "2":
                examples.append(folded(f"Example of {status}", pretty(first["example"])))
        head = ("Status", "What", "Formats")
        failures = folded(f"{len(rows[False])} ways to fail", table(head, rows[False]))
        return f"<h4>Answers</h4>{table(head, rows[True])}{''.join(examples)}{failures}"

    def curl(self) -> str:
        """The operation as a command, from its examples."""
        path, query, parts = self._path, {}, []
        for each in self._parameters:
            example = each.get("example")
            if each["in"] == "path":
                path = path.replace(f"{{{each['name']}}}", quote(str(example or each["name"]), safe=""))
            elif each["in"] == "query" and example is not None:
                query[each["name"]] = example if isinstance(example, str) else json.dumps(example)
        url = f'"{BRIDGE}{path}{"?" + urlencode(query) if query else ""}"'
        if self._operation.get("security") != []:
            parts.append(f'-H "Authorization: Bearer {TOKEN}"')
        content: Json = self._operation.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in content:
            parts += ["-F file=@report.pdf", "-F collection=default"]
        elif content:
            body = json.dumps(content["application/json"].get("example", {}), ensure_ascii=False)
            parts += ['-H "Content-Type: application/json"', f"-d {shlex.quote(body)}"]
        if self._method not in ("GET", "POST") or (self._method == "POST" and not content):
            parts.insert(0, f"-X {self._method}")
        if list(self._operation["responses"].get("200", {}).get("content", {})) == ["text/event-stream"]:
            parts.insert(0, "-N")
        return " \\\n  ".join(["curl " + url, *parts])


def _parameters(some: list[Json]) -> str:
    rows = []
    for each in some:
        schema = each.get("schema") or each["content"]["application/json"]["schema"]
        told = " ".join(filter(None, (line(each.get("description", "")), limits(schema))))
        rows.append((f"<code>{escape(each['name'])}</code>{must(each['required'])}", each["in"], kind(schema), told))
    return table(("Name", "In", "Type", "What"), rows)


def _answer(description: str, content: Json) -> str:
    schema = content.get("application/json", {}).get("schema")
    told = line(description) + ("" if schema is None else f": {kind(schema)}")
    events: Json = content.get("text/event-stream", {}).get("x-events", {})
    if events:
        pieces = ", ".join(f"<code>{escape(name)}</code> {kind(each) if each else ''}" for name, each in events.items())
        told += f"<br>As events: {pieces}"
    return told


def _formats(content: Json) -> str:
    return " ".join(f"<code>{escape(name.removeprefix('application/').removeprefix('x-'))}</code>" for name in content)
