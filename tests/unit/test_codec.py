"""Laws of the codec: what goes in comes out, whatever else goes in is Fault(INVALID), fast and small."""

from __future__ import annotations

import contextlib
import json
import math
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

import codec
from codec import CONTENT_TYPES, JSON, MSGPACK, headers
from codec.formats import MAX_BYTES
from codec.problem import Problem
from subjects import cache
from subjects.contract import Code, Fault, FieldError, Model

SELF_DESCRIBING = (MSGPACK, JSON)
MAX_S = 0.05
MAX_MEMORY = 50 * 1024 * 1024

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    scalar | text, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=20
)


class Colour(StrEnum):
    RED = "red"


class Inner(Model):
    data: bytes
    when: datetime


class Everything(Model):
    text: str
    number: int
    ratio: float
    flag: bool
    data: bytes
    when: datetime
    ident: UUID
    price: Decimal
    colour: Colour = Colour.RED
    inner: Inner | None = None
    many: list[Inner] = []
    free: JsonValue = None


class Strict(Model):
    number: int = 0
    text: str = ""
    data: bytes = b""
    numbers: list[int] = []
    named: dict[str, str] = {}
    free: JsonValue = None


whens = st.datetimes(timezones=st.just(UTC))
inners = st.builds(Inner, data=st.binary(max_size=40), when=whens)
everything = st.builds(
    Everything,
    text=text,
    number=st.integers(-(2**63), 2**63 - 1),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    data=st.binary(max_size=40),
    when=whens,
    ident=st.uuids(),
    price=st.decimals(allow_nan=False, allow_infinity=False, places=2),
    inner=st.none() | inners,
    many=st.lists(inners, max_size=3),
    free=plain,
)


def read(data: bytes, content_type: str, model: type[Model]) -> None:
    """A message or Fault(INVALID); anything else fails the test."""
    for decode in (
        lambda: codec.decode_plain(data, content_type, model),
        lambda: codec.decode(data, model, content_type),
    ):
        with contextlib.suppress(Fault):
            decode()


def refused(data: bytes, content_type: str | None, model: type[Model] = Strict) -> Fault:
    with pytest.raises(Fault) as caught:
        codec.decode(data, model, content_type)
    assert caught.value.code is Code.INVALID
    return caught.value


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@given(message=everything)
@settings(deadline=None, max_examples=60)
def test_what_is_encoded_decodes_to_the_same(content_type: str, message: Everything) -> None:
    assert codec.decode(codec.encode(message, content_type), Everything, content_type) == message


@pytest.mark.parametrize("content_type", SELF_DESCRIBING)
@given(value=plain)
@settings(deadline=None, max_examples=60)
def test_plain_values_come_back(content_type: str, value: Any) -> None:
    assert codec.decode_plain(codec.encode_plain(value, content_type), content_type) == value


@given(message=everything)
@settings(deadline=None, max_examples=30)
def test_the_digest_does_not_depend_on_the_format(message: Everything) -> None:
    digests = {codec.digest(codec.decode(codec.encode(message, each), Everything, each)) for each in CONTENT_TYPES}
    assert len(digests) == 1


def test_the_digest_leaves_out_unset_fields_and_key_order() -> None:
    assert codec.digest(Strict(number=1)) == codec.digest(codec.decode(b'{"number":1,"new":2}', Strict, JSON))
    assert codec.digest(Strict(number=0)) != codec.digest(Strict())
    one, other = (codec.decode(each, Strict, JSON) for each in (b'{"free":{"a":1,"b":2}}', b'{"free":{"b":2,"a":1}}'))
    assert codec.digest(one) == codec.digest(other)
    for body in (b'{"numbers":[],"named":{},"free":null}', b"{}"):  # what protobuf cannot say
        assert codec.digest(codec.decode(body, Strict, JSON)) == codec.digest(Strict())
    assert codec.digest(Strict(free=[])) != codec.digest(Strict()) != codec.digest(Strict(free={"a": None}))


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_message_or_invalid(content_type: str, data: bytes) -> None:
    read(data, content_type, Everything)


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@given(message=everything)
@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
def test_truncation_and_bit_flips_at_every_offset_are_a_message_or_invalid(
    content_type: str, message: Everything
) -> None:
    data = codec.encode(message, content_type)
    damaged = [data[:cut] for cut in range(len(data))]
    damaged += [
        data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)
    ]
    for each in damaged:
        read(each, content_type, Everything)


def nested_json(depth: int) -> bytes:
    return b'{"free":' + b"[" * depth + b"]" * depth + b"}"


def slowness() -> float:
    """How many times slower this machine is just now than one that builds 100,000 lists in 5 ms."""
    started = time.thread_time()
    built: list[list[None]] = [[] for _ in range(100_000)]
    return (time.thread_time() - started) / 0.005 if built else 1.0


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", MSGPACK),
    "empty json": (b"", JSON),
    "4 G array": (b"\xdd\xff\xff\xff\xff", MSGPACK),
    "4 G map": (b"\xdf\xff\xff\xff\xff", MSGPACK),
    "4 G text": (b"\xdb\xff\xff\xff\xff", MSGPACK),
    "4 G bytes": (b"\xc6\xff\xff\xff\xff", MSGPACK),
    "nested 100,000 claims": (b"\xdd\x00\x01\x86\x9f" * 209_000, MSGPACK),
    "nested small claims": (b"\xdc\x0f\xff" * 1365, MSGPACK),
    "nested 64 K claims": (b"\xdc\xff\xff" * 349_000, MSGPACK),
    "depth 10,000": (b"\x91" * 10_000 + b"\xc0", MSGPACK),
    "depth 33": (b"\x81\xa4free" + b"\x91" * 32 + b"\xc0", MSGPACK),
    "depth 10,000 json": (nested_json(10_000), JSON),
    "depth 500,000 json": (b"[" * 500_000, JSON),
    "depth 33 json": (nested_json(32), JSON),
    "1 M empty maps": (b"\xdd\x00\x0f\xff\xf0" + b"\x80" * 0xFFFF0, MSGPACK),
    "1 M empty maps in 11 arrays": ((b"\x9b" + (b"\xdd\x00\x01\x70\x00" + b"\x80" * 0x17000) * 11), MSGPACK),
    "1 M empty lists in 11 arrays": ((b"\x9b" + (b"\xdd\x00\x01\x70\x00" + b"\x90" * 0x17000) * 11), MSGPACK),
    "350 K empty maps json": (b"[" + b"{}," * 349_000 + b"{}]", JSON),
    "200 K pairs of lists json": (b"[" + b"[[]]," * 200_000 + b"0]", JSON),
    "500 K numbers json": (b'{"numbers":[' + b"1," * 500_000 + b"1]}", JSON),
    "150 K bad fields": (b'{"numbers":[' + b'"x",' * 99_000 + b"1]}", JSON),
    "wide map": (
        b"\xdf\x00\x01\x80\x00" + b"".join(msgpack.packb(f"{n}") + b"\x91\xc0" for n in range(98_304)),
        MSGPACK,
    ),
    "quotes without end json": (b'"' + b'\\"' * 500_000, JSON),
    "commas and quotes json": (b'[",",' * 200_000, JSON),
    "long number json": (b'{"number":' + b"1" * 1_000_000 + b"}", JSON),
    "many long numbers json": (b'{"numbers":[' + (b"1" * 4000 + b",") * 250 + b"1]}", JSON),
    "over 1 MiB": (b"\xc6\x00\x10\x00\x00" + b"x" * MAX_BYTES, MSGPACK),
    "over 1 MiB json": (b'"' + b"x" * MAX_BYTES + b'"', JSON),
    "ext": (msgpack.packb({"free": msgpack.ExtType(5, b"x")}), MSGPACK),
    "timestamp ext": (msgpack.packb({"free": msgpack.Timestamp(1, 1)}), MSGPACK),
    "integer key": (msgpack.packb({1: 2}), MSGPACK),
    "bytes key": (msgpack.packb({"free": {b"k": 2}}), MSGPACK),
    "nil key": (b"\x81\xc0\x01", MSGPACK),
    "duplicate key": (b"\x82\xa6number\x01\xa6number\x02", MSGPACK),
    "duplicate key json": (b'{"number":1,"number":2}', JSON),
    "duplicate nested key json": (b'{"free":{"a":1,"a":2}}', JSON),
    "trailing bytes": (msgpack.packb({}) + b"\xc0", MSGPACK),
    "trailing bytes json": (b"{} {}", JSON),
    "never used byte": (b"\xc1", MSGPACK),
    "nan": (msgpack.packb({"free": math.nan}), MSGPACK),
    "infinity": (msgpack.packb({"free": [math.inf]}), MSGPACK),
    "nan json": (b'{"free":NaN}', JSON),
    "infinity json": (b'{"free":-Infinity}', JSON),
    "1e999 json": (b'{"free":1e999}', JSON),
    "2^64-1": (msgpack.packb({"free": 2**64 - 1}), MSGPACK),
    "2^63": (msgpack.packb({"number": 2**63}), MSGPACK),
    "2^64 json": (b'{"free":18446744073709551616}', JSON),
    "-2^63-1 json": (b'{"free":-9223372036854775809}', JSON),
    "2^64 as text json": (b'{"number":"18446744073709551616"}', JSON),
    "2^64 as text": (msgpack.packb({"number": "18446744073709551616"}), MSGPACK),
    "2^64 as float": (msgpack.packb({"number": 2.0**64}), MSGPACK),
    "2^64 as float json": (b'{"number":18446744073709551616.0}', JSON),
    "lone surrogate json": (b'{"free":"\\ud800"}', JSON),
    "lone surrogate key json": (b'{"free":{"\\udfff":1}}', JSON),
    "raw surrogate": (b"\xa3\xed\xa0\x80", MSGPACK),
    "raw surrogate json": (b'{"free":"\xed\xa0\x80"}', JSON),
    "nul": (msgpack.packb({"text": "a\0b"}), MSGPACK),
    "nul in key": (msgpack.packb({"free": {"a\0": 1}}), MSGPACK),
    "nul json": (b'{"text":"a\\u0000b"}', JSON),
    "nul as bytes for text": (msgpack.packb({"text": b"a\0b"}), MSGPACK),
    "raw nul json": (b'{"text":"a\0b"}', JSON),
    "byte order mark": (b"\xef\xbb\xbf{}", JSON),
    "utf-16": ('{"text":"x"}'.encode("utf-16"), JSON),
    "not an object": (b"[]", JSON),
    "not a map": (b"\x01", MSGPACK),
    "bad base64": (b'{"data":"***"}', JSON),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_invalid_fast_and_small(name: str) -> None:
    data, content_type = HOSTILE[name]
    best, allowed = math.inf, MAX_S
    for _ in range(8):
        started = time.thread_time()
        refused(data, content_type)
        best = min(best, time.thread_time() - started)
        if best < MAX_S:
            break
        allowed = max(allowed, MAX_S * slowness())
    assert best < allowed
    tracemalloc.start()
    try:
        refused(data, content_type)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


def test_what_stands_just_inside_the_limits_is_read() -> None:
    assert codec.decode_plain(nested_json(31), JSON)
    assert codec.decode(b"\x81\xa4free" + b"\x91" * 31 + b"\xc0", Strict)
    assert len(codec.decode_plain(json.dumps([1] * 99_000).encode(), JSON)) == 99_000
    assert len(codec.decode_plain(msgpack.packb([[]] * 99_000))) == 99_000
    assert codec.decode_plain(b'"' + b"," * 1_000_000 + b'"', JSON) == "," * 1_000_000
    assert codec.decode_plain(b"[9223372036854775807,-9223372036854775808,1e308]", JSON)[0] == 2**63 - 1
    assert codec.decode_plain(b'"\\\\u0000 \\ud83d\\ude00"', JSON) == "\\u0000 \U0001f600"


def test_bytes_are_bin_in_msgpack_and_standard_base64_in_json() -> None:
    message = Inner(data=b"\xfb\xff\xfe", when=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))))
    assert msgpack.unpackb(codec.encode(message)) == {"data": b"\xfb\xff\xfe", "when": "2026-01-02T01:04:05Z"}
    assert json.loads(codec.encode(message, JSON)) == {"data": "+//+", "when": "2026-01-02T01:04:05Z"}


@pytest.mark.parametrize("spelling", ["+//+", "-__-", "+__-"])
def test_both_base64_alphabets_are_read_also_inside_models(spelling: str) -> None:
    if spelling == "+__-":
        refused(json.dumps({"data": spelling}).encode(), JSON)
        return
    body = {"data": spelling, "when": "2026-01-02T01:04:05Z"}
    assert codec.decode(json.dumps(body).encode(), Inner, JSON).data == b"\xfb\xff\xfe"
    assert codec.decode(json.dumps({"bytes": spelling, "key": "k"}).encode(), cache.Set, JSON).bytes == b"\xfb\xff\xfe"


def test_every_bad_field_is_named_and_its_value_is_not_repeated() -> None:
    fault = refused(b'{"number":"canary-4711","numbers":[1,"x"]}', JSON)
    assert {each.path for each in fault.errors} == {"number", "numbers.1"}
    assert "canary-4711" not in repr((fault.detail, fault.errors))


def test_unknown_fields_are_ignored_and_unknown_content_types_refused() -> None:
    assert codec.decode(b'{"number":3,"later":[1]}', Strict, "application/json; charset=utf-8").number == 3
    refused(b"{}", "text/plain")
    refused(b"{}", "")


def test_a_message_that_cannot_be_written_is_invalid() -> None:
    for value in ({"a": "\ud800"}, {"a": 2**70}, {"a": object()}):
        for content_type in SELF_DESCRIBING:
            if value == {"a": 2**70} and content_type == JSON:
                continue
            with pytest.raises(Fault):
                codec.encode_plain(value, content_type)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/msgpack", MSGPACK),
        ("text/html, application/msgpack;q=0.9, application/json;q=0.5", MSGPACK),
        ("application/msgpack;q=0", JSON),
        ("application/msgpack;q=x", JSON),
        ("image/png", JSON),
    ],
)
def test_accept_chooses_the_format_of_the_reply(accept: str | None, expected: str) -> None:
    assert codec.negotiate(accept, JSON) == expected


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("code", list(Code))
def test_a_fault_survives_the_wire(code: Code, content_type: str) -> None:
    fault = Fault(code, "line one\nline two ä", errors=[FieldError(path="a.b", message="bad")], retry_after_s=3)
    sent, body = codec.fault_reply(fault, content_type, "r1", "c1")
    assert all(value.isprintable() and value.isascii() for value in sent.values())
    back = codec.fault_from(sent, body)
    assert back is not None
    assert (back.code, back.detail, back.errors, back.retry_after_s) == (code, fault.detail, fault.errors, 3)
    problem = codec.decode(body, Problem, content_type)
    assert (problem.status, problem.retryable, problem.request_id) == (code.http, code.retryable, "r1")


def test_a_reply_without_the_error_header_is_no_fault() -> None:
    assert codec.fault_from(None, b"") is None
    assert codec.fault_from({headers.CONTENT_TYPE: JSON}, b"{}") is None


@given(code=st.text(max_size=10), detail=st.text(max_size=300), body=st.binary(max_size=100), kind=st.text(max_size=20))
@settings(deadline=None, max_examples=100)
def test_a_garbled_failure_is_still_a_fault(code: str, detail: str, body: bytes, kind: str) -> None:
    sent = {headers.ERROR_CODE: code, headers.ERROR: detail, headers.CONTENT_TYPE: kind, headers.RETRY_AFTER: code}
    assert isinstance(codec.fault_from(sent, body), Fault)
    numbered = codec.fault_from({headers.ERROR_CODE: "404"}, b"")
    assert numbered is not None
    assert numbered.code is Code.NOT_FOUND


def test_a_uuid_is_text() -> None:
    ident = uuid4()
    assert codec.decode_plain(codec.encode_plain({"id": ident, "price": Decimal("1.50")})) == {
        "id": str(ident),
        "price": "1.50",
    }
