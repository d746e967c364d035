"""An identity provider of a test's own: a server that counts, keys of each kind, tokens nobody would issue."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from runtime.settings import Settings

Json = dict[str, Any]
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Provider:
    """Answers every GET with `document`, or as `answer` does. seen: the request lines so far."""

    def __init__(self, *keys: Signer) -> None:
        self.seen: list[str] = []
        self.answer: Answer | None = None
        self.document = b""
        self.publish(*keys)
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Provider:
        self._server = await asyncio.start_server(self._one, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/keys"

    def publish(self, *keys: Signer) -> None:
        self.document = json.dumps({"keys": [key.jwk for key in keys]}).encode()

    def status(self, code: int, *lines: str, body: bytes = b"") -> None:
        """From now on, answer so."""

        async def answer(writer: asyncio.StreamWriter) -> None:
            head = "\r\n".join([f"HTTP/1.1 {code} Said", *lines, f"Content-Length: {len(body)}", "Connection: close"])
            writer.write(f"{head}\r\n\r\n".encode() + body)

        self.answer = answer

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.seen.append(head.split(b"\r\n", 1)[0].decode())
            if self.answer is not None:
                await self.answer(writer)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self.document)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True)
class Signer:
    """A key pair under a name."""

    kid: str
    algorithm: str
    private: Any

    @property
    def jwk(self) -> Json:
        public = json.loads(get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key()))
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    @property
    def header(self) -> Json:
        return {"alg": self.algorithm, "typ": "JWT", "kid": self.kid}

    def sign(self, message: bytes, algorithm: str | None = None) -> bytes:
        return get_default_algorithms()[algorithm or self.algorithm].sign(message, self.private)

    def token(self, claims: Json | bytes, **header: Any) -> str:
        """Whatever the header says: it is signed with this key."""
        message = first_two({**self.header, **header}, claims)
        return f"{message.decode()}.{b64(self.sign(message))}"


def signer(kid: str, algorithm: str = "RS256", bits: int = 2048) -> Signer:
    """Made once: an RSA key costs 0.1 s."""
    return _made(kid, algorithm, bits)


@cache
def _made(kid: str, algorithm: str, bits: int) -> Signer:
    private: Any
    if algorithm.startswith("ES"):
        private = ec.generate_private_key(ec.SECP256R1() if algorithm == "ES256" else ec.SECP384R1())
    elif algorithm == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return Signer(kid, algorithm, private)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def first_two(header: Json | bytes, claims: Json | bytes) -> bytes:
    """The part of a token that is signed."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
    return ".".join(map(b64, parts)).encode()


def hs256(secret: bytes, claims: Json | bytes, **header: Any) -> str:
    """Signed with any bytes at all, which no library does."""
    message = first_two({"alg": "HS256", "typ": "JWT", **header}, claims)
    return f"{message.decode()}.{b64(hmac.digest(secret, message, hashlib.sha256))}"


def claims_of(settings: Settings, tenant: str, **changes: Any) -> Json:
    """Good for ten minutes; None leaves one out."""
    now = int(time.time())
    made = {
        "tenant_id": tenant,
        "sub": "ann",
        "scope": "*",
        "iat": now,
        "exp": now + 600,
        "aud": settings.jwt_audience,
        "iss": settings.jwt_issuer,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}
