"""The whole vocabulary: Model, Call, Event, Code, Fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A message or a part of one: immutable, unknown fields ignored, NaN and infinities refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        protected_namespaces=(),
    )


class Empty(Model):
    """A message that says nothing."""


class Code(StrEnum):
    """The closed list of ways to fail. Each is an HTTP status."""

    INVALID = "INVALID"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    TOO_LARGE = "TOO_LARGE"
    EXHAUSTED = "EXHAUSTED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
    UPSTREAM = "UPSTREAM"
    UNAVAILABLE = "UNAVAILABLE"
    TIMEOUT = "TIMEOUT"

    @property
    def http(self) -> int:
        return HTTP_STATUS[self]

    @property
    def retryable(self) -> bool:
        """Whether an outside caller may ask the same again and hope for another answer."""
        return self in RETRYABLE


HTTP_STATUS: dict[Code, int] = {
    Code.INVALID: 400,
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.NOT_FOUND: 404,
    Code.CONFLICT: 409,
    Code.TOO_LARGE: 413,
    Code.EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
    Code.UPSTREAM: 502,
    Code.UNAVAILABLE: 503,
    Code.TIMEOUT: 504,
}

RETRYABLE = frozenset({Code.EXHAUSTED, Code.UPSTREAM, Code.UNAVAILABLE, Code.TIMEOUT, Code.INTERNAL})


class FieldError(Model):
    """One bad field: where it is (dots between the parts) and what is wrong with it."""

    path: str
    message: str


class Fault(Exception):
    """The one error that crosses a process boundary.

    detail is one line for the caller: what was wrong and what to do about it; it never holds a secret or the text
    of somebody else's exception. errors names bad fields. retry_after_s is a hint for EXHAUSTED and UNAVAILABLE.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code.value}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        return self.code.retryable


In = TypeVar("In", bound=Model)
Out = TypeVar("Out", bound=Model)
Payload = TypeVar("Payload", bound=Model)


@dataclass(frozen=True, eq=False)
class Call(Generic[In, Out]):
    """An operation: what goes in, what comes out, and everything that can be derived from that.

    chunk is the model of a streamed piece, if the operation streams. timeout_s bounds one attempt of a request;
    job_timeout_s one attempt of a job. mutates: changes state, so an Idempotency-Key is honoured. job: makes sense as
    a durable job. long: answers 202 with a job by default. http: further routes, "METHOD /path/{field}". public:
    has an HTTP route at all. raises: how it may fail in its own right, beside the ways in which every call can; None
    when it does not say. example, example_reply: a message and an answer as JSON, for the documents.
    """

    component: str
    operation: str
    input: type[In]
    output: type[Out]
    chunk: type[Model] | None = None
    timeout_s: float = 30.0
    job_timeout_s: float = 900.0
    mutates: bool = False
    job: bool = True
    long: bool = False
    http: tuple[str, ...] = ()
    public: bool = True
    summary: str = ""
    raises: tuple[Code, ...] | None = None
    example: Mapping[str, Any] | None = None
    example_reply: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.component}.{self.operation}"

    @property
    def scope(self) -> str:
        """The scope that a token must hold; `<component>.*` and `*` contain it."""
        return self.name

    @property
    def path(self) -> str:
        return f"/api/v1/{self.component}/{self.operation}"

    def __repr__(self) -> str:
        return f"Call({self.name})"


@dataclass(frozen=True, eq=False)
class Event(Generic[Payload]):
    """A fact, named in the past tense. Every payload tells which entity it is about and which version of it."""

    component: str
    occurred: str
    payload: type[Payload]
    summary: str = field(default="")

    @property
    def name(self) -> str:
        return f"{self.component}.{self.occurred}"

    def __repr__(self) -> str:
        return f"Event({self.name})"


AnyCall = Call[Any, Any]
AnyEvent = Event[Any]


class EventPayload(Model):
    """What every event carries: a consumer that keeps state ignores lower versions of an entity."""

    entity_id: str
    version: int = 1
