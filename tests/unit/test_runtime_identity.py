"""Identity: what travels with each message, and what is refused on the way."""

from __future__ import annotations

import time

import pytest

from codec import headers as h
from runtime import tracing
from runtime.identity import Identity
from subjects.contract import Code, Fault

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = TRACE[:36] + "1" * 16 + "-01"


def test_what_is_sent_is_what_is_read() -> None:
    sent = Identity.new(
        "acme", "bob", frozenset({"rag.*", "cache.get"}), tracestate="a=b", traceparent=TRACE, timeout_s=5
    )
    read = Identity.from_message("acme", sent.headers())
    assert read == sent


@pytest.mark.parametrize("claimed", ["other", "", "ACME", "acme "])
def test_another_tenant_than_the_subjects_is_forbidden(claimed: str) -> None:
    with pytest.raises(Fault) as raised:
        Identity.from_message("acme", {h.TENANT: claimed})
    assert raised.value.code is Code.FORBIDDEN


def test_a_bare_message_gets_ids_and_may_do_everything() -> None:
    made = Identity.from_message("acme", None)
    assert made.correlation_id
    assert made.request_id
    assert made.allows("rag.query")


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [({"*"}, True), ({"rag.*"}, True), ({"rag.query"}, True), ({"rag"}, False), ({"cache.*"}, False), (set(), False),
     ({"rag.que"}, False), ({"ra.*"}, False)],
)  # fmt: skip
def test_a_scope_is_held_or_contained(scopes: set[str], allowed: bool) -> None:
    assert Identity.new("acme", scopes=frozenset(scopes)).allows("rag.query") is allowed


def test_empty_scopes_on_the_wire_are_none() -> None:
    assert not Identity.from_message("acme", {h.SCOPES: ""}).allows("rag.query")


@pytest.mark.parametrize("tenant", ["", "*", ">", "a.b", "A", "a b", "a" * 64, "а"])  # the last is Cyrillic
def test_a_tenant_must_be_a_token(tenant: str) -> None:
    with pytest.raises(Fault) as raised:
        Identity.new(tenant)
    assert raised.value.code is Code.INVALID


@pytest.mark.parametrize("name", [h.USER, h.CORRELATION_ID, h.REQUEST_ID])
@pytest.mark.parametrize("value", ["a\nb", "x" * 257, "\x1b[31m"])
def test_an_id_that_could_break_a_log_line_is_invalid(name: str, value: str) -> None:
    with pytest.raises(Fault) as raised:
        Identity.from_message("acme", {name: value})
    assert raised.value.code is Code.INVALID


@pytest.mark.parametrize("deadline", ["", "soon", "-1", "1e9", "9" * 30, "\u0663"])
def test_a_deadline_is_unix_milliseconds(deadline: str) -> None:
    with pytest.raises(Fault) as raised:
        Identity.from_message("acme", {h.DEADLINE: deadline})
    assert raised.value.code is Code.INVALID


def test_a_deadline_is_only_ever_shortened() -> None:
    near = Identity.new("acme").with_deadline(1)
    assert near.with_deadline(100).deadline_ms == near.deadline_ms
    assert near.with_deadline(0.1).remaining_s(60) < 0.2
    assert Identity.new("acme").remaining_s(60) == 60
    assert near.deadline_ms is not None
    assert abs(near.deadline_ms / 1000 - time.time() - 1) < 0.1


def test_the_next_message_belongs_to_the_same_action() -> None:
    one = Identity.new("acme", traceparent=TRACE)
    two = one.next_message()
    assert (two.correlation_id, two.tenant) == (one.correlation_id, one.tenant)
    assert two.request_id != one.request_id
    assert two.traceparent == TRACE
    assert one.next_message(OTHER).traceparent == OTHER


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "00",
        TRACE.upper(),
        "01" + TRACE[2:],
        TRACE + "-x",
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
    ],
)
def test_a_bad_trace_is_begun_anew(trace: str) -> None:
    assert tracing.valid_traceparent(trace) is None
    assert tracing.valid_traceparent(Identity.new("acme", traceparent=trace).traceparent) is not None
    assert Identity.from_message("acme", {h.TRACEPARENT: trace, h.TRACESTATE: "a=b"}).tracestate is None
