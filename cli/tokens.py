"""token: a development token, signed with the secret that `faas up` made."""

from __future__ import annotations

import difflib
import time
from typing import TYPE_CHECKING

import typer

from cli import session, show
from subjects.grammar import token as checked

if TYPE_CHECKING:
    from runtime.settings import Settings

ALGORITHM = "HS256"
DEVELOPER = "developer"
EVERYTHING = "*"
DEVELOPMENT_HOURS = 12.0
SECONDS_AN_HOUR = 3600


def sign(settings: Settings, tenant: str, user: str = DEVELOPER, *, scopes: str = "*", hours: float = 12.0) -> str:
    """A JWT with the claims that the bridge reads. Raises Fault(INVALID) on a bad tenant, ValueError: no secret."""
    import jwt

    if settings.jwt_secret is None:
        raise ValueError("there is no JWT secret: run `faas up` once, or set JWT_SECRET")
    now = int(time.time())
    claims = {
        "tenant_id": checked(tenant, "tenant"),
        "sub": user,
        "scope": scopes,
        "iat": now,
        "exp": now + int(hours * SECONDS_AN_HOUR),
        "aud": settings.jwt_audience,
        "iss": settings.jwt_issuer,
    }
    return jwt.encode(claims, settings.jwt_secret.get_secret_value(), algorithm=ALGORITHM)


def known_scopes(text: str) -> str:
    """The scopes, one space between. Raises ValueError on one that no operation has, with those that are like it."""
    from subjects import registry

    contracts = registry.load()
    known = [EVERYTHING, *(f"{name}.*" for name in contracts.components), *sorted(contracts.calls)]
    wanted = text.replace(",", " ").split()
    for scope in wanted:
        if scope not in known:
            alike = difflib.get_close_matches(scope, known, n=3) or [f"{name}.*" for name in contracts.components]
            raise ValueError(
                f"no operation has the scope {scope!r}; did you mean {', '.join(alike)}? "
                f"A scope is component.operation, component.* or *; `faas contracts` lists the operations"
            )
    return " ".join(dict.fromkeys(wanted))


def run(tenant: str, user: str, *, scopes: str, hours: float) -> None:
    from subjects.contract import Fault

    try:
        scopes = known_scopes(scopes)
        show.line(sign(session.load(), tenant, user, scopes=scopes, hours=hours))
    except (ValueError, Fault) as error:
        raise typer.BadParameter(getattr(error, "detail", str(error))) from error
