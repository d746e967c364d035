"""Identity: on whose behalf a message is sent, which action it belongs to, and until when its answer is wanted."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from codec import headers as h
from runtime import tracing
from runtime.headers import lines as header_lines
from subjects.contract import Code, Fault
from subjects.grammar import token

EVERYTHING = frozenset({"*"})
MAX_ID_CHARS = 256
MAX_SCOPES_CHARS = 4096


def new_id() -> str:
    """32 hex characters, for telling messages apart; not a secret."""
    return f"{random.getrandbits(128):032x}"


@dataclass(frozen=True)
class Identity:
    """Travels with every message. deadline_ms: absolute unix milliseconds, None = the contract's timeout alone."""

    tenant: str
    correlation_id: str
    request_id: str
    user: str | None = None
    scopes: frozenset[str] = EVERYTHING
    traceparent: str | None = None
    tracestate: str | None = None
    deadline_ms: int | None = None

    @classmethod
    def new(
        cls,
        tenant: str,
        user: str | None = None,
        scopes: frozenset[str] = EVERYTHING,
        *,
        correlation_id: str | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
        timeout_s: float | None = None,
    ) -> Identity:
        """The start of an action: makes what is absent. Raises Fault(INVALID) on a tenant or an id that may not be."""
        started = tracing.valid_traceparent(traceparent)
        made = cls(
            tenant=token(tenant, "tenant"),
            user=_id(user, h.USER) if user else None,
            scopes=scopes,
            correlation_id=_id(correlation_id, h.CORRELATION_ID) if correlation_id else new_id(),
            request_id=new_id(),
            traceparent=started or tracing.root(),
            tracestate=_state(tracestate) if started else None,
        )
        return made if timeout_s is None else made.with_deadline(timeout_s)

    @classmethod
    def from_message(cls, subject_tenant: str, headers: Mapping[str, str] | None) -> Identity:
        """Read a received message. Absent X-Scopes = everything: only platform processes may connect to the broker.

        Raises Fault(FORBIDDEN) when X-Tenant-ID names another tenant than the subject, Fault(INVALID) on a bad id.
        """
        given = headers or {}
        claimed = given.get(h.TENANT)
        if claimed is not None and claimed != subject_tenant:
            raise Fault(Code.FORBIDDEN, f"{h.TENANT} is not the tenant of the subject")
        user, scopes = given.get(h.USER), given.get(h.SCOPES)
        correlation_id, request_id = given.get(h.CORRELATION_ID), given.get(h.REQUEST_ID)
        traceparent = tracing.valid_traceparent(given.get(h.TRACEPARENT))
        return cls(
            tenant=subject_tenant,
            user=_id(user, h.USER) if user else None,
            scopes=EVERYTHING if scopes is None or scopes == "*" else _scopes(scopes),
            correlation_id=_id(correlation_id, h.CORRELATION_ID) if correlation_id else new_id(),
            request_id=_id(request_id, h.REQUEST_ID) if request_id else new_id(),
            traceparent=traceparent,
            tracestate=_state(given.get(h.TRACESTATE)) if traceparent else None,
            deadline_ms=_deadline(given.get(h.DEADLINE)),
        )

    @cached_property
    def lasting(self) -> dict[str, str]:
        """The headers that are the same on every message of this identity."""
        lasting = {
            h.TENANT: self.tenant,
            h.SCOPES: " ".join(sorted(self.scopes)),
            h.CORRELATION_ID: self.correlation_id,
        }
        if self.user is not None:
            lasting[h.USER] = self.user
        if self.tracestate:
            lasting[h.TRACESTATE] = self.tracestate
        return lasting

    @cached_property
    def lasting_lines(self) -> bytes:
        """The same as lines of a header block, made once."""
        return header_lines(self.lasting)

    def headers(self) -> dict[str, str]:
        """All headers of this message."""
        made = dict(self.lasting)
        made[h.REQUEST_ID] = self.request_id
        if self.traceparent is not None:
            made[h.TRACEPARENT] = self.traceparent
        if self.deadline_ms is not None:
            made[h.DEADLINE] = str(self.deadline_ms)
        return made

    def next_message(self, traceparent: str | None = None) -> Identity:
        """The same action, another message: a new request id, and its own parent if one is given."""
        return replace(self, request_id=new_id(), traceparent=traceparent or self.traceparent)

    def under(self, span: tracing.Span | None) -> Identity:
        """The same, as what this span causes."""
        return self if span is None else replace(self, traceparent=span.traceparent)

    def allows(self, scope: str) -> bool:
        """Whether the scope (`component.operation`) is among the claims, or contained in `component.*` or `*`."""
        if "*" in self.scopes or scope in self.scopes:
            return True
        return f"{scope.partition('.')[0]}.*" in self.scopes

    def with_deadline(self, timeout_s: float) -> Identity:
        """At most timeout_s from now; an earlier deadline stays."""
        at_ms = int((time.time() + timeout_s) * 1000)
        if self.deadline_ms is not None and self.deadline_ms <= at_ms:
            return self
        return replace(self, deadline_ms=at_ms)

    def remaining_s(self, at_most_s: float) -> float:
        """Seconds until the deadline, at most at_most_s; negative when it has passed."""
        if self.deadline_ms is None:
            return at_most_s
        return min(at_most_s, self.deadline_ms / 1000 - time.time())


def _id(value: str, name: str) -> str:
    if len(value) > MAX_ID_CHARS or not value.isprintable():
        raise Fault(Code.INVALID, f"{name} must be at most {MAX_ID_CHARS} printable characters")
    return value


def _scopes(value: str) -> frozenset[str]:
    if len(value) > MAX_SCOPES_CHARS or not value.isprintable():
        raise Fault(Code.INVALID, f"{h.SCOPES} must be at most {MAX_SCOPES_CHARS} printable characters")
    return frozenset(value.split())


def _state(value: str | None) -> str | None:
    ok = value and len(value) <= tracing.MAX_TRACESTATE_CHARS and value.isascii() and value.isprintable()
    return value if ok else None


def _deadline(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 15):
        raise Fault(Code.INVALID, f"{h.DEADLINE} must be unix milliseconds")
    return int(value)
