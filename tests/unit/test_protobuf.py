"""Laws of protobuf: the same messages as in the other formats, in the forms that wire.md gives them, from any bytes."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import time
import tracemalloc
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, JsonValue

import codec
from codec import JSON, MSGPACK, PROTOBUF, fieldlock, shapes
from codec.formats import MAX_BYTES
from subjects import cache, gateway, rag
from subjects.contract import Code, Fault, FieldError, Model
from tests.unit.test_codec import MAX_MEMORY, MAX_S, inners, plain, read, slowness, text
from tests.unit.test_codec import Everything as Scalars
from tests.unit.test_codec import everything as scalars


class Cat(Model):
    kind: Literal["cat", "kitten"] = "cat"
    lives: int = 9


class Dog(Model):
    kind: Literal["dog"] = "dog"
    name: str | None = None


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Forms(Model):
    """Every form that a contract may have."""

    scalars: Scalars | None = None
    words: list[str] = []
    numbers: list[float] = []
    vectors: list[list[float]] = []
    gaps: list[int | None] = []
    maybe: list[str] | None = None
    maybe_map: dict[str, int] | None = None
    named: dict[str, str] = {}
    pets_by_name: dict[str, Pet] = {}
    lists: dict[str, list[bytes]] = {}
    pet: Pet | None = None
    pets: list[Pet] = []
    text_or_pets: str | list[Pet] = ""
    count_or_flag: int | bool | None = None
    free: JsonValue = None
    record: dict[str, JsonValue] = {}
    records: list[dict[str, JsonValue]] = []
    anything: list[JsonValue] = []
    number: Literal[1, 2] = 1
    required: str | None
    some: list[Cat]
    tree: Forms | None = None


number = st.integers(-(2**63), 2**63 - 1)
ratio = st.floats(allow_nan=False, allow_infinity=False)
words = st.lists(text, max_size=3)
pets = st.builds(Cat, lives=number, kind=st.sampled_from(["cat", "kitten"])) | st.builds(Dog, name=st.none() | text)
records = st.dictionaries(text, plain, max_size=3)
forms = st.builds(
    Forms,
    scalars=st.none() | scalars,
    words=words,
    numbers=st.lists(ratio, max_size=3),
    vectors=st.lists(st.lists(ratio, max_size=3), max_size=3),
    gaps=st.lists(st.none() | number, max_size=3),
    maybe=st.none() | words,
    maybe_map=st.none() | st.dictionaries(text, number, max_size=2),
    named=st.dictionaries(text, text, max_size=2),
    pets_by_name=st.dictionaries(text, pets, max_size=2),
    lists=st.dictionaries(text, st.lists(st.binary(max_size=9), max_size=3), max_size=2),
    pet=st.none() | pets,
    pets=st.lists(pets, max_size=3),
    text_or_pets=text | st.lists(pets, max_size=2),
    count_or_flag=st.none() | number | st.booleans(),
    free=plain,
    record=records,
    records=st.lists(records, max_size=2),
    anything=st.lists(plain, max_size=2),
    required=st.none() | text,
    some=st.lists(st.builds(Cat), max_size=2),
    tree=st.none() | st.builds(Forms, required=text, some=st.just([]), scalars=st.builds(Scalars, **{
        "text": text, "number": number, "ratio": ratio, "flag": st.booleans(), "data": st.binary(max_size=9),
        "when": st.just(datetime(2026, 1, 2, tzinfo=UTC)), "ident": st.just(uuid4()), "price": st.just(1),
        "many": st.lists(inners, max_size=1),
    })),
)  # fmt: skip


def refused(data: bytes, model: type[Model] = Forms) -> Fault:
    with pytest.raises(Fault) as caught:
        codec.decode(data, model, PROTOBUF)
    assert caught.value.code is Code.INVALID
    return caught.value


@given(message=forms)
@settings(deadline=None, max_examples=40)
def test_every_form_comes_back_and_has_one_digest_in_all_formats(message: Forms) -> None:
    read = [codec.decode(codec.encode(message, each), Forms, each) for each in (MSGPACK, JSON, PROTOBUF)]
    assert read == [message] * 3
    assert len(set(map(codec.digest, read))) == 1


@given(message=forms)
@settings(deadline=None, max_examples=2)
def test_damaged_at_every_offset_it_is_a_message_or_invalid(message: Forms) -> None:
    data = codec.encode(message, PROTOBUF)[:600]
    damaged = [data[:cut] for cut in range(len(data))]
    damaged += [
        data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)
    ]
    for each in damaged:
        read(each, PROTOBUF, Forms)


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_message_or_invalid(data: bytes) -> None:
    for model in (Forms, cache.Set, gateway.Generate):
        read(data, PROTOBUF, model)


def tag(model: type[Model], name: str) -> int:
    return fieldlock.numbers(shapes.message_of(model), fieldlock.committed())[name]


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(model: type[Model], name: str, data: bytes) -> bytes:
    """A field of wire type 2."""
    return varint(tag(model, name) << 3 | 2) + varint(len(data)) + data


def choice(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def deep(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = field(Forms, "tree", data)
    return data


MIB = MAX_BYTES - 16
NAN, INFINITY = struct.pack("<d", math.nan), struct.pack("<d", math.inf)
HOSTILE: dict[str, bytes] = {
    "a length of 4 G": field(Forms, "words", b"")[:-1] + b"\xff\xff\xff\xff\x0f",
    "a length of 2^63": field(Forms, "words", b"")[:-1] + b"\xff" * 9 + b"\x7f",
    "a length beyond the end": field(Forms, "words", b"x")[:-1],
    "a tag that never ends": b"\xff" * MIB,
    "field number 0": b"\x02\x00",
    "a group without end": b"\x1b" * MIB,
    "an end without group": b"\x1c",
    "500 K empty words": field(Forms, "words", b"") * (MIB // 2),
    "500 K empty messages": field(Forms, "some", b"") * (MIB // 2),
    "300 K empty messages in a choice": field(Forms, "pets", b"") * (MIB // 3),
    "150 K small messages": field(Forms, "some", b"\x10\x01") * 150_000,
    "100 K small messages": field(Forms, "some", b"\x10\x01") * 100_000,
    "14 K small messages and a bad field": field(Forms, "some", b"\x10\x01") * 14_000
    + varint(tag(Forms, "number") << 3) + b"\x07",
    "1 M numbers": field(Forms, "gaps", b"\x08\x01") * 250_000,
    "130 K floats, one of them NaN": field(Forms, "numbers", b"\0" * 8 * 90_000 + NAN),
    "200 K keys": b"".join(field(Forms, "named", choice(1, b"%x" % n)) for n in range(100_000)),
    "20 K keys": b"".join(field(Forms, "named", choice(1, b"%x" % n)) for n in range(20_000)),
    "depth 33": deep(33),
    "depth 10,000": deep(10_000),
    "depth 33 of JSON": field(Forms, "free", b"[" * 32 + b"]" * 32),
    "depth 500,000 of JSON": field(Forms, "free", b"[" * 500_000),
    "350 K empty maps of JSON": field(Forms, "free", b"[" + b"{}," * 349_000 + b"{}]"),
    "20 lists of JSON with 10,000 lists each": field(Forms, "anything", b"[" + b"[]," * 10_000 + b"0]") * 20,
    "20 wide maps of JSON": field(Forms, "records", b'{"a":[' + b"[]," * 10_000 + b"0]}") * 20,
    "JSON that is none": field(Forms, "free", b"nope"),
    "empty JSON": field(Forms, "free", b""),
    "NaN of JSON": field(Forms, "free", b"NaN"),
    "2^64 of JSON": field(Forms, "free", b"18446744073709551616"),
    "a lone surrogate of JSON": field(Forms, "free", b'"\\ud800"'),
    "a key twice in JSON": field(Forms, "record", b'{"a":1,"a":2}'),
    "a list for a map of JSON": field(Forms, "record", b"[]"),
    "NUL of JSON": field(Forms, "free", b'"a\\u0000"'),
    "NUL": field(Forms, "required", b"a\0"),
    "NUL in a list": field(Forms, "words", b"a\0"),
    "NUL in a key": field(Forms, "named", choice(1, b"a\0")),
    "a raw surrogate": field(Forms, "required", b"\xed\xa0\x80"),
    "no UTF-8": field(Forms, "words", b"\xff"),
    "no UTF-8 in a key": field(Forms, "named", choice(1, b"\xff")),
    "NaN": field(Forms, "numbers", NAN),
    "infinity": field(Forms, "numbers", struct.pack("<d", 1.0) + INFINITY),
    "an unknown value of a literal": varint(tag(Forms, "number") << 3) + b"\x07",
    "a choice that says another kind": field(Forms, "pet", choice(1, choice(1, b"dog"))),
    "a choice of nothing": field(Forms, "pets", b""),
    "over 1 MiB": field(Forms, "words", b"x" * MAX_BYTES),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_invalid_fast_and_small(name: str) -> None:
    data = HOSTILE[name]
    best, allowed = math.inf, MAX_S
    for _ in range(8):
        started = time.thread_time()
        refused(data)
        best = min(best, time.thread_time() - started)
        if best < MAX_S:
            break
        allowed = max(allowed, MAX_S * slowness())
    assert best < allowed
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


def test_unknown_fields_and_other_wire_types_are_skipped_and_the_last_of_two_counts() -> None:
    key = tag(cache.Get, "key")
    unknown = choice(5000, b"later") + varint(key << 3) + b"\x07"
    said = unknown + field(cache.Get, "key", b"one") + field(cache.Get, "key", b"two")
    assert codec.decode(said, cache.Get, PROTOBUF) == cache.Get(key="two")
    assert [each.path for each in refused(unknown, cache.Get).errors] == ["key"]


def test_the_contract_is_as_strict_as_in_the_other_formats() -> None:
    for model, body in (
        (cache.Set, {"key": "", "value": 1}),
        (rag.Query, {"question": "x", "top_k": 51}),
        (gateway.Generate, {"messages": [{"role": "nobody"}]}),
    ):
        found = [
            [(each.path, each.message) for each in refused_in(kind, codec.encode_plain(body, kind, model), model)]
            for kind in (MSGPACK, JSON, PROTOBUF)
        ]
        assert found[0] == found[1] == found[2] != []


def refused_in(kind: str, data: bytes, model: type[Model]) -> list[FieldError]:
    with pytest.raises(Fault) as caught:
        codec.decode(data, model, kind)
    return list(caught.value.errors)


def test_without_the_contract_nothing_is_read_or_written() -> None:
    for work in (lambda: codec.decode_plain(b"", PROTOBUF), lambda: codec.encode_plain({}, PROTOBUF)):
        with pytest.raises(Fault) as caught:
            work()
        assert caught.value.code is Code.INVALID


def test_what_the_wire_cannot_carry_is_invalid() -> None:
    unfit: list[Any] = [
        {"key": "\ud800"},
        {"key": 1},
        {"ttl_s": 2**70},
        {"value": {"a": "\ud800"}},
        {"bytes": "text"},
        [],
    ]
    for wrong in unfit:
        with pytest.raises(Fault) as caught:
            codec.encode_plain(wrong, PROTOBUF, cache.Set)
        assert caught.value.code is Code.INVALID


def test_a_field_that_is_not_locked_yet_goes_behind_those_that_are() -> None:
    message = shapes.message_of(Dog)
    lock = {message.name: {"1": "reserved kind", "4": "optional string name", "5": "reserved colour"}}
    assert fieldlock.numbers(message, lock) == {"kind": 6, "name": 4}
    assert fieldlock.updated(lock, [message])[message.name] == {
        "1": "reserved kind", "4": "optional string name", "5": "reserved colour", "6": "optional string kind",
    }  # fmt: skip


def test_who_never_meets_protobuf_does_not_load_it() -> None:
    check = "import sys, codec, codec.messages; sys.exit('google.protobuf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
