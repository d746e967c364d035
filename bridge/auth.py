"""Tokens to identities: HS256 by our secret, RS256, ES256 and EdDSA by the provider's keys. One constant message
whatever is wrong, so that a refusal teaches nothing."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import jwt

from bridge.exchange import AUTHORIZATION, Exchange
from bridge.jwk import MAX_KID_CHARS, Key
from bridge.jwks import Keys
from codec import JSON, decode_plain
from codec import headers as h
from runtime.identity import MAX_SCOPES_CHARS, Identity
from runtime.settings import Settings
from runtime.tracing import adopted
from subjects.contract import Code, Fault
from subjects.grammar import is_token

REQUIRED = ["exp", "iat", "aud", "iss", "sub"]
TIMES = ("exp", "iat", "nbf")
LEEWAY_S = 30
MAX_LIFETIME_S = 24 * 3600
MAX_TOKEN_BYTES = 8 * 1024
MIN_SECRET_BYTES = 32
MAX_USER_CHARS = 256
KEPT_TOKENS = 4096
REFUSED = "the token is absent, wrong or expired"
SECRET = "secret"  # what a token without a key id is checked against

_JWS = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
# RFC 6749: visible characters without quotes and backslash, one space between. A star stands alone or for a component's
# operations; anywhere else it would mean something to its author and nothing to us.
_SCOPE = r"(?:\*|[a-z0-9][a-z0-9_-]*\.\*|[!#-)+-\[\]-~]+)"
_SCOPES = re.compile(rf"(?:{_SCOPE}(?: {_SCOPE})*)?")


@dataclass(frozen=True)
class Claims:
    """What a token proves. expires: unix seconds."""

    tenant: str
    user: str
    scopes: frozenset[str]
    expires: float
    key: Key


class Door:
    """Checks tokens. Keeps the claims of the last 4,096 good ones by their hash: a token never means another thing.
    They are forgotten together with the key that they were checked with."""

    def __init__(self, settings: Settings, keys: Keys | None = None) -> None:
        secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else ""
        if len(secret.encode()) < MIN_SECRET_BYTES and (secret or keys is None):
            raise Fault(
                Code.UNAVAILABLE,
                f"JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes (`faas up` makes one), or set JWT_JWKS_URL",
            )
        self._secret = Key("", "HS256", SECRET, secret) if secret else None
        self._keys = keys
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._known: OrderedDict[bytes, Claims] = OrderedDict()
        if keys is not None:
            keys.on_change = self._forget

    def recall(self, exchange: Exchange) -> Identity | None:
        """On whose behalf the request is, if its token was seen before. Raises Fault as identify() does."""
        claims = self._known.get(hashlib.sha256(_token(exchange)).digest())
        return None if claims is None else _identity(claims, exchange)

    async def identify(self, exchange: Exchange) -> Identity:
        """On whose behalf the request is. Raises Fault: UNAUTHENTICATED, FORBIDDEN (X-Tenant-ID is another tenant)."""
        token = _token(exchange)
        kid = _key_id(token)
        key = self._key(kid)
        if key is None and kid and self._keys is not None:
            await self._keys.look()
            key = self._key(kid)
        if key is None:
            raise _refused()
        claims = self._checked(token, key)
        self._known[hashlib.sha256(token).digest()] = claims
        if len(self._known) > KEPT_TOKENS:
            self._known.popitem(last=False)
        return _identity(claims, exchange)

    def _key(self, kid: str | None) -> Key | None:
        """With a provider, a key id says which of its keys; without an id, or without a provider, it is our secret."""
        if kid is None or self._keys is None:
            return self._secret
        return self._keys.get(kid)

    def _forget(self) -> None:
        """Of the cached tokens, those whose key is no longer what it was."""
        for place, claims in list(self._known.items()):
            if claims.key is not self._secret and self._key(claims.key.kid) != claims.key:
                del self._known[place]

    def _checked(self, token: bytes, key: Key) -> Claims:
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
            # Once more, strictly: a name that stands twice, NaN and numbers without end are refused here.
            if _segment(token, 1) != found or not all(_is_time(found[name]) for name in TIMES if name in found):
                raise _refused()
            lifetime_s = float(found["exp"]) - float(found["iat"])
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _refused() from error
        tenant, user, scope = found.get("tenant_id"), found.get("sub"), found.get("scope", "")
        if not (0 < lifetime_s <= MAX_LIFETIME_S and is_token(tenant) and _is_text(user, MAX_USER_CHARS) and user):
            raise _refused()
        if not (_is_text(scope, MAX_SCOPES_CHARS) and _SCOPES.fullmatch(scope)):
            raise _refused()
        return Claims(str(tenant), str(user), frozenset(scope.split()), float(found["exp"]), key)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[tuple[Door, Keys | None]]:
    """The door, and the keys behind it when there is a provider. Raises Fault(UNAVAILABLE): nothing to check with."""
    if settings.jwt_jwks_url is None:
        yield Door(settings), None
        return
    keys = Keys(settings.jwt_jwks_url)
    door = Door(settings, keys)
    async with keys.running():
        yield door, keys


def _token(exchange: Exchange) -> bytes:
    value = exchange.headers.get(AUTHORIZATION, b"")
    if AUTHORIZATION in exchange.repeated or len(value) > MAX_TOKEN_BYTES or value[:7].lower() != b"bearer ":
        raise _refused()
    return value[7:].strip(b" ")


def _identity(claims: Claims, exchange: Exchange) -> Identity:
    if claims.expires + LEEWAY_S <= time.time():
        raise _refused()
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


def _key_id(token: bytes) -> str | None:
    """The header's key id: a name to look up, nothing else. `jwk`, `jku`, `x5u` and `x5c` are not even read; what must
    be understood (`crit`) is not, and refused."""
    if not _JWS.fullmatch(token):
        raise _refused()
    try:
        header = _segment(token, 0)
    except ValueError as error:
        raise _refused() from error
    if not isinstance(header, dict) or "crit" in header or "b64" in header:
        raise _refused()
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARS):
        raise _refused()
    return kid


def _segment(token: bytes, number: int) -> Any:
    """Raises ValueError."""
    text = token.split(b".")[number]
    try:
        return decode_plain(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)), JSON)
    except Fault as error:
        raise ValueError("not JSON as we read it") from error


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isascii() and (value.isprintable() or not value)


def _refused() -> Fault:
    return Fault(Code.UNAUTHENTICATED, REFUSED)
