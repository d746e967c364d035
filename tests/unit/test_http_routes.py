"""Paths and queries: how a route is found, and what a query says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import JsonValue

from bridge import arguments
from bridge.exchange import Exchange
from bridge.table import Match, Route, Table
from subjects.contract import Call, Code, Fault, Model


async def endpoint(exchange: Exchange) -> None:
    pass


def table(*routes: str, stream: bool = False) -> Table:
    cut = [route.partition(" ") for route in routes]
    return Table([Route(method, path, endpoint, stream=stream) for method, _, path in cut])


def found(match: Match) -> Any:
    return (match.route.path, match.params) if match.route is not None else match.allowed


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", ("/a/b", {})),
        ("/%61/b", ("/a/b", {})),
        ("/a%2fb", ()),
        ("/A/b", ()),
        ("/a/b/", ()),
        ("//a/b", ()),
        ("/a//b", ()),
        ("/x/../a/b", ()),
        ("/a/k", ("/a/{key}", {"key": "k"})),
        ("/a/%20%C3%A9", ("/a/{key}", {"key": " é"})),
        ("/a/b%2Fc", ("/a/{key}", {"key": "b/c"})),
        ("/a/%252F", ("/a/{key}", {"key": "%2F"})),
        ("/a/b%2Fc/d", ()),
        ("/a/", ()),
        ("/a/.", ()),
        ("/a/..", ()),
        ("/a/%2e%2E", ()),
        ("/a/...", ("/a/{key}", {"key": "..."})),
        ("/a/%", ()),
        ("/a/%4", ()),
        ("/a/%zz", ()),
        ("/a/%FF", ()),
        ("/a/%C0%AF", ()),
        ("/a/é", ("/a/{key}", {"key": "é"})),
        ("", ()),
        ("*", ()),
    ],
)
def test_one_spelling_of_a_path_means_one_thing(path: str, expected: Any) -> None:
    match = table("GET /a/b", "GET /a/{key}").find("GET", path.encode())
    assert found(match) == expected


def test_a_fixed_path_is_found_before_a_pattern() -> None:
    both = table("GET /a/{key}", "GET /a/list", "DELETE /a/{key}")
    assert found(both.find("GET", b"/a/list")) == ("/a/list", {})
    assert found(both.find("DELETE", b"/a/list")) == ("/a/{key}", {"key": "list"})


def test_what_is_named_is_found_before_what_is_not() -> None:
    both = table("GET /jobs/{job_id}/events", "GET /jobs/dead/{job_id}")
    assert found(both.find("GET", b"/jobs/dead/events")) == ("/jobs/dead/{job_id}", {"job_id": "events"})
    assert found(both.find("GET", b"/jobs/j/events")) == ("/jobs/{job_id}/events", {"job_id": "j"})


def test_what_a_path_allows_is_told() -> None:
    routes = table("GET /a/{key}", "PUT /a/{key}")
    assert found(routes.find("POST", b"/a/b")) == ("GET", "HEAD", "OPTIONS", "PUT")
    assert found(routes.find("HEAD", b"/a/b")) == ("/a/{key}", {"key": "b"})
    assert found(table("GET /s", stream=True).find("HEAD", b"/s")) == ("GET", "OPTIONS")


@pytest.mark.parametrize(
    "routes", [("GET /a", "GET /a"), ("GET /a/{x}", "GET /a/{x}"), ("GET /a/{x}", "PUT /a/{y}"), ("GET /a", "HEAD /a")]
)
def test_no_two_routes_share_a_path(routes: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="/a"):
        table(*routes)


class Inside(Model):
    n: int = 0


class Asked(Model):
    text: str = ""
    number: int | None = None
    share: float = 0.0
    flag: bool | None = None
    names: list[str] = []
    numbers: list[int] = []
    inside: Inside | None = None
    insides: list[Inside] = []
    free: JsonValue = None
    labels: dict[str, JsonValue] = {}


CALL = Call("lab", "asked", Asked, Asked, job=False)


def asked(query: str, **params: str) -> dict[str, Any]:
    scope = {"method": "GET", "path": "/x", "query_string": query.encode(), "headers": []}
    exchange = Exchange(scope, None, None)  # type: ignore[arg-type]
    exchange.params = params
    data, content_type = arguments.from_query(CALL, exchange)
    assert content_type == "application/json"
    made: dict[str, Any] = json.loads(data)
    return made


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", {}),
        ("text=a+b%2Bc&number=-7&share=1.5&flag=true", {"text": "a b+c", "number": -7, "share": 1.5, "flag": True}),
        ("text=", {"text": ""}),
        ("text=7", {"text": "7"}),
        ("names=a&names=b", {"names": ["a", "b"]}),
        ("numbers=1", {"numbers": [1]}),
        ('inside={"n":1}', {"inside": {"n": 1}}),
        ('insides=[{"n":1}]', {"insides": [{"n": 1}]}),
        ("free=7&labels=%7B%22a%22%3A%5B1%5D%7D", {"free": 7, "labels": {"a": [1]}}),
    ],
)
def test_a_query_is_the_object_that_a_body_would_be(query: str, message: dict[str, Any]) -> None:
    assert asked(query) == message


@pytest.mark.parametrize("text", ["07", "1_0", "+1", " 1", "1.0", "0x1", "٧", "true", "", "99999999999999999999"])
def test_what_is_no_number_stays_text_for_the_worker_to_refuse(text: str) -> None:
    assert asked(f"number={text.replace('+', '%2B')}") == {"number": text}


@pytest.mark.parametrize(
    "query",
    ["other=1", "text=a&text=b", "inside={", "free=", "text=%ff", "text=%f", "key=1", "&".join(["names=a"] * 257),
     "text=" + "a" * 17_000],
)  # fmt: skip
def test_a_query_that_cannot_be_the_message_is_invalid(query: str) -> None:
    with pytest.raises(Fault) as raised:
        asked(query)
    assert raised.value.code is Code.INVALID


def test_the_paths_field_is_not_given_twice() -> None:
    assert asked("number=1", text="a") == {"text": "a", "number": 1}
    with pytest.raises(Fault):
        asked("text=a", text="a")
