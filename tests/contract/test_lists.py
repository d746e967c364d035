"""Every list is read in the same way: items and next_cursor, at most 200 at once, and a cursor that is checked."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from store import cursors
from subjects.contract import AnyCall, Code
from tests.contract.examples import CALLS
from tests.contract.fixtures import Bus, new_tenant

LISTS = [call for call in CALLS if call.operation == "list" or call.operation.startswith("list_")]
FOREIGN = [
    "x", "12", "=", "....", "é", "\0", "a" * 512,
    *(base64.urlsafe_b64encode(text.encode()).decode() for text in (
        "null", "[]", "[1,2,3]", '["a","b"]', "[-1]", "[9223372036854775808]", "[true]", '["\\u0000"]', "[" * 100, "{}",
        '["0001-01-01T00:00:00+23:59","x"]', '["9999-12-31T23:59:59-23:59","x"]', '["2026-01-01","x"]',
    )),
]  # fmt: skip


@pytest.mark.parametrize("call", LISTS, ids=[call.name for call in LISTS])
async def test_a_list_has_a_limit_and_an_opaque_cursor(call: AnyCall, bus: Bus) -> None:
    limit = call.input.model_json_schema()["properties"]["limit"]
    assert (limit["minimum"], limit["maximum"]) == (1, 200)
    assert set(call.output.model_fields) == {"items", "next_cursor"}
    tenant = new_tenant()
    for cursor in FOREIGN:
        answer = await bus.ask(call, tenant, {"cursor": cursor})
        assert answer.code == Code.INVALID, (cursor, answer.body)
    for limit_given in (0, 201, "10"):
        assert (await bus.ask(call, tenant, {"limit": limit_given})).code == Code.INVALID


@pytest.mark.parametrize("parts", [("a",), (7,), ("2026-01-05T10:00:00+00:00", "id")])
def test_a_cursor_comes_back_as_it_was_made(parts: tuple[Any, ...]) -> None:
    made = cursors.make(*parts)
    assert made.replace("-", "").replace("_", "").isalnum()
    assert cursors.read(made, *(type(part) for part in parts)) == list(parts)
