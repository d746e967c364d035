"""A JWK set as keys: each with the one algorithm that it checks; what cannot be used is left out and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jwt import PyJWK
from jwt.exceptions import PyJWTError

from codec import JSON, decode_plain
from subjects.contract import Fault

MAX_KEYS = 64
MAX_KID_CHARS = 256
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
MAX_RSA_TEXT = MAX_RSA_BITS // 6 + 4  # base64
MAX_EXPONENT_TEXT = 12
MAX_SAID_CHARS = 80

# One algorithm for a key: what it says itself, if its kind can be that, else the first of its kind.
ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
PUBLIC = ("kty", "crv", "n", "e", "x", "y")
PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True)
class Key:
    """A public key and the one algorithm that it checks. Equal keys have equal numbers, whatever else was said."""

    kid: str
    algorithm: str
    fingerprint: str
    public: Any = field(compare=False, repr=False)


class KeySet(NamedTuple):
    """skipped: (key id, why) of what cannot be used."""

    keys: dict[str, Key]
    skipped: list[tuple[str, str]]


def read(document: bytes) -> KeySet:
    """The keys of a JWK set (RFC 7517). What is malformed, private, symmetric or too weak is left out and named.

    Raises ValueError when it is no key set at all.
    """
    try:
        listed = decode_plain(document, JSON)["keys"]
    except (Fault, KeyError, TypeError) as error:
        raise ValueError("the answer is not a JWK set") from error
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"a JWK set is a list of at most {MAX_KEYS} keys")
    found = KeySet({}, [])
    for jwk in listed:
        kid = jwk.get("kid") if isinstance(jwk, dict) else None
        try:
            key = _key(jwk, kid)
            if key.kid in found.keys:
                raise ValueError("another key has the same kid")
        except (ValueError, TypeError, KeyError, PyJWTError) as error:
            found.skipped.append((str(kid)[:MAX_SAID_CHARS], _why(error)))
        else:
            found.keys[key.kid] = key
    return found


def _key(jwk: Any, kid: Any) -> Key:
    if not (isinstance(jwk, dict) and isinstance(kid, str) and 0 < len(kid) <= MAX_KID_CHARS):
        raise ValueError(f"a key needs a kid of at most {MAX_KID_CHARS} characters")
    if PRIVATE & jwk.keys():
        raise ValueError("a private or symmetric key in a public place: replace it at the provider")
    kind: Any = (jwk.get("kty"), None if jwk.get("kty") == "RSA" else jwk.get("crv"))
    possible = ALGORITHMS.get(kind, ())
    algorithm = jwk.get("alg", possible[0] if possible else None)
    if algorithm not in possible:
        raise ValueError("neither RSA (RS256, PS256), P-256, P-384 nor Ed25519")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise ValueError("not for checking signatures")
    if len(jwk.get("n", "")) > MAX_RSA_TEXT or len(jwk.get("e", "")) > MAX_EXPONENT_TEXT:
        raise ValueError(f"RSA over {MAX_RSA_BITS} bits")
    numbers = {name: jwk[name] for name in PUBLIC if name in jwk}
    public = PyJWK(numbers, algorithm=algorithm).key
    if jwk["kty"] == "RSA" and not MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS:
        raise ValueError(f"RSA of {public.key_size} bits, not {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    fingerprint = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
    return Key(kid, algorithm, fingerprint, public)


def _why(error: Exception) -> str:
    """Ours say why; a library's text may repeat what it was given."""
    return str(error) if type(error) is ValueError and len(str(error)) <= MAX_SAID_CHARS else "malformed"
