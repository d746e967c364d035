"""What the routes share: open clients and the sign that this process is stopping."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from codec import headers as h
from runtime.client import Client
from runtime.connection import Connection
from runtime.identity import Identity
from runtime.settings import Settings
from store.objects import Objects
from subjects.contract import AnyCall, Code, Fault


@dataclass(frozen=True)
class Bridge:
    """Made once a process. stopping is set when it shall end: streams say so to their clients."""

    settings: Settings
    connection: Connection
    client: Client
    objects: Objects
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def permit(identity: Identity, call: AnyCall) -> None:
    """Raises Fault(FORBIDDEN) unless the token holds the operation's scope."""
    if not identity.allows(call.scope):
        raise Fault(Code.FORBIDDEN, f"the token needs the scope {call.scope}")


def location(job_id: str) -> dict[str, str]:
    return {h.LOCATION: f"/api/v1/jobs/{job_id}"}
