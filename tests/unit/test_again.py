"""Which jobs a pattern means, and how a message is changed before it is sent again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import codec
from cli import given
from cli.main import app
from codec import headers as h
from subjects import gateway, grammar
from subjects.contract import Code, Fault
from workers.jobs.again import changed, contract_of, headers_again

CHAT = gateway.Generate.model_validate({"messages": [{"role": "user", "content": "Hello"}], "model": "a"})


@pytest.mark.parametrize(
    ("said", "filters"),
    [
        ("rag.ingest", ["job.acme.rag.ingest", "job.acme.rag.ingest.>"]),
        ("job.acme.rag.ingest.>", ["job.acme.rag.ingest", "job.acme.rag.ingest.>"]),
        ("rag.*", ["job.acme.rag.>"]),
        ("rag", ["job.acme.rag.>"]),
        ("*", ["job.acme.*.>"]),
        ("job.acme.>", ["job.acme.*.>"]),
        ("job.acme.rag.>", ["job.acme.rag.>"]),
        ("job.acme.*.ingest.>", ["job.acme.*.ingest", "job.acme.*.ingest.>"]),
        ("job.acme.*.*.j1", ["job.acme.*.*.j1", "job.acme.*.*.j1.>"]),
        ("job.acme.rag.ingest.j1", ["job.acme.rag.ingest.j1", "job.acme.rag.ingest.j1.>"]),
    ],
)
def test_a_pattern_means_these_subjects(said: str, filters: list[str]) -> None:
    assert grammar.job_pattern("acme", said).filters("acme") == filters


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("job.other.rag.>", Code.FORBIDDEN),
        ("job.*.rag.>", Code.FORBIDDEN),
        ("job.>", Code.INVALID),
        ("job.acme", Code.INVALID),
        ("evt.acme.rag.>", Code.INVALID),
        ("rag.ingest.>", Code.INVALID),
        (">", Code.INVALID),
        ("rag..ingest", Code.INVALID),
        ("rag ingest", Code.INVALID),
        ("", Code.INVALID),
        ("job.acme.rag.ingest.j1.r1", Code.INVALID),
        ("$JS.API.>", Code.INVALID),
    ],
)
def test_another_pattern_is_refused(said: str, code: Code) -> None:
    with pytest.raises(Fault) as raised:
        grammar.job_pattern("acme", said)
    assert raised.value.code is code


@pytest.mark.parametrize("content_type", [codec.MSGPACK, codec.JSON, codec.PROTOBUF])
def test_a_changed_message_has_the_new_values_and_no_others(content_type: str) -> None:
    changes = {"model": "b", "messages.0.content": "Bye", "metadata.why": "replayed"}
    made = changed(gateway.Generate, codec.encode(CHAT, content_type), content_type, changes)
    assert isinstance(made, gateway.Generate)
    assert made.messages is not None
    assert (made.model, made.messages[0].content, made.metadata) == ("b", "Bye", {"why": "replayed"})
    assert made.messages[0].role == "user"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"modle": "b"}, "modle"),
        ({"messages.1.content": "x"}, "messages.1.content"),
        ({"messages.first": "x"}, "messages.first"),
        ({"model.name": "x"}, "model.name"),
        ({"a..b": 1}, "a..b"),
        ({".".join("x" * 20): 1}, ".".join("x" * 20)),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_a_change_that_fits_no_field_names_it(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(Fault) as raised:
        changed(gateway.Generate, codec.encode(CHAT), codec.MSGPACK, changes)
    assert (raised.value.code, raised.value.errors[0].path) == (Code.INVALID, path)


def test_what_is_sent_again_says_who_asked_and_leaves_behind_what_has_ended() -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    was = {
        h.TENANT: "acme", h.USER: "ann", h.SCOPES: "rag.*", h.CORRELATION_ID: "c", h.REQUEST_ID: "r", h.DEADLINE: "1",
        h.REPLY_TO: "_INBOX.a", h.TRACEPARENT: trace, h.TRACESTATE: "x=y", h.DEAD_CODE: "TIMEOUT", "Nats-Sequence": "7",
        "nats-rollup": "all", h.BODY_DIGEST: "d", "X-Other": "kept",
    }  # fmt: skip
    again = headers_again(was)
    assert again.pop(h.REQUEST_ID) != "r"
    assert again.pop(h.TRACEPARENT) != trace
    assert again == {
        h.TENANT: "acme", h.USER: "ann", h.SCOPES: "rag.*", h.CORRELATION_ID: "c", h.BODY_DIGEST: "d",
        "X-Other": "kept", h.ORIGINAL_TRACEPARENT: trace,
    }  # fmt: skip


def test_a_contract_is_found_for_jobs_and_for_deliveries_of_events() -> None:
    ingest, heard = contract_of("rag", "ingest"), contract_of("rag", "gateway-completed")
    assert ingest is not None
    assert (ingest.kind, ingest.scope) == ("job", "rag.ingest")
    assert heard is None or (heard.kind, heard.scope) == ("event", None)
    assert contract_of("rag", "nothing") is None
    assert contract_of("jobs", "get") is None  # never a job


def test_moments_ranges_and_changes_are_read_as_people_write_them() -> None:
    ago = datetime.now(UTC) - given.moment("2h", "--since")
    assert timedelta(hours=1, minutes=59) < ago < timedelta(hours=2, minutes=1)
    assert given.moment("2026-01-31", "--since") == datetime(2026, 1, 31, tzinfo=UTC)
    assert given.moment("2026-01-31T12:00+02:00", "--since") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert given.sequences("5:9") == {"first_sequence": 5, "last_sequence": 9}
    assert given.sequences("5:") == {"first_sequence": 5}
    assert given.changes(["a=1", "b.c=word", "d=null", 'e="7"', "f=x=y"]) == {
        "a": 1, "b.c": "word", "d": None, "e": "7", "f": "x=y",
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("dlq", "purge", "--all"),  # nobody is there to confirm it
        ("dlq", "purge"),
        ("dlq", "redrive", "j1", "--all"),
        ("replay", "-s", "rag.ingest"),
        ("replay", "-s", "rag.ingest", "--seq", "7"),
    ],
)
def test_what_is_not_said_in_full_is_not_done(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("read", "said"),
    [(given.moment, "soon"), (given.moment, "99999999999w"), (given.sequences, "5"), (given.changes, ["=1"]),
     (given.changes, ["a"])],
)  # fmt: skip
def test_what_cannot_be_meant_is_wrong_usage(read: Callable[..., object], said: Any) -> None:
    more = ("--since",) if read is given.moment else ()
    with pytest.raises(typer.BadParameter):
        read(said, *more)
