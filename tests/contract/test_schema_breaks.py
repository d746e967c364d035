"""What the last release promised holds, unless a break is meant; and the check finds every kind of break."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, JsonValue, create_model

from codec import breaks, fieldlock, protos, schemas
from codec.breaks import Surface
from subjects.contract import Call, Event, EventPayload, Model
from subjects.registry import Registry

Fields = dict[str, Any]

ASK: Fields = {
    "text": (str, ...),
    "mode": (Literal["a", "b"], "a"),
    "limit": (int, Field(5, ge=1, le=10)),
    "tags": (list[str], []),
    "data": (bytes | None, None),
    "old": (str, ""),
}
REPLY: Fields = {"status": (Literal["on", "off"], ...), "score": (float, ...), "free": (JsonValue, None)}
CALL: dict[str, Any] = {"http": ("GET /api/v1/demo/{text}",), "timeout_s": 5}


def made(name: str, fields: Fields, base: type[Model] = Model) -> type[Model]:
    return create_model(name, __base__=base, __module__="subjects.demo", **fields)


def surface(
    ask: Fields | None = None, reply: Fields | None = None, lock: fieldlock.Lock | None = None, *,
    name: str = "Ask", told: Fields | None = None, part: Fields | None = None, **call: Any,
) -> Surface:  # fmt: skip
    """A platform of one call and one event, as a commit would leave it: its numbers go on from lock."""
    inner = made("Part", {"a": (int, 1), "b": (int, 2)} if part is None else part)
    fields = {"parts": (list[inner], []), **(ASK if ask is None else ask)}  # type: ignore[valid-type]
    output = made("Reply", REPLY if reply is None else reply)
    event = made("Done", {"count": (int, ...)} if told is None else told, EventPayload)
    call = {"operation": "ask", **CALL, **call}
    known = Registry([Call("demo", input=made(name, fields), output=output, **call)], [Event("demo", "done", event)])
    return Surface(schemas.json_schema(known), fieldlock.updated(lock or {}, protos.messages(known).values()))


OLD = surface()


def found(**changed: Any) -> list[str]:
    return breaks.breaks(OLD, surface(lock=OLD.lock, **changed))


def without(fields: Fields, name: str) -> Fields:
    return {key: value for key, value in fields.items() if key != name}


BREAKS: dict[str, tuple[dict[str, Any], str]] = {
    "a removed input field": ({"ask": without(ASK, "old")}, "demo.ask input old: is gone"),
    "a renamed input field": ({"ask": without(ASK, "old") | {"new": (str, "")}}, "demo.ask input old: is gone"),
    "a removed output field": ({"reply": without(REPLY, "score")}, "demo.ask output score: is gone"),
    "a removed field of a part": ({"part": {"a": (int, 1)}}, "demo.ask input parts[].b: is gone"),
    "a new required input field": ({"ask": ASK | {"new": (str, ...)}}, "demo.ask input new: is new and required"),
    "an input field that became required": ({"ask": ASK | {"old": (str, ...)}}, "demo.ask input old: is required now"),
    "a changed input type": ({"ask": ASK | {"old": (int, 0)}}, "demo.ask input old: the type changed from string to"),
    "no null any more": ({"ask": ASK | {"data": (bytes, b"")}}, "demo.ask input data: the type changed from"),
    "an output that may be null": ({"reply": REPLY | {"score": (float | None, ...)}}, "demo.ask output score: the"),
    "bytes that became text": ({"ask": ASK | {"data": (str | None, None)}}, "demo.ask input data: the type changed"),
    "a removed input value": ({"ask": ASK | {"mode": (Literal["a"], "a")}}, "demo.ask input mode: the value 'b' is"),
    "a removed output value": ({"reply": REPLY | {"status": (Literal["on"], ...)}}, "demo.ask output status: the"),
    "an output of any text": ({"reply": REPLY | {"status": (str, ...)}}, "demo.ask output status: may be anything now"),
    "text of few values": ({"ask": ASK | {"text": (Literal["x"], ...)}}, "demo.ask input text: takes only ['x'] now"),
    "a lower limit": ({"ask": ASK | {"limit": (int, Field(5, ge=1, le=9))}}, "demo.ask input limit: maximum is 9 now"),
    "a pattern": ({"ask": ASK | {"text": (Annotated[str, Field(pattern="x")], ...)}}, "demo.ask input text: must"),
    "a removed field of an event": ({"told": {}}, "demo.done event count: is gone"),
    "a removed operation": ({"operation": "tell"}, "demo.ask: the operation is gone"),
    "a removed route": ({"http": ()}, "demo.ask: the route GET /api/v1/demo/{text} is gone"),
    "no route at all": ({"public": False}, "demo.ask: the route POST /api/v1/demo/ask is gone"),
    "no job": ({"job": False}, "demo.ask: is no longer to be had as a job"),
    "a job by default": ({"long": True}, "demo.ask: answers 202 with a job by default now"),
    "another message": ({"name": "Question"}, "demo.ask input: is the message Question now, not Ask"),
    "another form in protobuf": (
        {"ask": ASK | {"limit": (float, 5.0)}}, "protobuf demo.Ask limit: `optional int64 limit` = 4 is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_a_break_is_found_with_its_operation_and_field(what: str) -> None:
    changed, expected = BREAKS[what]
    assert any(line.startswith(expected) for line in found(**changed)), found(**changed)


def test_a_changed_number_is_a_break() -> None:
    reply = OLD.lock["demo.Reply"]
    moved = OLD.lock | {"demo.Reply": reply | {"2": reply["1"], "1": reply["2"]}}
    assert breaks.breaks(OLD, Surface(OLD.document, moved)) == [
        "protobuf demo.Reply status: its number 1 is that of `optional double score` now",
        "protobuf demo.Reply score: its number 2 is that of `optional string status` now",
    ]
    fresh = surface(without(ASK, "old"))  # numbered anew instead of going on
    assert any("is no longer kept" in line for line in breaks.breaks(OLD, Surface(OLD.document, fresh.lock)))


def test_what_old_clients_need_not_notice_is_no_break() -> None:
    wider: Fields = {
        "text": (str, ""),
        "mode": (Literal["a", "b", "c"], "b"),
        "limit": (int, Field(5, ge=0, le=100)),
        "new": (dict[str, int] | None, None),
    }
    told = found(
        ask=ASK | wider,
        reply=REPLY | {"status": (Literal["on", "off", "later"], ...), "more": (str, "")},
        http=(*CALL["http"], "GET /api/v1/demo"),
        chunk=made("Chunk", {"text": (str, "")}),
        summary="Ask",
    )
    assert told == []


def test_a_number_is_never_used_twice() -> None:
    removed = surface(without(ASK, "old"), lock=OLD.lock)
    again = surface(ASK, lock=removed.lock)
    numbers = [{text: number for number, text in each.lock["demo.Ask"].items()} for each in (OLD, removed, again)]
    was = numbers[0]["optional string old"]
    assert numbers[1]["reserved old"] == numbers[2]["reserved old"] == was
    assert int(numbers[2]["optional string old"]) > max(map(int, numbers[0].values()))


def test_what_the_last_release_promised_still_holds() -> None:
    broken = breaks.breaks(breaks.committed(breaks.RELEASED), breaks.committed())
    meant = breaks.meant()
    unmeant, stale = [line for line in broken if line not in meant], sorted(meant.keys() - set(broken))
    assert not unmeant, "\n".join([f"mend it, or say why it is meant in {breaks.MEANT.name}:", *unmeant])
    assert not stale, "\n".join([f"{breaks.MEANT.name} names breaks that are none:", *stale])
    assert all(reason.strip() for reason in meant.values())
