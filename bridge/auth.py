"""Tokens: HS256 JWTs to identities. One constant message whatever is wrong, so that a refusal teaches nothing."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import jwt

from bridge.exchange import AUTHORIZATION, Exchange
from codec import headers as h
from runtime.identity import MAX_SCOPES_CHARS, Identity
from runtime.settings import Settings
from runtime.tracing import adopted
from subjects.contract import Code, Fault
from subjects.grammar import is_token

ALGORITHM = "HS256"
REQUIRED = ["exp", "iat", "aud", "iss", "sub"]
LEEWAY_S = 30
MAX_LIFETIME_S = 24 * 3600
MAX_TOKEN_BYTES = 8 * 1024
MIN_SECRET_BYTES = 32
MAX_USER_CHARS = 256
KEPT_TOKENS = 4096
REFUSED = "the token is absent, wrong or expired"


@dataclass(frozen=True)
class Claims:
    """What a token proves. expires: unix seconds."""

    tenant: str
    user: str
    scopes: frozenset[str]
    expires: float


class Door:
    """Checks tokens. Keeps the claims of the last 4,096 good ones by their hash: a token never means another thing."""

    def __init__(self, settings: Settings) -> None:
        secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else ""
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise Fault(
                Code.UNAVAILABLE, f"JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes; `faas up` makes one"
            )
        self._secret = secret
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._known: OrderedDict[bytes, Claims] = OrderedDict()

    def identify(self, exchange: Exchange) -> Identity:
        """On whose behalf the request is. Raises Fault: UNAUTHENTICATED, FORBIDDEN (X-Tenant-ID is another tenant)."""
        claims = self._claims(exchange)
        wanted = exchange.headers.get(b"x-tenant-id")
        if wanted is not None and wanted != claims.tenant.encode():
            raise Fault(Code.FORBIDDEN, f"{h.TENANT} is not the tenant of the token")
        identity = Identity.new(
            claims.tenant,
            claims.user,
            claims.scopes,
            correlation_id=exchange.correlation_id,
            traceparent=adopted(exchange.header(h.TRACEPARENT)),
            tracestate=exchange.header(h.TRACESTATE),
        )
        return replace(identity, request_id=exchange.request_id)

    def _claims(self, exchange: Exchange) -> Claims:
        value = exchange.headers.get(AUTHORIZATION, b"")
        if AUTHORIZATION in exchange.repeated or len(value) > MAX_TOKEN_BYTES or value[:7].lower() != b"bearer ":
            raise _refused()
        token = value[7:].strip()
        place = hashlib.sha256(token).digest()
        claims = self._known.get(place)
        if claims is None:
            claims = self._checked(token)
            self._known[place] = claims
            if len(self._known) > KEPT_TOKENS:
                self._known.popitem(last=False)
        if claims.expires + LEEWAY_S <= time.time():
            raise _refused()
        return claims

    def _checked(self, token: bytes) -> Claims:
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
            lifetime_s = float(found["exp"]) - float(found["iat"])
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _refused() from error
        tenant, user, scope = found.get("tenant_id"), found.get("sub"), found.get("scope", "")
        if not (0 < lifetime_s <= MAX_LIFETIME_S and is_token(tenant) and _is_text(user, MAX_USER_CHARS) and user):
            raise _refused()
        if not _is_text(scope, MAX_SCOPES_CHARS):
            raise _refused()
        return Claims(str(tenant), str(user), frozenset(str(scope).split()), float(found["exp"]))


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isascii() and (value.isprintable() or not value)


def _refused() -> Fault:
    return Fault(Code.UNAUTHENTICATED, REFUSED)
