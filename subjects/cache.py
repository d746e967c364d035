"""cache: a tenant's key-value cache with tags, versions and single flight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from subjects.contract import Call, Event, EventPayload, Model

Key = Annotated[str, Field(min_length=1, max_length=512)]
Tag = Annotated[str, Field(min_length=1, max_length=128)]
TtlS = Annotated[int, Field(ge=1, le=30 * 24 * 3600, description="seconds until the entry is forgotten")]

Bytes = bytes  # a field may be named bytes, which would hide the type

MAX_KEYS_A_CALL = 256
MAX_TAGS = 16
MAX_VALUE_BYTES = 511 * 1024  # encoded; a reply has at most 512 KiB


class Entry(Model):
    """A found entry or the lack of one. Either value (JSON-like) or bytes is set when found."""

    found: bool
    value: JsonValue = None
    bytes: Bytes | None = None
    version: int | None = Field(None, description="grows with every write of this key")
    ttl_s: int | None = Field(None, description="seconds left; absent = no end")


class Get(Model):
    key: Key


class GetMany(Model):
    keys: list[Key] = Field(min_length=1, max_length=MAX_KEYS_A_CALL)


class GetManyResult(Model):
    """One entry for each key, in the order asked."""

    entries: list[Entry]


class Set(Model):
    key: Key
    value: JsonValue = None
    bytes: Bytes | None = None
    ttl_s: TtlS | None = None
    tags: list[Tag] = Field(default=[], max_length=MAX_TAGS)
    if_absent: bool = Field(False, description="write only when the key is not there")
    if_version: int | None = Field(None, ge=0, description="write only when this is the version; 0 = not there")
    lock: str | None = Field(None, max_length=128, description="write only while this lock of get_or_lock still holds")

    @model_validator(mode="after")
    def _one_value(self) -> Set:
        if self.bytes is not None and self.value is not None:
            raise ValueError("give value or bytes, not both")
        return self


class SetResult(Model):
    """written is false when a condition did not hold; version is then the one that stands (0 = none)."""

    written: bool
    version: int


class SetMany(Model):
    entries: list[Set] = Field(min_length=1, max_length=MAX_KEYS_A_CALL)


class SetManyResult(Model):
    results: list[SetResult]


class Delete(Model):
    key: Key


class DeleteResult(Model):
    deleted: bool


class Invalidate(Model):
    """Exactly one of key, prefix, tag and all."""

    key: Key | None = None
    prefix: Key | None = None
    tag: Tag | None = None
    all: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> Invalidate:
        if sum((self.key is not None, self.prefix is not None, self.tag is not None, self.all)) != 1:
            raise ValueError("give exactly one of key, prefix, tag and all")
        return self


class InvalidateResult(Model):
    count: int


class GetOrLock(Model):
    """Single flight: the first caller gets lock and computes, the others wait for its value."""

    key: Key
    lock_s: int = Field(30, ge=1, le=600, description="seconds that the computing caller has")
    wait_s: float = Field(10.0, ge=0, le=25, description="seconds that the others wait")


class GetOrLockResult(Model):
    """state: hit = entry is the value; locked = compute, then set the key with this lock; busy = still being computed.

    A lock ends with its time, with any write or delete of the key, and with every invalidate that may mean the key: a
    value computed from what was invalidated meanwhile is not written.
    """

    state: Literal["hit", "locked", "busy"]
    entry: Entry
    lock: str | None = None


class StatsRequest(Model):
    pass


class Stats(Model):
    hits: int
    misses: int
    keys: int
    bytes: int
    max_keys: int
    max_bytes: int


class Invalidated(EventPayload):
    """entity_id is the key, prefix:<p>, tag:<t> or all."""

    count: int


ENTRY = "/api/v1/cache/entries/{key}"
_FOUND = {"found": True, "value": {"text": "hello"}, "bytes": None, "version": 7, "ttl_s": 60}

GET = Call(
    "cache", "get", Get, Entry, timeout_s=5, job=False, http=(f"GET {ENTRY}",), summary="Read one key", raises=(),
    example={"key": "greeting"}, example_reply=_FOUND,
)  # fmt: skip
GET_MANY = Call(
    "cache", "get_many", GetMany, GetManyResult, timeout_s=5, job=False, summary="Read many keys, as of one moment",
    raises=(), example={"keys": ["greeting", "farewell"]},
    example_reply={"entries": [_FOUND, {"found": False, "value": None, "bytes": None, "version": None, "ttl_s": None}]},
)  # fmt: skip
SET = Call(
    "cache", "set", Set, SetResult, timeout_s=5, job=False, mutates=True, http=(f"PUT {ENTRY}",),
    summary="Write one key", raises=(), example={"key": "greeting", "value": {"text": "hello"}, "ttl_s": 60},
    example_reply={"written": True, "version": 7},
)  # fmt: skip
SET_MANY = Call(
    "cache", "set_many", SetMany, SetManyResult, timeout_s=5, job=False, mutates=True, raises=(),
    summary="Write many keys at one moment", example={"entries": [{"key": "a", "value": 1}, {"key": "b", "value": 2}]},
    example_reply={"results": [{"written": True, "version": 8}, {"written": True, "version": 9}]},
)  # fmt: skip
DELETE = Call(
    "cache", "delete", Delete, DeleteResult, timeout_s=5, job=False, mutates=True, http=(f"DELETE {ENTRY}",),
    summary="Forget one key", raises=(), example={"key": "greeting"}, example_reply={"deleted": True},
)  # fmt: skip
INVALIDATE = Call(
    "cache", "invalidate", Invalidate, InvalidateResult, timeout_s=30, job=False, mutates=True, raises=(),
    summary="Forget a key, a prefix, a tag or everything", example={"tag": "user-17"}, example_reply={"count": 3},
)  # fmt: skip
GET_OR_LOCK = Call(
    "cache", "get_or_lock", GetOrLock, GetOrLockResult, timeout_s=30, job=False, raises=(),
    summary="Read one key, or be the one who computes it", example={"key": "greeting", "lock_s": 30, "wait_s": 5},
    example_reply={"state": "hit", "entry": _FOUND, "lock": None},
)  # fmt: skip
STATS = Call(
    "cache", "stats", StatsRequest, Stats, timeout_s=5, job=False, http=("GET /api/v1/cache/stats",),
    summary="Hits, misses, size and quota", raises=(), example={},
    example_reply={
        "hits": 12, "misses": 3, "keys": 4, "bytes": 812, "max_keys": 100_000, "max_bytes": 268_435_456,
    },
)  # fmt: skip

INVALIDATED = Event("cache", "invalidated", Invalidated)
