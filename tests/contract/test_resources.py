"""Resources over HTTP: every route of a contract reaches its operation, and a path means one thing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from cli.tokens import sign
from runtime.settings import Settings
from tests.contract.fixtures import new_tenant

MOON = {"text": "The moon is 384400 km away.", "title": "Moon", "source_id": "moon"}


@pytest_asyncio.fixture
async def http(bridge_url: str, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {sign(settings, new_tenant())}"}
    async with httpx.AsyncClient(base_url=bridge_url, headers=headers, timeout=20) as client:
        yield client


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def bad_fields(response: httpx.Response) -> list[str]:
    assert response.status_code == 400, response.text
    return [each["path"] for each in response.json()["errors"]]


async def test_a_document_is_made_read_changed_and_deleted(http: httpx.AsyncClient) -> None:
    made = ok(await http.post("/api/v1/rag/documents", json=MOON, headers={"Prefer": "wait=20"}))
    path = f"/api/v1/rag/documents/{made['document_id']}"
    listed = ok(await http.get("/api/v1/rag/documents", params={"collection": "default", "limit": 1}))
    assert [each["document_id"] for each in listed["items"]] == [made["document_id"]]
    assert ok(await http.get(path, params={"include_text": "true"}))["text"] == MOON["text"]
    changed = ok(await http.put(path, json={"metadata": {"year": 1969}}))
    assert (changed["metadata"], changed["version"]) == ({"year": 1969}, 2)
    assert bad_fields(await http.put(path, json={"document_id": "d2"})) == ["document_id"]
    assert ok(await http.delete(path)) == {"deleted": True}
    assert (await http.get(path)).status_code == 404
    assert ok(await http.get("/api/v1/rag/documents")) == {"items": [], "next_cursor": None}


async def test_pages_follow_each_other(http: httpx.AsyncClient) -> None:
    for number in range(3):
        document = MOON | {"source_id": str(number)}
        ok(await http.post("/api/v1/rag/documents", json=document, headers={"Prefer": "wait=20"}))
    found, query = [], dict[str, Any](limit=2)
    while True:
        page = ok(await http.get("/api/v1/rag/documents", params=query))
        found += [each["source_id"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == ["0", "1", "2"]


@pytest.mark.parametrize("key", ["a", "a/b", "..a", "%2F", "ü ?&=+", "a%00b"])
async def test_a_key_is_what_the_path_says(http: httpx.AsyncClient, key: str) -> None:
    path = "/api/v1/cache/entries/" + "".join(f"%{byte:02X}" for byte in key.encode())
    assert ok(await http.put(path, json={"value": key}))["written"]
    assert ok(await http.get(path))["value"] == key
    assert ok(await http.post("/api/v1/cache/get", json={"key": key}))["value"] == key
    assert ok(await http.delete(path)) == {"deleted": True}


async def test_other_resources_are_there(http: httpx.AsyncClient) -> None:
    assert ok(await http.get("/api/v1/cache/stats"))["keys"] == 0
    assert ok(await http.get("/api/v1/ingestion/files", params={"status": "indexed"}))["items"] == []
    assert (await http.get("/api/v1/ingestion/files/f1")).status_code == 404
    models = ok(await http.get("/api/v1/gateway/models", params={"limit": 200}))["items"]
    assert {each["provider"] for each in models} == {"openai"}
    assert len(ok(await http.get("/api/v1/gateway/providers"))["items"]) > 5
    assert ok(await http.get("/api/v1/jobs"))["items"] == []
    assert (await http.get("/api/v1/jobs/j1")).status_code == 404


@pytest.mark.parametrize(
    ("query", "fields"),
    [("nothing=1", ["nothing"]), ("limit=201", ["limit"]), ("limit=07", ["limit"]), ("limit=", ["limit"]),
     ("limit=1&limit=2", ["limit"]), ("collection=A", ["collection"]), ("document_id=d1", ["document_id"])],
)  # fmt: skip
async def test_a_bad_query_is_named(http: httpx.AsyncClient, query: str, fields: list[str]) -> None:
    assert bad_fields(await http.get(f"/api/v1/rag/documents?{query}")) == fields


async def test_head_and_options_say_what_a_path_is(http: httpx.AsyncClient) -> None:
    whole = await http.get("/api/v1/rag/documents")
    head = await http.head("/api/v1/rag/documents")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    options = await http.options("/api/v1/rag/documents/d1")
    assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, PUT")
    refused = await http.patch("/api/v1/rag/documents/d1", json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, HEAD, OPTIONS, PUT")
    assert (await http.options("/api/v1/nothing")).status_code == 404
    unknown = await http.options("/api/v1/rag/documents/d1", headers={"Authorization": "Bearer x"})
    assert unknown.status_code == 401


async def test_without_origins_no_browser_of_another_site_may_ask(http: httpx.AsyncClient) -> None:
    asked = await http.get("/api/v1/rag/documents", headers={"Origin": "https://example.org"})
    preflight = await http.options(
        "/api/v1/rag/documents", headers={"Origin": "https://example.org", "Access-Control-Request-Method": "GET"}
    )
    for response in (asked, preflight):
        assert not [name for name in response.headers if name.startswith("access-control-")]
