"""Who may come in: tokens by our secret and by an identity provider's keys, and everything that is no token."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge import auth, jwk, jwks
from bridge.server import running
from cli import doctor
from runtime.connection import Connection
from runtime.settings import Settings
from subjects.contract import Code, Fault
from tests.broker import until
from tests.identity_provider import Json, Provider, Signer, b64, claims_of, first_two, hs256, signer

OPERATION = "/api/v1/cache/get"
NO_ROUTE = "/nothing"  # 404 for whoever has a token, 401 for the others, and no worker is needed
IDS = {"X-Request-ID": "r", "X-Correlation-ID": "c"}
KINDS = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

touched: list[tuple[str, Any]] = []
recording = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if recording and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.listdir"):
        touched.append((event, arguments))


sys.addaudithook(_audit)


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider(*(signer(kind, kind) for kind in KINDS)) as provider:
        yield provider


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of an identity provider in a second."""
    monkeypatch.setattr(jwks, "REFRESH_S", 0.4)
    monkeypatch.setattr(jwks, "RETRY_S", 0.2)
    monkeypatch.setattr(jwks, "FETCH_WITHIN_S", 0.5)


@asynccontextmanager
async def bridge(settings: Settings, connection: Connection, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    given = settings.model_copy(update={"bridge_port": 0, "shutdown_grace_s": 1, **changes})
    async with running(given, connection) as url, httpx.AsyncClient(base_url=url, headers=IDS, timeout=10) as http:
        yield http


@pytest_asyncio.fixture
async def http(settings: Settings, connection: Connection, provider: Provider) -> AsyncIterator[httpx.AsyncClient]:
    """A bridge with a secret and a provider."""
    async with bridge(settings, connection, jwt_jwks_url=provider.url) as client:
        yield client


@pytest_asyncio.fixture
async def alone(settings: Settings, connection: Connection, provider: Provider) -> AsyncIterator[httpx.AsyncClient]:
    """A bridge with a provider and no secret."""
    async with bridge(settings, connection, jwt_jwks_url=provider.url, jwt_secret=None) as client:
        yield client


async def comes_in(http: httpx.AsyncClient, token: str) -> bool:
    response = await http.get(NO_ROUTE, headers={"Authorization": f"Bearer {token}"})
    assert response.status_code in (401, 404)
    return response.status_code == 404


async def raw(port: int, path: str, headers: list[tuple[str, str]]) -> bytes:
    """Say what a polite client refuses to. The whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 2"]
    lines += [f"{name}: {value}" for name, value in [*IDS.items(), *headers]]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n{}")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def turns(http: httpx.AsyncClient, token: str, wanted: bool, within_s: float) -> float:
    """Seconds until the token is (no longer) good."""
    started = time.monotonic()
    while await comes_in(http, token) is not wanted:
        assert time.monotonic() - started < within_s
        await asyncio.sleep(0.02)
    return time.monotonic() - started


# -- good tokens -----


async def test_the_secret_and_every_kind_of_key_open(
    http: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider
) -> None:
    good = claims_of(settings, tenant)
    for kind in KINDS:
        for _ in range(2):
            assert await comes_in(http, signer(kind, kind).token(good)), kind
    assert await comes_in(http, hs256(secret_of(settings), good))
    assert await comes_in(http, signer("ES256", "ES256").token(good | {"aud": ["other", settings.jwt_audience]}))
    assert len(provider.seen) == 1


async def test_without_a_secret_only_the_provider_opens(
    alone: httpx.AsyncClient, settings: Settings, tenant: str
) -> None:
    good = claims_of(settings, tenant)
    assert await comes_in(alone, signer("RS256").token(good))
    assert not await comes_in(alone, hs256(secret_of(settings), good))
    assert not await comes_in(alone, hs256(b"", good))


async def test_a_scheme_is_the_same_in_any_case(http: httpx.AsyncClient, settings: Settings, tenant: str) -> None:
    token = hs256(secret_of(settings), claims_of(settings, tenant))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (await http.get(NO_ROUTE, headers={"Authorization": f"{scheme} {token}"})).status_code == 404


def test_nothing_to_check_with_is_no_bridge(settings: Settings) -> None:
    for secret in (None, "", "short"):
        with pytest.raises(Fault, match="JWT_SECRET"):
            auth.Door(Settings.model_validate({"jwt_secret": secret}))


@pytest.mark.parametrize(
    "url",
    ["http://idp.example/keys", "ftp://idp.example/keys", "file:///etc/passwd", "https://", "https://u:canary@idp/keys",
     "http://127.0.0.1.example/keys", "keys"],
)  # fmt: skip
def test_keys_come_over_https_or_from_this_machine(url: str) -> None:
    with pytest.raises(ValueError, match=r"must (be|begin)"):
        Settings.model_validate({"jwt_jwks_url": url})
    for good in ("https://idp.example/keys", "http://127.0.0.1:8/keys", "http://[::1]:8/keys", "http://localhost:8/"):
        assert Settings.model_validate({"jwt_jwks_url": good}).jwt_jwks_url == good


# -- attacks -----


def secret_of(settings: Settings) -> bytes:
    assert settings.jwt_secret is not None
    return settings.jwt_secret.get_secret_value().encode()


def _raw(claims: Json, raw: dict[str, str]) -> bytes:
    """JSON whose named values stand as they are written: NaN, numbers without end."""
    said = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in claims.items() if name not in raw]
    return ("{" + ", ".join(said + [f"{json.dumps(name)}: {value}" for name, value in raw.items()]) + "}").encode()


def signed_wrongly(settings: Settings, good: Json, elsewhere: str) -> dict[str, str]:
    """Tokens whose key or algorithm is the lie."""
    rsa, curve, stranger = signer("RS256"), signer("ES256", "ES256"), signer("stranger")
    message = first_two(rsa.header, good).decode()
    pem = rsa.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = rsa.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = {
        "no signature": f"{message}.",
        "cut": rsa.token(good)[:-8],
        "another key under the name": Signer("RS256", "RS256", stranger.private).token(good),
        "an unknown key": stranger.token(good),
        "RS256 for the curve's name": rsa.token(good, kid="ES256", alg="RS256"),
        "ES256 for the RSA key's name": curve.token(good, kid="RS256", alg="ES256"),
        "says RS256, is PS256": _as(rsa, good, {**rsa.header, "alg": "RS256"}, "PS256"),
        "PS256 with a key for RS256": _as(rsa, good, {**rsa.header, "alg": "PS256"}, "PS256"),
        "RS512 with a key for RS256": _as(rsa, good, {**rsa.header, "alg": "RS512"}, "RS512"),
        "EdDSA by name alone": rsa.token(good, alg="EdDSA"),
        "HS256 with no secret": hs256(b"", good),
        "HS256 with no secret, a key's name": hs256(b"", good, kid="RS256"),
        "HS256 with our secret, a key's name": hs256(secret_of(settings), good, kid="RS256"),
        "HS256 with our secret, no such name": hs256(secret_of(settings), good, kid="mine"),
        "HS512 by name": hs256(secret_of(settings), good, alg="HS512"),
        "no algorithm": f"{first_two({'kid': 'RS256'}, good).decode()}.{b64(rsa.sign(b'x'))}",
        "zero signature": f"{first_two(curve.header, good).decode()}.{b64(bytes(64))}",
        "order as signature": f"{first_two(curve.header, good).decode()}.{b64(P256_ORDER.to_bytes(32, 'big') * 2)}",
        "DER signature": f"{first_two(curve.header, good).decode()}.{b64(bytes.fromhex('3006020100020100'))}",
        "jwk": stranger.token(good, jwk=stranger.jwk),
        "jwk under a good name": stranger.token(good, kid="RS256", jwk=stranger.jwk),
        "jku": stranger.token(good, jku=elsewhere),
        "jku under a good name": stranger.token(good, kid="RS256", jku=elsewhere),
        "x5u": stranger.token(good, x5u=elsewhere, x5c=[b64(der)]),
        "crit": rsa.token(good, crit=["exp"], exp=1),
        "empty crit": rsa.token(good, crit=[]),
        "b64": rsa.token(good, crit=["b64"], b64=False),
        "b64 alone": rsa.token(good, b64=False),
        "b64, the payload as it is": _unencoded(rsa, good),
        "two kids": f"{message}.{b64(rsa.sign(b''))}".replace(message, _twice(rsa, good)),
        "header is a list": f"{first_two(b'[]', good).decode()}.{b64(rsa.sign(first_two(b'[]', good)))}",
        "header is deep": f"{first_two(b'[' * 2000, good).decode()}.AA",
    }
    for name in ("none", "None", "NONE", "nOnE", ""):
        head = {"alg": name, "kid": "RS256"}
        found |= {
            f"alg {name!r}": f"{first_two(head, good).decode()}.",
            f"alg {name!r}, signed": rsa.token(good, **head),
        }
        found[f"alg {name!r}, no kid"] = f"{first_two({'alg': name}, good).decode()}.AA"
    for name, public in (
        ("pem", pem),
        ("pem without its end", pem.strip()),
        ("der", der),
        ("jwk text", json.dumps(rsa.jwk).encode()),
    ):
        found |= {
            f"{name} as secret": hs256(public, good, kid="RS256"),
            f"{name} as secret, no kid": hs256(public, good),
        }
    for kid in (
        "../../etc/passwd",
        "/dev/zero",
        "' OR 1=1 --",
        "RS256' --",
        elsewhere,
        "file:///etc/passwd",
        "x" * 257,
        "x" * 5000,
        "",
        "\x00",
        "RS256\x00",
        "rs256",
        " RS256",
        "__proto__",
        "é",
        7,
        None,
        True,
        ["RS256"],
        {"a": 1},
    ):
        found[f"kid {str(kid)[:20]!r}"] = hs256(b"", good, kid=kid)
        if kid is not None:
            found[f"kid {str(kid)[:20]!r}, signed"] = rsa.token(good, kid=kid)
    return found  # fmt: skip


def _as(key: Signer, claims: Json, header: Json, algorithm: str) -> str:
    message = first_two(header, claims)
    return f"{message.decode()}.{b64(key.sign(message, algorithm))}"


def _unencoded(key: Signer, claims: Json) -> str:
    """RFC 7797, done right by whoever holds the key; we do not speak it."""
    head = b64(json.dumps({**key.header, "crit": ["b64"], "b64": False}).encode())
    return f"{head}..{b64(key.sign(f'{head}.{json.dumps(claims)}'.encode()))}"


def _twice(key: Signer, claims: Json) -> str:
    header = b'{"alg": "RS256", "kid": "stranger", "kid": "RS256"}'
    return first_two(header, claims).decode()


def saying_wrongly(settings: Settings, good: Json) -> dict[str, str]:
    """Tokens with a good signature that say what no token may."""
    key, now = signer("RS256"), int(time.time())
    wrong: dict[str, Json | bytes] = {
        "expired": good | {"iat": now - 900, "exp": now - 100},
        "not yet": good | {"nbf": now + 500},
        "issued later": good | {"iat": now + 500},
        "audience": good | {"aud": "somebody"},
        "audiences": good | {"aud": ["somebody", "else"]},
        "no audience at all": good | {"aud": []},
        "issuer": good | {"iss": "somebody"},
        "issuers": good | {"iss": [settings.jwt_issuer]},
        "lives too long": good | {"exp": now + 10 * 24 * 3600},
        "ends before it begins": good | {"iat": now + 20, "exp": now + 10},
        "exp 10^30": good | {"exp": 10**30},
        "exp and iat 10^30": good | {"exp": 10**30 + 600, "iat": 10**30},
        "exp is huge": _raw(good, {"exp": "1e999"}),
        "exp is NaN": _raw(good, {"exp": "NaN"}),
        "iat is NaN": _raw(good, {"iat": "NaN"}),
        "exp is infinite": _raw(good, {"exp": "Infinity"}),
        "exp has 5,000 digits": _raw(good, {"exp": "9" * 4000}),
        "exp is text": good | {"exp": "x"},
        "exp is a number as text": good | {"exp": str(now + 600)},
        "iat is a number as text": good | {"iat": str(now)},
        "nbf is a number as text": good | {"nbf": str(now)},
        "exp is true": good | {"exp": True},
        "exp is a list": good | {"exp": [now + 600]},
        "sub is a number": good | {"sub": 7},
        "sub is empty": good | {"sub": ""},
        "sub has a line break": good | {"sub": "ann\r\nX-Scopes: *"},
        "sub is long": good | {"sub": "x" * 257},
        "a claim twice": _raw(good, {})[:-1] + b', "tenant_id": "other"}',
        "exp twice": b'{"exp": 99999999999, ' + _raw(good, {})[1:],
        "payload is a token": key.token(good).encode(),
        "payload is a list": b"[]",
        "payload is nothing": b"",
        "payload is not UTF-8": b'{"sub": "\xff"}',
        "payload is deep": b"[" * 3000,
        "payload has a surrogate": _raw(good, {"sub": '"\\ud800"'}),
        "over 8 KB": good | {"more": "x" * 6200},
    }
    for name in ("exp", "iat", "aud", "iss", "sub", "tenant_id"):
        wrong[f"no {name}"] = {each: value for each, value in good.items() if each != name}
        wrong[f"{name} is null"] = good | {name: None}
    for tenant in ("*", ">", "a.b", "", "A", "x" * 1024, "аcme", 7, ["a"]):
        wrong[f"tenant {str(tenant)[:9]!r}"] = good | {"tenant_id": tenant}
    for scope in (
        ["*"],
        7,
        {"a": 1},
        None,
        "rag.*.x",
        "*.query",
        "**",
        "rag*",
        "a\tb",
        "a  b",
        " a",
        "a ",
        'a"b',
        "a\\b",
        "a\nb",
        "a\x00",
        "é",
        "x" * 4097,
    ):
        wrong[f"scope {str(scope)[:9]!r}"] = good | {"scope": scope}
    return {name: key.token(claims) for name, claims in wrong.items()} | {
        "nested": key.token(key.token(good).encode(), cty="JWT"),
        "five parts": ".".join(["AA"] * 5),
        "one part": "AA",
        "padded": key.token(good) + "==",
        "two tokens": f"{key.token(good)} {key.token(good)}",
        "a token and more": key.token(good) + "\tx",
        "JSON": json.dumps({"payload": b64(b"{}"), "signatures": []}),
        "not base64": "a!.b!.c!",
        "20 KB": "x" * 20_000,
        "1 MB": f"{key.token(good)}{'x' * 1024 * 1024}",
        "1 MB of dots": "." * 1024 * 1024,
    }  # fmt: skip


def headers_of(token: str) -> dict[str, list[tuple[str, str]]]:
    """A good token, in ways that are none."""
    name = "Authorization"
    return {
        "none": [],
        "empty": [(name, "")],
        "the token alone": [(name, token)],
        "no token": [(name, "Bearer")],
        "no token, a space": [(name, "Bearer ")],
        "Basic": [(name, f"Basic {token}")],
        "glued": [(name, f"Bearer{token}")],
        "colon": [(name, f"Bearer: {token}")],
        "tab": [(name, f"Bearer\t{token}")],
        "DPoP": [(name, f"DPoP {token}")],
        "quoted": [(name, f'Bearer "{token}"')],
        "token=": [(name, f"Bearer token={token}")],
        "twice": [(name, f"Bearer {token}"), (name, f"Bearer {token}")],
        "twice, in other letters": [(name, f"Bearer {token}"), ("authorization", "Basic eDp5")],
        "two in one": [(name, f"Bearer {token}, Bearer {token}")],
        "elsewhere": [("X-Authorization", f"Bearer {token}"), ("Cookie", f"token={token}")],
    }


async def test_every_wrong_token_is_the_same_401_and_nothing_is_touched(
    http: httpx.AsyncClient, settings: Settings, connection: Connection, tenant: str, provider: Provider
) -> None:
    global recording
    good = claims_of(settings, tenant)
    heard: list[bytes] = []
    listening = [
        await connection.listen(f"{kind}.>", lambda subject, *_: heard.append(subject))
        for kind in ("req", "job", "ctl", "out")
    ]
    async with Provider() as elsewhere:
        attacks = {
            name: [("Authorization", f"Bearer {token}")]
            for name, token in (signed_wrongly(settings, good, elsewhere.url) | saying_wrongly(settings, good)).items()
        } | headers_of(signer("RS256").token(good))
        assert await comes_in(http, signer("RS256").token(good))
        port, said = int(http.base_url.port or 0), set()
        touched.clear()
        recording = True
        try:
            for name, headers in attacks.items():
                answer = await raw(port, OPERATION, headers)
                assert answer.startswith(b"HTTP/1.1 401 "), (name, answer)
                said.add(re.sub(rb"\r\ndate: [^\r]*", b"", answer))
        finally:
            recording = False
        for path in (f"{OPERATION}?access_token={signer('RS256').token(good)}", "/../../healthz", "/nothing"):
            assert (await raw(port, path, [])).startswith(b"HTTP/1.1 401 ")
        assert elsewhere.seen == []
    assert len(attacks) > 150
    assert len(said) == 1, said
    body = json.loads(said.pop().partition(b"\r\n\r\n")[2])
    assert (body["code"], body["detail"]) == (Code.UNAUTHENTICATED, auth.REFUSED)
    ours = [each for each in touched if not (each[0] == "socket.connect" and each[1][1][1] == port)]
    assert ours == []
    assert len(provider.seen) == 1  # that of the start: nobody waits 10 s here
    await connection.flush()
    assert heard == []
    for each in listening:
        await each.unsubscribe()


# -- the provider's day -----


@pytest.mark.usefixtures("quick")
async def test_a_new_key_opens_at_once_and_an_old_one_no_longer(
    alone: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider
) -> None:
    good = claims_of(settings, tenant)
    old, new = signer("RS256"), signer("ES256-new", "ES256")
    assert await comes_in(alone, old.token(good))
    provider.publish(old, new)
    await asyncio.sleep(jwks.RETRY_S)
    assert await comes_in(alone, new.token(good))  # the request itself had the keys looked at
    provider.publish(new)
    assert await turns(alone, old.token(good), False, 2) < jwks.REFRESH_S + 0.5
    assert await comes_in(alone, new.token(good))


@pytest.mark.usefixtures("quick")
async def test_a_cached_token_ends_with_its_key_even_under_the_same_name(
    alone: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider
) -> None:
    token = signer("RS256").token(claims_of(settings, tenant))
    assert await comes_in(alone, token)
    provider.publish(Signer("RS256", "RS256", signer("stranger").private), signer("EdDSA", "EdDSA"))
    await turns(alone, token, False, 2)
    assert await comes_in(alone, signer("EdDSA", "EdDSA").token(claims_of(settings, tenant)))


@pytest.mark.usefixtures("quick")
async def test_the_last_good_keys_outlast_an_outage_for_a_bounded_time(
    alone: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "KEPT_S", 1.0)
    good = claims_of(settings, tenant)
    cached, fresh = signer("RS256").token(good), signer("RS256").token(good | {"sub": "bob"})
    assert await comes_in(alone, cached)
    provider.status(503)
    seen = len(provider.seen)
    await until(lambda: len(provider.seen) >= seen + 2)
    assert await comes_in(alone, fresh)
    assert await turns(alone, cached, False, 3) < 1.5
    assert (await alone.get("/readyz")).json()["checks"]["jwks"] == "no key of the identity provider"
    provider.answer = None
    await turns(alone, cached, True, 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("secret", [True, False])
async def test_a_bridge_starts_without_its_provider_and_says_so(
    settings: Settings, connection: Connection, tenant: str, provider: Provider, secret: bool
) -> None:
    provider.status(500)
    changes = {} if secret else {"jwt_secret": None}
    async with bridge(settings, connection, jwt_jwks_url=provider.url, **changes) as http:
        ready = await http.get("/readyz")
        assert ready.status_code == (200 if secret else 503)
        assert ready.json()["checks"]["jwks"] == "no key of the identity provider"
        assert "jwks_keys 0" in (await http.get("/metrics")).text
        token = signer("RS256").token(claims_of(settings, tenant))
        assert not await comes_in(http, token)
        provider.answer = None
        await turns(http, token, True, 2)


async def test_a_storm_of_unknown_keys_is_one_fetch(
    alone: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "RETRY_S", 0.3)
    good = claims_of(settings, tenant)
    known, stranger = signer("RS256").token(good), signer("stranger")
    assert await comes_in(alone, known)
    await asyncio.sleep(jwks.RETRY_S)

    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + provider.document)

    provider.answer = slowly
    before = len(provider.seen)
    storm = [asyncio.create_task(comes_in(alone, stranger.token(good, kid=f"k{number}"))) for number in range(200)]
    await until(lambda: len(provider.seen) > before)
    monkeypatch.setattr(jwks, "RETRY_S", 10.0)  # the second look of the storm would be long after the test
    started = time.monotonic()
    assert await comes_in(alone, known)
    assert time.monotonic() - started < 0.4  # it does not wait for the strangers
    assert not any(await asyncio.gather(*storm))
    assert len(provider.seen) == before + 1


@pytest.mark.usefixtures("quick")
async def test_a_provider_that_never_finishes_holds_nobody_up(
    settings: Settings, connection: Connection, tenant: str, provider: Provider
) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    provider.answer = drip
    started = time.monotonic()
    async with bridge(settings, connection, jwt_jwks_url=provider.url) as http:
        assert time.monotonic() - started < 2
        assert await comes_in(http, hs256(secret_of(settings), claims_of(settings, tenant)))
        assert not await comes_in(http, signer("RS256").token(claims_of(settings, tenant)))


@pytest.mark.usefixtures("quick")
async def test_an_answer_that_is_no_key_set_changes_nothing(
    alone: httpx.AsyncClient, settings: Settings, tenant: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "RETRY_S", 0.05)
    good = claims_of(settings, tenant)
    async with Provider(signer("stranger")) as elsewhere:
        answers: list[tuple[int, list[str], bytes]] = [
            (200, [], b"x" * (jwks.MAX_BYTES + 1)),
            (200, [], b'{"keys": [], "more": "' + b"x" * jwks.MAX_BYTES + b'"}'),
            (200, ["Content-Encoding: gzip"], gzip.compress(b'{"keys": []}' + b" " * 10_000_000)),
            (200, [], b"<html>"),
            (200, [], b"[]"),
            (200, [], b'{"keys": {}}'),
            (200, [], b"[" * 100_000),
            (302, [f"Location: {elsewhere.url}"], b""),
            (404, [], b'{"keys": []}'),
        ]
        for code, lines, body in answers:
            provider.status(code, *lines, body=body)
            seen = len(provider.seen)
            await until(lambda seen=seen: len(provider.seen) >= seen + 2)  # type: ignore[misc]
            assert await comes_in(alone, signer("RS256").token(good | {"jti": str(body[:9])}))
            assert not await comes_in(alone, signer("stranger").token(good))
        assert elsewhere.seen == []


def test_keys_that_cannot_be_trusted_are_left_out_and_named() -> None:
    rsa, curve = signer("RS256").jwk, signer("ES256", "ES256").jwk
    wrong: list[Any] = [
        {**rsa, "kid": "private", "d": "AQAB"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric", "alg": "HS256"},
        {"kty": "oct", "kid": "symmetric without its value"},
        signer("weak", "RS256", 1024).jwk,
        {**rsa, "kid": "huge", "n": "_" * 200_000},
        {**rsa, "kid": "exponent", "e": "AQ"},
        {**rsa, "kid": "for encryption", "use": "enc", "alg": "RSA-OAEP"},
        {**rsa, "kid": "encryption by use", "use": "enc"},
        {**rsa, "kid": "operations", "key_ops": ["encrypt"]},
        {**rsa, "kid": "as a secret", "alg": "HS256"},
        {**rsa, "kid": "none", "alg": "none"},
        {**rsa, "kid": "numbers", "n": 7},
        {**curve, "kid": "off the curve", "y": curve["x"]},
        {**curve, "kid": "other curve", "crv": "secp256k1"},
        {**curve, "kid": "other algorithm", "alg": "ES384"},
        {"kty": "OKP", "crv": "X25519", "x": b64(bytes(32)), "kid": "no signatures"},
        {"kty": ["RSA"], "kid": "kind"},
        {**rsa, "kid": 7},
        {**rsa, "kid": ""},
        {**rsa, "kid": "x" * 257},
        {"kty": "RSA"},
        "text",
        None,
        {**curve, "kid": "RS256"},
    ]
    found = jwk.read(json.dumps({"keys": [rsa, *wrong, curve]}).encode())
    assert {key.kid: key.algorithm for key in found.keys.values()} == {"RS256": "RS256", "ES256": "ES256"}
    assert len(found.skipped) == len(wrong)
    assert "AQAB" not in str(found.skipped)
    with pytest.raises(ValueError, match="at most"):
        jwk.read(json.dumps({"keys": [rsa] * (jwk.MAX_KEYS + 1)}).encode())


async def test_the_doctor_says_how_many_keys_can_be_used(provider: Provider) -> None:
    check = await doctor._check("jwks", doctor._jwks(provider.url))
    assert (check.ok, check.detail) == (True, "5 keys (ES256, ES384, EdDSA, PS256, RS256), 0 left out")
    provider.status(500)
    check = await doctor._check("jwks", doctor._jwks(provider.url))
    assert (check.ok, "500" in check.detail) == (False, True)
    assert (await doctor._check("jwks", doctor._jwks(None))).ok is None


async def test_the_task_that_fetches_ends_with_the_bridge(
    settings: Settings, connection: Connection, provider: Provider
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bridge(settings, connection, jwt_jwks_url=provider.url))
        assert "jwks" in {task.get_name() for task in asyncio.all_tasks()}
    assert "jwks" not in {task.get_name() for task in asyncio.all_tasks()}
