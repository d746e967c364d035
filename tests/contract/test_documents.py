"""The OpenAPI and AsyncAPI documents say what is there: every route, every subject, nothing else."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import Field

from bridge import asyncapi, docs_events, docs_http, html, openapi
from bridge.documents import Documents, committed
from bridge.routes import operations
from codec.folder import UPDATE
from runtime.settings import Settings
from subjects import grammar, registry
from subjects.contract import AnyCall, Call, Model

ROOT = Path(__file__).resolve().parents[2]
ASYNCAPI_CHECK = ROOT / "schemas" / "check_asyncapi.mjs"
KNOWN = registry.load()
PROBES = {"/healthz", "/health", "/readyz", "/metrics"}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def http() -> Json:
    return openapi.document(Settings(), KNOWN)


@pytest.fixture(scope="module")
def nats() -> Json:
    return asyncapi.document(Settings(), KNOWN)


def described(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# -- what is committed -----


@pytest.mark.parametrize("path", committed(KNOWN), ids=lambda path: path.name)
def test_the_committed_documents_are_those_of_the_contracts(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == committed(KNOWN)[path], f"a contract changed: {UPDATE}"


# -- OpenAPI -----


def test_openapi_is_valid(http: Json) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(http).iter_errors()] == []


def test_openapi_has_every_route_and_no_other(http: Json, settings: Settings) -> None:
    routes = operations(None, KNOWN) + Documents(settings, KNOWN).routes()  # type: ignore[arg-type]
    there = {(route.method, route.path) for route in routes} | {("GET", path) for path in PROBES}
    assert {(method, path) for method, path, _ in described(http)} == there


def test_every_operation_has_its_own_name_tag_and_scope(http: Json) -> None:
    names = [operation["operationId"] for _, _, operation in described(http)]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in http["tags"]}
    by_path = {call.path: call for call in KNOWN.calls.values()}
    for method, path, operation in described(http):
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        if method == "POST" and path in by_path:
            assert operation["security"] == [{"token": [by_path[path].scope]}]


def test_every_field_of_a_resource_is_in_its_path_query_or_body(http: Json) -> None:
    for call in KNOWN.calls.values():
        for route in call.http:
            method, _, path = route.partition(" ")
            operation = http["paths"][path][method.lower()]
            given = {each["name"]: each for each in operation["parameters"] if "$ref" not in each}
            in_path = set(re.findall(r"{(\w+)}", path))
            assert {name for name, each in given.items() if each["in"] == "path"} == in_path
            assert all(given[name]["required"] for name in in_path)
            if method in ("GET", "DELETE"):
                assert set(given) == set(call.input.model_fields)
                assert "requestBody" not in operation
            else:
                body = resolved(http, operation["requestBody"]["content"]["application/json"]["schema"])
                assert set(body["properties"]) | in_path == set(call.input.model_fields)
                assert not in_path & set(body["properties"])


def test_defaults_are_optional_in_requests_and_always_there_in_answers() -> None:
    class Kept(Model):
        name: str
        count: int = 0

    both: AnyCall = Call("lab", "keep", Kept, Kept)
    made = openapi.document(Settings(), registry.Registry([both], []))
    operation = made["paths"]["/api/v1/lab/keep"]["post"]
    asked = resolved(made, operation["requestBody"]["content"]["application/json"]["schema"])
    told = resolved(made, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert (asked["required"], told["required"]) == (["name"], ["name", "count"])


def test_jobs_events_and_formats_are_described(http: Json) -> None:
    ingest = http["paths"]["/api/v1/rag/ingest"]["post"]
    formats = {"application/json", "application/msgpack", "application/x-protobuf"}
    assert set(ingest["requestBody"]["content"]) == formats
    assert set(ingest["responses"]["202"]["headers"]) > {"Location", "Preference-Applied"}
    query = http["paths"]["/api/v1/rag/query"]["post"]["responses"]
    assert set(query["200"]["content"]) == formats | {"text/event-stream"}
    events = query["200"]["content"]["text/event-stream"]["x-events"]
    assert set(events) == {"chunk", "restart", "done", "error"}
    assert events["chunk"]["$ref"].endswith("AnswerChunk")
    assert {"400", "401", "403", "404", "429", "431", "502", "503", "504"} <= set(query)
    assert "502" not in http["paths"]["/api/v1/cache/get"]["post"]["responses"]
    refused = resolved(http, query["400"])["content"]
    assert set(refused) == {"application/problem+json", "application/msgpack", "application/x-protobuf"}


def resolved(document: Json, node: Json) -> Json:
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def whole(document: Json, schema: Json) -> Json:
    return {**schema, "components": document["components"]}


@pytest.mark.parametrize("call", KNOWN.calls.values(), ids=lambda call: call.name)
def test_every_operation_has_an_example_that_is_one(call: AnyCall, http: Json, nats: Json) -> None:
    if call.example is None or call.example_reply is None:
        assert not call.public, "give it an example and an example_reply"
        return
    call.input.model_validate(dict(call.example))
    told = call.output.model_validate(dict(call.example_reply))
    assert told.model_dump(mode="json").keys() == call.example_reply.keys(), "every field is there"
    if call.raises is None:
        assert not call.public, "say how it may fail in its own right, if only ()"
    message = nats["components"]["messages"][f"{call.name}.input"]
    jsonschema.validate(message["examples"][0]["payload"], whole(nats, message["payload"]))


def test_every_example_matches_its_schema(http: Json) -> None:
    seen = 0
    for _, _, operation in described(http):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [resolved(http, each).get("content", {}) for each in operation["responses"].values()]
        for content in contents:
            for media in content.values():
                if "example" in media:
                    seen += 1
                    jsonschema.validate(media["example"], whole(http, media["schema"]))
        for parameter in operation.get("parameters", []):
            found = resolved(http, parameter)
            if "example" in found:
                seen += 1
                jsonschema.validate(found["example"], whole(http, found.get("schema", {})))
    assert seen > 150


# -- AsyncAPI -----


def test_asyncapi_has_every_subject(nats: Json) -> None:
    addresses = {channel["address"] for channel in nats["channels"].values()} - {None}
    wanted = {grammar.request("t", call.component, call.operation) for call in KNOWN.calls.values()}
    wanted |= {grammar.job("t", c.component, c.operation, "j") for c in KNOWN.calls.values() if c.job}
    wanted |= {grammar.event("t", event.component, event.occurred) for event in KNOWN.events.values()}
    wanted |= {grammar.output("t", "o"), grammar.cancel("t", "i"), grammar.dead_letter("t", "c", "o", "j", 1)}
    given = {"{tenant}": "t", "{job_id}": "j", "{output_id}": "o", "{id}": "i", "{component}": "c",
             "{operation}": "o", "{redrive}": "1"}  # fmt: skip
    for name, value in given.items():
        addresses = {address.replace(name, value) for address in addresses}
    assert addresses == wanted


def test_every_reference_in_asyncapi_is_to_something(nats: Json) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for each in node.values():
                yield from references(each)
        elif isinstance(node, list):
            for each in node:
                yield from references(each)

    for reference in set(references(nats)):
        resolved(nats, {"$ref": reference})
    for operation in nats["operations"].values():
        channel = resolved(nats, operation["channel"])
        assert len(operation["messages"]) == len(channel["messages"])
        assert operation["action"] in ("send", "receive")


def test_asyncapi_is_valid_by_its_own_parser() -> None:
    modules = os.environ.get("ASYNCAPI_PARSER", "")
    if shutil.which("node") is None or not modules:
        pytest.skip("needs node and @asyncapi/parser: `make asyncapi` installs it beside, and checks")
    found = subprocess.run(
        ["node", ASYNCAPI_CHECK, ROOT / "schemas" / "asyncapi.json"],
        env={**os.environ, "NODE_PATH": modules}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


# -- pages -----


class Reading(HTMLParser):
    """Collects what a page links to, loads and says."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.idents: list[str] = []
        self.styled = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [given["href"] or ""] if tag == "a" and "href" in given else []
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset") or (tag == "link")]
        self.idents += [given["id"] or ""] if "id" in given else []
        self.styled |= "style" in given or any(name.startswith("on") for name, _ in attrs)


@pytest.mark.parametrize("which", ["http", "nats"])
def test_a_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere(which: str, http: Json, nats: Json) -> None:
    page = Reading(docs_http.render(http) if which == "http" else docs_events.render(nats))
    assert page.loaded == []
    assert not page.styled, "the policy allows no style and no script in the text"
    assert len(page.idents) == len(set(page.idents))
    for link in page.links:
        assert link in ("/docs", "/docs/events", "/openapi.json", "/asyncapi.json") or link[1:] in page.idents, link


def test_a_page_says_every_operation_with_a_command(http: Json) -> None:
    text = docs_http.render(http).decode()
    for _, _, operation in described(http):
        assert f'id="{operation["operationId"]}"' in text
    assert text.count("curl ") >= len(list(described(http)))
    assert "curl &quot;" not in text


def test_what_a_contract_says_is_text_on_the_page() -> None:
    class Sly(Model):
        name: str = Field("<img src=x onerror=alert(1)>", description="<script>alert(1)</script> & `<b>`")

    sly: AnyCall = Call("lab", "sly", Sly, Sly, summary="<script>alert(2)</script>", example={"name": "</script>'"})
    known = registry.Registry([sly], [])
    for page in (docs_http.render(openapi.document(Settings(), known)),
                 docs_events.render(asyncapi.document(Settings(), known))):  # fmt: skip
        text = page.decode()
        assert "<script>alert" not in text
        assert "<img" not in text
        assert text.count("<script>") == text.count("</script>") == 1


async def test_the_documents_are_served(bridge_url: str) -> None:
    async with httpx.AsyncClient(base_url=bridge_url) as client:
        for path in ("/openapi.json", "/asyncapi.json", "/docs", "/docs/events"):
            kind = "application/json" if path.endswith(".json") else "text/html; charset=utf-8"
            first, again, head = await client.get(path), await client.get(path), await client.head(path)
            assert (first.status_code, first.headers["content-type"]) == (200, kind)
            assert first.content == again.content
            assert (head.status_code, head.content) == (200, b"")
            if kind.startswith("text/html"):
                assert first.headers["content-security-policy"] == html.POLICY
                assert "unsafe" not in html.POLICY
        served = (await client.get("/openapi.json")).json()
    assert served["paths"] == json.loads(json.dumps(openapi.document(Settings(), KNOWN)["paths"]))


def test_documents_are_made_the_same_each_time(http: Json, nats: Json) -> None:
    before = copy.deepcopy(http)
    docs_http.render(http)
    assert http == before == openapi.document(Settings(), KNOWN)
    assert list(nats["channels"]) == list(asyncapi.document(Settings(), KNOWN)["channels"])
