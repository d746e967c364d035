"""Opens the one NATS connection of a process, with every bound that nats-py leaves open by default."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any

from nats import errors
from nats.aio.client import Server

from runtime.link import CONNECT_TIMEOUT_S, PENDING_BYTES, RECONNECT_MOST_S, Connection
from runtime.requests import Requests
from runtime.settings import Settings
from subjects.contract import Code, Fault

__all__ = ["Connection", "connect"]

PING_INTERVAL_S = 5  # with one ping outstanding a half-open link is found within 10 s
MAX_PINGS = 1
CONNECT_WITHIN_S = 30.0
FLUSH_TIMEOUT_S = 2.0
RECONNECT_FIRST_S = 0.05


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server tried least, after a jittered wait that grows to 2 s: a thousand processes do not come at once."""
    server = min(servers, key=lambda each: (each.reconnects, random.random()))
    most_s = min(RECONNECT_MOST_S, RECONNECT_FIRST_S * 2 ** min(server.reconnects, 10))
    return server, random.uniform(most_s / 2, most_s)


async def connect(
    settings: Settings,
    *,
    name: str,
    on_closed: Callable[[], None] | None = None,
    within_s: float = CONNECT_WITHIN_S,
) -> Connection:
    """Open the process's connection. name tells who it is (a token: it stands in the inbox subjects).

    on_closed: called when the connection has ended for good although nobody closed it: then exit the process.
    Raises Fault(UNAVAILABLE) when no server answers within within_s.
    """
    connection = Connection(on_closed)
    try:
        await asyncio.wait_for(_open(connection, settings, name), within_s)
    except (errors.Error, OSError, TimeoutError, ssl.SSLError) as error:
        await connection.close()
        raise Fault(Code.UNAVAILABLE, f"NATS does not answer within {within_s:.0f} s: is NATS_URL right?") from error
    connection.requests = Requests(connection, connection.new_inbox())
    await connection.listen(connection.requests.subject, connection.requests.on_reply)
    return connection


async def _open(connection: Connection, settings: Settings, name: str) -> None:
    await connection.connect(
        [url.strip() for url in settings.nats_url.split(",")],
        name=name,
        inbox_prefix=f"_INBOX.{name}",
        user_credentials=str(settings.nats_creds) if settings.nats_creds else None,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_MOST_S / 10,  # type: ignore[arg-type]  # seconds, a float is as good
        reconnect_to_server_handler=_next_server,
        connect_timeout=CONNECT_TIMEOUT_S,
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=MAX_PINGS,
        pending_size=PENDING_BYTES,
        flush_timeout=FLUSH_TIMEOUT_S,
        error_cb=connection.when_error,
        disconnected_cb=connection.when_disconnected,
        reconnected_cb=connection.when_reconnected,
        closed_cb=connection.when_closed,
    )
