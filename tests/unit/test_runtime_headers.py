"""Header blocks and job ids: built so that nothing can be smuggled in, read within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import headers, jobs
from subjects.grammar import is_token

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=50), max_size=10))
def test_a_block_gives_back_its_headers_and_no_others(sent: dict[str, str]) -> None:
    assert headers.parse(headers.block(sent)).keys() == sent.keys()


@given(st.dictionaries(NAMES, st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=50), max_size=10))
def test_plain_values_come_back_as_they_were(sent: dict[str, str]) -> None:
    assert headers.parse(headers.block(sent)) == sent


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ä", "a\0"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        headers.block({name: "x"})


def test_a_line_break_in_a_value_begins_nothing() -> None:
    block = headers.block({"A": "b\r\nX-Tenant-ID: other\r\n\r\nPUB x 0\r\n"})
    assert block.count(b"\r\n") == 3
    assert list(headers.parse(block)) == ["A"]


@given(st.binary(max_size=200))
def test_reading_raises_nothing_but_value_error(raw: bytes) -> None:
    for block in (raw, b"NATS/1.0" + raw, b"NATS/1.0\r\n" + raw, b"NATS/1.0 " + raw + b"\r\n\r\n"):
        try:
            found = headers.parse(block)
        except ValueError:
            continue
        assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize(
    "raw",
    [b"", b"abc", b"NATS/1.0", b"NATS/1.0 \xff\r\n\r\n", b"NATS/1.0x\r\n\r\n", b"NATS/1.0\r\n" + b"a:b\r\n" * 600,
     b"NATS/1.0\r\na: " + b"b" * 70_000 + b"\r\n\r\n"],
    ids=["empty", "abc", "version alone", "status not ASCII", "no status", "too many", "too long"],
)  # fmt: skip
def test_what_is_no_block_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|status"):
        headers.parse(raw)


def test_a_status_line_is_read() -> None:
    found = headers.parse(b"NATS/1.0 503 No Responders\r\n\r\n")
    assert found == {headers.STATUS: "503", headers.DESCRIPTION: "No Responders"}
    assert headers.parse(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n")["Nats-Last-Consumer"] == "3"


def test_a_job_id_is_the_hash_of_tenant_operation_and_key() -> None:
    one = jobs.job_id("acme", "rag.ingest", "k")
    assert one == jobs.job_id("acme", "rag.ingest", "k")
    assert is_token(one)
    assert len(one) == 27
    others = [
        ("globex", "rag.ingest", "k"),
        ("acme", "rag.query", "k"),
        ("acme", "rag.ingest", "k2"),
        ("acme", "rag", "ingest\0k"),
    ]
    assert len({one, *(jobs.job_id(*other) for other in others)}) == 5


def test_ids_without_a_key_are_random_tokens() -> None:
    made = {jobs.job_id("acme", "rag.ingest", None) for _ in range(100)} | {jobs.output_id() for _ in range(100)}
    assert len(made) == 200
    assert all(is_token(each) and len(each) == 27 for each in made)
